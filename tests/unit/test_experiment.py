"""An experiment is a value: it reads back as it was written, its key means its work, and what is wrong is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard import (
    Budget,
    Champion,
    DatasetRef,
    Experiment,
    Halving,
    Hyperband,
    Objective,
    Resources,
    Search,
    Variant,
    choice,
    loguniform,
    randint,
    uniform,
)
from tiltyard.errors import SpecError

DIGESTS = {"digits": "d" * 64, "wine": "w" * 64, "new": "n" * 64}
CODE = "c" * 64
MLP = Variant(name="mlp", model="mlp", space={"lr": loguniform(1e-3, 1e-1)})


def experiment(**changes: Any) -> Experiment:
    fields: dict[str, Any] = {
        "name": "demo",
        "variants": (MLP,),
        "datasets": (DatasetRef("digits"), DatasetRef("wine", 2)),
        "objective": Objective(metric="accuracy"),
        "search": Search(trials=8, halving=Halving(rungs=(1, 3))),
    }
    return Experiment(**{**fields, **changes})


def key(e: Experiment, code: str = CODE, **digests: str) -> str:
    return e.key({**DIGESTS, **digests}, code)


# -- round trip -------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
reals = st.floats(-1e6, 1e6)
scalars = st.one_of(st.booleans(), st.integers(-99, 99), reals, st.text(max_size=4), st.none())
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
spaces = st.dictionaries(
    st.text("xyz", min_size=1, max_size=2),
    st.one_of(
        st.just(uniform(0, 1)),
        st.just(loguniform(1e-3, 1)),
        st.just(randint(1, 9, log=True)),
        st.lists(values, min_size=1, max_size=3, unique_by=repr).map(lambda v: choice(*v)),
    ),
    min_size=1,
    max_size=3,
)
variants = st.builds(
    Variant,
    name=names,
    model=st.just("mlp"),
    fixed=st.dictionaries(st.text("abc", min_size=1, max_size=2), values, max_size=3),
    space=spaces,
    trials=st.none() | st.integers(1, 50),
)
halvings = st.one_of(
    st.builds(
        Halving,
        rungs=st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True).map(lambda r: tuple(sorted(r))),
        keep=st.floats(0.1, 0.9),
    ),
    st.builds(Hyperband, max_epochs=st.integers(1, 81), eta=st.integers(2, 4)),
)
searches = st.one_of(
    st.builds(Search, trials=st.integers(1, 99), algorithm=st.sampled_from(["random", "sobol"]), halving=halvings),
    st.builds(Search, trials=st.integers(1, 99), epochs=st.integers(1, 9), finalists=st.integers(1, 5)),
)
experiments = st.builds(
    Experiment,
    name=names,
    variants=st.lists(variants, min_size=1, max_size=3, unique_by=lambda v: v.name).map(tuple),
    datasets=st.lists(
        st.builds(DatasetRef, names, st.none() | st.integers(1, 9)), min_size=1, max_size=3, unique_by=lambda d: d.name
    ).map(tuple),
    objective=st.builds(Objective, metric=st.sampled_from(["accuracy", "log_loss"]), also=st.just(("f1_macro",))),
    search=searches,
    resources=st.builds(Resources, cpus=st.floats(0.5, 4), pack=st.just("auto") | st.integers(1, 64)),
    budget=st.builds(Budget, wall_s=st.none() | st.floats(1, 1e6)),
    seed=st.integers(0, 2**31 - 1),
    champion=st.none() | st.builds(Champion, serve=st.booleans()),
    description=st.text(max_size=9),
    tags=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


@given(e=experiments)
def test_experiment_through_json_reads_back_equal_with_the_same_key(e: Experiment) -> None:
    again = Experiment.from_json(e.to_json())
    assert again == e
    assert again.to_json() == e.to_json()
    digests = {d.name: "d" * 64 for d in e.datasets}
    assert again.key(digests, CODE) == e.key(digests, CODE)


def test_to_json_writes_what_was_set_and_nothing_else() -> None:
    data = json.loads(experiment().to_json())
    assert set(data) == {"name", "variants", "datasets", "objective", "search"}
    assert data["search"] == {"trials": 8, "halving": {"rungs": [1, 3]}}
    assert data["datasets"] == ["digits", "wine@2"]


def test_experiment_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        experiment().seed = 1  # type: ignore[misc]


# -- the key ----------------------------------------------------------------------------------------------------------


def test_key_of_an_experiment_written_down_by_an_earlier_version_is_the_same() -> None:
    # Raise MEANING, never this digest: it stands for journals that exist.
    assert key(experiment()) == "c65f83e3c6d7d6bfc001a970a2c78a8c305d960f2a028ced9724412cab00980e"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"data_seed": 1},
        {"objective": Objective(metric="log_loss")},
        {"search": Search(trials=9, halving=Halving(rungs=(1, 3)))},
        {"search": Search(trials=8, halving=Halving(rungs=(1, 4)))},
        {"variants": (Variant(name="mlp", model="mlp", space={"lr": loguniform(1e-3, 0.2)}),)},
        {"variants": (Variant(name="mlp", model="mlp", fixed={"x": 1}, space={"lr": loguniform(1e-3, 1e-1)}),)},
        {"include_sensitive": ("age",)},
        {"datasets": (DatasetRef("digits"),)},
    ],
)
def test_key_with_other_work_is_another(changes: dict[str, Any]) -> None:
    assert key(experiment(**changes)) != key(experiment())


def test_key_with_other_code_or_data_is_another() -> None:
    assert key(experiment(), code="e" * 64) != key(experiment())
    assert key(experiment(), digits="e" * 64) != key(experiment())


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "for people"},
        {"tags": {"who": "me"}},
        {"datasets": (DatasetRef("wine", 2), DatasetRef("digits"))},
        {"datasets": (DatasetRef("digits", 7), DatasetRef("wine"))},  # the digest says which rows; the number does not
    ],
)
def test_key_with_the_same_work_told_otherwise_is_the_same(changes: dict[str, Any]) -> None:
    assert key(experiment(**changes)) == key(experiment())


def test_key_after_a_default_field_is_added_is_the_same() -> None:
    class Later(Experiment):
        added: int = 3

    later = Later(**json.loads(experiment().to_json()))
    assert later.added == 3
    assert key(later) == key(experiment())


def test_key_without_a_datasets_digest_names_it() -> None:
    with pytest.raises(SpecError, match="'wine'"):
        experiment().key({"digits": "d" * 64}, CODE)


# -- derived copies ---------------------------------------------------------------------------------------------------


def test_with_options_changes_what_was_asked_and_nothing_else() -> None:
    e = experiment(variants=(MLP,), seed=3)
    derived = e.with_options(trials=2, datasets=["new", "digits@4"], seed=5)
    assert (derived.search.trials, derived.seed) == (2, 5)
    assert derived.datasets == (DatasetRef("new"), DatasetRef("digits", 4))
    assert derived.search.halving == e.search.halving
    assert e.with_options() == e
    assert key(e.with_options()) == key(e)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "search.trials"),
        ({"seed": -1}, "seed"),
        ({"datasets": ["No Name"]}, "'No Name' is not a name"),
        ({"datasets": ["wine@x"]}, "whole number above 0"),
        ({"datasets": ["wine", "wine@2"]}, "'wine' stands twice"),
    ],
)
def test_with_options_that_cannot_be_right_is_refused(options: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        experiment().with_options(**options)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: experiment(colour=1), "colour: no such field; check its spelling"),
        (lambda: experiment(search={"trials": 8, "epochs": 1, "epoch": 2}), "search.epoch: no such field"),
        (lambda: experiment(variants=()), "no variants; give at least one"),
        (lambda: experiment(datasets=()), "no datasets; give at least one"),
        (lambda: experiment(variants=(MLP, MLP)), "variant 'mlp' stands twice"),
        (lambda: experiment(name="No Name"), "'No Name' is not a name"),
        (lambda: experiment(name="x" * 101), "1 to 100"),
        (lambda: experiment(seed=2**31), "seed: .*less than"),
        (lambda: experiment(budget={"wall_s": -1}), r"budget.wall_s: .*greater than 0; found -1"),
        (lambda: Budget(cpu_hours=-0.5), r"cpu_hours: .*greater than 0; found -0.5"),
        (lambda: Budget(wall_s=float("nan")), "wall_s: .*NaN"),
        (lambda: Resources(cpus=0), "cpus: .*greater than 0"),
        (lambda: Resources(pack="many"), "pack"),
        (lambda: Objective(metric="acuracy"), "no metric 'acuracy'; known: accuracy, "),
        (lambda: Objective(metric="log_loss", mode="max"), "log_loss is better when smaller"),
        (lambda: Search(trials=0, epochs=1), "trials: .*greater than or equal to 1; found 0"),
        (lambda: Search(trials=1), "neither halving nor epochs"),
        (lambda: Search(trials=1, epochs=2, halving=Halving(rungs=(2,))), "both halving and epochs"),
        (lambda: Search(epochs=1, algorithm="bayes"), "algorithm: .*'random'.*found 'bayes'"),
        (lambda: Halving(rungs=(3, 3)), r"rising order; found \(3, 3\)"),
        (lambda: Halving(rungs=()), "rising order"),
        (lambda: Halving(rungs=(0, 1)), "above 0"),
        (lambda: Halving(rungs=(1, 2), keep=1), "keep: .*less than 1"),
        (lambda: Search(halving={"rungs": [3, 2]}), r"halving: rungs are epochs"),
        (lambda: Search(halving={"max_epochs": 0}), "halving.max_epochs: .*found 0"),
        (lambda: Variant(name="m", model=""), "model"),
        (lambda: Variant(name="m", model="mlp", fixed={"lr": float("nan")}), "fixed.lr: nan: NaN and inf"),
        (
            lambda: Variant(name="m", model="mlp", fixed={"lr": object()}),
            "fixed.lr: a hyperparameter is .*found object",
        ),
        (lambda: Variant(name="m", model="mlp", space={"lr": 0.1}), "space.lr: a distribution is wanted.*found 0.1"),
        (
            lambda: Variant(name="m", model="mlp", space={"lr": {"kind": "uniform", "low": 2, "high": 1}}),
            "space.lr.*reversed",
        ),
        (lambda: Variant(name="m", model="mlp", fixed={"lr": 1}, space={"lr": uniform(0, 1)}), "keep each in one"),
        (
            lambda: Variant(name="m", model="mlp", space={"b": uniform(0, 1).when(a=1)}),
            "b is drawn only if a has some value, but a is neither fixed nor in space",
        ),
        (lambda: Variant(name="m", model="mlp", space={"b": uniform(0, 1).when(b=1)}), "names another parameter"),
        (
            lambda: Variant(name="m", model="mlp", space={"a": choice("x"), "b": uniform(0, 1).when(a=["x", "z"])}),
            r"only if a is 'z', which is not among its choices \('x',\)",
        ),
        (lambda: experiment(variants=(Variant(name="m", model="mlp"),)), "empty space, yet 8 trials"),
        (
            lambda: experiment(variants=(MLP, Variant(name="m", model="mlp", trials=2))),
            "'m' has an empty space, yet 2 trials",
        ),
        (
            lambda: experiment(search=Search(trials=2, epochs=1, points={"cnn": ({},)})),
            r"search.points names \['cnn'\], which are not variants",
        ),
        (lambda: experiment(search=Search(epochs=1, algorithm="grid")), r"a grid needs choices.*\['lr'\] are ranges"),
        (lambda: DatasetRef("a", 0), "version 0; versions count from 1"),
        (lambda: DatasetRef("a", "3"), "version '3'; versions"),  # type: ignore[arg-type]
        (lambda: DatasetRef.parse("a@"), "whole number above 0"),
        (lambda: DatasetRef.parse("a@²"), "whole number above 0"),
        (lambda: Experiment.from_json('{"name": '), "line 1 is not"),
        (lambda: Experiment.from_json("[]"), "found list"),
        (lambda: Experiment.from_json("{}"), "variants: Field required"),
    ],
)
def test_experiment_that_cannot_be_right_is_refused_with_the_reason(build: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        build()
    assert "function-after" not in str(error.value)


def test_experiment_with_several_mistakes_names_them_all() -> None:
    with pytest.raises(SpecError) as error:
        experiment(seed=-1, data_seed=-1, colour=1)
    assert all(name in str(error.value) for name in ("seed", "data_seed", "colour"))


def test_variant_without_a_space_beside_others_is_allowed_once() -> None:
    alone = Variant(name="fixed", model="mlp", fixed={"lr": 0.1})
    assert experiment(variants=(MLP, alone)).variants[1] == alone
