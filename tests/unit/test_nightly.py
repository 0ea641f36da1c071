"""Nights: once a date, in any company; resumed where they were killed; never replayed; held by a person."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiltyard import actions
from tiltyard.distributions import loguniform
from tiltyard.errors import SpecError
from tiltyard.evaluation.spec import Evaluation
from tiltyard.experiment import Experiment, Objective, Search, Variant
from tiltyard.governance.policy import Alert, Drifted, Policy, Retrain, Rule
from tiltyard.journal import Journal, Owner, TrialRow, TrialUpdate
from tiltyard.nightly import Engines, Night, history, logical_date, run_night
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.retrain import WarmStart, decided, of_model, warm_start, warmed
from tiltyard.settings import Settings
from tiltyard.sweep.space import draw
from tiltyard.testing.bundles import small_bundle

pytestmark = pytest.mark.slow  # a real MLflow
NIGHT = Night(name="small", model="s.small", dataset="small", job="jobs/first_sweep.py")


class Counted:
    """Engines that count what was asked of them; a sweep brings version 2 as candidate. `Engines.real` is run in
    tests/local_ray."""

    def __init__(self, settings: Settings, version: int = 1) -> None:
        self.settings, self.version = settings, version
        self.evaluated: list[Evaluation] = []
        self.trained: list[Retrain] = []
        self.before_end: Callable[[], None] = lambda: None

    def engines(self) -> Engines:
        def evaluate(_: Settings, spec: Evaluation) -> list[Any]:
            self.evaluated.append(spec)
            return []

        def train(settings: Settings, action: Retrain, model: str, _: str) -> None:
            assert model == NIGHT.model
            self.trained.append(action)
            ModelRegistry(settings).set_alias("s.small", "candidate", 2)
            self.before_end()

        return Engines(evaluate=evaluate, train=train, newest=lambda *_: self.version)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("nightly")
    settings = Settings.from_env({"TILTYARD_HOME": str(folder)})
    registry = ModelRegistry(settings)
    for seed in range(2):
        registry.register("s.small", small_bundle(folder / f"small{seed}", seed=seed).folder)
    return settings


@pytest.fixture
def settings(home: Settings, tmp_path: Path) -> Settings:
    registry = ModelRegistry(home)
    registry.promote("s.small", 1)
    registry.set_alias("s.small", "candidate", 1)
    return replace(home, journal_uri=f"sqlite:///{tmp_path / 'journal.db'}")


def test_night_with_fresh_data_evaluates_trains_and_compares_once_a_date(settings: Settings) -> None:
    counted = Counted(settings)
    first = run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines())
    assert (first.outcome, first.ran, first.version) == ("waiting", True, 1)
    assert any("version 2 is @candidate" in s for s in first.steps)
    assert [s.models for s in counted.evaluated] == [("s.small",), ("s.small", "s.small@2")]
    assert counted.trained == [Retrain(job="jobs/first_sweep.py", cpu_hours=1.0)]
    again = run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines())
    assert (again.outcome, again.ran, again.steps) == ("waiting", False, first.steps)
    assert len(counted.evaluated) == 2


def test_night_without_a_new_version_records_that_nothing_was_done(settings: Settings) -> None:
    counted = Counted(settings)
    run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines())
    second = run_night(settings, NIGHT, date="2026-11-21", engines=counted.engines())
    assert second.outcome == "nothing changed"
    assert "nothing changed, nothing done" in second.steps[-1]
    assert len(counted.trained) == 1
    counted.version = 2
    third = run_night(settings, NIGHT, date="2026-11-25", engines=counted.engines())
    assert "3 nights since 2026-11-21 were missed; they are skipped" in third.steps
    assert len(counted.trained) == 1  # the candidate keeps gathering evidence: tonight's winner does not replace it
    with Journal.open(settings.journal_uri) as journal:
        assert [n.outcome for n in history(journal, "small")] == ["waiting", "nothing changed", "waiting"]


def test_night_of_an_earlier_date_after_a_later_one_is_not_replayed(settings: Settings) -> None:
    counted = Counted(settings)
    run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines())
    counted.version = 2
    late = run_night(settings, NIGHT, date="2026-11-19", engines=counted.engines())
    assert (late.outcome, late.ran) == ("late", False)
    assert len(counted.evaluated) == 2


def test_night_that_was_killed_goes_on_behind_its_last_step(settings: Settings) -> None:
    counted = Counted(settings)

    def killed() -> None:
        raise KeyboardInterrupt

    counted.before_end = killed
    with pytest.raises(KeyboardInterrupt):
        run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines())
    with Journal.open(settings.journal_uri) as journal:
        assert history(journal, "small")[0].outcome.startswith("failed: KeyboardInterrupt")
    counted.before_end = lambda: None
    result = run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines())
    assert (result.outcome, result.ran) == ("waiting", True)
    # the first evaluation has its outcome and is not repeated; the sweep has none and is (it answers from its own record)
    assert [s.models for s in counted.evaluated] == [("s.small",), ("s.small", "s.small@2")]
    assert len(counted.trained) == 2


def test_night_on_hold_does_nothing_until_it_is_resumed(settings: Settings) -> None:
    counted = Counted(settings)
    with Journal.open(settings.journal_uri) as journal:
        actions.hold(journal, "night/small", by="ann", reason="moving house")
    held = run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines())
    assert (held.outcome, held.steps) == ("held", ("on hold by ann: moving house",))
    with Journal.open(settings.journal_uri) as journal:
        actions.resume(journal, "night/small", by="ann", reason="moved")
    assert run_night(settings, NIGHT, date="2026-11-20", engines=counted.engines()).ran


def test_night_started_after_its_date_is_run_or_skipped_as_it_says_and_old_ones_never(settings: Settings) -> None:
    counted = Counted(settings)
    skips, day = replace(NIGHT, missed="skip"), "2026-11-20"

    def run(night: Night, today: str) -> str:
        return run_night(settings, night, date=day, today=today, engines=counted.engines()).outcome

    assert run(skips, "2026-11-21") == "skipped"
    assert run(NIGHT, "2026-11-22") == "skipped"
    assert counted.evaluated == []
    assert run(NIGHT, "2026-11-21") == "waiting"
    assert run(skips, "2026-11-30") == "waiting"  # it was done: answered from the record
    with Journal.open(settings.journal_uri) as journal:
        (told,) = (d for d in journal.decisions(subject="night/small") if d.outcome == "skipped")
    assert "the night of 2026-11-20 was missed" in told.reasons[0]
    assert told.actor == "night small"


def earlier_sweep(
    journal: Journal, key: str, variant: str, *tried: tuple[float, float], dataset: str = "small"
) -> None:
    """A sweep of experiment ``s``: a learning rate and its score each."""
    claim = journal.claim(key, experiment="s", spec="{}", owner=Owner.here())
    rows = [
        TrialRow(
            cell=f"{key[:8]}{i}", key=key, group=f"{variant}@{dataset}", index=i, variant=variant, model="mlp", dataset=dataset,
            dataset_version=1, config={"lr": lr, "hidden": (8,)}, seed=i, data_seed=0,
        )
        for i, (lr, _) in enumerate(tried)
    ]  # fmt: skip
    journal.add_trials(claim, rows)
    states = [TrialUpdate(cell=r.cell, state="done", epoch=2, score=s) for r, (_, s) in zip(rows, tried, strict=True)]
    journal.set_trial_states(claim, states)
    journal.release(claim, state="done", summary={})


def test_sweep_of_a_night_begins_with_the_champions_configuration_and_the_best_of_the_sweep_before(
    settings: Settings,
) -> None:
    registry = ModelRegistry(settings)
    variant = registry.get("s.small", alias="champion").lineage.variant
    experiment = Experiment(
        name="s",
        variants=(
            Variant(name=variant, model="mlp", fixed={"hidden": (8,)}, space={"lr": loguniform(1e-3, 1.0)}),
            Variant(name="other", model="mlp", space={"lr": loguniform(1e-3, 0.03)}),
        ),
        datasets=("small",),
        objective=Objective(metric="accuracy"),
        search=Search(trials=20, epochs=2),
        seed=5,
    )
    with Journal.open(settings.journal_uri) as journal:
        earlier_sweep(journal, "a" * 64, "other", (0.05, 0.9), (0.02, 0.8), (0.01, 0.7))
        found = warm_start(journal, registry, experiment)
        assert found.points["other"] == ({"lr": 0.02}, {"lr": 0.01})  # the best is outside of today's space
        earlier_sweep(journal, "b" * 64, variant, (0.5, 0.6), (0.2, 0.9), (0.1, 0.85), (0.3, 0.8), (0.4, 0.7))
        begun = decided(journal, registry, experiment, actor="night s", once="night s/2026-11-20")
        own = registry.get("s.small", alias="champion").lineage.config
        champion = ({"lr": 0.1},) if list(own.get("hidden", [8])) == [8] else ()
        assert begun.points[variant] == tuple(
            {c["lr"]: c for c in (*champion, *({"lr": v} for v in (0.2, 0.1, 0.3)))}.values()
        )
        earlier_sweep(journal, "c" * 64, variant, (0.9, 0.99))
        again = decided(journal, registry, experiment, actor="night s", once="night s/2026-11-20")
        assert again == begun  # a night that was killed goes on with the same sweep
        assert journal.decisions(kind="warm_start")[0].actor == "night s"
    sweep = warmed(experiment, begun)
    assert sweep.seed == 7  # two sweeps before: none of their draws comes again
    first = draw(sweep.variants[0], algorithm="random", n=5, seed=sweep.seed, points=sweep.search.points[variant])
    assert [c["lr"] for c in first][: len(begun.points[variant])] == [p["lr"] for p in begun.points[variant]]
    assert warmed(experiment, WarmStart(points={}, seed=5)) == experiment


RACER = """
import sys, time
from dataclasses import replace
from tiltyard.nightly import Engines, Night, run_night
from tiltyard.settings import Settings
settings = replace(Settings.from_env(), journal_uri=sys.argv[1])
def evaluate(*_):
    with open(sys.argv[2], "a") as file:
        file.write("evaluated\\n")
    print("evaluating", flush=True)
    time.sleep(float(sys.argv[3]))
    return []
