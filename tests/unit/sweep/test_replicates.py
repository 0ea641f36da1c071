"""Replicates of finalists: the statistics beside scipy's, who joins the plan, and what the leaderboard then says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats

from tiltyard import Budget, DatasetRef, Experiment, Halving, Hyperband, Objective, Search, Variant, choice, uniform
from tiltyard.sweep.engine.optuna_search import suggester_of
from tiltyard.sweep.generations import generations
from tiltyard.sweep.growth import Growth, result_of
from tiltyard.sweep.halving import Machine, PackDone, StartPack
from tiltyard.sweep.leaderboard import Leaderboard, Result, finalists, leaderboard, rank, standing
from tiltyard.sweep.plan import DatasetFacts, Trial, plan
from tiltyard.sweep.replicates import difference, not_apart, spread
from tiltyard.types import Mode, Task

values = st.lists(st.floats(-10, 10).map(lambda v: round(v, 3)), min_size=2, max_size=12)


@given(values)
def test_interval_of_a_mean_is_that_of_scipy(sample: list[float]) -> None:
    found = spread(sample)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    low, high = stats.ttest_1samp(sample, 0).confidence_interval(0.95) if np.ptp(sample) else (found.mean, found.mean)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert spread(sample[:1]) == replace(found, mean=sample[0], low=None, high=None, num=1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=10), st.sampled_from(list(Mode)))
def test_difference_of_two_finalists_is_scipys_paired_t_test(pairs: list[tuple[float, float]], mode: Mode) -> None:
    best, other = dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs))
    found = difference(best, other, mode)
    assert found is not None
    assert found.mean == pytest.approx(mode.sign * np.mean([a - b for a, b in pairs]))
    if np.std([a - b for a, b in pairs]) > 1e-6:
        assert found.p == pytest.approx(stats.ttest_rel(list(best.values()), list(other.values())).pvalue, abs=1e-9)
    assert difference(best, {99: 0.5}, mode) is None


def test_difference_that_is_the_same_each_time_is_sure_and_none_is_none() -> None:
    same = difference({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6}, Mode.MAX)
    less = difference({1: 0.5, 2: 0.625}, {1: 0.25, 2: 0.375}, Mode.MAX)
    assert same is not None
    assert less is not None
    assert (same.p, less.p) == (1.0, 0.0)
    assert not_apart({"same": same, "less": less, "unpaired": None}) == {"same", "unpaired"}


def test_comparison_of_equal_finalists_calls_them_apart_no_more_often_than_it_says() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        runs = rng.normal(0.9, 0.01, size=(4, 5))
        best, *others = runs[np.argsort(-runs.mean(1))] if _ % 2 else runs
        told = {str(i): difference(dict(enumerate(best)), dict(enumerate(o)), Mode.MAX) for i, o in enumerate(others)}
        wrong += bool(_ % 2 == 0 and len(not_apart(told)) < 3)
    assert wrong <= 0.05 * 200 + 3 * math.sqrt(0.05 * 0.95 * 200)


# -- who joins --------------------------------------------------------------------------------------------------------

FACTS = {
    name: DatasetFacts(
        name=name,
        version=1,
        content_digest=name,
        features=("x",),
        task=Task.MULTICLASS,
        split_rows={"train": 60, "validation": 20},
        input_shape=(4,),
        num_outputs=3,
    )
    for name in ("digits", "wine")
}


@dataclass(frozen=True)
class Score:
    metrics: Mapping[str, float] = field(default_factory=dict)
    failed: str | None = None


def experiment(**search: Any) -> Experiment:
    fields = {"trials": 10, "halving": Halving(rungs=(1, 3), keep=0.5), "finalists": 2, "replicates": 3, **search}
    return Experiment(
        name="demo",
        variants=tuple(Variant(name=n, model=n, space={"lr": uniform(0, 1)}) for n in ("mlp", "cnn")),
        datasets=(DatasetRef("digits"), DatasetRef("wine")),
        objective=Objective(metric="accuracy"),
        search=Search(**fields),
    )


class Sweep:
    """A whole sweep over the real machine and growth; a trial's score is a function of it."""

    def __init__(
        self,
        e: Experiment,
        known: dict[tuple[str, int], Score] | None = None,
        check: Callable[[Trial], str | None] = lambda _: None,
        *,
        grow: bool = True,
    ) -> None:
        self.known = {} if known is None else known
        first = plan(e, FACTS, code_digest="c")
        self.growth = Growth(
            experiment=e,
            plan=first,
            learning=generations(e, first, FACTS, code_digest="c", suggester=suggester_of(Mode.MAX)),
            facts=FACTS,
            code_digest="c",
            known=self.known,
            check=check,
        )
        self.machine = Machine(
            self.growth.plan.groups,
            metric="accuracy",
            mode=Mode.MAX,
            pack_size=lambda group, trials: 2,
            shape=lambda trial: str(trial.data_seed),
            known=self.known,
            refused=self.growth.refused,
        )
        self.started: list[StartPack] = []
        if grow:
            self.growth.grow(self.machine, lambda _: None)

    def run(self, data: st.DataObject | None = None, packs: int = 10_000) -> Sweep:
        for _ in range(packs):
            while (pack := self.machine.next()) is not None:
                self.started.append(pack)
            running = self.machine.running
            if not running:
                break
            pack = running[0 if data is None else data.draw(st.integers(0, len(running) - 1))]
            scores = {c: self.score(c, pack.to_epoch) for c in pack.cells}
            self.known |= {(c, pack.to_epoch): s for c, s in scores.items()}
            self.machine.report(PackDone(pack.pack_id, scores))
            self.growth.grow(self.machine, lambda _: None)
        return self

    def score(self, cell: str, epoch: int) -> Score:
        trial = self.trials[cell]
        if trial.seed % 11 == 3:
            return Score(failed="diverged")
        return Score({"accuracy": round(trial.config["lr"] * epoch / 4 + trial.seed % 7 / 50, 3)})

    @property
    def trials(self) -> dict[str, Trial]:
        return {t.cell: t for t in self.growth.plan.trials}

    @property
    def results(self) -> list[Result]:
        found = []
        for cell, trial in self.trials.items():
            s = self.machine.state_of(cell)
            found.append(result_of(trial, s.state, s.epoch, s.score, s.reason, ()))
        return found


