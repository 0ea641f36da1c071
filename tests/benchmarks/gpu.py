"""Packs on one CUDA device: members per second against K, beside one model at a time, CUDA graphs, and K processes.

Run it on a machine with a GPU:  python tests/benchmarks/gpu.py
Smaller:                         python tests/benchmarks/gpu.py --most 256
Every line of it on a CPU:       python tests/benchmarks/gpu.py --rehearse --most 4   (its figures mean nothing)

Says why it is skipped where there is no CUDA. Writes ``.tiltyard/bench_gpu.json``, but not in a rehearsal.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pack_problems as work
import torch
from harness import Figure, row
from pack_problems import Problem
from torch.nn import functional

from tiltyard.training import Member, Pack, build_module, sizing

OUT = Path(".tiltyard/bench_gpu.json")
EPOCHS = 3
HFTA = 15.1
"""The best gain over one job a device in HFTA (MLSys 2021): other models, other GPUs. A landmark, not a rival."""


def main() -> int:
    """Runs all of it, or says why not."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--most", type=int, default=4096, help="members of the largest pack")
    asked.add_argument("--rehearse", action="store_true", help="on the CPU, to see that it runs")
    given = asked.parse_args()
    most, device = given.most, "cpu" if given.rehearse else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here; run this on a machine with one and a CUDA build of torch")
        return 0
    if given.rehearse:
        torch.set_num_threads(1)
    print(f"device: {'a rehearsal' if given.rehearse else torch.cuda.get_device_name()}, torch {torch.__version__}")
    figures: list[Figure] = []
    for name, aim in (("mlp", 50.0), ("cnn", HFTA)):
        for figure in measure(name, most, aim, device):
            figures.append(figure)
            print(row(figure), flush=True)
            if figure.note:
                print(f"    {figure.note}", flush=True)
    if not given.rehearse:
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps([asdict(f) for f in figures], indent=1))
    return 0


