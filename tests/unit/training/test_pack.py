"""The life of a pack: made, trained, left, cut, merged, saved, restored; and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tiltyard.errors import ModelError, TiltyardError, TrainingError, UnpackableError
from tiltyard.training import Member, Pack, PackSpec, members_of, pack_signature
from tiltyard.types import Task


def pack_of(world: Any, count: int = 4, model: str = "mlp", **changes: Any) -> Pack:
    return Pack.create(
        world.spec(model, **changes),
        [Member(name=f"m{i}", seed=i, lr=0.01, dropout=0.1 * i) for i in range(count)],
    )


@pytest.fixture
def multiclass(worlds: Any) -> Any:
    return worlds["multiclass"]


def test_pack_keeps_members_in_the_order_asked_for(multiclass: Any, params_of: Any) -> None:
    pack = pack_of(multiclass)
    pack.train_epoch(multiclass.batches())
    kept = pack.keep(["m3", "m0"])
    assert [m.name for m in kept.members] == ["m3", "m0"]
    assert (kept.epoch, kept.step) == (pack.epoch, pack.step) == (1, 3)
    assert torch.equal(params_of(kept, "m3"), params_of(pack, "m3"))
    kept.train_epoch(multiclass.batches(1))
    assert not torch.equal(params_of(kept, "m3"), params_of(pack, "m3")), "a kept pack has parameters of its own"


def test_pack_asked_for_a_member_it_has_not_names_it(multiclass: Any) -> None:
    pack = pack_of(multiclass)
    for ask in (lambda: pack.keep(["m1", "nobody"]), lambda: pack.extract("nobody")):
        with pytest.raises(TrainingError, match="nobody"):
            ask()


def test_packs_at_other_epochs_or_specs_are_not_merged(multiclass: Any) -> None:
    pack = pack_of(multiclass)
    ahead = pack_of(multiclass)
    ahead.train_epoch(multiclass.batches())
    with pytest.raises(TrainingError, match=r"epoch 0.*epoch 1|epoch 0 and 1"):
        Pack.merge([pack.keep(["m0"]), ahead.keep(["m1"])])
    other = pack_of(multiclass, optimizer="sgd")
    with pytest.raises(TrainingError, match=r"optimizer.*'adamw'.*'sgd'"):
        Pack.merge([pack.keep(["m0"]), other.keep(["m1"])])
    with pytest.raises(TrainingError, match=r"two members.*'m0'"):
        Pack.merge([pack.keep(["m0"]), pack.keep(["m0"])])
    with pytest.raises(TrainingError, match="no packs"):
        Pack.merge([])


def test_checkpoint_of_a_pack_brings_back_all_of_it(multiclass: Any, tmp_path: Path, params_of: Any) -> None:
    pack = pack_of(multiclass)
    pack.train_epoch(multiclass.batches())
    pack.save(tmp_path / "at1")
    back = Pack.load(tmp_path / "at1")
    assert back.spec == pack.spec
    assert back.members == pack.members
    assert (back.epoch, back.step) == (1, 3)
    for p in (pack, back):
        p.train_epoch(multiclass.batches(1))
    for name in ("m0", "m1", "m2", "m3"):
        assert torch.equal(params_of(back, name), params_of(pack, name)), "to the last bit"


def test_checkpoint_keeps_who_has_failed(multiclass: Any, tmp_path: Path) -> None:
    pack = Pack.create(multiclass.spec("mlp"), [Member(name="ok", seed=1), Member(name="bad", seed=1, lr=1e38)])
    for epoch in range(2):
        pack.train_epoch(multiclass.batches(epoch))
    pack.save(tmp_path)
    assert list(pack.failures()) == ["bad"]
    assert Pack.load(tmp_path).failures() == pack.failures()
    assert Pack.load(tmp_path, names=["ok"]).failures() == {}


def test_checkpoint_written_over_an_older_one_is_the_newer(multiclass: Any, tmp_path: Path) -> None:
    pack = pack_of(multiclass)
    for epoch in range(3):
        pack.train_epoch(multiclass.batches(epoch))
        pack.save(tmp_path)
    assert Pack.load(tmp_path).epoch == 3
    assert len(list(tmp_path.iterdir())) == 2, "no file of the older ones is left"


def test_checkpoint_of_a_newer_schema_is_refused_with_what_to_do(multiclass: Any, tmp_path: Path) -> None:
    pack_of(multiclass).save(tmp_path)
    path = tmp_path / "pack.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(ModelError, match=r"schema version 99.*Install"):
        Pack.load(tmp_path)
    with pytest.raises(ModelError, match=r"No checkpoint.*nowhere"):
        Pack.load(tmp_path / "nowhere")


def test_scores_of_a_pack_are_those_of_its_outputs(world: Any) -> None:
    pack = pack_of(world, 3)
    x, y = world.rows(33, 4)
    metric = {"regression": "rmse", "multilabel": "f1_macro"}.get(str(world.task), "accuracy")
    from tiltyard.training import scores

    assert np.array_equal(pack.score(x, y, [metric])[metric], scores(world.task, pack.predict(x), y, [metric])[metric])


# -- what is refused -------------------------------------------------------------------------------------------------


def test_pack_of_no_members_or_of_two_with_one_name_is_refused(multiclass: Any) -> None:
    with pytest.raises(TrainingError, match="no members"):
        Pack.create(multiclass.spec(), [])
    with pytest.raises(TrainingError, match="came as a dict"):
        Pack.create(multiclass.spec(), [{"name": "a"}])  # type: ignore[list-item]
    for name in (7, "", None):
        with pytest.raises(TrainingError, match=rf"name is {name!r}"):
            Member(name=name, seed=1)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"two members.*'twin'"):
        Pack.create(multiclass.spec(), [Member(name="twin", seed=1), Member(name="twin", seed=2)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("weight_decay", -1.0),
        ("momentum", 1.0),
        ("beta1", 1.5),
        ("beta2", -0.1),
        ("eps", math.nan),
        ("dropout", 1.0),
        ("label_smoothing", 1.0),
        ("clip_norm", 0.0),
        ("clip_norm", math.nan),
        ("init_scale", -1.0),
        ("input_noise", math.nan),
        ("warmup_epochs", -1),
        ("schedule", "sometimes"),
        ("class_weights", (1.0, -1.0)),
        ("class_weights", (0.0, 0.0)),
        ("class_weights", 2.0),
        ("class_weights", (1.0, math.inf)),
        ("feature_mask", "TTTT"),
        ("feature_mask", 4),
        ("feature_mask", (0.5, 1.0)),
        ("lr", 10**400),
        ("lr", True),
        ("dropout", 1.5),
        ("seed", 1.5),
        ("seed", 2**70),
    ],
)
def test_member_with_an_impossible_value_is_refused_by_name_and_value(field: str, value: Any) -> None:
    given: dict[str, Any] = {"name": "trial-7", "seed": 1}
    with pytest.raises(TrainingError) as caught:
        Member(**(given | {field: value}))
    assert "trial-7" in str(caught.value)
    assert field in str(caught.value)
    assert str(value)[:60] in str(caught.value)


def test_member_of_an_unknown_field_is_refused_with_what_there_is() -> None:
    with pytest.raises(TrainingError, match=r"trial-7.*'learning_rate'.*lr"):
        Member.from_config("trial-7", 0, {"learning_rate": 0.1})


def test_member_whose_shapes_do_not_fit_the_pack_is_named(multiclass: Any) -> None:
    spec = multiclass.spec()
    with pytest.raises(TrainingError, match=r"'thin'.*class_weights.*3.*5"):
        Pack.create(spec, [Member(name="thin", seed=0, class_weights=(1.0, 1.0, 1.0))])
    with pytest.raises(TrainingError, match=r"'thin'.*feature_mask.*2.*16"):
        Pack.create(spec, [Member(name="thin", seed=0, feature_mask=(True, False))])


def test_members_of_mixed_shapes_are_refused_by_name_and_value() -> None:
    configs: dict[str, dict[str, Any]] = {
        "one": {"hidden": (64, 32), "lr": 0.1},
        "two": {"hidden": [64, 32], "lr": 0.2},
        "three": {"hidden": (128,), "lr": 0.3},
    }
    seeds = {"one": 1, "two": 2, "three": 3}
    with pytest.raises(TrainingError, match=r"'three' has hidden = \(128,\).*'one' has \(64, 32\)"):
        members_of(configs, seeds)
    with pytest.raises(TrainingError, match="'one' has no seed"):
        members_of(configs, {})
    of_two_models = {n: {"model": f"package.{n}:Net"} for n in ("one", "two")}
    with pytest.raises(TrainingError, match=r"'two' has model = 'package.two:Net', member 'one' has 'package.one:Net'"):
        members_of(of_two_models, seeds)
    assert [m.lr for m in members_of({n: configs[n] for n in ("one", "two")}, seeds)] == [0.1, 0.2]
    assert pack_signature(configs["one"]) == pack_signature(configs["two"]) != pack_signature(configs["three"])


def test_spec_that_cannot_be_is_refused_by_value(multiclass: Any) -> None:
    with pytest.raises(TrainingError, match="'lion'"):
        multiclass.spec(optimizer="lion")
    with pytest.raises(TrainingError, match="batch_size 0"):
        multiclass.spec(batch_size=0)
    for field, value in [
        ("batch_size", 2.5), ("batch_size", math.nan), ("batch_size", "8"), ("total_epochs", 1.5), ("num_outputs", True),
        ("num_outputs", 0), ("input_shape", ()), ("input_shape", 6), ("input_shape", (0,)), ("input_shape", (-3,)),
        ("task", "cluster"), ("model_args", None),
    ]:  # fmt: skip
        with pytest.raises(TrainingError) as caught:
            multiclass.spec(**{field: value})
        assert field in str(caught.value)
        assert repr(value) in str(caught.value)
    with pytest.raises(TrainingError, match="None"):
        multiclass.spec(model=None)
    with pytest.raises(TrainingError, match=r"num_outputs.*3"):
        PackSpec(
            model="mlp", model_args={}, task=Task.BINARY, input_shape=(4,), num_outputs=3, batch_size=8, total_epochs=1
        )


def test_batches_that_do_not_fit_are_refused_by_what_was_found(world: Any) -> None:
    pack = pack_of(world)
    x, y = world.rows(8, 1)
    for bad, match in [
        ((x[:, :3], y), r"\(3,\).*\(16,\)"),
        ((x.to(torch.int64), y), r"int64.*float32"),
        ((x.double(), y), r"float64.*float32"),
        ((x, y[:5]), r"8.*5"),
        ((x.numpy(), y), r"ndarray"),
        ((x, None), r"NoneType"),
        ((x, y, y), r"pair of inputs and labels"),
        (x, r"pair of inputs and labels"),
        ((torch.cat([x, x]), torch.cat([y, y])), r"16 rows, more than the batch_size of 12"),
    ]:
        with pytest.raises(TrainingError, match=match):
            pack.train_epoch([bad])
    for steps in (0, -1, math.nan):
        with pytest.raises(TrainingError, match=rf"steps_per_epoch is {steps}"):
            pack.train_epoch([(x, y)], steps_per_epoch=steps)  # type: ignore[arg-type]
    for ask in (pack.predict, lambda rows: pack.score(rows, y, [])):
        for rows, match in ((x[:, :3], r"\(3,\).*\(16,\)"), (x.to(torch.int64), "int64"), (x.numpy(), "ndarray")):
            with pytest.raises(TrainingError, match=match):
                ask(rows)
    assert pack.step == 0, "nothing was trained"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_row_and_column_and_no_member_is_told_as_diverged(
    value: float, worlds: Any
) -> None:
    world = worlds["regression"]
    pack = pack_of(world)
    x, y = world.rows(8, 1)
    for what, at in (("inputs", x), ("targets", y)):
        kept = float(at[3, 2])
        at[3, 2] = value
        for ask in (lambda: pack.train_epoch([(x, y)]), lambda: pack.score(x, y, ["mse"])):
            with pytest.raises(TrainingError, match=rf"{what} of a batch have {value} in row 3, column 2"):
                ask()
        at[3, 2] = kept
    large = torch.full_like(x, 3e38)
    pack.train_epoch([(large, y)])
    assert len(pack.failures()) == 4, "finite numbers whose sum is not are no fault of the rows"


@pytest.mark.parametrize(("label", "match"), [(5, "5"), (-1, "-1")])
def test_labels_out_of_range_are_refused_by_value(label: int, match: str, multiclass: Any) -> None:
    pack = pack_of(multiclass)
    x, y = multiclass.rows(8, 1)
    y[3] = label
    with pytest.raises(TrainingError, match=rf"{match}.*0 to 4"):
        pack.train_epoch([(x, y)])
    with pytest.raises(TrainingError, match=rf"{match}.*0 to 4"):
        pack.score(x, y, ["accuracy"])


def test_labels_of_another_kind_are_refused(worlds: Any) -> None:
    for name, wrong in (("multiclass", torch.zeros(8)), ("regression", torch.zeros(8)), ("multilabel", torch.ones(8))):
        pack = pack_of(worlds[name])
        with pytest.raises(TrainingError, match="label"):
            pack.train_epoch([(worlds[name].rows(8, 1)[0], wrong)])
    pack = pack_of(worlds["multilabel"])
    with pytest.raises(TrainingError, match=r"2.*0 and 1"):
        pack.train_epoch([(worlds["multilabel"].rows(8, 1)[0], torch.full((8, 4), 2.0))])


def test_empty_splits_are_refused(multiclass: Any) -> None:
    pack = pack_of(multiclass)
    with pytest.raises(TrainingError, match="training split is empty"):
        pack.train_epoch([])
    x, y = multiclass.rows(4, 1)
    with pytest.raises(TrainingError, match="split is empty"):
        pack.train_epoch([(x[:0], y[:0])])
    with pytest.raises(TrainingError, match="split is empty"):
        pack.score(x[:0], y[:0], ["accuracy"])
    assert pack.epoch == 0


# -- models that cannot be packed ------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.memory(x.view(-1, 4, 4))[0][:, -1])
        return out


class Cumulative(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 8), nn.BatchNorm1d(8, momentum=None), nn.ReLU(), nn.Linear(8, 5))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.map(x)
        return out * 2 if float(out.sum()) > 0 else out


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.map(x + torch.rand_like(x))
        return out


class AlphaNoisy(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(16, 8), nn.AlphaDropout(0.1), nn.Linear(8, 5))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.map(x), x


class Wide(nn.Linear):
    def __init__(self) -> None:
        super().__init__(16, 7)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("Recurrent", "LSTM"),
        ("Cumulative", "momentum=None"),
        ("Branching", "data-dependent|depends on the data"),
        ("Noisy", "random"),
        ("AlphaNoisy", "AlphaDropout"),
    ],
)
def test_model_that_cannot_be_packed_is_refused_with_the_reason(
    model: str, match: str, multiclass: Any, user_models: str
) -> None:
    with pytest.raises(UnpackableError, match=match):
        pack_of(multiclass, model=f"{user_models}:{model}", model_args={})


@pytest.mark.parametrize(("model", "match"), [("Pair", "returns a tuple"), ("Wide", r"7\).*5\)")])
def test_model_of_the_wrong_output_is_refused_with_what_was_found(
    model: str, match: str, multiclass: Any, user_models: str
) -> None:
    with pytest.raises(ModelError, match=match):
        pack_of(multiclass, model=f"{user_models}:{model}", model_args={})


@pytest.fixture
def user_models(monkeypatch: pytest.MonkeyPatch) -> str:
    import sys

    monkeypatch.setitem(sys.modules, "models_of_a_user", sys.modules[__name__])
    return "models_of_a_user"


def test_every_refusal_is_for_the_user_to_read() -> None:
    assert issubclass(TrainingError, TiltyardError)
    assert issubclass(UnpackableError, TiltyardError)


# -- members that leave ----------------------------------------------------------------------------------------------


def test_members_that_leave_change_nothing_for_those_that_stay(multiclass: Any, params_of: Any, tmp_path: Path) -> None:
    whole, leaving = pack_of(multiclass, 9), pack_of(multiclass, 9)
    held = [leaving.held]
    for epoch, gone in enumerate((["m1"], ["m0", "m8"], ["m4", "m5", "m6"])):
        expected, found = whole.train_epoch(multiclass.batches(epoch)), leaving.train_epoch(multiclass.batches(epoch))
        at = [i for i, m in enumerate(whole.members) if m.name in {n.name for n in leaving.members}]
        assert np.array_equal(expected[at], found)
        leaving.leave(gone)
        held.append(leaving.held)
    assert [m.name for m in leaving.members] == ["m2", "m3", "m7"]
    assert held == [9, 8, 6, 3], "8 are held from the rung of 8 on, 6 from that of 6, 3 from that of 3"
    x, y = multiclass.rows(20, 3)
    scored = whole.score(x, y, ["log_loss"])["log_loss"][[2, 3, 7]]
    assert np.array_equal(leaving.score(x, y, ["log_loss"])["log_loss"], scored)
    leaving.save(tmp_path)
    back = Pack.load(tmp_path)
    for name in ("m2", "m3", "m7"):
        assert torch.equal(params_of(leaving, name), params_of(whole, name))
        assert torch.equal(params_of(back, name), params_of(whole, name))


def test_members_that_have_left_stay_in_memory_until_a_smaller_size_holds_the_rest(multiclass: Any) -> None:
    pack = pack_of(multiclass, 8)
    pack.leave(["m3"])
    assert (len(pack.members), pack.held) == (7, 8)
    pack.train_epoch(multiclass.batches())
    assert pack.predict(multiclass.rows(3, 1)[0]).shape == (7, 3, 5)
    kept = pack.keep(["m7", "m4"])
    assert (len(kept.members), kept.held) == (2, 2)
    with pytest.raises(TrainingError, match="m3"):
        pack.extract("m3")
    with pytest.raises(TrainingError, match="All 7 members would leave"):
        pack.leave([m.name for m in pack.members])


def test_member_that_diverged_and_left_is_no_failure_any_more(multiclass: Any) -> None:
    pack = Pack.create(multiclass.spec("mlp"), [Member(name="ok", seed=1), Member(name="bad", seed=1, lr=1e38)])
    pack.train_epoch(multiclass.batches())
    assert list(pack.failures()) == ["bad"]
    pack.leave(["bad"])
    pack.train_epoch(multiclass.batches(1))
    assert pack.failures() == {}


# -- shapes at the edge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize(("features", "outputs", "rows"), [(1, 1, 1), (3, 1, 5), (1, 3, 1), (2, 2, 7)])
def test_member_of_the_smallest_shapes_is_the_same_alone_and_packed(
    model: str, features: int, outputs: int, rows: int, params_of: Any
) -> None:
    """A product with a vector goes another way through the library when it is alone."""
    draw = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(n, features, generator=draw), torch.randn(n, outputs, generator=draw)) for n in (rows, rows, 1)
    ]
    spec = PackSpec(
        model=model,
        model_args={} if model == "linear" else {"hidden": (1, 3)},
        task=Task.REGRESSION,
        input_shape=(features,),
        num_outputs=outputs,
        batch_size=rows,
        total_epochs=2,
    )
    own = [Member(name=f"m{i}", seed=i, lr=0.01 * (i + 1), clip_norm=1.0) for i in range(5)]
    together = Pack.create(spec, own)
    together.train_epoch(batches)
    for member in own:
        alone = Pack.create(spec, [member])
        alone.train_epoch(batches)
        assert torch.equal(params_of(alone, member.name), params_of(together, member.name))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_large_member_updated_by_itself_agrees_with_plain_torch(
    optimizer: str, multiclass: Any, alone: Any, params_of: Any
) -> None:
    spec = multiclass.spec("mlp", model_args={"hidden": (256, 256)}, optimizer=optimizer)
    own = [
        Member(name="a", seed=1, lr=0.01, weight_decay=0.1, momentum=0.5, beta1=0.8),
        Member(name="b", seed=2, lr=0.003, momentum=0.0, clip_norm=0.1, schedule="cosine"),
    ]
    epochs = [multiclass.batches(e) for e in range(2)]
    pack = Pack.create(spec, own)
    for batches in epochs:
        pack.train_epoch(batches)
    for member in own:
        expected = alone(spec, member).train(epochs).flat()
        assert float((params_of(pack, member.name) - expected).norm() / expected.norm()) < 1e-5
        solo = Pack.create(spec, [member])
        for batches in epochs:
            solo.train_epoch(batches)
        assert torch.equal(params_of(solo, member.name), params_of(pack, member.name))


def test_pack_on_two_threads_gives_what_it_gives_on_one(multiclass: Any, params_of: Any) -> None:
    spec = multiclass.spec("mlp", model_args={"hidden": (64, 64)})
    own = [Member(name=f"m{i}", seed=i, dropout=0.2) for i in range(8)]
    packs = [Pack.create(spec, own, threads=n) for n in (1, 2)]
    for pack in packs:
        pack.train_epoch(multiclass.batches())
    for member in own:
        torch.testing.assert_close(
            params_of(packs[0], member.name), params_of(packs[1], member.name), rtol=1e-4, atol=1e-6
        )
