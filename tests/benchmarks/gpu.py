"""Packs on one CUDA device: members per second against K, beside one model at a time, CUDA graphs, and K processes.

Run it on a machine with a GPU:  python tests/benchmarks/gpu.py
Smaller:                         python tests/benchmarks/gpu.py --most 256

Says why it is skipped where there is no CUDA. Writes ``.tiltyard/bench_gpu.json``.
"""

from __future__ import annotations

import argparse
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

from tiltyard.training import Member, Pack, build_module

OUT = Path(".tiltyard/bench_gpu.json")
EPOCHS = 3
HFTA = 15.1
"""The best gain over one job a device in HFTA (MLSys 2021): other models, other GPUs. A landmark, not a rival."""


def main() -> int:
    """Runs all of it, or says why not."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--most", type=int, default=4096, help="members of the largest pack")
    most = asked.parse_args().most
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device here; run this on a machine with one and a CUDA build of torch")
        return 0
    print(f"device: {torch.cuda.get_device_name()}, torch {torch.__version__}")
    figures: list[Figure] = []
    for name, aim in (("mlp", 50.0), ("cnn", HFTA)):
        for figure in measure(name, most, aim):
            figures.append(figure)
            print(row(figure), flush=True)
            if figure.note:
                print(f"    {figure.note}", flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps([asdict(f) for f in figures], indent=1))
    return 0


def short(name: str) -> Problem:
    """A problem with few epochs, on the device."""
    whole = work.problem(name, device="cuda")
    return Problem(whole.spec, whole.epochs[:EPOCHS], whole.x_val, whole.y_val)


def measure(name: str, most: int, aim: float) -> Iterable[Figure]:
    """One problem: the curve over K, then what it is held against."""
    of = short(name)
    solo, graphed = _per_second(of, 2, solo_loop), _per_second(of, 4, graphed_loop)
    shared = {count: shared_by_processes(name, count) for count in (4, 16)}
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
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with utilisation() as busy:
            found = _per_second(of, k, packed)
        memory = (torch.cuda.max_memory_allocated() - before) / k / (1 << 20)
        note = f"busy {statistics.mean(busy):.0f}%, " if busy else "utilisation not told by nvidia-smi, "
        note += f"{memory:.2f} MiB a member, {found / rivals[fastest]:.1f}x {fastest}"
        if k == min(1000, most):
            note += f". {told}. Wanted: {aim:g}x" if name == "mlp" else f". {told}. HFTA's best was {aim:g}x"
        yield Figure(f"gpu_{name}_k{k}", found, "member-steps/s", "one at a time, fused", solo, found / solo, note)


def _per_second(of: Problem, members: int, run: Callable[[Problem, list[Member]], None]) -> float:
    """Member-steps a second, the median of three runs after one that is not counted."""
    who = work.members(members)
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(of, who)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return of.steps * members / statistics.median(times[1:])


def packed(of: Problem, who: list[Member]) -> None:
    """All in one pack, validated after each epoch as the loops are."""
    pack = Pack.create(of.spec, who, device="cuda")
    for batches in of.epochs:
        pack.train_epoch(batches, steps_per_epoch=len(batches))
        pack.score(of.x_val, of.y_val, ["accuracy"])


def solo_loop(of: Problem, who: list[Member]) -> None:
    """One after another with fused AdamW."""
    work.Loop("fused", of, "cuda").run(who)


def graphed_loop(of: Problem, who: list[Member]) -> None:
    """One after another, a whole step recorded as a CUDA graph for each size of batch and replayed."""
    for m in who:
        module = build_module(of.spec, seed=m.seed).cuda()
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=m.lr, weight_decay=m.weight_decay, capturable=True, fused=True
        )
        graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        start = {n: v.clone() for n, v in module.state_dict().items()}

        def step(x: torch.Tensor, y: torch.Tensor) -> None:
            optimizer.zero_grad(set_to_none=False)  # noqa: B023 - used within this turn of the loop
            functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]  # noqa: B023
            optimizer.step()  # noqa: B023

        for x, y in of.epochs[0][:1] + of.epochs[0][-1:]:
            own_x, own_y = x.clone(), y.clone()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step(own_x, own_y)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step(own_x, own_y)
            graphs[len(x)] = graph, own_x, own_y
        module.load_state_dict(start)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
        for batches in of.epochs:
            for x, y in batches:
                graph, own_x, own_y = graphs[len(x)]
                own_x.copy_(x)
                own_y.copy_(y)
                graph.replay()
            with torch.inference_mode():
                float((module(of.x_val).argmax(1) == of.y_val).double().mean())


def shared_by_processes(name: str, count: int) -> float:
    """Member-steps a second of ``count`` processes on the one GPU, each with the fused loop over two models."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(count + 1), context.Barrier(count + 1)
    done = context.Queue()
    workers = [context.Process(target=_one_process, args=(name, ready, go, done), daemon=True) for _ in range(count)]
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


def _one_process(name: str, ready, go, done) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    of, who = short(name), work.members(2)
    solo_loop(of, who[:1])
    torch.cuda.synchronize()
    ready.wait()
    go.wait()
    solo_loop(of, who)
    torch.cuda.synchronize()
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
