"""Problems that packs are measured on, and the loop they are measured against: one model at a time, in plain torch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.training import Member, Pack, PackSpec, build_module, sizing
from tiltyard.types import Task

BATCH = 64
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Problem:
    """What every trial of one measurement shares.

    Args:
        spec: The pack's.
        epochs: Batches of each epoch, in order; gathered before anything is timed, for both sides.
        x_val: Validation rows, scored after each epoch by both sides.
        y_val: Their labels.
    """

    spec: PackSpec
    epochs: list[Batches]
    x_val: Tensor
    y_val: Tensor

    @property
    def steps(self) -> int:
        """Steps of a trial."""
        return sum(len(batches) for batches in self.epochs)


def problem(name: str, *, device: str = "cpu") -> Problem:
    """``mlp``, ``logistic``, ``largest`` or ``cnn``."""
    from sklearn.datasets import load_breast_cancer, load_digits

    known: dict[str, tuple[str, dict[str, Any], int]] = {
        "mlp": ("mlp", {"hidden": (64, 32)}, 20),
        "logistic": ("logistic", {}, 20),
        "largest": ("mlp", {"hidden": (1024, 1024)}, 4),
        "cnn": ("cnn", {"image": (1, 8, 8), "channels": (16, 32)}, 2),
    }
    model, args, epochs = known[name]
    x, y = (load_breast_cancer if name == "logistic" else load_digits)(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = ((x - x.mean(0)) / (x.std(0) + 1e-8)).astype(np.float32)[order]
    y = y.astype(np.int64)[order]
    cut = int(0.8 * len(x))
    train_x, train_y = torch.from_numpy(x[:cut]).to(device), torch.from_numpy(y[:cut]).to(device)
    classes = int(y.max()) + 1
    spec = PackSpec(
        model=model,
        model_args=args,
        task=Task.BINARY if classes == 2 else Task.MULTICLASS,
        input_shape=(x.shape[1],),
        num_outputs=classes,
        optimizer="adamw",
        batch_size=BATCH,
        total_epochs=epochs,
    )
    made = []
    for epoch in range(epochs):
        rows = torch.randperm(cut, generator=torch.Generator().manual_seed(epoch)).to(device)
        xs, ys = train_x[rows], train_y[rows]
        made.append([(xs[i : i + BATCH], ys[i : i + BATCH]) for i in range(0, cut, BATCH)])
    return Problem(spec, made, torch.from_numpy(x[cut:]).to(device), torch.from_numpy(y[cut:]).to(device))


def members(count: int, *, first: int = 0) -> list[Member]:
    """Trials ``first`` to ``first + count`` of a random search over learning rate and weight decay."""
    found = []
    for i in range(first, first + count):
        draw = np.random.default_rng(i)
        lr, decay = 10 ** draw.uniform(-4, -1.5), 10 ** draw.uniform(-6, -2)
        found.append(Member(name=f"t{i}", seed=i, lr=float(lr), weight_decay=float(decay)))
    return found


def run_pack(of: Problem, who: list[Member], *, device: str = "cpu", chunk: int | None = None) -> list[float]:
    """Trains them packed; the last validation accuracy of each."""
    pack = Pack.create(of.spec, who, device=device, chunk=chunk)
    accuracy = np.zeros(len(who))
    for batches in of.epochs:
        pack.train_epoch(batches, steps_per_epoch=len(batches))
        accuracy = pack.score(of.x_val, of.y_val, ["accuracy"])["accuracy"]
    return [float(a) for a in accuracy]


LOOPS = ("plain", "foreach", "fused", "compiled")


class Loop:
    """One trial after another with an optimiser of ``torch.optim``: for-loop, foreach, fused, or its step compiled.

    A compiled step is compiled once for all trials, which share its parameters' memory and get their learning rate as a
    tensor; their weight decay, which the optimiser would compile in, is applied beside it.
    """

    def __init__(self, kind: str, of: Problem, device: str = "cpu") -> None:
        self.kind, self.of, self.device = kind, of, device
        self._shared: tuple[nn.Module, torch.optim.Optimizer, Callable[[], Any]] | None = None

    def run(self, who: list[Member]) -> list[float]:
        """The last validation accuracy of each."""
        return [self._trial(m) for m in who]

    def _parts(self, m: Member) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Any], float]:
        module = build_module(self.of.spec, seed=m.seed).to(self.device)
        if self.kind != "compiled":
            plain = torch.optim.AdamW(
                module.parameters(),
                lr=m.lr,
                weight_decay=m.weight_decay,
                foreach=None if self.kind == "fused" else self.kind == "foreach",
                fused=self.kind == "fused" or None,
            )
            return module, plain, plain.step, 1.0
        if self._shared is None:
            adamw = torch.optim.AdamW(module.parameters(), lr=torch.tensor(m.lr), weight_decay=0.0)
            self._shared = module, adamw, torch.compile(adamw.step)
        shared, optimizer, step = self._shared
        shared.load_state_dict(module.state_dict())
        optimizer.param_groups[0]["lr"].fill_(m.lr)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
        return shared, optimizer, step, 1.0 - m.lr * m.weight_decay

    def _trial(self, m: Member) -> float:
        module, optimizer, step, shrink = self._parts(m)
        params = [p.detach() for p in module.parameters()]
        accuracy = 0.0
        for batches in self.of.epochs:
            for x, y in batches:
                optimizer.zero_grad()
                functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
                if shrink != 1.0:
                    torch._foreach_mul_(params, shrink)
                step()
            with torch.inference_mode():
                accuracy = float((module(self.of.x_val).argmax(1) == self.of.y_val).double().mean())
        return accuracy


# -- what a worker process does ---------------------------------------------------------------------------------------

_HELD: dict[str, Any] = {}


def prepare(name: str) -> None:
    """One thread, the problem in memory, every way warmed up."""
    torch.set_num_threads(1)
    _HELD["problem"] = of = problem(name)
    short = Problem(of.spec, [of.epochs[0]], of.x_val, of.y_val)
    run_pack(short, members(8))
    for kind in LOOPS:
        if kind != "compiled":
            Loop(kind, short).run(members(1))


def compile_step() -> str:
    """Compiles the rival's step; what went wrong where it cannot be."""
    of = _HELD["problem"]
    loop = Loop("compiled", of)
    short = Loop("compiled", Problem(of.spec, [of.epochs[0]], of.x_val, of.y_val))
    try:
        short.run(members(3))
    except Exception as error:  # no compiler on this machine, for one
        return f"{type(error).__name__}: {error}"[:200]
    loop._shared = short._shared
    _HELD["compiled"] = loop
    return ""


