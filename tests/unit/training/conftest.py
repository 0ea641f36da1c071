"""What the tests of packs share: data, batches, and the rival they are held against, one model in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.training import Member, Pack, PackSpec, build_module
from tiltyard.training.randomness import at_place, keys, normal, uniform
from tiltyard.types import Task

Batches = list[tuple[Tensor, Tensor]]
NOISE_PLACE = 1_000_003

FAMILIES: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"hidden": (20, 16)},
    "resmlp": {"width": 12, "depth": 2},
    "cnn": {"image": (1, 4, 4), "channels": (4, 6)},
}


@dataclass(frozen=True)
class World:
    """A small problem: its spec maker and its batches, the last of them shorter."""

    task: Task
    outputs: int
    features: int = 16
    batch: int = 12
    steps: int = 3
    seed: int = 0
    epochs: int = field(default=4)

    def spec(self, model: str = "mlp", **changes: Any) -> PackSpec:
        args: dict[str, Any] = {
            "model": model,
            "model_args": FAMILIES.get(model, {}),
            "task": self.task,
            "input_shape": (self.features,),
            "num_outputs": self.outputs,
            "batch_size": self.batch,
            "total_epochs": self.epochs,
        }
        return PackSpec(**(args | changes))

    def rows(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(count, self.features, generator=draw)
        truth = torch.randn(self.features, self.outputs, generator=torch.Generator().manual_seed(7))
        raw = x @ truth + 0.3 * torch.randn(count, self.outputs, generator=draw)
        if self.task is Task.REGRESSION:
            return x, raw
        if self.task is Task.MULTILABEL:
            return x, (raw > 0).float()
        return x, raw.argmax(1)

    def batches(self, epoch: int = 0) -> Batches:
        x, y = self.rows(self.batch * (self.steps - 1) + self.batch // 2 + 1, 100 * self.seed + epoch)
        return [(x[i : i + self.batch], y[i : i + self.batch]) for i in range(0, len(x), self.batch)]


WORLDS = {
    "multiclass": World(Task.MULTICLASS, 5),
    "binary": World(Task.BINARY, 2),
    "regression": World(Task.REGRESSION, 3),
    "multilabel": World(Task.MULTILABEL, 4),
}


class _Dropout(nn.Module):
    """Dropout with the member's own numbers, written as plainly as can be."""

    def __init__(self, place: int, member: Member, clock: list[int]) -> None:
        super().__init__()
        self.place, self.member, self.clock = place, member, clock

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        key = keys(torch.tensor(self.member.seed), self.clock[0], 0)
        u = uniform(at_place(key, self.place), tuple(x.shape))
        return x * (u >= self.member.dropout) / (1 - self.member.dropout)


def optimizer_of(spec: PackSpec, member: Member, p: list[nn.Parameter]) -> torch.optim.Optimizer:
    m = member
    if spec.optimizer in {"adam", "adamw"}:
        kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
        return kind(p, lr=m.lr, betas=(m.beta1, m.beta2), eps=m.eps, weight_decay=m.weight_decay)
    momentum = 0.0 if spec.optimizer == "sgd" else m.momentum
    nesterov = spec.optimizer == "nesterov" and momentum > 0  # torch refuses Nesterov without momentum: it is SGD
    return torch.optim.SGD(p, lr=m.lr, momentum=momentum, nesterov=nesterov, weight_decay=m.weight_decay)


def rate(spec: PackSpec, m: Member, step: int, steps_per_epoch: int) -> float:
    warmup, total = m.warmup_epochs * steps_per_epoch, spec.total_epochs * steps_per_epoch
    done = min(max((step - warmup) / max(total - warmup, 1.0), 0.0), 1.0)
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[m.schedule]
    return m.lr * min(1.0, (step + 1) / max(warmup, 1.0)) * fall


def torch_loss(task: Task, out: Tensor, y: Tensor, m: Member) -> Tensor:
    weights = None if m.class_weights is None else torch.tensor(m.class_weights, dtype=out.dtype)
    if task is Task.REGRESSION:
        if m.loss == "absolute":
            return functional.l1_loss(out, y)
        return functional.huber_loss(out, y, delta=m.huber_delta) if m.loss == "huber" else functional.mse_loss(out, y)
    if task is Task.MULTILABEL:
        target = y * (1 - m.label_smoothing) + 0.5 * m.label_smoothing
        return functional.binary_cross_entropy_with_logits(out, target, weight=weights)
    if m.loss == "focal":
        log_p = functional.log_softmax(out, 1).gather(1, y[:, None])[:, 0]
        row = torch.ones(len(y)) if weights is None else weights[y]
        return -((1 - log_p.exp()) ** m.focal_gamma * log_p * row).sum() / row.sum()
    return functional.cross_entropy(out, y, weight=weights, label_smoothing=m.label_smoothing)


