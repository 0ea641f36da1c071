"""Packs against the fastest loop over single models in plain torch: two processes on each side, one thread each."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pack_problems as work
from harness import Benchmark, Figure

PROCESSES = 2
RUNS = 3


class Pair:
    """Two worker processes, started and warmed before anything is timed."""

    def __init__(self, pools: list[ProcessPoolExecutor]) -> None:
        self._pools = pools

    def all(
        self, do: Callable[..., Any], *args: Any, per: Callable[[int], tuple[Any, ...]] = lambda _: ()
    ) -> list[Any]:
        """Calls ``do`` in both at once."""
        futures = [pool.submit(do, *args, *per(i)) for i, pool in enumerate(self._pools)]
        return [future.result() for future in futures]

    def seconds(self, do: Callable[..., Any], *args: Any, per: Callable[[int], tuple[Any, ...]]) -> tuple[float, float]:
        """Wall time of both, and the CPU time of the slower."""
        start = time.perf_counter()
        told = self.all(do, *args, per=per)
        return time.perf_counter() - start, max(cpu for cpu, _ in told)


@contextmanager
def pair(problem: str) -> Iterator[Pair]:
    """Two processes that hold a problem."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        found = Pair([stack.enter_context(ProcessPoolExecutor(1, context)) for _ in range(PROCESSES)])
        found.all(work.prepare, problem)
        yield found


def versus(
    name: str, problem: str, *, trials: int, sample: int, aim: float | None, chunk: int | None = None
) -> Iterable[Figure]:
    """``trials`` packed against the fastest loop, which runs ``sample`` of them and is scaled up: its time is per trial."""
    share, few = trials // PROCESSES, sample // PROCESSES
    with pair(problem) as workers:
        why = workers.all(work.compile_step)[0]
        kinds = [k for k in work.LOOPS if k != "compiled" or not why]
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in [*kinds, "pack"]}
        for _ in range(RUNS):  # in turns, so that what else this machine does falls on all alike
            for kind in kinds:
                times[kind].append(workers.seconds(work.loop_work, kind, per=lambda i: (i * share, few)))
            times["pack"].append(workers.seconds(work.pack_work, per=lambda i: (i * share, share, chunk)))
        loops = {kind: statistics.median(wall for wall, _ in times[kind]) * share / few for kind in kinds}
        packed = statistics.median(wall for wall, _ in times["pack"])
        fastest = min(loops, key=lambda k: loops[k])
        ours = workers.all(work.pack_work, per=lambda i: (i * share, few, chunk))
        theirs = workers.all(work.loop_work, fastest, per=lambda i: (i * share, few))
        apart = sorted(abs(a - b) for o, t in zip(ours, theirs, strict=True) for a, b in zip(o[1], t[1], strict=True))
        bound = workers.all(work.ceilings, min(64, share)) if problem != "cnn" else []
        alone, wide = (statistics.mean(workers.all(do)) for do in (work.convolutions_us, work.gflops_of_a_product))
    cpu = {kind: statistics.median(busy for _, busy in times[kind]) for kind in (fastest, "pack")}
    told = ", ".join(f"{k} {v:.1f} s" for k, v in loops.items()) + (f"; compiled: {why}" if why else "")
    note = f"{told} for all {trials} (from {sample} trials). "
    note += f"Validation accuracies of those {sample}: {statistics.median(apart):.4f} apart, {apart[-1]:.4f} at most. "
    note += f"In CPU time, which other programs disturb less: {cpu[fastest] * share / few / cpu['pack']:.2f}x. "
    if bound:
        steps = work.problem(problem).steps
        products, update = (statistics.mean(b[k] for b in bound) * steps * share / 1e6 for k in ("products", "update"))
        gflops, gbytes = (statistics.mean(b[k] for b in bound) for k in ("gflops", "gbytes"))
        flops, moved = (bound[0][k] * steps * share / 1e9 for k in ("flops", "moved"))
        note += (
            f"Bound, a core: {flops:.0f} GFLOP of products take {products:.2f} s at {gflops:.0f} GFLOP/s, as measured now on "
            f"these shapes (a large product: {wide:.0f}); Adam's one pass over {moved:.0f} GB takes {update:.2f} s at "
            f"{gbytes:.0f} GB/s. The two are {100 * (products + update) / packed:.0f}% of what was taken; the rest is one "
            "pass over memory each for biases, ReLU both ways, their sums, decay and rates, the loss, and validation."
        )
    if problem == "cnn":
        of = work.problem(problem)
        done = work.flops_of_a_step(of) * of.steps * share / packed / 1e9
        alone_s = alone * of.steps * share / 1e6
        note += (
            f"Bound by the library's convolutions of small images: one model's alone, forward and backward, take "
            f"{alone_s:.2f} s of this; {done:.0f} GFLOP/s a core where a large product reaches {wide:.0f}."
        )
    if aim is not None:
        note += f" Wanted: {aim:g}x."
    yield Figure(
        name, packed, "s", f"{fastest} loop, {trials} trials, {PROCESSES} processes", loops[fastest],
        loops[fastest] / packed, note,
    )  # fmt: skip


def mlp() -> Iterable[Figure]:
    """512 trials of an MLP 64-64-32-10, 20 epochs of digits, validated after each."""
    yield from versus("pack_mlp_vs_bare_loop", "mlp", trials=512, sample=24, aim=10.0)


def logistic() -> Iterable[Figure]:
    """1,000 trials of logistic regression on 30 features, 20 epochs."""
    yield from versus("pack_logistic_vs_bare_loop", "logistic", trials=1000, sample=40, aim=25.0)


def largest() -> Iterable[Figure]:
    """Where arithmetic rules: four members of a 64-1024-1024-10 MLP in each process."""
    yield from versus("pack_largest_vs_alone", "largest", trials=8, sample=8, aim=1.0)


def cnn() -> Iterable[Figure]:
    """32 trials of the CNN on 8x8 digits."""
    yield from versus("pack_cnn_vs_bare_loop", "cnn", trials=64, sample=16, aim=None)


def benchmarks() -> list[Benchmark]:
    """All four."""
    return [mlp, logistic, largest, cnn]