night = Night(name="small", model="s.small", dataset="small")
engines = Engines(evaluate=evaluate, train=lambda *_: None, newest=lambda *_: 1)
print("ready", flush=True)
sys.stdin.readline()
print(run_night(settings, night, date="2026-11-20", engines=engines).ran)
"""


def racer_of(settings: Settings, work: Path, seconds: float) -> subprocess.Popen[str]:
    env = {"TILTYARD_HOME": str(settings.home), "PATH": "/usr/bin:/bin", "HOME": str(work.parent)}  # what cron gives
    return subprocess.Popen(
        [sys.executable, "-c", RACER, settings.journal_uri, str(work), str(seconds)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_night_killed_with_kill_9_is_taken_over_by_the_next_start(settings: Settings, tmp_path: Path) -> None:
    with racer_of(settings, tmp_path / "work", 300) as racer:
        try:
            assert racer.stdin is not None
            assert racer.stdout is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
            assert [racer.stdout.readline() for _ in range(2)] == ["ready\n", "evaluating\n"]
        finally:
            racer.kill()
    counted = Counted(settings)
    result = run_night(settings, replace(NIGHT, job=""), date="2026-11-20", engines=counted.engines())
    assert (result.outcome, result.ran) == ("watched", True)
    with Journal.open(settings.journal_uri) as journal:
        assert [n.outcome for n in history(journal, "small")] == ["watched"]


def test_night_started_by_racing_processes_does_its_work_once(settings: Settings, tmp_path: Path) -> None:
    work = tmp_path / "work"
    racers = [racer_of(settings, work, 0.5) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    ran = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0
        ran.append(out.split()[-1])
    assert sorted(ran) == ["False", "True"]
    assert work.read_text() == "evaluated\n"


def test_night_as_json_comes_back_equal_and_wrong_ones_are_told() -> None:
    policy = Policy(name="p", rules=(Rule(name="d", when=Drifted(), then=Alert()),))
    night = replace(NIGHT, policy=policy)
    assert Night.from_json(json.loads(json.dumps(night.to_json()))) == night
    assert logical_date(0) == "1970-01-01"
    for wrong in ({"cpu_hours": 0}, {"hours": 1}, {"missed": "all"}, {"schema_version": 9}):
        with pytest.raises(SpecError):
            Night.from_json({"name": "n", "model": "m", "dataset": "d", **wrong})


def test_retrain_of_a_job_of_several_datasets_sweeps_that_of_the_model_alone(settings: Settings) -> None:
    several = Experiment(
        name="s",
        variants=(Variant(name="log", model="logistic", space={"lr": loguniform(1e-3, 1e-1)}),),
        datasets=("small", "other@3"),
        objective=Objective(metric="accuracy"),
        search=Search(trials=4, epochs=2),
    )
    assert [str(d) for d in of_model(several, "s.other", "job.py").datasets] == ["other@3"]
    assert of_model(several, "s.small", "job.py").search == several.search
    with pytest.raises(SpecError, match=r"job\.py makes s\.small, s\.other; wanted t\.small"):
        of_model(several, "t.small", "job.py")
    with Journal.open(settings.journal_uri) as journal:
        earlier_sweep(journal, "a" * 64, "log", (0.01, 0.5))
        earlier_sweep(journal, "b" * 64, "log", (0.05, 0.9), dataset="other")
        begun = warm_start(journal, ModelRegistry(settings), of_model(several, "s.small", "job.py"))
    assert [dict(p) for p in begun.points["log"]] == [{"lr": 0.01}]
