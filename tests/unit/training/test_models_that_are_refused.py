"""What a pack cannot hold exactly is refused before anything is allocated or trained, each with what to change."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.errors import ModelError, TiltyardError, UnpackableError
from tiltyard.training import Member, Pack, explain_unpackable, pack
from tiltyard.training.chunk import Chunk

HERE = "models_that_a_pack_refuses"


class Map(nn.Module):
    """16 inputs to 5 outputs; what is wrong with it is said by its subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        return self.map(x)


class FunctionalDropout(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(functional.dropout(x, 0.5, self.training))


class RandomInEvaluation(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x) if self.training else self.map(x + torch.rand_like(x))


class NumpyRandom(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x) * float(np.random.rand())


class PythonRandom(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x) * random.random()


class Counting(Map):
    def forward(self, x: Tensor) -> Any:
        self.passes = getattr(self, "passes", 0) + 1
        return self.map(x) * self.passes


class BranchInEvaluation(Map):
    def forward(self, x: Tensor) -> Any:
        out = self.map(x)
        return out * 2 if not self.training and float(out.sum()) > 0 else out


class BranchOnRows(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x) if x.sum() > 0 else -self.map(x)


class PickedRows(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x) + x[x > 0].sum()


class InPlace(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x.mul_(2))


class LooseTensor(Map):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.randn(16)

    def forward(self, x: Tensor) -> Any:
        return self.map(x * self.scale)


class LooseTensors(Map):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [torch.ones(16)]


class Detached(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x).detach()


class Frozen(Map):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Lazy(Map):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.LazyLinear(5)


class TupleInTraining(Map):
    def forward(self, x: Tensor) -> Any:
        return (self.map(x), x) if self.training else self.map(x)


class WiderInTraining(Map):
    def forward(self, x: Tensor) -> Any:
        out = self.map(x)
        return torch.cat([out, out], 1) if self.training else out


class Dictionary(Map):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.map(x)}


class Whole(Map):
    def forward(self, x: Tensor) -> Any:
        return self.map(x).long()


class KeyMissing(Map):
    def forward(self, x: Tensor) -> Any:
        raise KeyError("logits")


class WidthBySeed(Map):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, int(torch.randint(3, 40, ())))
        self.map = nn.Linear(self.inner.out_features, 5)

    def forward(self, x: Tensor) -> Any:
        return self.map(self.inner(x))


class NumpyBeginning(Map):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.map.weight.mul_(float(np.random.rand()))


class Looked(Map):
    """Looks up its inputs in a table of 3, which rows of other numbers than 0, 1 and 2 are not in."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 5)

    def forward(self, x: Tensor) -> Any:
        return self.table(x.long()).sum(1)


@pytest.fixture(autouse=True)
def models_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


def create(worlds: Any, model: str, count: int = 3) -> Pack:
    members = [Member(name=f"m{i}", seed=i, lr=0.01) for i in range(count)]
    return Pack.create(worlds["multiclass"].spec(f"{HERE}:{model}", model_args={}), members)


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        ("FunctionalDropout", UnpackableError, r"random numbers in forward other than by nn.Dropout"),
        ("RandomInEvaluation", UnpackableError, r"random numbers in forward other than by nn.Dropout"),
        ("NumpyRandom", UnpackableError, r"second pass over the same rows gives other numbers"),
        ("PythonRandom", UnpackableError, r"second pass over the same rows gives other numbers"),
        ("Counting", UnpackableError, r"second pass over the same rows gives other numbers"),
        ("BranchInEvaluation", UnpackableError, r"control flow depends on the data"),
        ("BranchOnRows", UnpackableError, r"control flow depends on the data"),
        ("PickedRows", UnpackableError, r"shape of a tensor in it depends on the data"),
        ("InPlace", UnpackableError, r"changes its inputs in place"),
        (
            "LooseTensor",
            UnpackableError,
            r"scale: a tensor that is neither parameter nor buffer.*register_buffer\('scale'",
        ),
        ("LooseTensors", UnpackableError, r"scales: a tensor that is neither parameter nor buffer"),
        ("Detached", UnpackableError, r"do not depend on its parameters in a way that has a gradient"),
        ("Frozen", UnpackableError, r"no parameters that train"),
        ("Lazy", UnpackableError, r"map.weight: a lazy parameter"),
        ("TupleInTraining", ModelError, r"returns a tuple in training"),
        ("WiderInTraining", ModelError, r"shape \(2, 10\) for 2 rows in training; float32 of shape \(2, 5\)"),
        ("Dictionary", ModelError, r"returns a dict;"),
        ("Whole", ModelError, r"int64 outputs"),
        ("KeyMissing", ModelError, r"fails on rows of shape \(16,\): KeyError: 'logits'"),
        ("WidthBySeed", ModelError, r"Member 'm\d': under its seed \d, inner.bias of model .* has shape"),
        ("NumpyBeginning", ModelError, r"begins otherwise when it is built twice under the same seed: map.weight"),
    ],
)
def test_model_that_a_pack_cannot_hold_is_refused_before_anything_is_allocated(
    model: str, error: type[TiltyardError], match: str, worlds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Chunk] = []
    monkeypatch.setattr(pack, "Chunk", lambda *args: made.append(Chunk(*args)))
    with pytest.raises(error, match=match):
        create(worlds, model)
    assert made == []


def test_model_that_nothing_is_wrong_with_is_taken_and_its_explanation_is_empty(worlds: Any) -> None:
    create(worlds, "Map").train_epoch(worlds["multiclass"].batches())
    with torch.random.fork_rng(devices=[]):
        assert explain_unpackable(Map(), (16,)) == []


def test_model_that_fails_on_a_batch_says_which_and_how(worlds: Any) -> None:
    pack = create(worlds, "Looked")
    x, y = worlds["multiclass"].rows(7, 1)
    for ask in (lambda: pack.train_epoch([(5 + x.abs(), y)]), lambda: pack.predict(5 + x.abs())):
        with pytest.raises(
            ModelError, match=r"The model Looked fails on a batch of 7 rows: IndexError: index out of range"
        ):
            ask()
    pack.train_epoch([(x.abs().clamp(max=2), y)])


def test_model_whose_batch_norm_meets_a_single_row_says_so(worlds: Any, tmp_path: Path) -> None:
    (tmp_path / "normed_by_rows.py").write_text(
        "from torch import nn\ndef net(num_outputs):\n"
        "    return nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, num_outputs))\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        spec = worlds["multiclass"].spec("normed_by_rows:net", model_args={})
        pack = Pack.create(spec, [Member(name="a", seed=1)])
        x, y = worlds["multiclass"].rows(1, 1)
        with pytest.raises(ModelError, match=r"a batch of 1 rows: ValueError: Expected more than 1 value per channel"):
            pack.train_epoch([(x, y)])
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("normed_by_rows", None)
