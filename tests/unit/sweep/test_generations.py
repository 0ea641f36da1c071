"""Learning searches by generations: what is suggested depends on the seed and on fates alone; TPE learns."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats

from tiltyard import Experiment, Halving, Objective, Search, Variant, choice, loguniform, randint, uniform
from tiltyard.errors import SpecError
from tiltyard.journal import CellScore
from tiltyard.sweep.engine.optuna_search import OptunaTpe, suggester_of
from tiltyard.sweep.generations import Fate, generations
from tiltyard.sweep.halving import Machine, PackDone, StartPack
from tiltyard.sweep.plan import DatasetFacts, Trial, plan
from tiltyard.types import DatasetRef, Mode, Task

FACTS = {
    "digits": DatasetFacts(
        name="digits",
        version=1,
        content_digest="d",
        features=("x",),
        task=Task.MULTICLASS,
        split_rows={"train": 60, "validation": 20},
        input_shape=(64,),
        num_outputs=10,
    )
}
Score = Callable[[Trial, int], float | str]
SPACE = {f"x{i}": uniform(0, 1) for i in range(6)}


def experiment(trials: int, *, seed: int = 0, space: Mapping[str, Any] | None = None, **search: Any) -> Experiment:
    return Experiment(
        name="demo",
        variants=(Variant(name="mlp", model="mlp", space=dict(SPACE if space is None else space)),),
        datasets=(DatasetRef("digits"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=trials, **{"algorithm": "tpe", "epochs": 1, **search}),
        seed=seed,
    )


class Sweep:
    """Packs of 16 through the real machine and the real generations; training is a function."""

    def __init__(self, e: Experiment, score: Score, known: dict[tuple[str, int], CellScore] | None = None) -> None:
        first = plan(e, FACTS, code_digest="c")
        self.known = {} if known is None else known
        self.trained = 0
        self._score = score
        self._machine = Machine(
            first.groups,
            metric="accuracy",
            mode=Mode.MAX,
            pack_size=lambda group, trials: 16,
            shape=lambda trial: "",
            known=self.known,
        )
        self.trials = list(first.trials)
        self._learning = generations(e, first, FACTS, code_digest="c", suggester=suggester_of(Mode.MAX))

    def run(self, pick: Callable[[int], int] = lambda n: 0, packs: int = 10_000) -> "Sweep":
        self._grow()
        for _ in range(packs):
            while self._machine.next() is not None:
                pass
            running = self._machine.running
            if not running:
                break
            self._end(running[pick(len(running))])
            self._grow()
        return self

    def _grow(self) -> None:
        for search in self._learning:
            while (group := search.next(self._machine.state_of)) is not None:
                self.trials += group.trials
                self._machine.add(group)

    def _end(self, pack: StartPack) -> None:
        by_cell = {t.cell: t for t in self.trials}
        scores = {}
        for cell in pack.cells:
            value = self._score(by_cell[cell], pack.to_epoch)
            failed = value if isinstance(value, str) else None
            metrics = {} if isinstance(value, str) else {"accuracy": value}
            scores[cell] = CellScore(
                cell=cell, epoch=pack.to_epoch, metrics=metrics, storage_uri="", pack_id="", attempt=1, failed=failed
            )
        self.known.update({(c, pack.to_epoch): s for c, s in scores.items()})
        self.trained += len(scores)
        self._machine.report(PackDone(pack.pack_id, scores))

    @property
    def states(self) -> dict[str, Any]:
        return {t.cell: self._machine.state_of(t.cell) for t in self.trials}

    @property
    def best(self) -> float:
        return max(float(s.score) for s in self.states.values() if s.score is not None)


def bowl(trial: Trial, epoch: int) -> float | str:
    x = trial.config["x0"]
    return "diverged" if x > 0.95 else 1 - (x - 0.3) ** 2 - 0.1 / epoch


@given(data=st.data())
@examples(max_examples=15)
def test_generations_with_packs_ending_in_any_order_suggest_the_same(data: st.DataObject) -> None:
    e = experiment(40, generation=8, epochs=None, halving=Halving(rungs=(1, 3), keep=0.5))
    undisturbed = Sweep(e, bowl).run()
    shuffled = Sweep(e, bowl).run(lambda n: data.draw(st.integers(0, n - 1)))
    assert shuffled.states == undisturbed.states
    assert len(undisturbed.trials) == 40
    assert [t.index for t in undisturbed.trials] == list(range(40))
    assert len({t.cell for t in undisturbed.trials}) == 40
    groups = list(dict.fromkeys(t.group for t in undisturbed.trials))
    assert groups == ["mlp@digits", *(f"mlp@digits/g{i}" for i in range(1, 5))]


@pytest.mark.slow
@given(packs=st.integers(0, 12))
@examples(max_examples=10)
def test_generations_resumed_from_what_is_known_go_on_as_if_undisturbed(packs: int) -> None:
    e = experiment(36, generation=8, epochs=None, halving=Halving(rungs=(1, 3), keep=0.5))
    undisturbed = Sweep(e, bowl).run()
    killed = Sweep(e, bowl).run(packs=packs)
    resumed = Sweep(e, bowl, known=dict(killed.known)).run()
    assert resumed.states == undisturbed.states
    assert resumed.trained == undisturbed.trained - killed.trained


def test_generations_with_other_results_suggest_others() -> None:
    e = experiment(24, generation=8)
    one, other = (Sweep(e, lambda t, _, s=sign: s * t.config["x0"]).run() for sign in (1, -1))  # type: ignore[misc]
    configs = [[t.config for t in sweep.trials] for sweep in (one, other)]
    assert configs[0][:8] == configs[1][:8]
    assert configs[0][8:] != configs[1][8:]


def test_generations_that_all_fail_end_with_every_trial_tried() -> None:
    sweep = Sweep(experiment(24, generation=8), lambda t, e: "diverged").run()
    assert {s.state for s in sweep.states.values()} == {"failed"}
    assert len(sweep.trials) == 24


# -- what Optuna is told ----------------------------------------------------------------------------------------------


CONDITIONAL = Variant(
    name="c",
    model="mlp",
    fixed={"depth": 2},
    space={
        "momentum": uniform(0.5, 0.99).when(optimizer="sgd"),
        "hidden": choice((64,), (32, 16)),
        "optimizer": choice("sgd", "adamw"),
        "units": randint(4, 64, log=True),
        "lr": loguniform(1e-4, 1e-1),
        "deep": uniform(0, 1).when(depth=3),
    },
)


def fate(index: int, **changes: Any) -> Fate:
    config = {"hidden": (64,), "optimizer": "adamw", "units": 8, "lr": 0.01, **changes.pop("config", {})}
    return Fate(**{"index": index, "config": config, "state": "done", "epoch": 9, "score": 0.5, **changes})


def test_ask_of_a_conditional_space_keeps_to_conditions_and_ranges() -> None:
    tpe = OptunaTpe(CONDITIONAL, Mode.MAX)
    tpe.tell([fate(i, score=i / 9) for i in range(8)])
    configs = tpe.ask(range(8, 40), seed=1)
    for config in configs:
        assert ("momentum" in config) is (config["optimizer"] == "sgd")
        assert "deep" not in config
        assert config["hidden"] in {(64,), (32, 16)}
        assert 4 <= config["units"] <= 64
        assert 1e-4 <= config["lr"] <= 1e-1
    assert len({repr(c) for c in configs}) == 32


def test_ask_with_the_same_seed_and_history_suggests_the_same() -> None:
    told = []
    for seed in (1, 1, 2):
        tpe = OptunaTpe(CONDITIONAL, Mode.MAX)
        tpe.tell(
            [fate(1, score=0.4), fate(0, state="stopped", epoch=3, score=0.2), fate(2, state="failed", score=None)]
        )
        told.append(tpe.ask(range(3, 9), seed=seed))
    assert told[0] == told[1] != told[2]


def test_tell_records_losers_as_pruned_and_failures_as_failed() -> None:
    tpe = OptunaTpe(CONDITIONAL, Mode.MIN)
    tpe.tell([fate(0)])
    configs = tpe.ask([1, 2, 3], seed=0)
    tpe.tell(
        [
            fate(2, config=configs[1], state="stopped", epoch=3, score=0.7),
            fate(1, config=configs[0], score=0.4),
            fate(3, config=configs[2], state="failed", epoch=0, score=None),
        ]
    )
    told = [(t.state.name, t.value, t.intermediate_values) for t in tpe.history]
    assert told == [
        ("COMPLETE", 0.5, {9: 0.5}),
        ("COMPLETE", 0.4, {9: 0.4}),
        ("PRUNED", 0.7, {3: 0.7}),
        ("FAIL", None, {}),
    ]


def test_tell_of_a_point_outside_the_space_leaves_out_what_does_not_fit() -> None:
    tpe = OptunaTpe(CONDITIONAL, Mode.MAX)
    tpe.tell([fate(0, config={"lr": 5.0, "hidden": (7,), "units": 9, "optimizer": "adamw"})])
    assert tpe.history[0].params == {"optimizer": 1, "units": 9}


def test_space_whose_conditions_go_in_a_circle_is_refused() -> None:
    circle = {"a": choice(1, 2).when(b=1), "b": choice(1, 2).when(a=1)}
    with pytest.raises(SpecError, match="in a circle"):
        OptunaTpe(Variant(name="v", model="mlp", space=circle), Mode.MAX)


# -- does it learn, and is random random ------------------------------------------------------------------------------

ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
BEST = 3.32237


def hartmann6(trial: Trial, epoch: int) -> float:
    """Dixon & Szego 1978; its largest value is 3.32237 at (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)."""
    x = np.array([trial.config[f"x{i}"] for i in range(6)])
    return float(ALPHA @ np.exp(-(A * (x - P) ** 2).sum(axis=1)))


def test_hartmann6_at_its_best_point_has_the_known_value() -> None:
    x = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
    at = plan(experiment(1), FACTS, code_digest="c").trials[0]
    object.__setattr__(at, "config", {f"x{i}": v for i, v in enumerate(x)})
    assert hartmann6(at, 1) == pytest.approx(BEST, abs=1e-4)


@pytest.mark.slow
def test_tpe_in_packs_of_16_on_hartmann6_over_20_seeds_beats_random() -> None:
    trials, seeds = 96, range(20)
    learned = [Sweep(experiment(trials, seed=s), hartmann6).run().best for s in seeds]
    at_random = [Sweep(experiment(trials, seed=s, algorithm="random"), hartmann6).run().best for s in seeds]
    test = stats.wilcoxon(learned, at_random, alternative="greater")
    told = f"TPE {np.median(learned):.3f}, random {np.median(at_random):.3f}, p = {test.pvalue:.2g}"
    assert test.pvalue < 0.01, told
    assert np.median(BEST - np.array(learned)) < 0.7 * np.median(BEST - np.array(at_random)), told


def test_random_in_packs_draws_what_random_draws() -> None:
    space = {
        "lr": loguniform(1e-4, 1e-1),
        "units": randint(1, 6),
        "act": choice("a", "b", "c"),
        "drop": uniform(0.1, 0.6),
    }
    sweep = Sweep(experiment(1500, seed=5, space=space, algorithm="random"), lambda t, e: 0.5).run()
    mine = [t.config for t in sweep.trials if sweep.states[t.cell].state == "done"]
    assert len(mine) == 1500
    rng = np.random.default_rng(5)
    other = {
        "lr": np.exp(rng.uniform(math.log(1e-4), math.log(1e-1), 1500)),
        "drop": rng.uniform(0.1, 0.6, 1500),
    }
    for name, theirs in other.items():
        assert stats.ks_2samp([c[name] for c in mine], theirs).pvalue > 0.01, name
    for name, values in (("units", range(1, 7)), ("act", ("a", "b", "c"))):
        counts = [sum(c[name] == v for c in mine) for v in values]
        assert stats.chisquare(counts).pvalue > 0.01, (name, counts)