def synchronize(device: str) -> None:
    """Waits until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def short(name: str, device: str) -> Problem:
    """A problem with few epochs, on the device."""
    whole = work.problem(name, device=device)
    return Problem(whole.spec, whole.epochs[: EPOCHS if device == "cuda" else 1], whole.x_val, whole.y_val)


def measure(name: str, most: int, aim: float, device: str) -> Iterable[Figure]:
    """One problem: the curve over K, then what it is held against."""
    of = short(name, device)
    solo = _per_second(of, 2, functools.partial(solo_loop, device=device), device)
    graphed = _per_second(of, 4, Graphed(of, device).run, device)
    shared = {count: shared_by_processes(name, count, device) for count in ((4, 16) if device == "cuda" else (2,))}
    rivals = {"one at a time, fused": solo, "one at a time, CUDA graph": graphed}
    rivals |= {f"{n} processes on the GPU": v for n, v in shared.items()}
    fastest = max(rivals, key=lambda n: rivals[n])
    told = "; ".join(f"{n} {v:,.0f}/s" for n, v in rivals.items())
    k = 1
    sizes = []
    while k <= most:
        sizes.append(k)
        k *= 4
    for k in sorted({*sizes, min(1000, most)}):
        before = 0
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        with utilisation() as busy:
            found = _per_second(of, k, functools.partial(packed, device=device), device)
        memory = (torch.cuda.max_memory_allocated() - before) / k / (1 << 20) if device == "cuda" else 0.0
        note = f"busy {statistics.mean(busy):.0f}%, " if busy else "utilisation not told by nvidia-smi, "
        note += f"{memory:.2f} MiB a member, {found / rivals[fastest]:.1f}x {fastest}, {_arithmetic(of, found)}"
        if k == min(1000, most):
            note += f". {told}. Wanted: {aim:g}x" if name == "mlp" else f". {told}. HFTA's best was {aim:g}x"
        yield Figure(f"gpu_{name}_k{k}", found, "member-steps/s", "one at a time, fused", solo, found / solo, note)


def _arithmetic(of: Problem, per_second: float) -> str:
    """Operations, and bytes of parameters, gradients and moments that an update cannot but read and write."""
    shape = sizing.shape_of(of.spec, build_module(of.spec, seed=0))
    moved = shape.params * (2 * (1 + 2) + 2)  # p, m and v there and back, gradients written and read
    return f"{shape.flops * per_second / 1e12:.2f} TFLOP/s and {moved * per_second / 1e9:,.0f} GB/s of an update's own bytes"


def _per_second(of: Problem, members: int, run: Callable[[Problem, list[Member]], object], device: str) -> float:
    """Member-steps a second, the median of three runs after one that is not counted."""
    who = work.members(members)
    times = []
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        run(of, who)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return of.steps * members / statistics.median(times[1:])


def packed(of: Problem, who: list[Member], device: str) -> None:
    """All in one pack, validated after each epoch as the loops are."""
    pack = Pack.create(of.spec, who, device=device)
    for batches in of.epochs:
        pack.train_epoch(batches, steps_per_epoch=len(batches))
        pack.score(of.x_val, of.y_val, ["accuracy"])


def solo_loop(of: Problem, who: list[Member], device: str) -> None:
    """One after another with fused AdamW."""
    work.Loop("fused", of, device).run(who)


class Graphed:
    """One after another; a whole step is recorded as a CUDA graph once for each size of batch and replayed for every trial.

    Trials share the memory of parameters and moments; rate and decay are numbers on the device, which a graph reads anew.
    In a rehearsal on a CPU the step is called instead of replayed.
    """

    def __init__(self, of: Problem, device: str) -> None:
        self._device = device
        self._module = build_module(of.spec, seed=0).to(device)
        self._params = [p.detach() for p in self._module.parameters()]
        self._lr, self._shrink = torch.tensor(1e-3, device=device), torch.tensor(1.0, device=device)
        self._optimizer = torch.optim.AdamW(
            self._module.parameters(), lr=self._lr, weight_decay=0.0, capturable=device == "cuda", fused=True
        )
        self._steps: dict[int, tuple[Callable[[], object], torch.Tensor, torch.Tensor]] = {}
        for x, y in of.epochs[0][:1] + of.epochs[0][-1:]:
            own = x.clone(), y.clone()
            step = functools.partial(self._step, *own)
            self._steps[len(x)] = (self._recorded(step) if device == "cuda" else step, *own)

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=False)
        functional.cross_entropy(self._module(x), y).backward()  # type: ignore[no-untyped-call]
        torch._foreach_mul_(self._params, self._shrink)
        self._optimizer.step()

    @staticmethod
    def _recorded(step: Callable[[], object]) -> Callable[[], object]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph.replay

    def run(self, of: Problem, who: list[Member]) -> list[float]:
        """The last validation accuracy of each."""
        return [self._trial(of, m) for m in who]

    def _trial(self, of: Problem, m: Member) -> float:
        self._module.load_state_dict(build_module(of.spec, seed=m.seed).state_dict())
        for state in self._optimizer.state.values():
            for value in state.values():
                value.zero_()
        self._lr.fill_(m.lr)
        self._shrink.fill_(1.0 - m.lr * m.weight_decay)
        accuracy = 0.0
        for batches in of.epochs:
            for x, y in batches:
                step, own_x, own_y = self._steps[len(x)]
                own_x.copy_(x)
                own_y.copy_(y)
                step()
            with torch.inference_mode():
                accuracy = float((self._module(of.x_val).argmax(1) == of.y_val).double().mean())
        return accuracy


def shared_by_processes(name: str, count: int, device: str) -> float:
    """Member-steps a second of ``count`` processes on the one GPU, each with the fused loop over two models."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(count + 1), context.Barrier(count + 1)
    done = context.Queue()
    about = (name, device, ready, go, done)
    workers = [context.Process(target=_one_process, args=about, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    try:
        ready.wait(timeout=300)
        start = time.perf_counter()
        go.wait(timeout=60)
        steps = sum(done.get(timeout=600) for _ in workers)
        seconds = time.perf_counter() - start
    finally:
        for worker in workers:
            worker.join(timeout=30)
            if worker.is_alive():
                worker.terminate()
    return float(steps) / seconds


def _one_process(name: str, device: str, ready, go, done) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    of, who = short(name, device), work.members(2)
    solo_loop(of, who[:1], device)
    synchronize(device)
    ready.wait()
    go.wait()
    solo_loop(of, who, device)
    synchronize(device)
    done.put(of.steps * len(who))


@contextmanager
def utilisation() -> Iterator[list[float]]:
    """What nvidia-smi says of how busy the device is, some times a second; empty where it says nothing."""
    found: list[float] = []
    over = threading.Event()

    def watch() -> None:
        ask = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0"]
        while not over.wait(0.2):
            try:
                told = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=5).stdout
                found.append(float(told.strip().splitlines()[0]))
            except (OSError, subprocess.SubprocessError, ValueError, IndexError):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join(timeout=10)


if __name__ == "__main__":
    sys.exit(main())
