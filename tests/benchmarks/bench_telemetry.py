"""What telemetry costs, and how long a board takes to load.

A sweep with its exporter and logs against the same sweep without, turn by turn in one run; a front that answers requests with
and without, turn by turn; the CPU of a round of the exporter over 10,000 recorded trials, and how many series there are then;
and every query of the boards over a week of synthetic series in a real Prometheus.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from harness import Benchmark, Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

TRIALS, ROUNDS, MOST_SHARE, MOST_SERIES = 10_000, 20, 0.02, 2000
PAIRS, REQUEST_SHARE, BOARD_S = 5, 0.01, 2.0
SERVING_PAIRS, BLOCK_S, CLIENTS, FACE_PAIRS = 200, 0.2, 4, 2500
WEEK_S, EVERY_S, POINTS = 7 * 86_400, 60, 1000


def telemetry_round() -> Iterable[Figure]:
    """CPU time of this process, Ray's own threads in it too, over rounds without a pause between them."""
    import ray
    import recorded_sweep

    from tiltyard.journal import Journal
    from tiltyard.sweep.engine.driver import Tick
    from tiltyard.telemetry.exporter import RecordReader
    from tiltyard.telemetry.sweeps import EVERY_S as ROUND_S
    from tiltyard.telemetry.sweeps import Exporting

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        recorded = recorded_sweep.record(Path(folder), trials=TRIALS)
        recorded_sweep.evaluate_champion(recorded)
        states = {"running": 200, "waiting": 800, "stopped": 8900, "done": 50, "failed": 50}
        best = {d.name: (0.9, "mlp/0") for d in recorded.experiment.datasets}
        tick = Tick(states=states, best=best, elapsed_s=100.0, packs_running=2, work_done=0.5)
        made = Exporting(recorded.settings, recorded.experiment, _Nobody())
        made._key, made._last = recorded.key, (time.monotonic(), tick)
        with Journal.open(recorded.settings.journal_uri) as journal:

            def one_round() -> list[Any]:
                readings = made._readings(journal)
                for name, labels, value in readings:
                    made._set(name, labels, value)
                return readings

            of_sweep = one_round()
            start = time.process_time()
            for _ in range(ROUNDS):
                one_round()
            cpu_s = (time.process_time() - start) / ROUNDS
        of_record, _ = RecordReader(recorded.settings).read(time.time())
    ray.shutdown()
    share = cpu_s / ROUND_S
    series = {(name, *sorted(labels.items())) for name, labels, _ in (*of_sweep, *of_record)}
    note = f"{1000 * cpu_s:.1f} ms of CPU every {ROUND_S:g} s, {TRIALS} trials"
    yield Figure("telemetry_round", share, "of a core", "limit", MOST_SHARE, MOST_SHARE / share, note)
    note = (
        f"{len(of_sweep)} of the sweep of {TRIALS} trials, {len(of_record)} of the record, of one cluster process each"
    )
    yield Figure("telemetry_series", len(series), "series", "limit", MOST_SERIES, MOST_SERIES / len(series), note)


class _Nobody:
    def planned(self, plan: Any, known: int) -> None: ...

    def step(self, what: str) -> None: ...

    def tick(self, tick: Any) -> None: ...


def telemetry_overhead() -> Iterable[Figure]:
    """The same sweep with and without the exporter and logs of a run, turn by turn; each has a seed of its own."""
    import ray
    import sweeps

    from tiltyard.experiment import Halving, Search
    from tiltyard.sweep.engine.outcome import Silent
    from tiltyard.telemetry import logs
    from tiltyard.telemetry.sweeps import exporting

    with tempfile.TemporaryDirectory() as folder:
        settings = sweeps.settings_at(Path(folder) / "home", sweeps.commit_small_datasets(Path(folder) / "data"))
        settings.ensure_home()
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        search = Search(trials=240, halving=Halving(rungs=(4, 12, 36), keep=1 / 3))
        numbers = itertools.count()

        def sweep(*, told: bool) -> float:
            wanted = sweeps.experiment(name=f"ab{next(numbers)}", variants=(sweeps.MLP,), search=search)
            start = time.perf_counter()
            if told:
                logs.setup(level=logging.WARNING)
                with logs.bound(experiment=wanted.name), exporting(settings, wanted, Silent()) as watch:
                    sweeps.run_launch(settings, wanted, watch)
            else:
                sweeps.run_launch(settings, wanted, Silent())
            return time.perf_counter() - start

        sweep(told=False)
        sweep(told=True)
        pairs = []
        for i in range(PAIRS):
            first = sweep(told=bool(i % 2))
            second = sweep(told=not i % 2)
            pairs.append((second, first) if i % 2 else (first, second))
        ray.shutdown()
    without, with_it = (statistics.median(times) for times in zip(*pairs, strict=True))
    spread = statistics.stdev(b / a for a, b in pairs)
    more = statistics.median(b / a for a, b in pairs) - 1
    note = (
        f"{with_it:.2f} s with, {without:.2f} s without, medians of {PAIRS} pairs; from pair to pair the ratio varies by "
        f"{spread:.3f}, so less than that is not seen"
    )
    yield Figure("telemetry_overhead", more, "of wall time", "limit", MOST_SHARE, MOST_SHARE / max(more, 1e-4), note)