def test_replicates_join_when_every_trial_of_the_search_has_ended_and_train_each_finalist_again() -> None:
    sweep = Sweep(experiment()).run()
    made = sweep.growth.plan
    assert (made.replicates, made.num_trials) == (0, len(made.trials))
    for dataset in FACTS:
        of = [r for r in sweep.results if r.dataset == dataset]
        best = finalists(of, Mode.MAX, 2)
        again = [sweep.trials[r.cell] for r in of if r.replicate]
        assert sorted({(t.variant, t.index) for t in again}) == sorted((r.variant, r.index) for r in best)
        assert len(again) == 6
        seeds: dict[str, set[int]] = {}
        for t in again:
            seeds.setdefault(t.group.rpartition("/")[2], set()).add(t.data_seed)
        assert all(len(s) == 1 for s in seeds.values()), "finalists are compared on the same order of rows"
        assert len({t.data_seed for t in again}) == 3
        assert len({t.seed for t in again}) == 6
        assert not {t.data_seed for t in again} & {0}
    assert {r.epoch for r in sweep.results if r.replicate and r.state == "done"} == {3}
    by_cell = sweep.trials
    assert all(len({by_cell[c].data_seed for c in pack.cells}) == 1 for pack in sweep.started)


@examples(max_examples=30)
@given(data=st.data(), packs=st.integers(0, 30))
def test_replicates_of_a_sweep_in_any_order_or_resumed_anywhere_are_the_same(data: st.DataObject, packs: int) -> None:
    e = experiment()
    undisturbed = Sweep(e).run()
    shuffled = Sweep(e).run(data, packs)
    resumed = Sweep(e, dict(shuffled.known)).run(data)
    expected = {(r.cell, r.state, r.score) for r in undisturbed.results}
    assert {(r.cell, r.state, r.score) for r in resumed.results} == expected
    trained = [(c, p.to_epoch) for p in resumed.started for c in p.cells]
    assert len(trained) == len(set(trained))
    assert not set(trained) & set(shuffled.known)


def test_search_in_which_every_trial_fails_has_no_replicates_and_ends() -> None:
    e = experiment()
    sweep = Sweep(e)
    sweep.score = lambda cell, epoch: Score(failed="diverged")  # type: ignore[method-assign]
    sweep.run()
    assert sweep.machine.done
    assert sweep.growth.plan.replicates == 0
    assert {r.state for r in sweep.results} == {"failed"}


