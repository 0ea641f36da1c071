"""Many same-shaped models stepped together on one stream of batches, each with the result it would have alone.

Everything random is a function of the member's own seed and step (`tiltyard.training.randomness`), every rate is the
member's own, and members meet nowhere but in the batch they read. So neighbours, place, chunk, leaving and restores change
nothing but, at most, the order of floating-point sums inside a matrix product; `README.md` states by how much.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tiltyard.errors import ModelError, TrainingError
from tiltyard.models import MaskedInput
from tiltyard.training import checkpoint, dense, sizing
from tiltyard.training.beginning import Beginning, build_module
from tiltyard.training.chunk import Batch, Chunk, Model
from tiltyard.training.layout import Buffer
from tiltyard.training.optimizers import MOMENTS, rates
from tiltyard.training.packable import check_model
from tiltyard.training.scores import scores
from tiltyard.training.spec import Member, PackSpec
from tiltyard.training.vmapped import Stacked, carried, template
from tiltyard.types import Task

Array = npt.NDArray[np.float64]
SCORE_ROWS, PREDICT_ROWS = 4096, 512
WINDOW_STEPS, WINDOW_BYTES = 256, 64 << 20
"""How many batches chunks go through before the next chunk begins: bounds the memory that a streamed epoch holds."""


class Pack:
    """K members at one epoch. Make it with `create` or `load`.

    Attributes:
        spec: What is equal.
        members: In the order of every result.
        device: Where they step.
        chunk: Most members that step together in memory.
        threads: CPU threads of a step.
        epoch: Epochs done.
        step: Steps done.
    """

    def __init__(
        self,
        spec: PackSpec,
        members: Sequence[Member],
        *,
        device: str = "cpu",
        chunk: int | None = None,
        threads: int | None = None,
        sizes: sizing.Sizes | None = None,
    ) -> None:
        self.spec, self.members = spec, tuple(members)
        _check_members(spec, self.members)
        for name, given in (("chunk", chunk), ("threads", threads)):
            if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
                raise TrainingError(
                    f"{name} is {given!r}; a whole number of 1 or more is wanted, or None to have it chosen."
                )
        self.device = sizing.device_named(device)
        module = build_module(spec, seed=0)
        parts = dense.plan(module)
        check_model(spec, module)
        self._model = Model(spec, template(module).to(self.device), parts, dense.layout_of(module, parts))
        self._chunk_asked, self._sizes = chunk, sizes
        shape = sizing.Shape.of(spec, self._model.layout, self._model.template, parts)
        self.chunk = min(chunk or sizing.chunk_for(shape, self.device.type, sizes), len(self.members))
        self.threads = threads or sizing.threads_for(shape, self.chunk)
        sizing.check_fits(shape, len(self.members), self.chunk, self.device)
        self.epoch, self.step = 0, 0
        self._failed: dict[str, str] = {}
        self._chunks: list[Chunk] = []
        self._held: tuple[Member, ...] = self.members
        self._live: list[int] | None = None
        self._saving: checkpoint.Saving | None = None

    @classmethod
    def create(
        cls,
        spec: PackSpec,
        members: Sequence[Member],
        *,
        device: str = "cpu",
        chunk: int | None = None,
        threads: int | None = None,
        sizes: sizing.Sizes | None = None,
    ) -> Pack:
        """A pack at epoch 0, each member initialised under its own seed.

        Args:
            spec: What is equal.
            members: What differs.
            device: A torch device.
            chunk: Most members that step together in memory; None chooses from shapes and the kind of device. It changes
                how fast members step, not their results.
            threads: CPU threads; None chooses from the work of a step, at most those that torch has now.
            sizes: What this kind of device likes, from `calibrate`; None takes what is shipped.

        Raises:
            TrainingError: If there are no members, two of one name, or one whose values do not fit the model.
            ModelError: If the model cannot be built, or its output is not ``(rows, num_outputs)``.
            UnpackableError: If it cannot be packed; the reasons are in the message.
            MachineError: If the device is not there, or more memory is needed than there is.
        """
        pack = cls(spec, members, device=device, chunk=chunk, threads=threads, sizes=sizes)
        beginning = Beginning(spec, pack._model.layout.order)

        def rows(at: slice) -> _Rows:
            params, extra = beginning.rows(pack.members[at])
            return _Rows(params, {}, extra)

        pack._fill(rows)
        return pack

    def _fill(self, rows: Callable[[slice], _Rows]) -> None:
        """Lays members out as chunks, asking for the rows of one chunk after the other."""
        chunks = []
        for start, end in pairwise([*range(0, len(self.members), self.chunk), len(self.members)]):
            at = slice(start, end)
            own = rows(at)
            extra = {n: e.to(self.device, copy=True) for n, e in own.extra.items()}
            chunks.append(Chunk(self._model, self.members[at], own.params, own.moments, extra, self.step, self.device))
        self._chunks, self._held, self._live = chunks, self.members, None

    # -- training -----------------------------------------------------------------------------------------------------

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], *, steps_per_epoch: int | None = None) -> Array:
        """One pass over the batches; the mean training loss of each member, ``(K,)``.

        Args:
            batches: ``(x, y)`` in their order; x ``(rows, *input_shape)`` float32, y as the task says.
            steps_per_epoch: For the schedules; counted from the batches where None, which holds them all.

        Raises:
            TrainingError: If there is no batch, or one does not fit the pack or has a number that is not finite; windows of
                batches before it have been trained.
            ModelError: If a user's model fails on a batch.
        """
        if steps_per_epoch is not None and (not isinstance(steps_per_epoch, int) or steps_per_epoch < 1):
            raise TrainingError(
                f"steps_per_epoch is {steps_per_epoch!r}; a whole number of 1 or more is wanted, or None."
            )
        if steps_per_epoch is None:
            batches = list(batches)
            steps_per_epoch = len(batches)
        total, rows = np.zeros(len(self.members)), 0
        with sizing.threads(self.threads), sizing.tiny_as_zero():
            for window in self._windows(batches):
                losses = self._run(window, steps_per_epoch)
                self._note_failures(losses)
                counts = np.array([b.rows for b in window], dtype=np.float64)
                total += (losses * counts[:, None]).sum(0)
                rows += int(counts.sum())
                self.step += len(window)
        if rows == 0:
            raise TrainingError("An epoch of no batches: the training split is empty. Give it a share of the rows.")
        self.epoch += 1
        return total / rows

    def _windows(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[list[Batch]]:
        window: list[tuple[Tensor, Tensor]] = []
        held = 0
        for batch in batches:
            if not (isinstance(batch, tuple | list) and len(batch) == 2):
                raise TrainingError(f"A batch came as a {type(batch).__name__}; a pair of inputs and labels is wanted.")
            x, y = batch
            self._check_batch(x, y)
            window.append((x, y))
            held += x.numel() * x.element_size()
            if len(window) == WINDOW_STEPS or held >= WINDOW_BYTES:
                yield self._prepared(window)
                window, held = [], 0
        if window:
            yield self._prepared(window)

    def _prepared(self, window: Sequence[tuple[Tensor, Tensor]]) -> list[Batch]:
        """The window as chunks read it, its numbers looked at once: on a GPU each look waits for the device."""
        self._check_values(torch.cat([y for _, y in window]))
        if not bool(torch.stack([x.sum() for x, _ in window]).isfinite().all()):
            for x, _ in window:
                _check_finite("inputs", x)
        return [self._model.batch(x.to(self.device), y.to(self.device)) for x, y in window]

    def _run(self, window: Sequence[Batch], steps_per_epoch: int) -> Array:
        """Losses ``(steps, K)``."""
        steps = np.arange(self.step, self.step + len(window))
        lr = rates(self._held, steps, steps_per_epoch, self.spec.total_epochs)
        losses, at = [], 0
        mode = torch.inference_mode() if self._model.parts is not None else torch.no_grad()
        with mode:
            for chunk in self._chunks:
                own = slice(at, at + len(chunk.members))
                losses.append(chunk.run(window, lr[:, own], self.step + 1))
                at = own.stop
            found: Array = torch.cat(losses, dim=1).double().cpu().numpy()
        return found if self._live is None else found[:, self._live]

    def _note_failures(self, losses: Array) -> None:
        bad = ~np.isfinite(losses)
        for i in np.flatnonzero(bad.any(0)):
            self._failed.setdefault(
                self.members[i].name,
                f"diverged: the training loss is not a finite number at epoch {self.epoch + 1}, step "
                f"{self.step + 1 + int(bad[:, i].argmax())}",
            )

    def _check_batch(self, x: Tensor, y: Tensor) -> None:
        self._check_inputs(x)
        if len(x) == 0:
            raise TrainingError("A batch of no rows: the training split is empty. Give it a share of the rows.")
        if len(x) > self.spec.batch_size:
            raise TrainingError(
                f"A batch has {len(x)} rows, more than the batch_size of {self.spec.batch_size} that the pack's memory was "
                "estimated for. Split it, or give the spec that batch_size."
            )
        self._check_labels(x, y)

    def _check_inputs(self, x: Tensor) -> None:
        wanted = tuple(self.spec.input_shape)
        if not isinstance(x, Tensor):
            raise TrainingError(
                f"Inputs came as a {type(x).__name__}; a torch.float32 tensor (rows, *{wanted}) is wanted."
            )
        if tuple(x.shape[1:]) != wanted:
            raise TrainingError(f"A batch has rows of shape {tuple(x.shape[1:])}; {wanted} is wanted.")
        if x.dtype is not torch.float32:
            raise TrainingError(
                f"A batch has inputs of type {x.dtype}; torch.float32 is wanted. Convert it: x.to(torch.float32)."
            )

    def _check_labels(self, x: Tensor, y: Tensor) -> None:
        task, outputs = self.spec.task, self.spec.num_outputs
        classes = task in {Task.BINARY, Task.MULTICLASS}
        wanted = (len(x),) if classes else (len(x), outputs)
        if not isinstance(y, Tensor):
            raise TrainingError(f"The labels came as a {type(y).__name__}; a tensor of shape {wanted} is wanted.")
        if tuple(y.shape) != wanted:
            raise TrainingError(f"{len(x)} rows came with labels of shape {tuple(y.shape)}; {wanted} is wanted.")
        dtype = torch.int64 if classes else torch.float32
        if y.dtype is not dtype:
            raise TrainingError(f"The labels of a {task} task came as {y.dtype}; {dtype} is wanted.")

    def _check_values(self, y: Tensor) -> None:
        task, outputs = self.spec.task, self.spec.num_outputs
        classes = task in {Task.BINARY, Task.MULTICLASS}
        if classes or task is Task.MULTILABEL:
            low, high = torch.aminmax(y)
            if classes and (int(low) < 0 or int(high) >= outputs):
                raise TrainingError(f"Labels run from {int(low)} to {int(high)}; wanted 0 to {outputs - 1}.")
            if not classes and bool(((y != 0) & (y != 1)).any()):
                raise TrainingError(f"Labels run from {float(low):g} to {float(high):g}; wanted 0 and 1 alone.")
        elif not bool(y.sum().isfinite()):
            _check_finite("targets", y)

    # -- asking -------------------------------------------------------------------------------------------------------

    def predict(self, x: Tensor) -> Tensor:
        """Outputs of every member, ``(K, rows, outputs)``, without dropout or noise.

        Raises:
            TrainingError: If the rows are not float32 of the pack's shape.
            ModelError: If a user's model fails on them.
        """
        self._check_inputs(x)
        found = torch.empty((len(self._held), self.spec.num_outputs, len(x)), device=self.device)
        stack = self._model.parts is not None
        step = self.spec.batch_size if stack else max(self.spec.batch_size, PREDICT_ROWS)
        with sizing.threads(self.threads), torch.inference_mode() if stack else torch.no_grad():
            slices = [slice(i, min(i + step, len(x))) for i in range(0, len(x), step)]
            parts = [self._rows_of(x[rows].to(self.device), step if stack else 0) for rows in slices]
            at = 0
            for chunk in self._chunks:
                own = found[at : at + len(chunk.members)]
                for rows, part in zip(slices, parts, strict=True):
                    chunk.predict(part, own[:, :, rows])
                at += len(chunk.members)
        return (found if self._live is None else found[self._live]).transpose(1, 2)

    def _rows_of(self, x: Tensor, fill: int) -> Tensor:
        """Rows as chunks read them; a stack's are filled up to a batch, whose memory it has already."""
        if len(x) < fill:
            x = torch.cat([x, x.new_zeros((fill - len(x), *x.shape[1:]))])
        return self._model.inputs(x)

    def score(self, x: Tensor, y: Tensor, metrics: Sequence[str]) -> dict[str, Array]:
        """Scores of every member on rows, by name, each ``(K,)``; NaN where a member's outputs are not finite.

        Raises:
            TrainingError: If there are no rows, they do not fit or are not finite, or the task has no such metric.
        """
        self._check_inputs(x)
        if len(x):
            self._check_labels(x, y)
            self._check_values(y)
            if not bool(x.sum().isfinite()):
                _check_finite("inputs", x)
        parts = [self.predict(x[i : i + SCORE_ROWS]) for i in range(0, max(1, len(x)), SCORE_ROWS)]
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return scores(self.spec.task, outputs, y.to(self.device), metrics)

    def failures(self) -> dict[str, str]:
        """Members that diverged, with the reason."""
        return dict(self._failed)

    def extract(self, name: str) -> nn.Module:
        """One member as a stand-alone module in eval mode, on the CPU.

        A feature mask goes with it: into the weights of a first affine layer, which then reads nothing of what the member
        did not see, or as a `MaskedInput` around any other model.
        """
        i = self._index(name)
        held = i if self._live is None else self._live[i]
        chunk, at = self._chunks[held // self.chunk], held % self.chunk
        module = build_module(self.spec, seed=0)
        values = chunk.params.rows()[at].cpu()
        state: dict[str, Tensor] = {n: e[at].cpu().clone() for n, e in chunk.extra().items()}
        first = 0
        for param in self._model.layout.order:
            slot = self._model.layout.slots[param]
            state[param] = values[first : first + slot.size].view(slot.shape).clone()
            first += slot.size
        module.load_state_dict(state, strict=False)
        mask = self.members[i].feature_mask
        if mask is None:
            return module.eval()
        seen = torch.tensor(mask, dtype=torch.float32).view(self.spec.input_shape)
        if self._model.parts is not None and isinstance(self._model.parts[0], dense.Affine):
            with torch.no_grad():
                module.get_parameter(self._model.parts[0].weight).mul_(seen.flatten())
            return module.eval()
        return MaskedInput(module, seen).eval()

    # -- leaving and joining ------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Members that take up memory: those that are here, and those that have left since the pack was last compacted."""
        return len(self._held)

    def leave(self, names: Sequence[str]) -> None:
        """Takes members out of this pack, in place; the others go on as if nothing had happened.

        Their memory is given up when those that stay fit a smaller size of the ladder (`sizing.ladder`); until then they
        step along unseen. So shapes change a few times in the life of a pack, not at every departure.

        Raises:
            TrainingError: If a name is not in the pack, or nobody would stay.
        """
        gone = {self._index(n) for n in names}
        stay = [i for i in range(len(self.members)) if i not in gone]
        if not stay:
            raise TrainingError(f"All {len(self.members)} members would leave; a pack of no members cannot be.")
        live = stay if self._live is None else [self._live[i] for i in stay]
        left = {self.members[i].name for i in gone}
        self._failed = {n: r for n, r in self._failed.items() if n not in left}
        self.members, self._live = tuple(self.members[i] for i in stay), live
        if sizing.ladder(len(live)) < sizing.ladder(len(self._held)):
            self._fill(self._rows().part)

    def keep(self, names: Sequence[str]) -> Pack:
        """A pack of these members alone, in this order.

        Raises:
            TrainingError: If a name is not in the pack, or there is none.
        """
        at = [self._index(n) for n in names]
        pack = self._like([self.members[i] for i in at])
        rows = self._rows()
        pack._fill(lambda some: rows.part(at[some]))
        kept = set(names)
        pack._failed = {n: r for n, r in self._failed.items() if n in kept}
        return pack

    @classmethod
    def merge(cls, packs: Sequence[Pack]) -> Pack:
        """One pack of the members of several that stand at the same epoch.

        Raises:
            TrainingError: If there is none, they differ in spec or epoch, or two members have one name.
        """
        if not packs:
            raise TrainingError("There are no packs to merge; give at least one.")
        first = packs[0]
        for other in packs[1:]:
            if other.spec != first.spec:
                raise TrainingError(f"Packs of other specs cannot be merged: {first.spec.difference(other.spec)}.")
            if (other.epoch, other.step) != (first.epoch, first.step):
                raise TrainingError(
                    f"Packs at epoch {first.epoch} (step {first.step}) and epoch {other.epoch} (step {other.step}) cannot "
                    "be merged; train the one that is behind first."
                )
        pack = first._like([m for p in packs for m in p.members])
        rows = [p._rows() for p in packs]
        pack._fill(
            _Rows(
                torch.cat([r.params.to(pack.device) for r in rows]),
                {n: torch.cat([r.moments[n].to(pack.device) for r in rows]) for n in rows[0].moments},
                {n: torch.cat([r.extra[n].to(pack.device) for r in rows]) for n in rows[0].extra},
            ).part
        )
        pack._failed = {n: r for p in packs for n, r in p._failed.items()}
        return pack

    def _like(self, members: Sequence[Member]) -> Pack:
        pack = Pack(
            self.spec,
            members,
            device=str(self.device),
            chunk=self._chunk_asked,
            threads=self.threads,
            sizes=self._sizes,
        )
        pack.epoch, pack.step = self.epoch, self.step
        return pack

    def _rows(self, *, host: bool = False) -> _Rows:
        """A copy of all numbers; on the host where that is asked for, so that a device need not hold them twice."""
        live = slice(None) if self._live is None else self._live
        device, width = torch.device("cpu") if host else self.device, self._model.layout.num_params

        def all_of(buffers: Sequence[Buffer]) -> Tensor:
            found, at = torch.empty((len(self._held), width), device=device), 0
            for buffer in buffers:
                buffer.read(found[at : at + buffer.members])
                at += buffer.members
            return found[live]

        first, extras = self._chunks[0], [c.extra() for c in self._chunks]
        return _Rows(
            all_of([c.params for c in self._chunks]),
            {n: all_of([c.moments[n] for c in self._chunks]) for n in first.moments},
            {n: torch.cat([e[n].to(device) for e in extras])[live] for n in extras[0]},
        )

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of the whole pack: safetensors and JSON, whole or not at all."""
        if self._saving is not None:
            self._saving.settle()
        checkpoint.write(folder, *self._snapshot())

    def save_later(self, folder: Path) -> checkpoint.Saving:
        """The same, off the training path: the numbers are copied now and written by a thread while training goes on.

        Checkpoints of a pack are written in the order in which they were asked for.
        """
        self._saving = checkpoint.Saving(folder, *self._snapshot(), after=self._saving)
        return self._saving

    def _snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        rows = self._rows(host=True)
        tensors = {"params": rows.params}
        tensors |= {f"moment.{n}": m for n, m in rows.moments.items()} | {
            f"extra.{n}": e for n, e in rows.extra.items()
        }
        meta = {
            "spec": self.spec.to_dict(),
            "members": [m.to_dict() for m in self.members],
            "epoch": self.epoch,
            "step": self.step,
            "failed": dict(self._failed),
        }
        return {n: t.detach() for n, t in tensors.items()}, meta

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        names: Sequence[str] | None = None,
        device: str = "cpu",
        chunk: int | None = None,
        threads: int | None = None,
    ) -> Pack:
        """Reads a checkpoint, or only some members of it, in that order; it goes on as if nothing had happened.

        Raises:
            ModelError: If there is no whole checkpoint, it is not as it was written or does not fit its model, or a newer
                Tiltyard wrote it.
            TrainingError: If a name is not in it.
        """
        tensors, meta = checkpoint.read(folder)
        try:
            spec, members = PackSpec.from_dict(meta["spec"]), [Member.from_dict(m) for m in meta["members"]]
            epoch, step, failed = int(meta["epoch"]), int(meta["step"]), dict(meta["failed"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"The checkpoint in {folder} does not say what a pack's must: {type(error).__name__}: {error}. Train the pack "
                "again."
            ) from error
        places = {m.name: i for i, m in enumerate(members)}
        at = [_place(places, n) for n in names] if names is not None else list(range(len(members)))
        pack = cls(spec, [members[i] for i in at], device=device, chunk=chunk, threads=threads)
        pack._check_tensors(folder, tensors, len(members))
        pack.epoch, pack.step = epoch, step
        wanted = {m.name for m in pack.members}
        pack._failed = {n: r for n, r in failed.items() if n in wanted}

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        rows = _Rows(tensors["params"], part("moment."), part("extra."))
        pack._fill(lambda some: rows.part(at[some]))
        return pack

    def _check_tensors(self, folder: Path, tensors: Mapping[str, Tensor], count: int) -> None:
        """Whether these are the numbers of ``count`` members of this pack's model."""
        floats = ("params", *(f"moment.{n}" for n in MOMENTS[self.spec.optimizer]))
        wanted = dict.fromkeys(floats, ((count, self._model.layout.num_params), torch.float32))
        if self._model.parts is None:
            own = carried(self._model.template)
            wanted |= {f"extra.{n}": ((count, *t.shape), t.dtype) for n, t in own.items()}
        found = {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}
        if found != wanted:
            name = next(n for n in sorted({*found, *wanted}) if found.get(n) != wanted.get(n))
            raise ModelError(
                f"The checkpoint in {folder} does not fit its model {self.spec.model!r}: {name} is {found.get(name)}, and "
                f"{wanted.get(name)} is wanted. Has the model's code changed? Train the pack again."
            )

    def _index(self, name: str) -> int:
        return _place({m.name: i for i, m in enumerate(self.members)}, name)


def calibrate(spec: PackSpec, *, device: str = "cpu", most: int = 1024, seconds: float = 0.3) -> sizing.Sizes:
    """Measures where members per second stop rising for packs of these, on this machine; for a quiet moment, once.

    Args:
        spec: Of packs as they are usual here.
        device: A torch device.
        most: The largest chunk to try.
        seconds: Of measuring each size.

    Raises:
        TrainingError: If ``most`` is below 1, or ``seconds`` is not above 0.
        MachineError: If the device is not there.
    """
    if not 0 < seconds < float("inf"):
        raise TrainingError(f"seconds is {seconds!r}; wanted above 0.")
    kind = sizing.device_named(device).type
    rows = torch.zeros((spec.batch_size, *spec.input_shape))
    classes = spec.task in {Task.BINARY, Task.MULTICLASS}
    labels = (
        torch.zeros(spec.batch_size, dtype=torch.int64) if classes else torch.zeros(spec.batch_size, spec.num_outputs)
    )

    def members_per_second(chunk: int) -> float:
        members = [Member(name=str(i), seed=i) for i in range(chunk)]
        pack = Pack.create(spec, members, device=device, chunk=chunk)
        batches = [(rows, labels)] * 8
        pack.train_epoch(batches)
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            pack.train_epoch(batches)
            steps += len(batches)
        return steps * chunk / (time.perf_counter() - begun)

    shape = sizing.shape_of(spec, build_module(spec, seed=0))
    told = torch.cuda.get_device_name(device) if kind == "cuda" else platform.processor() or platform.machine()
    return sizing.calibrate(members_per_second, shape, kind, most=most, told=f"{told}: {spec.model}")


class _Rows:
    """A pack's numbers with one row a member, in the order of the model."""

    def __init__(self, params: Tensor, moments: dict[str, Tensor], extra: Stacked) -> None:
        self.params, self.moments, self.extra = params, moments, extra

    def part(self, at: slice | Sequence[int]) -> _Rows:
        """Of some members, in this order."""
        return _Rows(
            self.params[at], {n: m[at] for n, m in self.moments.items()}, {n: e[at] for n, e in self.extra.items()}
        )


def _check_finite(what: str, values: Tensor) -> None:
    """Refuses the first number that is not finite: every member would diverge on it, and be told as one that diverged."""
    bad = (~values.isfinite()).flatten(1).nonzero()
    if len(bad):
        row, column = (int(n) for n in bad[0])
        raise TrainingError(
            f"The {what} of a batch have {float(values.flatten(1)[row, column])} in row {row}, column {column}; finite numbers "
            "are wanted. Fill in what is missing, or leave such rows out."
        )


def _place(places: Mapping[str, int], name: str) -> int:
    if name not in places:
        raise TrainingError(f"No member {name[:20]!r} in this pack of {len(places)}; ask for one that is there.")
    return places[name]


def _check_members(spec: PackSpec, members: Sequence[Member]) -> None:
    if not members:
        raise TrainingError("A pack of no members (K = 0): give it at least one.")
    seen: set[str] = set()
    for member in members:
        if not isinstance(member, Member):
            raise TrainingError(f"A member came as a {type(member).__name__}; a tiltyard.training.Member is wanted.")
        if member.name in seen:
            raise TrainingError(
                f"There are two members of the name {member.name[:20]!r}; names are how members are found again."
            )
        seen.add(member.name)
        member.loss_of(spec.task)
        for field, given, wanted in (
            ("class_weights", member.class_weights, spec.num_outputs),
            ("feature_mask", member.feature_mask, spec.num_features),
        ):
            if given is not None and len(given) != wanted:
                raise TrainingError(
                    f"Member {member.name[:20]!r}: {field} has {len(given)} values; the pack's model wants {wanted}."
                )
        if spec.task is Task.REGRESSION and (member.class_weights is not None or member.label_smoothing):
            raise TrainingError(
                f"Member {member.name[:20]!r}: class_weights {member.class_weights} and label_smoothing "
                f"{member.label_smoothing:g} have no meaning in regression; leave them out."
            )
