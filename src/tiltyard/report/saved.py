"""What sweeps saved: hours of researchers and of devices, against the same trials by hand, from recorded figures. Pure but `read`.

By hand means: every trial is set up by a person, trained alone to its full length, one after another, and nothing is
reused. What a trial takes is recorded (its share of the pack that it trained in); how long its full length takes follows
from its seconds an epoch. What cannot be recorded is assumed, in `Assumptions`, which a user edits in one file; the
defaults are on the careful side: a trial alone is taken to be no slower than its share of a pack, and to need no start.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tiltyard.errors import SpecError
from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Journal, Launch, Spend, TrialRow

FILE = "roi.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What is assumed, for no journal knows it.

    Args:
        minutes_a_trial: A person's minutes for one trial by hand: write its settings, start it, look at it, note it down.
        minutes_a_job: A person's minutes for a whole experiment with Tiltyard: write the job file, read the report.
        alone_factor: How many times longer a trial takes alone than its share of a pack. ``make bench ONLY=pack`` measures it.
        hourly_researcher: What an hour of a researcher costs; 0 leaves money out.
        hourly_cpu: Likewise an hour of a CPU.
        hourly_gpu: Likewise an hour of a GPU.
    """

    minutes_a_trial: float = 2.0
    minutes_a_job: float = 30.0
    alone_factor: float = 1.0
    hourly_researcher: float = 0.0
    hourly_cpu: float = 0.0
    hourly_gpu: float = 0.0


_MEANING = {
    "minutes_a_trial": "a person's minutes for one trial by hand: write its settings, start it, look at it, note it down",
    "minutes_a_job": "a person's minutes for a whole experiment with Tiltyard: write the job file, read the report",
    "alone_factor": "how many times longer a trial takes alone than its share of a pack (make bench ONLY=pack measures it)",
    "hourly_researcher": "what an hour of a researcher costs; 0 leaves money out",
    "hourly_cpu": "what an hour of a CPU costs",
    "hourly_gpu": "what an hour of a GPU costs",
}


def text_of(assumptions: Assumptions) -> str:
    """The file that holds them, with what each means."""
    return "".join(f"# {_MEANING[name]}\n{name} = {value}\n" for name, value in asdict(assumptions).items())