def test_suggestion_that_cannot_be_trained_fails_with_the_reason_and_the_search_goes_on_and_is_resumed() -> None:
    e = experiment(algorithm="tpe", generation=4, trials=24, replicates=2)

    def check(trial: Trial) -> str | None:
        return "lr is too large" if trial.config["lr"] > 0.6 and "/g" in trial.group else None

    sweep = Sweep(e, check=check).run()
    refused = {r.cell for r in sweep.results if r.reason == "lr is too large"}
    assert refused == set(sweep.growth.refused)
    assert refused
    assert {r.state for r in sweep.results if r.cell in refused} == {"failed"}
    assert not refused & {c for pack in sweep.started for c in pack.cells}
    assert len([r for r in sweep.results if not r.replicate]) == 48
    resumed = Sweep(e, dict(sweep.known), check=check)
    assert not resumed.run().started
    assert {(r.cell, r.state, r.score) for r in resumed.results} == {(r.cell, r.state, r.score) for r in sweep.results}


def test_later_trial_that_cannot_be_trained_fails_with_the_reason_and_the_others_go_on() -> None:
    first = {t.index for t in Sweep(experiment()).run().trials.values() if t.group.startswith("mlp@wine/s1")}
    sweep = Sweep(experiment(), check=lambda trial: "lr is -1" if trial.group == "mlp@wine/s1" else None).run()
    refused = [r for r in sweep.results if r.name.startswith("mlp@wine/s1")]
    assert first
    assert sweep.machine.done
    assert len(refused) == len(first)
    assert {(r.state, r.reason, r.epoch) for r in refused} <= {("failed", "lr is -1", 0)}
    assert set(sweep.growth.refused) == {r.cell for r in refused}


# -- waves ------------------------------------------------------------------------------------------------------------


@examples(max_examples=30)
@given(data=st.data(), packs=st.lists(st.integers(0, 8), min_size=1, max_size=3))
def test_trials_that_are_added_at_any_moment_are_those_of_a_larger_search_and_a_resume_adds_them_again(
    data: st.DataObject, packs: list[int]
) -> None:
    e = experiment(halving=data.draw(st.sampled_from([Halving(rungs=(1, 3), keep=0.5), Hyperband(max_epochs=3)])))
    larger = plan(e.with_options(trials=60), FACTS, code_digest="c")
    sweep, added = Sweep(e), []
    for n in packs:
        sweep.run(data, n)
        name, trials = data.draw(st.sampled_from(["mlp", "cnn"])), data.draw(st.integers(1, 4))
        if sweep.growth.why_not(name, "wine", trials) is None:
            sweep.growth.add_wave(name, "wine", trials)
            added.append((name, trials))
            sweep.growth.grow(sweep.machine, lambda _: None)
    sweep.run(data)
    assert sweep.machine.done
    searched = [t for t in sweep.trials.values() if not t.group.partition("/")[2].startswith("s")]
    assert len(searched) == 20 + sum(n for _, n in added)
    assert {t.cell for t in searched} <= {t.cell for t in larger.trials}
    assert {t.group.partition("/")[2][:2] for t in searched if t.group.partition("/")[2].startswith("w")} == {
        f"w{i}" for i in range(1, len(added) + 1)
    }

    resumed = Sweep(e, dict(sweep.known), grow=False)
    for name, trials in added:
        resumed.growth.add_wave(name, "wine", trials)
    resumed.growth.grow(resumed.machine, lambda _: None)
    assert set(resumed.trials) == set(sweep.trials)
    assert not resumed.run().started
    assert {(r.name, r.state, r.score) for r in resumed.results} == {(r.name, r.state, r.score) for r in sweep.results}


def test_trials_cannot_be_added_where_there_are_none_to_add() -> None:
    why = Sweep(experiment(replicates=0)).growth.why_not
    assert why("mlp", "wine", 5) is None
    assert why("tree", "wine", 5) == "there is no variant 'tree'; there are: mlp, cnn"
    assert why("mlp", "beer", 5) == "there is no dataset 'beer'; there are: digits, wine"
    ended = Sweep(experiment()).run().growth
    assert "being trained again" in str(ended.why_not("mlp", "wine", 5))
    held = Sweep(experiment(replicates=0).model_copy(update={"budget": Budget(trials=22)})).growth
    assert held.why_not("mlp", "wine", 2) is None
    assert held.why_not("mlp", "wine", 3) == "20 trials are planned and budget.trials is 22"
    grid = Experiment(
        name="demo",
        variants=(Variant(name="mlp", model="mlp", space={"lr": choice(0.1, 0.2)}),),
        datasets=(DatasetRef("digits"), DatasetRef("wine")),
        objective=Objective(metric="accuracy"),
        search=Search(algorithm="grid", epochs=1),
    )
    assert (
        Sweep(grid).growth.why_not("mlp", "wine", 1)
        == "every combination of the grid of 'mlp' on wine is planned already"
    )


