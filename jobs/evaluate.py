"""The champion of digits on every version of the data that it has not met. Seconds a version.

Run it here:          python jobs/evaluate.py, or tiltyard evaluate run jobs/evaluate.py
Run it on a cluster:  ray job submit --working-dir . -- python jobs/evaluate.py
Run it again:         it does what is new, and answers the rest from the record
"""

from tiltyard import Evaluation, evaluate_main


def evaluation() -> Evaluation:
    """Test rows alone: the model was not trained on them, nor chosen by them."""
    return Evaluation(
        dataset="digits",
        models=("first-sweep.digits@champion",),
        rows="test",
        alpha=0.05,
        least_effect=0.01,
    )


if __name__ == "__main__":
    evaluate_main(__file__)
