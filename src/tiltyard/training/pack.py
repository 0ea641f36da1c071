"""Many same-shaped models stepped together on one stream of batches, each with the result it would have alone.

Parameters of K members are one ``(K, P)`` tensor; a step is one ``vmap`` of one member's loss and gradient, taken in
chunks of members so that what a step touches stays in cache. Everything random is a function of the member's own seed
and step (`tiltyard.training.randomness`), so neighbours, place, chunk and restores change nothing but the order of
floating-point sums inside matrix products.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from tiltyard.errors import TrainingError, UnpackableError
from tiltyard.models import build
from tiltyard.training import checkpoint
from tiltyard.training.losses import loss
from tiltyard.training.randomness import at_place, keys, normal, uniform
from tiltyard.training.scores import scores
from tiltyard.training.spec import Member, PackSpec
from tiltyard.types import Task

Array = npt.NDArray[np.float64]
CHUNK = 32
SCORE_ROWS = 4096
_NOISE, _INIT = 1_000_003, 1_000_033
_dropout: contextvars.ContextVar[tuple[Tensor, Tensor] | None] = contextvars.ContextVar("dropout", default=None)


class MemberDropout(nn.Module):
    """Dropout whose rate and mask are the member's own: the mask is drawn from its key and this layer's place."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; identity outside training."""
        state = _dropout.get()
        if state is None:
            return x
        key, rate = state
        u = uniform(at_place(key, self.place), tuple(x.shape))
        return x * (u >= rate).to(x.dtype) / (1.0 - rate)


def build_module(spec: PackSpec, *, seed: int, init_scale: float = 1.0) -> nn.Module:
    """One member's model, initialised under its own seed; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(spec.model, spec.model_args, input_shape=spec.input_shape, num_outputs=spec.num_outputs)
    if init_scale != 1.0:
        with torch.no_grad():
            for value in module.parameters():
                if value.ndim > 1:
                    value.mul_(init_scale)
    return module


def explain_unpackable(module: nn.Module) -> list[str]:
    """Why a model's trials cannot step together; empty where they can."""
    reasons = []
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
            reasons.append(f"{name or type(layer).__name__}: {type(layer).__name__} has no batching rule under vmap")
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            reasons.append(f"{name}: {type(layer).__name__} keeps running statistics, which packs do not carry yet")
        if isinstance(layer, nn.modules.dropout._DropoutNd) and type(layer) is not nn.Dropout:
            reasons.append(f"{name}: {type(layer).__name__} draws its own random numbers; use nn.Dropout")
    return reasons