# -- what the leaderboard says ----------------------------------------------------------------------------------------


def line(index: int, score: float | None, number: int = 0, state: str = "done") -> Result:
    group = f"mlp@digits/s{number}" if number else "mlp@digits"
    return Result(
        cell=f"c{index}.{number}",
        name=f"{group}/{index:03d}",
        variant="mlp",
        dataset="digits",
        index=index,
        state=state,
        epoch=9,
        score=score,
        reason=None,
        config={"lr": 0.1},
    )


def board(rows: list[Result], tests: Mapping[str, float] | None = None) -> Leaderboard:
    return leaderboard(
        experiment="demo",
        key="k",
        metric="accuracy",
        mode=Mode.MAX,
        results=rows,
        tests={},
        tied=frozenset(),
        replicate_tests=tests,
    )


LUCKY = [line(0, 0.99), line(1, 0.95), line(2, 0.9)] + [
    line(i, s, r) for i, scores in ((0, (0.90, 0.91, 0.92)), (1, (0.94, 0.95, 0.96))) for r, s in enumerate(scores, 1)
]


def test_finalist_that_was_lucky_stands_below_one_that_is_better_on_average() -> None:
    rows = board(LUCKY).tables["digits"]
    assert [r.name for r in rows] == ["mlp@digits/001", "mlp@digits/000", "mlp@digits/002"]
    best, lucky, other = rows
    assert best.replicates is not None
    assert lucky.replicates is not None
    assert other.replicates is None
    assert lucky.replicates.luck == pytest.approx(0.08)
    assert best.replicates.luck == pytest.approx(0.0)
    assert best.replicates.behind_best is None
    assert lucky.replicates.behind_best is not None
    assert lucky.replicates.behind_best.mean == pytest.approx(0.04)
    assert not lucky.tied_with_best
    assert [r.index for r in finalists(LUCKY, Mode.MAX, 2)] == [1, 0]


def test_finalists_whose_replicates_overlap_cannot_be_told_apart() -> None:
    rows = [line(0, 0.99), line(1, 0.95)]
    rows += [
        line(i, s, r)
        for i, scores in ((0, (0.90, 0.97, 0.92)), (1, (0.94, 0.90, 0.96)))
        for r, s in enumerate(scores, 1)
    ]
    first, second = board(rows).tables["digits"]
    assert (first.tied_with_best, second.tied_with_best) == (False, True)


def test_replicates_that_were_looked_at_on_the_test_split_are_compared_there() -> None:
    tests = {r.cell: 0.5 + 0.01 * (r.replicate % 2) + 0.001 * r.replicate * r.index for r in LUCKY if r.replicate}
    lucky = board(LUCKY, tests).tables["digits"][1]
    assert lucky.replicates is not None
    assert lucky.replicates.test is not None
    assert lucky.replicates.test.mean == pytest.approx(0.5 + 0.02 / 3)
    assert lucky.replicates.behind_best is not None
    assert lucky.replicates.behind_best.mean == pytest.approx(0.002)
    assert lucky.tied_with_best


def test_replicates_that_failed_are_counted_and_left_out_of_the_mean() -> None:
    rows = [*LUCKY[:3], *(replace(r, state="failed", score=None) if r.replicate == 2 else r for r in LUCKY[3:])]
    best = board(rows).tables["digits"][0]
    assert best.replicates is not None
    assert best.replicates.validation is not None
    assert (best.replicates.num, best.replicates.failed, best.replicates.validation.num) == (3, 1, 2)


@given(st.lists(st.sampled_from(["done", "failed", "planned", "running"]), min_size=6, max_size=6))
def test_standing_while_replicates_run_is_the_rank_and_never_loses_a_trial(states: list[str]) -> None:
    again = zip(LUCKY[3:], states, strict=True)
    rows = [*LUCKY[:3], *(replace(r, state=s, score=r.score if s == "done" else None) for r, s in again)]
    ordered = standing(rows, Mode.MAX)
    assert sorted(r.index for r in ordered) == [0, 1, 2]
    if set(states) - {"done", "failed"}:
        assert ordered == rank(rows[:3], Mode.MAX)


def test_leaderboard_with_replicates_reads_back_equal_and_one_of_version_1_without() -> None:
    made = board(LUCKY)
    assert Leaderboard.from_json(made.to_json()) == made
    old = board(LUCKY[:3]).to_json() | {"schema_version": 1}
    for row in old["tables"]["digits"]:
        del row["replicates"]
    assert Leaderboard.from_json(old) == board(LUCKY[:3])
