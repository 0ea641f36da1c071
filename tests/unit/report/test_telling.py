"""What is told about a launch: the plan only where something runs, what failed, and whether served scores are equal."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tiltyard.distributions import loguniform
from tiltyard.experiment import Budget, Experiment, Halving, Objective, Search, Variant
from tiltyard.report.telling import Teller
from tiltyard.report.terminal import SteadyConsole
from tiltyard.settings import Settings
from tiltyard.sweep import leaderboard as ranking
from tiltyard.sweep.plan import DatasetFacts, Plan, plan
from tiltyard.types import DatasetRef, Mode, Task

EXPERIMENT = Experiment(
    name="demo",
    variants=(Variant(name="mlp", model="mlp", fixed={"batch_size": 8}, space={"lr": loguniform(1e-4, 1e-1)}),),
    datasets=(DatasetRef("wine"),),
    objective=Objective(metric="accuracy"),
    search=Search(trials=3, halving=Halving(rungs=(1, 2))),
)


def planned() -> Plan:
    facts = DatasetFacts(
        name="wine",
        version=1,
        content_digest="d" * 64,
        features=("x",),
        task=Task.MULTICLASS,
        split_rows={"train": 60, "validation": 20, "test": 20},
        input_shape=(13,),
        num_outputs=3,
    )
    return plan(EXPERIMENT, {"wine": facts}, code_digest="c" * 64)


def outcome(state: str, *, failed: str | None = None, pending: int = 0) -> Any:
    the_plan = planned()
    results = [
        ranking.Result(
            cell=t.cell,
            name=t.name,
            variant=t.variant,
            dataset=t.dataset,
            index=t.index,
            state="failed" if failed and t.index == 2 else "done",
            epoch=2,
            score=None if failed and t.index == 2 else 0.9,
            reason=failed if t.index == 2 else None,
            config=t.config,
        )
        for t in the_plan.trials
    ]
    board = ranking.leaderboard(
        experiment="demo",
        key=the_plan.key,
        metric="accuracy",
        mode=Mode.MAX,
        results=results,
        tests={},
        tied=frozenset(),
    )
    return SimpleNamespace(
        state=state,
        reason="stopped by Ctrl-C" if state == "stopped" else None,
        plan=the_plan,
        leaderboard=board,
        results=results,
        tracker=SimpleNamespace(pending=pending, error="connection refused"),
        layout=SimpleNamespace(home="/somewhere/storage/abc"),
    )


def teller(width: int = 140) -> tuple[Teller, io.StringIO]:
    out = io.StringIO()
    return Teller(EXPERIMENT, SteadyConsole(file=out, width=width, no_color=True, highlight=False)), out


def test_teller_of_a_known_plan_prints_its_key_and_no_table() -> None:
    tell, out = teller()
    tell.planned(planned(), known=3)
    assert planned().key[:12] in out.getvalue()
    assert "compared after epochs" not in out.getvalue()


def test_teller_of_a_plan_with_training_of_a_users_own_says_when_a_trial_without_a_limit_is_ended() -> None:
    out = io.StringIO()
    own = Variant(name="mine", model="train:users_training:nearest", fixed={"scale": 1.0})
    for budget, told in ((Budget(), True), (Budget(trial_s=60), False)):
        told_of = EXPERIMENT.model_copy(update={"variants": (own, *EXPERIMENT.variants), "budget": budget})
        tell = Teller(told_of, SteadyConsole(file=out, width=140, no_color=True, highlight=False))
        tell.planned(planned(), known=0)
        tell.close()
        line = "mine: no budget.trial_s is set, so a trial that reports no new epoch for 4 hours is ended"
        assert (line in out.getvalue()) == told
        out.truncate(0)


def test_teller_of_a_new_plan_prints_the_table_and_then_progress() -> None:
    tell, out = teller()
    tell.planned(planned(), known=0)
    tick = SimpleNamespace(
        states={"running": 2, "done": 1},
        best={"wine": (0.9, "mlp@wine/001")},
        paused=None,
        elapsed_s=3.0,
        packs_running=1,
        work_done=0.5,
    )
    tell.tick(cast(Any, tick))
    tell.close()
    text = out.getvalue()
    assert "compared after epochs" in text
    assert "1/3 trials | 2 running" in text
    assert "wine 0.9000 (mlp@wine/001)" in text


def test_teller_of_a_result_with_a_failure_names_the_trial_and_the_reason() -> None:
    tell, out = teller()
    tell.result(outcome("finished", failed="diverged: log_loss is not a finite number", pending=4))
    text = out.getvalue()
    assert "1 trials failed; the first: mlp@wine/002: diverged: log_loss is not a finite number" in text
    assert "4 records did not reach MLflow yet (connection refused)" in text


def test_teller_of_a_reused_or_stopped_result_says_so_first_or_last() -> None:
    tell, out = teller()
    tell.result(outcome("reused"))
    assert "the answer is from the record" in out.getvalue()
    tell, out = teller()
    tell.result(outcome("stopped"))
    assert "Stopped by Ctrl-C. All that was finished is kept" in out.getvalue()


def test_teller_of_served_champions_says_equal_or_by_how_much_they_differ() -> None:
    tell, out = teller()
    rows: dict[str, Any] = {"rows": 39, "served": 0.97, "offline": 0.97}
    same = SimpleNamespace(model="demo.wine@1", equal=True, largest_difference=0.0, **rows)
    other = SimpleNamespace(model="demo.digits@4", equal=False, largest_difference=0.25, **rows)
    tell.served(cast(Any, [same, other]))
    equal, differs = [line for line in out.getvalue().splitlines() if "demo." in line]
    assert equal.rstrip().endswith("equal")
    assert differs.rstrip().endswith("differs by 0.25")


def test_teller_at_the_end_names_every_place_and_three_commands() -> None:
    tell, out = teller()
    settings = Settings.from_env({"TILTYARD_HOME": str(Path("/home/of/it"))})
    tell.end(settings, outcome("finished"), [], 12.3)
    text = out.getvalue()
    for told in (settings.journal_uri, settings.tracking_uri, settings.data_uri, "/somewhere/storage/abc"):
        assert told in text
    commands = [line for line in text.splitlines() if line.strip().startswith("tiltyard ")]
    assert len(commands) == 3
    assert "3 trials in 12 s." in text


def test_end_tells_where_everything_is_without_the_passwords(tmp_path: Path) -> None:
    told, out = teller()
    settings = Settings.from_env(
        {
            "TILTYARD_HOME": str(tmp_path),
            "TILTYARD_JOURNAL_URI": "postgresql://ann:s3cret@db/journal",
            "TILTYARD_TRACKING_URI": "https://ann:s3cret@mlflow.example:5000",
            "TILTYARD_DATA_URI": "s3://key:s3cret@bucket/data",
        }
    )
    told.end(settings, outcome("done"), [], 1.0)
    assert "s3cret" not in out.getvalue()
    assert "postgresql://ann:***@db/journal" in out.getvalue()
    assert "https://ann:***@mlflow.example:5000" in out.getvalue()