def read(path: Path) -> Assumptions:
    """Assumptions from their file; the defaults where there is none.

    Raises:
        SpecError: If it is not TOML, names something unknown, or a value is no number of 0 or more.
    """
    if not path.exists():
        return Assumptions()
    try:
        found = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not TOML: {error}. Write it anew: tiltyard roi --write-assumptions") from error
    known = [f.name for f in fields(Assumptions)]
    for name, value in found.items():
        if name not in known:
            raise SpecError(f"{path} sets {name!r}, which is no assumption; there are: {', '.join(known)}.")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise SpecError(f"{path} sets {name} to {value!r}; wanted: a number of 0 or more.")
    return Assumptions(**{name: float(value) for name, value in found.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Of one launch, or of several together.

    Args:
        what: Its name.
        launches: How many.
        trials: How many were tried.
        person_s: A person's seconds with Tiltyard.
        by_hand_person_s: And by hand.
        cpu_s: CPU-seconds that were metered, waiting and losses in them.
        by_hand_cpu_s: And by hand.
        gpu_s: Likewise GPU-seconds.
        by_hand_gpu_s: And by hand.
        insight_s: From the idea to the validated answer: writing the job file and reading the report, and all that lies
            between the first start and the end. Of several launches the mean.
        by_hand_insight_s: And by hand, training around the clock.
    """

    what: str
    launches: int
    trials: int
    person_s: float
    by_hand_person_s: float
    cpu_s: float
    by_hand_cpu_s: float
    gpu_s: float
    by_hand_gpu_s: float
    insight_s: float
    by_hand_insight_s: float

    def worth(self, assumptions: Assumptions) -> float:
        """Money saved, where prices were assumed."""
        a = assumptions
        return (
            (self.by_hand_person_s - self.person_s) * a.hourly_researcher
            + (self.by_hand_cpu_s - self.cpu_s) * a.hourly_cpu
            + (self.by_hand_gpu_s - self.gpu_s) * a.hourly_gpu
        ) / 3600


def saved(
    launch: Launch,
    rows: Sequence[TrialRow],
    scores: Mapping[tuple[str, int], CellScore],
    spend: Spend,
    assumptions: Assumptions,
    *,
    now: float,
) -> Saved:
    """What one launch saved, or cost more, against the same trials by hand.

    Args:
        launch: As recorded.
        rows: Its trials; those that never began do not count.
        scores: Of their cells.
        spend: Its meter.
        assumptions: What no journal knows.
        now: Seconds since 1970, where it has not ended.
    """
    experiment = Experiment.from_json(launch.spec)
    taken: dict[str, tuple[float, int]] = {}
    for (cell, epoch), score in scores.items():
        seconds, last = taken.get(cell, (0.0, 0))
        taken[cell] = seconds + score.seconds, max(last, epoch)
    by_hand_s, trials = 0.0, 0
    for row in rows:
        if row.cell not in taken:
            continue
        seconds, last = taken[row.cell]
        whole = 1.0 if row.state == "failed" else experiment.search.max_epochs / last
        by_hand_s += seconds * max(1.0, whole) * assumptions.alone_factor
        trials += 1
    resources = experiment.resources
    person_s = 60.0 * assumptions.minutes_a_job
    by_hand_person_s = 60.0 * assumptions.minutes_a_trial * trials
    return Saved(
        what=launch.experiment,
        launches=1,
        trials=trials,
        person_s=person_s,
        by_hand_person_s=by_hand_person_s,
        cpu_s=spend.cpu_s,
        by_hand_cpu_s=by_hand_s * resources.cpus,
        gpu_s=spend.gpu_s,
        by_hand_gpu_s=by_hand_s * resources.gpus,
        insight_s=(launch.ended or now) - launch.started + person_s,
        by_hand_insight_s=by_hand_s + by_hand_person_s,
    )


def together(what: str, several: Sequence[Saved]) -> Saved:
    """The sum of several; the time to an answer is their mean."""
    n = max(1, len(several))
    sums = {f.name: sum(getattr(s, f.name) for s in several) for f in fields(Saved) if f.name != "what"}
    sums |= {name: sums[name] / n for name in ("insight_s", "by_hand_insight_s")}
    return Saved(what=what, **sums)


def told(s: Saved) -> str:
    """What several launches together saved, or cost more, in a sentence.

    >>> hour = 3600.0
    >>> told(
    ...     Saved(
    ...         what="all",
    ...         launches=2,
    ...         trials=400,
    ...         person_s=hour,
    ...         by_hand_person_s=13 * hour,
    ...         cpu_s=hour,
    ...         by_hand_cpu_s=3 * hour,
    ...         gpu_s=0.0,
    ...         by_hand_gpu_s=0.0,
    ...         insight_s=hour,
    ...         by_hand_insight_s=8 * hour,
    ...     )
    ... )
    'Over 2 launches and 400 trials it saved 12.0 hours of people and 2.0 CPU-hours; an answer came 8.0 times sooner.'
    """
    parts = [(s.by_hand_person_s - s.person_s, "hours of people"), (s.by_hand_cpu_s - s.cpu_s, "CPU-hours")]
    if s.gpu_s or s.by_hand_gpu_s:
        parts.append((s.by_hand_gpu_s - s.gpu_s, "GPU-hours"))
    won = [_hours(v, unit) for v, unit in parts if v >= 0]
    lost = [_hours(-v, unit) for v, unit in parts if v < 0]
    told = [f"saved {_joined(won)}"] if won else []
    told += [f"took {_joined(lost)} more"] if lost else []
    times = s.by_hand_insight_s / s.insight_s if s.insight_s > 0 else 1.0
    sooner = f"{times:,.1f} times sooner" if times >= 1 else f"{1 / max(times, 1e-9):,.1f} times later"
    launches = f"{s.launches} launches" if s.launches > 1 else "one launch"
    return f"Over {launches} and {s.trials:,} trials it {' and '.join(told)}; an answer came {sooner}."


def _hours(seconds: float, unit: str) -> str:
    return f"{seconds / 3600:,.1f} {unit}" if seconds >= 360 else f"{seconds / 3600:,.2g} {unit}"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), parts[-1]])


def of_journal(journal: Journal, assumptions: Assumptions, *, now: float | None = None) -> list[tuple[Launch, Saved]]:
    """Every finished launch, oldest first."""
    found = []
    for launch in reversed(journal.launches()):
        if launch.state == "finished":
            rows = journal.trials(launch.key)
            scores = journal.cell_scores([row.cell for row in rows])
            epochs = {row.cell: row.epoch for row in rows}
            own = {at: score for at, score in scores.items() if at[1] <= epochs[at[0]]}
            at = time.time() if now is None else now
            found.append((launch, saved(launch, rows, own, journal.spend(launch.key), assumptions, now=at)))
    return found