def telemetry_serving() -> Iterable[Figure]:
    """One front that answers with and without telemetry, turn by turn: how many requests a second, and its CPU for each.

    What it answers in a second varies by more than what is sought, so there are many short blocks under one steady load, in
    pairs of which every other one is the other way round, and each figure says how well it is known. The clients share the
    two cores with all else, so a front that is the bottleneck by itself would lose what the CPU of a request says, not what
    throughput does. How much that is, is known a hundred times better from the front's HTTP face alone, in the same process
    and with the same switch (`telemetry_serving`): its difference is held against the CPU of a whole request in the front.
    """
    from unittest.mock import patch

    import bench_serving
    from switched_front import Block, SwitchedFront

    from tiltyard.serving import deployment
    from tiltyard.serving.meters import FLUSH_S

    switched = deployment.Front.options(func_or_class=SwitchedFront)  # type: ignore[attr-defined]
    with patch.object(deployment, "Front", switched), bench_serving._stage_up() as stage:
        blocks: list[Block] = []
        with _load(stage):
            stage.traffic.alternate.remote(10, BLOCK_S).result(timeout_s=60)
            for _ in range(SERVING_PAIRS // 50):
                blocks += stage.traffic.alternate.remote(50, BLOCK_S).result(timeout_s=120)
        in_turns = {told: [b for b in blocks if b.told is told] for told in (True, False)}
        one = bench_serving._json(stage.table.slice(0, 1))
        stage.traffic.face.remote(one, 100).result(timeout_s=60)
        face: list[tuple[float, float]] = []
        flushes = []
        for _ in range(5):
            face += stage.traffic.face.remote(one, FACE_PAIRS // 5).result(timeout_s=60)
            flushes.append(stage.traffic.flush.remote().result(timeout_s=60))
    rates = {told: [b.answered / b.seconds for b in of] for told, of in in_turns.items()}
    cpus = {told: [1e6 * b.cpu_s / b.answered for b in of] for told, of in in_turns.items()}
    for name, measured, sign, word in (
        ("telemetry_serving_throughput", rates, -1, "{:.1f} requests/s"),
        ("telemetry_serving_cpu", cpus, 1, "{:.0f} us of CPU a request"),
    ):
        pairs = list(zip(measured[True], measured[False], strict=True))
        shares = [2 * sign * (a - b) / (a + b) for a, b in pairs]  # of the mean of both: a ratio would lean to one side
        lost, unsure = statistics.fmean(shares), 2 * statistics.stdev(shares) / math.sqrt(len(shares))
        with_it, without = (word.format(statistics.fmean(v)) for v in zip(*pairs, strict=True))
        note = (
            f"{with_it} with, {without} without, means of {len(pairs)} pairs of blocks of {BLOCK_S:g} s; "
            f"{100 * lost:+.2f}% +- {100 * unsure:.2f}% (two standard errors)"
        )
        yield Figure(name, lost, "share", "limit", REQUEST_SHARE, REQUEST_SHARE / max(lost, 1e-4), note)
    apart = sorted(a - b for a, b in face)[len(face) // 10 : -len(face) // 10]  # others want the core now and then
    more_s, unsure_s = statistics.fmean(apart), 2 * statistics.stdev(apart) / math.sqrt(len(apart))
    face_s, front_s, flush_s = (
        statistics.median(v) for v in ([b for _, b in face], [c / 1e6 for c in cpus[False]], flushes)
    )
    share = more_s / front_s + flush_s / FLUSH_S
    note = (
        f"{1e6 * more_s:.1f} us +- {1e6 * unsure_s:.1f} more a request (of {1e6 * face_s:.0f} us in the HTTP face alone, "
        f"{len(face)} pairs of ten) of the {1e6 * front_s:.0f} us of CPU that the front needs for a request of one row by JSON, "
        f"and {1e6 * flush_s:.0f} us a second to hand it over"
    )
    yield Figure("telemetry_serving", share, "of CPU", "limit", REQUEST_SHARE, REQUEST_SHARE / share, note)


@contextmanager
def _load(stage: Any) -> Iterator[None]:
    """A few clients that ask for the answer of one row again and again."""
    import http.client

    import bench_serving

    host, body = stage.url.removeprefix("http://"), bench_serving._json(stage.table.slice(0, 1))
    over, wrong = threading.Event(), []

    def client() -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        while not over.is_set():
            connection.request("POST", "/models/b.small/predict", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                wrong.append(answer.status)
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in clients:
            thread.join()
    assert not wrong, wrong


RAYS_LABELS: dict[str, tuple[str, ...]] = {
    "instance": ("n1", "n2", "n3"),
    "State": ("ALIVE", "DEAD"),
    "Name": ("CPU", "GPU"),
    "Location": ("SPILLED", "MMAP_SHM"),
    "dataset": ("d1", "d2"),
    "application": ("a",),
    "deployment": ("x", "y"),
}


OUR_LABELS: dict[str, tuple[str, ...]] = {
    "team": ("vision",),
    "metric": ("accuracy",),
    "column": ("width", "(prediction)"),
    "mode": ("shadow",),
    "kind": ("limit", "reserved", "spent"),
    "state": ("failed", "done"),
    "resource": ("cpu", "gpu"),
    "status": ("200", "500"),
    "role": ("champion", "candidate"),
    "outcome": ("failed", "promoted"),
    "agree": ("yes", "no"),
}
"""What queries ask for by name; any other label has two values."""


def _week_of(out: TextIO, expressions: Sequence[str]) -> int:
    """Writes a week of every series that is asked for, one sample in `EVERY_S`; how many series."""
    from tiltyard.telemetry.instruments import Kind, exposed_series

    ours, count = exposed_series(), 0
    end = int(time.time()) // EVERY_S * EVERY_S - 7200
    times = range(end - WEEK_S, end, EVERY_S)
    names = {w for e in expressions for w in re.findall(r"\b(?:ray_|tiltyard_)[a-z0-9_]+", re.sub(r'"[^"]*"', "", e))}
    for name in sorted(names - {"ray_io_cluster"}):
        if name in ours:
            values = {label: OUR_LABELS.get(label, ("a", "b")) for label in ours[name].labels}
            if name.endswith("_bucket"):
                values["le"] = (*(str(b) for b in ours[name].bounds), "+Inf")
            rises = ours[name].kind is not Kind.GAUGE
        else:
            labels = {la for e in expressions if name in e for la in RAYS_LABELS if re.search(rf"\b{la}\b", e)}
            values, rises = (
                {la: RAYS_LABELS[la] for la in sorted(labels)},
                name.endswith(("_rows", "_bytes", "_seconds")),
            )
        kind = "gauge"  # OpenMetrics would want counters to end in _total; to Prometheus a sample is a sample
        out.write(f"# TYPE {name} {kind}\n")
        for chosen in itertools.product(*values.values()):
            inside = ",".join(f'{k}="{v}"' for k, v in zip(values, chosen, strict=True))
            count += 1
            phase = count % 17
            for i, at in enumerate(times):
                value = 3 * i + phase if rises else 10 + 5 * math.sin(i / 200 + phase)
                out.write(f"{name}{{{inside}}} {value:.6g} {at}\n")
    out.write("# EOF\n")
    return count


@contextmanager
def _prometheus(program: str, folder: Path) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (folder / "none.yaml").write_text("scrape_configs: []\n")
    options = [f"--config.file={folder / 'none.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    options += ["--storage.tsdb.retention.time=30d", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, *options], stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def telemetry_boards() -> Iterable[Figure]:
    """Each board's queries over a week, one after another, as a browser that asks one at a time; the slowest board."""
    from tiltyard.telemetry.boards import BOARDS

    program, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if program is None or promtool is None:
        return
    expressions = [q.expr for b in BOARDS for p in b.panels for q in p.queries]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "week.txt").open("w") as out:
            series = _week_of(out, expressions)
        made = subprocess.run(
            # in one block: for each block promtool reads all of the file again
            [
                promtool,
                "tsdb",
                "create-blocks-from",
                "--max-block-duration=200h",
                "--quiet",
                "openmetrics",
                "week.txt",
                "data",
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        (folder / "week.txt").unlink()
        end = int(time.time()) - 7200
        step = WEEK_S // POINTS
        values = {
            "$__rate_interval": f"{step + EVERY_S}s",
            "$cluster": ".*",
            "$team": ".*",
            "$experiment": ".*",
            "$model": ".*",
        }
        with _prometheus(program, folder) as url:

            def ask(expr: str) -> int:
                for variable, value in values.items():
                    expr = expr.replace(variable, value)
                asked = urllib.parse.urlencode({"query": expr, "start": end - WEEK_S, "end": end, "step": step})
                with urllib.request.urlopen(f"{url}/api/v1/query_range?{asked}", timeout=60) as answer:
                    return len(json.load(answer)["data"]["result"])

            seconds: dict[str, float] = {}
            empty = []
            for board in BOARDS:
                rounds = []
                for _ in range(3):
                    start = time.perf_counter()
                    for panel in board.panels:
                        for query in panel.queries:
                            if not ask(query.expr):
                                empty.append(panel.title)
                    rounds.append(time.perf_counter() - start)
                seconds[board.uid] = statistics.median(rounds)
    slowest = max(seconds, key=lambda uid: seconds[uid])
    each = ", ".join(f"{uid.removeprefix('tiltyard-')} {s:.2f}" for uid, s in seconds.items())
    note = (
        f"a week of {series} series, a sample in {EVERY_S} s, {POINTS} points a line, one query after another; {each}"
        + (f"; without data: {', '.join(sorted(set(empty)))}" if empty else "")
    )
    value = seconds[slowest]
    yield Figure("telemetry_board_seconds", value, "s", "limit", BOARD_S, BOARD_S / value, note)


def benchmarks() -> Sequence[Benchmark]:
    """What the harness runs."""
    return [telemetry_round, telemetry_overhead, telemetry_serving, telemetry_boards]