def pack_work(first: int, count: int, chunk: int | None) -> tuple[float, list[float]]:
    """CPU seconds and accuracies of some trials, packed."""
    start = time.process_time()
    found = run_pack(_HELD["problem"], members(count, first=first), chunk=chunk)
    return time.process_time() - start, found


def loop_work(kind: str, first: int, count: int) -> tuple[float, list[float]]:
    """CPU seconds and accuracies of some trials, one after another."""
    loop = _HELD["compiled"] if kind == "compiled" else Loop(kind, _HELD["problem"])
    start = time.process_time()
    found = loop.run(members(count, first=first))
    return time.process_time() - start, found


def ceilings(chunk: int) -> dict[str, float]:
    """Microseconds of one member's step that this process cannot do without, measured now on numbers of these very shapes.

    ``products``: the matrix products of forward and backward. ``update``: Adam's one pass over parameters, gradients and
    moments, as torch's fused kernel makes it. ``flops`` and ``moved``: operations of the former and bytes of the latter;
    ``gflops`` and ``gbytes``: what they amount to in a second.
    """
    of: Problem = _HELD["problem"]
    module = build_module(of.spec, seed=0)
    layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
    size = sum(p.numel() for p in module.parameters())
    rows = of.spec.batch_size
    work: list[tuple[Tensor, Tensor, Tensor]] = []
    flops = 0
    for i, layer in enumerate(layers):
        out, into = layer.out_features, layer.in_features
        w, x, d = torch.randn(chunk, out, into), torch.randn(chunk, into, rows), torch.randn(chunk, out, rows)
        work += [(w, x, torch.empty(chunk, out, rows)), (d, x.transpose(1, 2), torch.empty(chunk, out, into))]
        if i:
            work.append((w.transpose(1, 2), d, torch.empty(chunk, into, rows)))
        flops += (3 if i else 2) * 2 * rows * out * into
    flat = [torch.rand(chunk * size) for _ in range(3)]
    step = torch.tensor(3.0)

    def products() -> None:
        for a, b, out in work:
            torch.bmm(a, b, out=out)

    def update() -> None:
        torch._fused_adamw_(
            [flat[0]], [flat[0]], [flat[1]], [flat[2]], [], [step],
            lr=1.0, beta1=0.9, beta2=0.999, weight_decay=1.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip

    with torch.inference_mode():
        found = {"products": _best_us(products) / chunk, "update": _best_us(update) / chunk}
    moved = 6 * size * 4  # gradients, m and v, there and back
    told = {"flops": float(flops), "moved": float(moved)}
    return found | told | {"gflops": flops / found["products"] / 1e3, "gbytes": moved / found["update"] / 1e3}


def flops_of_a_step(of: Problem) -> int:
    """Floating-point operations of one member's step, forward and backward."""
    return sizing.shape_of(of.spec, build_module(of.spec, seed=0)).flops


def convolutions_us() -> float:
    """Microseconds of the convolutions of one member's step, forward and backward, one model at a time; 0 without any."""
    of: Problem = _HELD["problem"]
    found, shapes = 0.0, []
    module = build_module(of.spec, seed=0)
    handles = [
        layer.register_forward_hook(lambda layer, args, out: shapes.append((layer, args[0].shape)))
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        module(of.epochs[0][0][0])
    for handle in handles:
        handle.remove()
    for i, (layer, shape) in enumerate(shapes):
        x = torch.randn(shape)
        settings = (list(layer.stride), list(layer.padding), list(layer.dilation), False, [0, 0], layer.groups)
        with torch.no_grad():
            out = torch.ops.aten.convolution(x, layer.weight, layer.bias, *settings)
            d = torch.randn_like(out)
            wanted = [layer.out_channels]
            found += _best_us(functools.partial(torch.ops.aten.convolution, x, layer.weight, layer.bias, *settings))
            back = [d, x, layer.weight, wanted, *settings, [i > 0, True, True]]
            found += _best_us(functools.partial(torch.ops.aten.convolution_backward, *back))
    return found


def gflops_of_a_product() -> float:
    """What a product of two 1024 x 1024 matrices reaches on this process's one thread, now."""
    a, b, out = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.empty(1024, 1024)
    return 2 * 1024**3 / _best_us(lambda: torch.mm(a, b, out=out)) / 1e3


def _best_us(work: Callable[[], object]) -> float:
    """Microseconds, the median of nine runs of some ten milliseconds each."""
    work()
    start = time.perf_counter()
    work()
    repeat = max(1, int(0.01 / (time.perf_counter() - start + 1e-9)))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        for _ in range(repeat):
            work()
        times.append((time.perf_counter() - start) / repeat)
    return sorted(times)[4] * 1e6
