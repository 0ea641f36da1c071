"""The plan: which trials, in which groups, under which addresses."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard import Budget, DatasetRef, Experiment, Halving, Hyperband, Objective, Search, Variant, choice, uniform
from tiltyard.errors import SpecError
from tiltyard.sweep.plan import DatasetFacts, Plan, order_dependent, plan
from tiltyard.types import Task

CODE = "c" * 64


def facts(name: str = "digits", **changes: Any) -> DatasetFacts:
    known = DatasetFacts(
        name=name,
        version=3,
        content_digest=f"{name}-digest",
        features=("x",),
        task=Task.MULTICLASS,
        split_rows={"train": 60, "validation": 20, "test": 20},
        input_shape=(64,),
        num_outputs=10,
    )
    return replace(known, **changes)


FACTS = {name: facts(name) for name in ("digits", "wine")}


def variant(name: str = "mlp", **changes: Any) -> Variant:
    return Variant(**{"name": name, "model": name, "space": {"lr": uniform(0, 1)}, **changes})


def experiment(**changes: Any) -> Experiment:
    fields: dict[str, Any] = {
        "name": "demo",
        "variants": (variant(), variant("cnn")),
        "datasets": (DatasetRef("digits"), DatasetRef("wine")),
        "objective": Objective(metric="accuracy"),
        "search": Search(trials=8, halving=Halving(rungs=(1, 3), keep=0.5)),
    }
    return Experiment(**{**fields, **changes})


def planned(e: Experiment | None = None, code: str = CODE, **changes: Any) -> Plan:
    given_facts = {n: replace(f, **changes) if changes else f for n, f in FACTS.items()}
    return plan(e or experiment(), given_facts, code_digest=code)


def cells(p: Plan) -> list[str]:
    return [t.cell for t in p.trials]


# -- groups -----------------------------------------------------------------------------------------------------------


def test_plan_has_a_group_for_each_variant_on_each_dataset() -> None:
    made = planned()
    assert [g.name for g in made.groups] == ["mlp@digits", "cnn@digits", "mlp@wine", "cnn@wine"]
    assert all(g.rungs == (1, 3) and g.keep == 0.5 and len(g.trials) == 4 for g in made.groups)
    first = made.trials[0]
    assert (first.name, first.model, first.dataset_version, first.num_outputs) == ("mlp@digits/000", "mlp", 3, 10)
    assert len(set(cells(made))) == 16


def test_plan_twice_is_equal() -> None:
    assert planned() == planned()


def test_plan_without_halving_has_one_rung() -> None:
    made = planned(experiment(search=Search(trials=4, epochs=7)))
    assert {(g.rungs, g.keep) for g in made.groups} == {((7,), 1.0)}


def test_plan_of_more_trials_keeps_those_of_fewer() -> None:
    few, many = (planned(experiment(search=Search(trials=n, halving=Halving(rungs=(1, 3))))) for n in (6, 20))
    assert set(cells(few)) < set(cells(many))


HYPERBAND = Search(trials=2 * 17, halving=Hyperband(max_epochs=9))


def test_plan_with_hyperband_has_a_group_for_each_bracket() -> None:
    made = planned(experiment(search=HYPERBAND))
    assert [(g.name, len(g.trials), g.rungs) for g in made.groups[:4]] == [
        ("mlp@digits/b2", 9, (1, 3, 9)),
        ("mlp@digits/b1", 5, (3, 9)),
        ("mlp@digits/b0", 3, (9,)),
        ("cnn@digits/b2", 9, (1, 3, 9)),
    ]
    assert [t.index for g in made.groups[:3] for t in g.trials] == list(range(17))
    assert made.groups[1].trials[0].name == "mlp@digits/b1/009"
    assert all(t.group == g.name for g in made.groups for t in g.trials)


def test_cells_under_hyperband_are_those_of_any_training_of_that_length() -> None:
    halving = Search(trials=2 * 17, halving=Halving(rungs=(3, 9)))
    assert cells(planned(experiment(search=HYPERBAND))) == cells(planned(experiment(search=halving)))


# -- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data_seed": 1},
        {"objective": Objective(metric="accuracy", also=("log_loss",))},
        {"search": Search(trials=8, halving=Halving(rungs=(1, 4), keep=0.5))},
        {"include_sensitive": ("age",)},
        {"variants": (variant(fixed={"depth": 2}), variant("cnn", fixed={"depth": 2}))},
        {"variants": (variant(model="resmlp"), variant("cnn", model="linear"))},
    ],
)
def test_cells_with_anything_changed_that_the_result_depends_on_are_others(changes: dict[str, Any]) -> None:
    assert not set(cells(planned(experiment(**changes)))) & set(cells(planned()))


def test_cells_with_other_code_or_data_are_others() -> None:
    before = set(cells(planned()))
    assert not before & set(cells(planned(code="d" * 64)))
    assert not before & set(cells(planned(content_digest="changed")))


def test_key_and_cells_with_another_choice_of_features_are_others() -> None:
    fewer = planned(features=("x", "y"))
    assert not set(cells(fewer)) & set(cells(planned()))
    assert fewer.key != planned().key


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"description": "x", "tags": {"a": "b"}},
        {"budget": Budget(wall_s=60)},
        {"datasets": (DatasetRef("wine"), DatasetRef("digits"))},
        {"variants": (variant("cnn"), variant())},
        {"search": Search(trials=8, halving=Halving(rungs=(2, 3), keep=0.25), finalists=1)},
    ],
)
def test_cells_with_what_no_result_depends_on_changed_are_the_same(changes: dict[str, Any]) -> None:
    assert set(cells(planned(experiment(**changes)))) == set(cells(planned()))


def test_cells_of_a_renumbered_version_with_the_same_content_are_the_same() -> None:
    assert cells(planned(version=9)) == cells(planned())


def test_cells_after_a_default_field_is_added_are_the_same() -> None:
    class Later(Experiment):
        added: int = 3

    later = Later(**experiment().model_dump(mode="json", exclude_unset=True))
    assert planned(later) == planned()


def test_cells_written_down_earlier_are_the_same() -> None:
    # Raise CELL_SCHEMA, never these: results that exist are found by them.
    assert [t.cell[:16] for t in planned().trials[:2]] == ["89e6812fb95953b3", "ac67ec701ad0a225"]
    assert [t.seed for t in planned().trials[:2]] == [1661044703, 1347587550]


def test_seed_in_a_configuration_is_the_trials_seed() -> None:
    made = planned(experiment(variants=(variant(fixed={"seed": 7}),)))
    assert {t.seed for t in made.trials} == {7}


def test_seed_that_is_searched_gives_each_configuration_once_for_each_seed() -> None:
    searched = variant(space={"seed": choice(3, 5), "depth": choice(1, 2)})
    made = planned(experiment(variants=(searched,), search=Search(algorithm="grid", epochs=1)))
    digits = [t for t in made.trials if t.dataset == "digits"]
    assert sorted((t.seed, t.config["depth"]) for t in digits) == [(3, 1), (3, 2), (5, 1), (5, 2)]
    assert len({t.cell for t in digits}) == 4


@pytest.mark.parametrize("seed", [-1, 2**31, "x", 0.5, True])
def test_seed_in_a_configuration_that_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(SpecError, match="sets seed to"):
        planned(experiment(variants=(variant(fixed={"seed": seed}),)))


def test_plan_with_the_same_draw_twice_under_one_seed_has_one_trial() -> None:
    searched = variant(space={"depth": choice(1, 2)}, fixed={"seed": 0})
    made = planned(experiment(variants=(searched,), search=Search(trials=20, epochs=1)))
    assert Counter(t.dataset for t in made.trials) == {"digits": 2, "wine": 2}
    assert [t.index for t in made.groups[0].trials] == sorted(t.index for t in made.groups[0].trials)


def test_plan_with_one_trial_in_two_groups_is_refused_with_both_names() -> None:
    twins = (
        variant("a", model="mlp", space={}, fixed={"seed": 0}),
        variant("b", model="mlp", space={}, fixed={"seed": 0}),
    )
    with pytest.raises(SpecError, match=r"Variants 'a' and 'b' share a trial on digits"):
        planned(experiment(variants=twins))


# -- shares -----------------------------------------------------------------------------------------------------------


def shares(trials: int | None, *asked: int | None, algorithm: str = "random", **changes: Any) -> list[int]:
    made = tuple(variant(f"v{i}", trials=n, **changes) for i, n in enumerate(asked))
    numbers = {} if trials is None else {"trials": trials}
    search = Search(algorithm=algorithm, epochs=1, **numbers)
    e = experiment(variants=made, datasets=(DatasetRef("digits"),), search=search)
    return [len(g.trials) for g in planned(e).groups]


@pytest.mark.parametrize(
    ("trials", "asked", "expected"),
    [
        (10, (None, None, None), [4, 3, 3]),
        (10, (6, None, None), [6, 2, 2]),
        (100, (28, 36, 24, 12), [28, 36, 24, 12]),
        (200, (28, 36, 24, 12), [56, 72, 48, 24]),
        (10, (1, 1, 98), [1, 1, 8]),
        (2, (28, 36, 24, 12), [1, 1, 1, 1]),
        (1, (None, None), [1, 1]),
        (10, (50, None), [9, 1]),
    ],
)
def test_shares_of_trials_are_as_asked_or_scaled(
    trials: int, asked: tuple[int | None, ...], expected: list[int]
) -> None:
    assert shares(trials, *asked) == expected


@given(trials=st.integers(1, 60), asked=st.lists(st.none() | st.integers(1, 40), min_size=1, max_size=5))
def test_shares_of_trials_add_up_and_leave_nobody_out(trials: int, asked: list[int | None]) -> None:
    got = shares(trials, *asked)
    assert sum(got) == max(trials, len(asked))
    assert min(got) >= 1


def test_shares_with_a_variant_without_a_space_give_it_one_trial() -> None:
    made = (variant("a"), variant("b", space={}), variant("c"))
    for trials in (2, 9):
        e = experiment(variants=made, datasets=(DatasetRef("digits"),), search=Search(trials=trials, epochs=1))
        got = [len(g.trials) for g in planned(e).groups]
        assert got[1] == 1
        assert sum(got) == max(3, trials)


def test_shares_of_a_grid_without_a_number_are_all_of_it() -> None:
    space = {"a": choice(1, 2, 3), "b": choice(*range(40))}
    assert shares(None, None, algorithm="grid", space=space) == [120]
    assert shares(None, 5, None, algorithm="grid", space=space) == [5, 120]
    assert shares(7, None, algorithm="grid", space=space) == [7]
    assert shares(999, None, None, algorithm="grid", space=space) == [120, 120]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["roc_auc", "rmse"])
def test_plan_with_a_metric_that_the_task_has_not_names_those_it_has(metric: str) -> None:
    with pytest.raises(SpecError, match=rf"digits@3 is a multiclass task, which has no metric '{metric}'.*accuracy"):
        planned(experiment(objective=Objective(metric="accuracy", also=(metric,))))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_plan_on_a_dataset_with_an_empty_split_names_it(split: str) -> None:
    rows = {"train": 6, "validation": 2, "test": 0, split: 0}
    with pytest.raises(SpecError, match=f"no rows in its {split} split"):
        planned(split_rows=rows)


def test_plan_with_replicates_counts_them_and_sets_them_aside_from_the_budget() -> None:
    again = Search(trials=8, epochs=1, finalists=2, replicates=3)
    made = planned(experiment(search=again))
    assert (made.replicates, made.num_trials, len(made.trials)) == (12, 28, 16)
    held = planned(experiment(search=again, budget=Budget(trials=20)))
    assert held.num_trials == 20
    assert len(held.trials) == 8
    with pytest.raises(SpecError, match="at least 4 trials and 12 replicates of finalists"):
        planned(experiment(search=again, budget=Budget(trials=15)))


def test_search_with_one_replicate_is_refused_for_it_has_no_spread() -> None:
    with pytest.raises(SpecError, match="replicates is 1, which has no spread"):
        Search(trials=2, epochs=1, replicates=1)


@pytest.mark.parametrize(
    ("search", "variants", "said"),
    [
        (Search(epochs=1, generation=4), None, "search.generation is for algorithm='tpe'; found 'random'"),
        (Search(algorithm="tpe", halving=Hyperband(max_epochs=9)), None, "do not go together"),
        (Search(algorithm="tpe", epochs=1), (variant(fixed={"seed": 1}),), r"\['mlp'\] set a seed"),
    ],
)
def test_plan_with_fields_that_do_not_go_together_is_refused(
    search: Search, variants: tuple[Variant, ...] | None, said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        planned(experiment(search=search, **({"variants": variants} if variants else {})))


# -- a budget of trials -----------------------------------------------------------------------------------------------


def with_budget(trials: int, **search: Any) -> Plan:
    spec = Search(**{"trials": 20, "epochs": 1, **search})
    return planned(experiment(search=spec, budget=Budget(trials=trials)))


@given(trials=st.integers(4, 60), algorithm=st.sampled_from(["random", "sobol", "tpe"]))
def test_budget_of_trials_is_never_passed_and_leaves_nobody_out(trials: int, algorithm: str) -> None:
    made = with_budget(trials, algorithm=algorithm)
    assert made.num_trials == min(trials, 40)
    assert {(g.variant, g.dataset) for g in made.groups if g.trials} == {
        (v, d) for v in ("mlp", "cnn") for d in ("digits", "wine")
    }


def test_budget_of_trials_keeps_the_first_of_the_draws() -> None:
    assert set(cells(with_budget(13))) < set(cells(planned(experiment(search=Search(trials=20, epochs=1)))))


def test_budget_of_trials_caps_a_grid_too() -> None:
    made = experiment(
        variants=(variant(space={"a": choice(*range(9))}),),
        search=Search(algorithm="grid", epochs=1),
        budget=Budget(trials=7),
    )
    assert Counter(t.dataset for t in planned(made).trials) == {"digits": 4, "wine": 3}


def test_budget_of_fewer_trials_than_groups_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        SpecError, match=r"budget.trials is 3, but there are 2 variants on 2 datasets: at least 4 trials"
    ):
        with_budget(3)


# -- learning searches ------------------------------------------------------------------------------------------------


def test_plan_of_a_learning_search_draws_the_first_generation_and_says_what_is_to_come() -> None:
    made = planned(experiment(search=Search(trials=50, epochs=1, algorithm="tpe", generation=16)))
    assert [len(g.trials) for g in made.groups] == [16] * 4
    assert made.later == dict.fromkeys(["mlp@digits", "cnn@digits", "mlp@wine", "cnn@wine"], 9)
    assert made.num_trials == 100
    at_random = planned(experiment(search=Search(trials=50, epochs=1)))
    assert set(cells(made)) < set(cells(at_random))


def test_plan_of_a_learning_search_without_a_space_has_nothing_to_come() -> None:
    made = planned(
        experiment(variants=(variant(), variant("cnn", space={})), search=Search(trials=40, epochs=1, algorithm="tpe"))
    )
    assert [len(g.trials) for g in made.groups] == [16, 1] * 2
    assert set(made.later) == {"mlp@digits", "mlp@wine"}


def test_plan_of_a_learning_search_tries_every_point_in_the_first_generation() -> None:
    points = tuple({"lr": i / 10} for i in range(5))
    search = Search(trials=9, epochs=1, algorithm="tpe", generation=2, points={"mlp": points})
    made = planned(experiment(variants=(variant(),), search=search))
    assert [t.config for t in made.groups[0].trials] == list(points)
    assert made.later == {"mlp@digits": 4, "mlp@wine": 4}


# -- variants that train themselves -----------------------------------------------------------------------------------

OWN = variant("own", model="train:users_training:nearest")
TRAINABLE = variant("steps", model="tune:users_trainables:Steps")


def test_plan_puts_ray_tune_trainables_under_ray_tune_and_own_training_where_a_scheduler_is_asked_for() -> None:
    e = experiment(variants=(variant(), OWN, TRAINABLE))
    schedulers = {g.variant: (g.scheduler, g.rungs) for g in planned(e).groups}
    assert schedulers == {"mlp": ("", (1, 3)), "own": ("", (3,)), "steps": ("fifo", (3,))}
    assert order_dependent(e) == ()
    asha = e.model_copy(update={"search": Search(trials=8, halving=Halving(rungs=(1, 3)), scheduler="asha")})
    schedulers = {g.variant: (g.scheduler, g.rungs) for g in planned(asha).groups}
    assert schedulers == {"mlp": ("", (1, 3)), "own": ("asha", (3,)), "steps": ("asha", (3,))}
    assert order_dependent(asha) == ("own", "steps")
    assert cells(planned(asha)) == cells(planned(e)), "ASHA stops trials, it does not change what they come to"


def test_cells_under_pbt_are_those_of_that_experiment_alone() -> None:
    def made(**changes: Any) -> set[str]:
        search = Search(trials=4, epochs=3, scheduler="pbt")
        return set(cells(planned(experiment(variants=(TRAINABLE,), search=search, **changes))))

    assert made() == made()
    assert not made() & made(objective=Objective(metric="accuracy"), name="other")


@pytest.mark.parametrize(
    ("variants", "search", "told"),
    [
        ((variant(),), {"scheduler": "asha"}, "there is none"),
        ((OWN,), {"scheduler": "pbt"}, "variant 'own' reports scores alone"),
        ((TRAINABLE,), {"scheduler": "pbt", "algorithm": "tpe"}, "algorithm='tpe' chooses configurations too"),
    ],
)
def test_scheduler_that_fits_nothing_is_refused(variants: Any, search: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        planned(experiment(variants=variants, search=Search(trials=2, epochs=3, **search)))


def test_time_for_a_trial_is_part_of_the_cells_of_what_trains_itself_alone() -> None:
    def made(v: Variant, trial_s: float | None) -> list[str]:
        budget = Budget() if trial_s is None else Budget(trial_s=trial_s)
        return cells(planned(experiment(variants=(v,), search=Search(trials=2, epochs=3), budget=budget)))

    assert made(variant(), 5) == made(variant(), None)
    assert not set(made(OWN, 5)) & set(made(OWN, 6)) | set(made(OWN, 5)) & set(made(OWN, None))
