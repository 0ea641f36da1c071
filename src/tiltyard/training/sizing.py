"""How many members step together, how many fit, and on how many threads? From shapes and the kind of device, never from timings.

A *chunk* is what steps together in memory. On a CPU a larger one spreads the cost of calling an operation over more
members until what it touches falls out of the cache; on a GPU until the device is busy. `DEFAULTS` holds where that is, in
bytes; `calibrate` measures it anew for a kind of device, once, outside of any sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tiltyard.errors import MachineError, TrainingError, UnpackableError
from tiltyard.training import dense
from tiltyard.training.layout import Layout
from tiltyard.training.optimizers import MOMENTS
from tiltyard.training.spec import PackSpec
from tiltyard.training.vmapped import Stacked, carried, template

FLOAT = 4
MIB = 1 << 20
ALLOCATOR_KEEPS = 128 * MIB
"""Bytes that a C library keeps at most of what autograd gave back, beyond what the estimate counts on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a kind of device likes.

    Args:
        kind: Of device: ``cpu``, ``cuda``.
        chunk_bytes: What the members of a chunk touch in a step, at most.
        most: Members of a chunk, at most.
        measured_on: Where `calibrate` found this; empty for what is shipped.
    """

    kind: str
    chunk_bytes: int
    most: int
    measured_on: str = ""


DEFAULTS: Mapping[str, Sizes] = {
    "cpu": Sizes(kind="cpu", chunk_bytes=12 << 20, most=1024),
    "cuda": Sizes(kind="cuda", chunk_bytes=16 << 30, most=4096),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Bytes and work of one member.

    Args:
        params: Bytes of its parameters.
        states: Copies of them that are kept besides: gradients and moments.
        extra: Bytes of what else it carries.
        kept: Bytes of activations and their gradients in a step.
        flops: Floating-point operations of a step, forward and backward.
        graph: Whether autograd keeps its own copies (`vmapped`).
    """

    params: int
    states: int
    extra: int
    kept: int
    flops: int
    graph: bool

    @classmethod
    def of(cls, spec: PackSpec, layout: Layout, template: nn.Module, parts: Sequence[dense.Part] | None) -> Shape:
        """Of a pack's model."""
        params = sum(layout.widths) * FLOAT
        states = 1 + len(MOMENTS[spec.optimizer])
        rows = spec.batch_size
        extra = sum(t.numel() * t.element_size() for t in carried(template).values())
        if parts is not None:
            kept = rows * FLOAT * (_kept_by(parts, first=True) + 3 * spec.num_outputs)
            return cls(params=params, states=states, extra=0, kept=kept, flops=6 * rows * params // FLOAT, graph=False)
        saved, flops = _saved_by(spec, template)
        return cls(params=params, states=states + 1, extra=extra, kept=saved, flops=flops, graph=True)

    @property
    def bytes(self) -> int:
        """All that a member touches in a step."""
        return self.params * (1 + self.states) + self.extra + self.kept


def _kept_by(parts: Sequence[dense.Part], *, first: bool) -> int:
    """Floats a row of a stack's buffers: outputs, and the gradients of inputs."""
    total = 0
    for i, part in enumerate(parts):
        if isinstance(part, dense.Affine):
            total += part.width + (0 if first and i == 0 else part.features)
        elif isinstance(part, dense.Norm):
            total += 2 * part.width
        elif isinstance(part, dense.Residual):
            inner = [p for p in part.inner if isinstance(p, dense.Norm)]
            total += _kept_by(part.inner, first=False) + (inner[0].width if inner else 0)
    return total


def _saved_by(spec: PackSpec, template: nn.Module) -> tuple[int, int]:
    """Bytes that autograd saves and operations of a step of one member, found by running two rows without their numbers."""
    meta = {n: torch.empty_like(p, device="meta").requires_grad_() for n, p in template.named_parameters()}
    extra: Stacked = {n: torch.empty_like(b, device="meta") for n, b in template.named_buffers()}
    stacked = {n: torch.empty((2, *p.shape), device="meta").requires_grad_() for n, p in meta.items()}
    carried_by = {n: torch.empty((2, *b.shape), dtype=b.dtype, device="meta") for n, b in extra.items()}
    rows = spec.batch_size
    x = torch.empty((rows, *spec.input_shape), device="meta")
    own = {t.untyped_storage()._cdata for t in stacked.values()} | {x.untyped_storage()._cdata}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        key = t.untyped_storage()._cdata
        if key not in own:
            saved[key] = t.untyped_storage().nbytes()
            held.append(t)
        return t

    held: list[Tensor] = []
    from torch.utils.flop_counter import FlopCounterMode

    def one(params: Stacked, buffers: Stacked) -> Tensor:
        out: Tensor = functional_call(template, {**params, **buffers}, (x,))
        return out

    counter = FlopCounterMode(display=False)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), counter:
            out = vmap(one, randomness="different")(stacked, carried_by)
            out.sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # a user's forward may fail in any way on numbers that are not there
        told = " ".join(str(error).split())
        raise UnpackableError(
            f"Model {spec.model!r} cannot be packed: how much memory a step takes cannot be told beforehand "
            f"({type(error).__name__}: {told[:200]}). What its forward does must follow from shapes alone."
        ) from error
    # besides what is saved: the gradient that is on its way back, as large as the largest of it
    on_its_way = max(saved.values(), default=0)
    return (sum(saved.values()) + on_its_way + 4 * out.numel() * FLOAT) // 2, counter.get_total_flops() // 2


