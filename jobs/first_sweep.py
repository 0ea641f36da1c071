"""Four kinds of model on three real datasets: 300 trials, the best of each dataset served and checked. A minute or two.

Run it here:          make demo, or python jobs/first_sweep.py, or tiltyard run jobs/first_sweep.py
Run it on a cluster:  tiltyard submit jobs/first_sweep.py
Vary it:              --trials 30 --datasets wine,digits --seed 1
"""

from tiltyard import (
    Champion,
    DatasetRef,
    Experiment,
    Halving,
    Objective,
    Search,
    Variant,
    choice,
    loguniform,
    main,
    randint,
    uniform,
)


def experiment() -> Experiment:
    """The whole sweep; vary it by an option or a derived copy, not with a second file."""
    return Experiment(
        name="first-sweep",
        variants=(
            Variant(
                name="logistic",
                model="logistic",
                trials=28,
                fixed={"optimizer": "adamw", "batch_size": 64},
                space={"lr": loguniform(1e-3, 1e-1), "weight_decay": loguniform(1e-6, 1e-1)},
            ),
            Variant(
                name="mlp",
                model="mlp",
                trials=36,
                fixed={"optimizer": "adamw", "batch_size": 64, "schedule": "cosine"},
                space={
                    "hidden": choice((64, 32), (128,)),
                    "lr": loguniform(5e-4, 5e-2),
                    "weight_decay": loguniform(1e-6, 1e-1),
                    "dropout": uniform(0.0, 0.5),
                    "label_smoothing": uniform(0.0, 0.1),
                },
            ),
            Variant(
                name="resmlp",
                model="resmlp",
                trials=24,
                fixed={"optimizer": "adamw", "batch_size": 64, "schedule": "cosine"},
                space={
                    "lr": loguniform(5e-4, 2e-2),
                    "weight_decay": loguniform(1e-6, 1e-1),
                    "dropout": uniform(0.0, 0.5),
                    "input_noise": uniform(0.0, 0.3),
                },
            ),
            Variant(
                name="lightgbm",
                model="lightgbm",
                trials=12,
                space={
                    "learning_rate": loguniform(0.03, 0.3),
                    "num_leaves": randint(4, 63, log=True),
                    "min_child_samples": randint(2, 40, log=True),
                    "reg_lambda": loguniform(1e-3, 10.0),
                },
            ),
        ),
        datasets=(DatasetRef("digits"), DatasetRef("breast-cancer"), DatasetRef("wine")),
        samples=("digits", "breast-cancer", "wine"),
        objective=Objective(metric="accuracy", also=("log_loss",)),
        search=Search(trials=100, halving=Halving(rungs=(3, 9, 27), keep=1 / 3), finalists=3),
        champion=Champion(alias="champion", serve=True),
        seed=0,
    )


if __name__ == "__main__":
    main(__file__)