@dataclass
class Alone:
    """One model trained with ``torch.optim`` and ``torch.nn`` alone; ``moved`` moves its inputs by some roundings of float32."""

    spec: PackSpec
    member: Member
    dtype: torch.dtype = torch.float32
    moved: torch.Generator | None = None
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module = build_module(self.spec, seed=self.member.seed, init_scale=self.member.init_scale).to(self.dtype)
        self._clock = [0]
        place = 0
        for parent in list(self.module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Dropout):
                    place += 1
                    setattr(parent, name, _Dropout(place, self.member, self._clock))
        self._optimizer = optimizer_of(self.spec, self.member, list(self.module.parameters()))

    def train(self, epochs: Sequence[Batches]) -> Alone:
        m = self.member
        self.module.train()
        for batches in epochs:
            total = 0.0
            for x, y in batches:
                for group in self._optimizer.param_groups:
                    group["lr"] = rate(self.spec, m, self._clock[0], len(batches))
                self._clock[0] += 1
                seen = x.to(self.dtype)
                if self.moved is not None:
                    seen = seen * (
                        1 + ROUNDINGS * ROUNDING * (2 * torch.rand(x.shape, generator=self.moved) - 1).double()
                    )
                if m.input_noise:
                    key = keys(torch.tensor(m.seed), self._clock[0], NOISE_PLACE)
                    seen = seen + m.input_noise * normal(key, tuple(x.shape))
                if m.feature_mask is not None:
                    seen = seen * torch.tensor(m.feature_mask).view(self.spec.input_shape)
                self._optimizer.zero_grad()
                wanted = y.to(self.dtype) if y.is_floating_point() else y
                loss = torch_loss(self.spec.task, self.module(seen), wanted, m)
                loss.backward()  # type: ignore[no-untyped-call]
                if m.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self.module.parameters(), m.clip_norm)
                self._optimizer.step()
                total += float(loss.detach()) * len(x)
            self.losses.append(total / sum(len(x) for x, _ in batches))
        self.module.eval()
        if (
            m.feature_mask is not None and self.spec.model != "cnn"
        ):  # as a pack gives it away: what it did not see is cut
            first = next(layer for layer in self.module.modules() if isinstance(layer, nn.Linear))
            with torch.no_grad():
                first.weight.mul_(torch.tensor(m.feature_mask))
        return self

    def flat(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])


ROUNDING, ROUNDINGS = 2.0**-24, 8
FLOOR: dict[str, float] = {"rtol": 2e-6, "atol": 2e-6}


def assert_as_near_to_float64_as_float32_can_be(
    found: Tensor, spec: PackSpec, member: Member, epochs: Sequence[Batches], losses: Sequence[float] = ()
) -> None:
    """Parameter by parameter, against ``torch.optim`` in float64; a parameter may be off by as much as roundings of it are worth.

    A gradient in float32 is a sum whose terms are rounded; where they nearly cancel, little of it is right. Adam divides by
    its size: its first step, ``lr g / (|g| + eps)``, makes of an error d in g one of up to ``lr d / eps``, a million times d
    at a rate of 0.01. (In the MLP of these tests one gradient of 761 is -7.2e-9 in float64, -7.3e-9 by torch in float32 and
    -7.5e-9 in a pack, with an eps of 1e-8: the parameter ends 4e-5 off by torch, 1.2e-4 in a pack. Every other agrees to
    1e-6.) So the float64 run is made twice more with each input moved by up to `ROUNDINGS` roundings of float32, and a
    parameter may be off by twice what that does to it, and by `FLOOR`. Over 52 widths of the MLP and 6 members each, packs
    and ``torch.optim`` in float32 alike stay within six tenths of that.
    """
    exact = Alone(spec, member, torch.float64).train(epochs)
    moved = [Alone(spec, member, torch.float64, torch.Generator().manual_seed(s)).train(epochs) for s in (1, 2)]
    worth = torch.stack([(m.flat() - exact.flat()).abs() for m in moved]).amax(0)
    allowed = FLOOR["atol"] + FLOOR["rtol"] * exact.flat().abs() + 2 * worth
    off = (found.double() - exact.flat()).abs()
    assert torch.isfinite(found).all()
    assert bool((off <= allowed).all()), (
        f"{int((off > allowed).sum())} of {len(off)} parameters; number {int((off / allowed).argmax())} is "
        f"{float((off / allowed).max()):.2f} times as far off as it may be"
    )
    if losses:
        torch.testing.assert_close(
            torch.tensor(losses).double(), torch.tensor(exact.losses).double(), rtol=1e-5, atol=1e-6
        )


def flat(pack: Pack, name: str) -> Tensor:
    """One member's parameters, in the order of its module."""
    return torch.cat([p.detach().reshape(-1) for p in pack.extract(name).parameters()])


@pytest.fixture(params=sorted(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


@pytest.fixture
def worlds() -> dict[str, World]:
    return WORLDS


@pytest.fixture
def alone() -> Callable[[PackSpec, Member], Alone]:
    return Alone


@pytest.fixture
def plain_optimizer() -> Callable[..., torch.optim.Optimizer]:
    return optimizer_of


@pytest.fixture
def near_float64() -> Callable[..., None]:
    return assert_as_near_to_float64_as_float32_can_be


@pytest.fixture
def params_of() -> Callable[[Pack, str], Tensor]:
    return flat


@pytest.fixture(autouse=True)
def random_state_is_left_alone() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "training drew from torch's global generator"