class Pack:
    """K members at one epoch. Make it with `create` or `load`."""

    def __init__(self, spec: PackSpec, members: Sequence[Member], *, device: str, chunk: int | None) -> None:
        if not members:
            raise TrainingError("A pack of no members: give it at least one.")
        names = [m.name for m in members]
        if len(set(names)) < len(names):
            raise TrainingError("Two members of a pack have the same name; names are how members are found again.")
        self.spec, self.members, self.device = spec, tuple(members), torch.device(device)
        self.chunk = chunk or CHUNK
        self.epoch = 0
        self.step = 0
        self._failed: dict[str, str] = {}
        self._template = _prepared(build_module(spec, seed=0)).to(self.device)
        self._shapes = {n: p.shape for n, p in self._template.named_parameters()}
        self._sizes = [math.prod(s) for s in self._shapes.values()]
        self._params = torch.empty((len(members), sum(self._sizes)), device=self.device)
        self._moments: dict[str, Tensor] = {}
        self._hyper = _Hyper(self.members, spec, self.device)

    @classmethod
    def create(
        cls, spec: PackSpec, members: Sequence[Member], *, device: str = "cpu", chunk: int | None = None
    ) -> Pack:
        """A pack at epoch 0, each member initialised under its own seed.

        Raises:
            TrainingError: If there are no members, or two of one name.
            ModelError: If the model cannot be built.
            UnpackableError: If it cannot be packed.
        """
        pack = cls(spec, members, device=device, chunk=chunk)
        reasons = explain_unpackable(pack._template)
        if reasons:
            raise UnpackableError(f"Model {spec.model!r} cannot be packed: {'; '.join(reasons)}.")
        for i, member in enumerate(members):
            module = build_module(spec, seed=member.seed, init_scale=member.init_scale)
            pack._params[i] = torch.cat([p.detach().reshape(-1) for p in module.parameters()]).to(pack.device)
        pack._moments = {n: torch.zeros_like(pack._params) for n in _moments_of(spec.optimizer)}
        return pack

    # -- training -----------------------------------------------------------------------------------------------------

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], *, steps_per_epoch: int | None = None) -> Array:
        """One pass over the batches; the mean training loss of each member, ``(K,)``.

        Args:
            batches: ``(x, y)`` in their order; x ``(rows, *input_shape)`` float32, y as the task says.
            steps_per_epoch: For the schedules; counted from the batches where None, which holds them all.
        """
        if steps_per_epoch is None:
            batches = list(batches)
            steps_per_epoch = len(batches)
        total = torch.zeros(len(self.members), dtype=torch.float64)
        rows = 0
        for x, y in batches:
            self._check(x, y)
            losses = self._step(x.to(self.device), y.to(self.device), steps_per_epoch)
            total += losses.double().cpu() * len(x)
            rows += len(x)
            self._note_failures(losses)
        if rows == 0:
            raise TrainingError("An epoch of no batches: the training split is empty. Give it a share of the rows.")
        self.epoch += 1
        return np.asarray((total / rows).numpy())

    def _step(self, x: Tensor, y: Tensor, steps_per_epoch: int) -> Tensor:
        lr = self._hyper.lr(self.step, steps_per_epoch)
        self.step += 1
        step_keys = keys(self._hyper.seeds, self.step, 0)
        noise_keys = keys(self._hyper.seeds, self.step, _NOISE) if self._hyper.noisy else step_keys
        losses = torch.empty(len(self.members), device=self.device)
        for rows in self._chunks():
            grads, losses[rows] = self._gradients(rows, x, y, step_keys[rows], noise_keys[rows])
            self._hyper.clip(rows, grads)
            self._update(rows, grads, lr[rows].unsqueeze(1))
        return losses

    def _gradients(self, rows: slice, x: Tensor, y: Tensor, key: Tensor, noise_key: Tensor) -> tuple[Tensor, Tensor]:
        h = self._hyper
        function = grad_and_value(self._member_loss)
        grads, losses = vmap(function, in_dims=(0, None, None, 0, 0, 0, 0, 0, 0, 0))(
            self._params[rows],
            x,
            y,
            key,
            noise_key,
            h.dropout[rows],
            h.noise[rows],
            h.mask[rows] if h.mask is not None else torch.ones(rows.stop - rows.start, 1, device=self.device),
            h.smoothing[rows],
            h.weights[rows],
        )
        return grads, losses.detach()

    def _member_loss(
        self,
        flat: Tensor,
        x: Tensor,
        y: Tensor,
        key: Tensor,
        noise_key: Tensor,
        rate: Tensor,
        noise: Tensor,
        mask: Tensor,
        smoothing: Tensor,
        weights: Tensor,
    ) -> Tensor:
        if self._hyper.noisy:
            x = x + noise * normal(noise_key, tuple(x.shape))
        if self._hyper.mask is not None:
            x = x * mask.view(x.shape[1:])
        token = _dropout.set((key, rate)) if self._hyper.drops else None
        try:
            outputs = functional_call(self._template, self._unflatten(flat), (x,))
        finally:
            if token is not None:
                _dropout.reset(token)
        return loss(self.spec.task, outputs, y, smoothing, weights)

    def _update(self, rows: slice, grads: Tensor, lr: Tensor) -> None:
        h, p = self._hyper, self._params[rows]
        name = self.spec.optimizer
        decay = h.weight_decay[rows].unsqueeze(1)
        if name == "adamw":
            p.mul_(1.0 - lr * decay)
        else:
            grads = grads + decay * p
        if name in {"adam", "adamw"}:
            b1, b2 = h.beta1[rows].unsqueeze(1), h.beta2[rows].unsqueeze(1)
            m, v = self._moments["m"][rows], self._moments["v"][rows]
            m.mul_(b1).add_(grads * (1 - b1))
            v.mul_(b2).add_(grads * grads * (1 - b2))
            correct1, correct2 = 1 - b1**self.step, 1 - b2**self.step
            p.sub_(lr / correct1 * m / ((v / correct2).sqrt() + h.eps[rows].unsqueeze(1)))
            return
        if name in {"momentum", "nesterov"}:
            mu = h.momentum[rows].unsqueeze(1)
            buffer = self._moments["momentum"][rows]
            buffer.mul_(mu).add_(grads)
            grads = grads + mu * buffer if name == "nesterov" else buffer
        p.sub_(lr * grads)

    def _note_failures(self, losses: Tensor) -> None:
        bad = ~torch.isfinite(losses)
        if bool(bad.any()):
            for i in bad.nonzero().flatten().tolist():
                self._failed.setdefault(
                    self.members[i].name,
                    f"diverged: the training loss is not a finite number at epoch {self.epoch + 1}, step {self.step}",
                )

    def _check(self, x: Tensor, y: Tensor) -> None:
        if tuple(x.shape[1:]) != tuple(self.spec.input_shape):
            raise TrainingError(f"A batch has rows of shape {tuple(x.shape[1:])}; {self.spec.input_shape} is wanted.")
        if not x.is_floating_point():
            raise TrainingError(f"A batch has inputs of type {x.dtype}; float32 is wanted.")
        if self.spec.task in {Task.BINARY, Task.MULTICLASS} and len(y):
            low, high = int(y.min()), int(y.max())
            if low < 0 or high >= self.spec.num_outputs:
                raise TrainingError(f"Labels run from {low} to {high}; wanted 0 to {self.spec.num_outputs - 1}.")

    # -- asking -------------------------------------------------------------------------------------------------------

    def predict(self, x: Tensor) -> Tensor:
        """Outputs of every member, ``(K, rows, outputs)``, without dropout or noise."""
        with torch.inference_mode():
            return torch.cat(list(self._forward(x.to(self.device))))

    def _forward(self, x: Tensor) -> Iterator[Tensor]:
        h = self._hyper
        for rows in self._chunks():
            if h.mask is not None:
                yield vmap(
                    lambda f, m: functional_call(self._template, self._unflatten(f), (x * m.view(x.shape[1:]),))
                )(self._params[rows], h.mask[rows])
            else:
                yield vmap(lambda f: functional_call(self._template, self._unflatten(f), (x,)))(self._params[rows])

    def score(self, x: Tensor, y: Tensor, metrics: Sequence[str]) -> dict[str, Array]:
        """Scores of every member on rows, by name, each ``(K,)``."""
        parts = [self.predict(x[i : i + SCORE_ROWS]) for i in range(0, len(x), SCORE_ROWS)]
        return scores(self.spec.task, torch.cat(parts, dim=1), y.to(self.device), metrics)

    def failures(self) -> dict[str, str]:
        """Members that diverged, with the reason."""
        return dict(self._failed)

    def extract(self, name: str) -> nn.Module:
        """One member as a stand-alone module in eval mode."""
        i = self._index(name)
        module = build_module(self.spec, seed=0)
        module.load_state_dict(
            {n: v.detach().cpu().clone() for n, v in self._unflatten(self._params[i]).items()}, strict=False
        )
        return module.eval()

    # -- leaving and joining --------------------------------------------------------------------------------------------

    def keep(self, names: Sequence[str]) -> Pack:
        """A pack of these members alone, in this order."""
        at = [self._index(n) for n in names]
        pack = Pack(self.spec, [self.members[i] for i in at], device=str(self.device), chunk=self.chunk)
        pack._params = self._params[at].clone()
        pack._moments = {n: m[at].clone() for n, m in self._moments.items()}
        pack.epoch, pack.step = self.epoch, self.step
        pack._failed = {n: r for n, r in self._failed.items() if n in set(names)}
        return pack

    @classmethod
    def merge(cls, packs: Sequence[Pack]) -> Pack:
        """One pack of the members of several that stand at the same epoch.

        Raises:
            TrainingError: If they differ in spec or epoch.
        """
        first = packs[0]
        for other in packs[1:]:
            if other.spec != first.spec or (other.epoch, other.step) != (first.epoch, first.step):
                raise TrainingError(
                    f"Packs at epoch {first.epoch} and {other.epoch} or of other specs cannot be merged; wanted: equal."
                )
        members = [m for p in packs for m in p.members]
        pack = cls(first.spec, members, device=str(first.device), chunk=first.chunk)
        pack._params = torch.cat([p._params for p in packs])
        pack._moments = {n: torch.cat([p._moments[n] for p in packs]) for n in first._moments}
        pack.epoch, pack.step = first.epoch, first.step
        pack._failed = {n: r for p in packs for n, r in p._failed.items()}
        return pack

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of the whole pack: safetensors and JSON, whole or not at all."""
        tensors = {"params": self._params, **{f"moment.{n}": m for n, m in self._moments.items()}}
        meta = {
            "spec": self.spec.to_dict(),
            "members": [m.to_dict() for m in self.members],
            "epoch": self.epoch,
            "step": self.step,
            "failed": self._failed,
        }
        checkpoint.write(folder, tensors, meta)

    @classmethod
    def load(cls, folder: Path, *, names: Sequence[str] | None = None, device: str = "cpu") -> Pack:
        """Reads a checkpoint, or only some members of it; it goes on as if nothing had happened."""
        tensors, meta = checkpoint.read(folder)
        members = [Member.from_dict(m) for m in meta["members"]]
        pack = cls(PackSpec.from_dict(meta["spec"]), members, device=device, chunk=None)
        pack._params = tensors["params"].to(pack.device)
        pack._moments = {n.removeprefix("moment."): t.to(pack.device) for n, t in tensors.items() if n != "params"}
        pack.epoch, pack.step, pack._failed = meta["epoch"], meta["step"], dict(meta["failed"])
        return pack if names is None else pack.keep(names)

    def _index(self, name: str) -> int:
        for i, member in enumerate(self.members):
            if member.name == name:
                return i
        raise TrainingError(f"No member {name[:20]!r} in this pack of {len(self.members)}.")

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.members), self.chunk):
            yield slice(start, min(start + self.chunk, len(self.members)))

    def _unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split(self._sizes, dim=-1)
        return {n: p.view(s) for (n, s), p in zip(self._shapes.items(), parts, strict=True)}


class _Hyper:
    """The members' own numbers as tensors, ``(K,)`` each."""

    def __init__(self, members: Sequence[Member], spec: PackSpec, device: torch.device) -> None:
        def column(pick: Callable[[Member], Any], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor([pick(m) for m in members], dtype=dtype, device=device)

        self._members, self._spec = members, spec
        self.seeds = column(lambda m: m.seed, torch.int64)
        self.dropout, self.noise = column(lambda m: m.dropout), column(lambda m: m.input_noise)
        self.smoothing, self.weight_decay = column(lambda m: m.label_smoothing), column(lambda m: m.weight_decay)
        self.momentum, self.eps = column(lambda m: m.momentum), column(lambda m: m.eps)
        self.beta1, self.beta2 = column(lambda m: m.beta1), column(lambda m: m.beta2)
        self.clips = any(m.clip_norm is not None for m in members)
        self.clip_norm = column(lambda m: m.clip_norm or math.inf)
        self.drops = any(m.dropout > 0 for m in members)
        self.noisy = any(m.input_noise > 0 for m in members)
        ones = (1.0,) * spec.num_outputs
        self.weights = column(lambda m: m.class_weights or ones)
        full = (True,) * math.prod(spec.input_shape)
        masked = any(m.feature_mask is not None for m in members)
        self.mask = column(lambda m: m.feature_mask or full) if masked else None
        self._peak = torch.tensor([m.lr for m in members], dtype=torch.float64)
        self._warmup = torch.tensor([m.warmup_epochs for m in members], dtype=torch.float64)
        self._device = device

    def lr(self, step: int, steps_per_epoch: int) -> Tensor:
        """Learning rates of a step, counted from 0."""
        warmup = self._warmup * steps_per_epoch
        total = self._spec.total_epochs * steps_per_epoch
        rise = torch.clamp((step + 1) / torch.clamp(warmup, min=1.0), max=1.0)
        done = torch.clamp((step - warmup) / torch.clamp(total - warmup, min=1.0), 0.0, 1.0)
        fall = torch.ones_like(done)
        for i, member in enumerate(self._members):
            if member.schedule == "cosine":
                fall[i] = 0.5 * (1 + math.cos(math.pi * float(done[i])))
            elif member.schedule == "linear":
                fall[i] = 1 - float(done[i])
        return (self._peak * rise * fall).to(torch.float32).to(self._device)

    def clip(self, rows: slice, grads: Tensor) -> None:
        """Scales each member's gradient to its own largest norm."""
        if self.clips:
            norm = grads.norm(dim=1)
            grads.mul_(torch.clamp(self.clip_norm[rows] / (norm + 1e-6), max=1.0).unsqueeze(1))


def _moments_of(optimizer: str) -> tuple[str, ...]:
    return {"sgd": (), "momentum": ("momentum",), "nesterov": ("momentum",)}.get(optimizer, ("m", "v"))


def _prepared(module: nn.Module) -> nn.Module:
    """The module with each ``nn.Dropout`` drawing from the member's own numbers."""
    place = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                place += 1
                setattr(parent, name, MemberDropout(place))
    return module