def ladder(count: int) -> int:
    """The smallest rung that holds ``count`` members: 1, 2, 3, 4, 6, 8, 12, 16, 24, ...; a third is wasted at most.

    >>> [ladder(n) for n in (1, 3, 5, 9, 33, 100)]
    [1, 3, 6, 12, 48, 128]
    """
    power = 1 << max(0, count - 1).bit_length()
    return next(r for r in (power * 3 // 4, power) if r >= count)


def _rung_below(count: int) -> int:
    """The largest rung of at most ``count``."""
    return max(r for r in (1 << (count.bit_length() - 1), 3 << max(0, count.bit_length() - 2)) if r <= max(count, 1))


def chunk_for(shape: Shape, kind: str, sizes: Sizes | None = None) -> int:
    """Members that step together, from shapes and the kind of device."""
    likes = sizes or DEFAULTS.get(kind, DEFAULTS["cpu"])
    return min(likes.most, _rung_below(max(1, likes.chunk_bytes // max(1, shape.bytes))))


def threads_for(shape: Shape, chunk: int) -> int:
    """CPU threads of a step: as many as torch has now where its products are large, else one.

    A product shared out among threads must be worth waking them: about 10 million operations in each (measured: a pack of
    the 64-64-32-10 MLP loses a third of its speed on two threads; members of 1024 x 1024 gain nearly all of the second).
    """
    useful = max(1, shape.flops * min(chunk, 4) // 200_000_000)
    return min(useful, torch.get_num_threads())


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """This many CPU threads for a while."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shape_of(spec: PackSpec, module: nn.Module) -> Shape:
    """Bytes and work of a member of a pack of these, to ask the functions here before a pack is made."""
    own = template(module)
    parts = dense.plan(module)
    return Shape.of(spec, dense.layout_of(module, parts), own, parts)


@contextlib.contextmanager
def tiny_as_zero() -> Iterator[None]:
    """Numbers too small for float32's full precision (below 1.2e-38) count as 0 for a while, in this thread.

    A confident member's gradients are full of them, and a processor takes some hundred cycles for each: members of a
    64-1024-1024-10 MLP at rates of 0.01 and 0.02 stepped 2.4 times faster without (measured).
    """
    already = float(torch.full((1,), 1e-38) * 0.1) == 0.0
    changed = not already and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if changed:
            torch.set_flush_denormal(False)


# -- memory -----------------------------------------------------------------------------------------------------------


def estimate_bytes(shape: Shape, members: int, chunk: int, *, saved: bool = False, kind: str = "cpu") -> int:
    """What a pack of these members will hold at its peak, before anything is allocated.

    Parameters, gradients, moments and the buffers of a stack's layers are held for all members; what autograd saves for
    one chunk at a time, with the holes that a C library leaves where it was (`holes`).

    Held against the growth of resident memory on a CPU: stacks are within a fifth at any size (from some MiB, where a page
    counts). Of 20 packs of other modules, 16 to 340 MiB large, 17 were, and what their tensors hold alone always is; the
    other three held 1.3 to 1.7 times the estimate. What a C library leaves differs from run to run (99 and 143 MiB for one
    and the same pack), so what fits is decided with `kept_by_allocator` on top, which errs on the high side, the more the
    smaller a pack is: by half at 250 MiB.

    Args:
        shape: Of one member.
        members: Of the pack.
        chunk: That step together.
        saved: With the copy of parameters and moments that a checkpoint is written from, on the host.
        kind: Of device.
    """
    copy = members * (shape.params * (shape.states - (2 if shape.graph else 1) + 1) + shape.extra) if saved else 0
    chunk = min(chunk, members)
    always = shape.params * (1 + shape.states) + shape.extra
    if shape.graph:
        always -= shape.params  # autograd's gradients live for one chunk at a time
        passing = chunk * (shape.kept + shape.params)
        return members * always + passing + (holes(passing, -(-members // chunk)) if kind == "cpu" else 0) + copy
    return members * (always + shape.kept) + copy


def holes(passing: int, chunks: int) -> int:
    """Bytes that glibc is expected to hold of ``passing`` bytes that autograd takes and gives back at every step.

    Six tenths of them where one chunk steps all the time; where chunks take turns as many again, and more the more they are,
    for what each keeps lies between; above 100 MiB less and less, for blocks of 32 MiB and more go back to the system at once.
    Read off the growth of some 40 packs of convolutions, attention, batch norm and affine maps, from 2 to 500 MiB.
    ``M_MMAP_THRESHOLD`` would do away with them and double a CNN's step.

    Args:
        passing: Bytes of one chunk.
        chunks: That take turns.
    """
    share = 0.6 if chunks == 1 else 0.8 + 0.15 * chunks
    most = max(25 * MIB, 106 * MIB - max(0, passing - 100 * MIB) * 6 // 10)
    return min(int(share * passing) + 4 * MIB, most)


def kept_by_allocator(shape: Shape, kind: str) -> int:
    """Bytes that a process may hold beside `estimate_bytes`, at most: more of what autograd gave back than is expected.

    torch's allocator for CUDA gives back what it keeps before it refuses anything; a C library cannot, for other memory
    lies between.
    """
    return ALLOCATOR_KEEPS if shape.graph and kind == "cpu" else 0


def device_named(name: str) -> torch.device:
    """The device of a name, which is there and can hold numbers.

    Raises:
        MachineError: If it is not.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MachineError(
            f"No device {name!r} on this machine: {told[:200]}. It has: "
            f"{', '.join(['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))])}."
        ) from error
    return device


def available_bytes(device: torch.device) -> int:
    """Memory that can be had now: of the device, or of this machine within the limits of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        return min(free, _left_in_container())
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_in_container() -> int:
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        most = (folder / "memory.max").read_text().strip()
        if most != "max":
            return int(most) - int((folder / "memory.current").read_text())
    return 1 << 62


def members_that_fit(shape: Shape, chunk: int, free_bytes: int, *, saved: bool = False, kind: str = "cpu") -> int:
    """The most members whose estimate (``saved``, ``kind``: as there) is within ``free_bytes``; 0 where not even one fits."""

    def fits(members: int) -> bool:
        return estimate_bytes(shape, members, chunk, saved=saved, kind=kind) <= free_bytes

    low, high = 0, 1
    while high < 1 << 24 and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_fits(shape: Shape, members: int, chunk: int, device: torch.device) -> None:
    """Refuses a pack before it is allocated.

    Raises:
        MachineError: If its estimate is more than there is.
    """
    wanted = estimate_bytes(shape, members, chunk, kind=device.type)
    free = available_bytes(device) - kept_by_allocator(shape, device.type)
    if wanted > free:
        most = members_that_fit(shape, chunk, free, kind=device.type)
        raise MachineError(
            f"A pack of {members} members would hold {_size(wanted)} and {device} has {_size(max(0, free))} free. "
            + (f"{most} members fit: set pack={most}." if most else "Not even one fits: use a smaller model or batch.")
        )


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


# -- calibration ------------------------------------------------------------------------------------------------------

STILL_RISING = 1.05
"""A chunk twice as large must bring this much more, or the smaller one is enough."""


def calibrate(
    steps_per_second: Callable[[int], float], shape: Shape, kind: str, *, most: int = 1024, told: str = ""
) -> Sizes:
    """Where do members per second stop rising? Measured once for a kind of device, never in a sweep.

    Args:
        steps_per_second: Members' steps a second in chunks of so many members; `tiltyard.training.calibrate` gives one.
        shape: Of the members that are measured.
        kind: Of device.
        most: The largest chunk to try.
        told: What is measured on, for the record.

    Returns:
        The sizes for this kind of device; write them with `write_sizes`.
    """
    if most < 1:
        raise TrainingError(f"A largest chunk of {most} to try; wanted 1 or more.")
    best_chunk, best = 1, steps_per_second(1)
    chunk = 2
    while chunk <= most:
        found = steps_per_second(chunk)
        if found > best * STILL_RISING:
            best_chunk, best = chunk, found
        elif chunk >= 4 * best_chunk:
            break
        chunk *= 2
    return Sizes(kind=kind, chunk_bytes=best_chunk * shape.bytes, most=most, measured_on=told)


def write_sizes(path: Path, sizes: Sizes) -> None:
    """Writes them as JSON, over what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps({"schema_version": 1, **asdict(sizes)}, indent=1))
    os.replace(new, path)


def read_sizes(path: Path) -> Sizes:
    """Reads what `write_sizes` wrote.

    Raises:
        MachineError: If it is not there or a newer Tiltyard wrote it.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MachineError(f"No sizes in {path}: {error}. Calibrate this kind of device again.") from error
    if data.pop("schema_version", None) != 1:
        raise MachineError(f"The sizes in {path} are of another schema than 1. Calibrate this kind of device again.")
    return Sizes(**data)
