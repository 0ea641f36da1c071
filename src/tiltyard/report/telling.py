"""What a person is told about a launch: the plan before it, how it goes, how it ended, and what to type next.

`tiltyard.run` calls these in order. Results go to one console (stdout); nothing here decides or starts anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tiltyard.experiment import SILENT_S
from tiltyard.report.boards import leaderboard_view, plan_table
from tiltyard.report.terminal import (
    Best,
    Snapshot,
    SteadyConsole,
    SweepProgress,
    closing,
    score,
)
from tiltyard.settings import shown
from tiltyard.types import trains_itself

if TYPE_CHECKING:
    from tiltyard.crown import Crowned, Served
    from tiltyard.data.versions import Commit
    from tiltyard.experiment import Experiment
    from tiltyard.settings import Settings
    from tiltyard.sweep.engine.driver import Tick
    from tiltyard.sweep.engine.outcome import Outcome
    from tiltyard.sweep.plan import Plan

SHOWN_ROWS = 5
"""Rows of a leaderboard that are printed after a sweep; all of them: ``tiltyard leaderboard NAME --all``."""
FIRST_GUESS = 0.02
"""Share of the epochs that must be done before a time left is shown."""


class Teller:
    """A launch's `Watch`, at the terminal or in a log.

    Args:
        experiment: What is run.
        console: Where to.
    """

    def __init__(self, experiment: Experiment, console: SteadyConsole) -> None:
        self._experiment, self._console = experiment, console
        self._shown: SweepProgress | None = None
        self._total = 0
        self._first_work_s: float | None = None
        self._paused: str | None = None

    def committed(self, commits: Sequence[Commit]) -> None:
        """Sample datasets that were not there are now."""
        for commit in commits:
            v = commit.version
            rows = ", ".join(f"{n} {split}" for split, n in v.split_rows.items())
            self._say(f"committed {v.ref}: {v.num_rows} rows ({rows}), digest {v.content_digest[:12]}")

    def planned(self, plan: Plan, known: int) -> None:
        """Prints what will be done, and shows progress from now on where there is something to do."""
        self._total = plan.num_trials
        self._console.print(Text.assemble((self._experiment.name, "bold"), f"  key {plan.key[:12]}"))
        if known >= self._total:
            return
        self._console.print(plan_table(plan, known=known))
        unlimited = [v.name for v in self._experiment.variants if trains_itself(v.model)]
        if unlimited and self._experiment.budget.trial_s is None:
            self._say(
                f"{', '.join(unlimited)}: no budget.trial_s is set, so a trial that reports no new epoch for "
                f"{SILENT_S / 3600:g} hours is ended",
                "dim",
            )
        self._shown = SweepProgress(
            title=self._experiment.name,
            total=self._total,
            datasets=[d.name for d in self._experiment.datasets],
            metric=self._experiment.objective.metric,
            console=self._console,
        )
        self._shown.__enter__()

    def step(self, what: str) -> None:
        """One of the things that are done before the first trial."""
        if self._shown is not None:
            self._shown.say(f"{what} ...", style="dim")

    def tick(self, tick: Tick) -> None:
        """Shows how it goes."""
        if self._shown is None:
            return
        if tick.packs_running and self._first_work_s is None:
            self._first_work_s = tick.elapsed_s
        if tick.paused != self._paused:
            said = f"paused by {tick.paused}; go on: tiltyard continue {self._experiment.name}"
            self._shown.say(said if tick.paused else "it goes on", style="yellow")
            self._paused = tick.paused
        states = tick.states
        self._shown.update(
            Snapshot(
                total=max(self._total, sum(states.values())),
                done=states.get("done", 0),
                running=states.get("running", 0),
                stopped=states.get("stopped", 0),
                failed=states.get("failed", 0),
                elapsed_s=tick.elapsed_s,
                eta_s=self._time_left(tick),
                best={d: Best(value=value, trial=trial) for d, (value, trial) in tick.best.items()},
            )
        )

    def close(self) -> None:
        """Ends the display of progress."""
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None

    def result(self, outcome: Outcome) -> None:
        """The leaderboard, and what did not go as planned."""
        self._console.print()
        if outcome.state == "reused":
            self._say(
                "This experiment is finished and nothing it is made of has changed: the answer is from the record."
            )
        scored = [d for d in outcome.leaderboard.tables if outcome.leaderboard.best(d) is not None]
        if scored:
            self._console.print(leaderboard_view(outcome.leaderboard, limit=SHOWN_ROWS, datasets=scored))
        failed = [r for r in outcome.results if r.state == "failed"]
        if failed:
            self._say(f"{len(failed)} trials failed; the first: {failed[0].name}: {failed[0].reason}", "yellow")
        if outcome.tracker is not None and outcome.tracker.pending:
            self._say(
                f"{outcome.tracker.pending} records did not reach MLflow yet ({outcome.tracker.error}); nothing is "
                "lost: they are in the spool, and the next start writes them.",
                "yellow",
            )
        if outcome.state in {"finished", "reused"} and outcome.reason:
            left = sum(r.state == "interrupted" for r in outcome.results)
            self._say(
                f"Its budget ended it: {outcome.reason}. {left} of {len(outcome.results)} trials were not trained to the "
                "end. To go on raise the budget in the job file: what is done is kept.",
                "yellow",
            )
        if outcome.state == "stopped":
            reason = outcome.reason or ""
            said = f"S{reason[1:]}" if reason.startswith("stopped ") else f"Stopped: {reason}"
            self._say(f"{said}. All that was finished is kept; the next start goes on from there.", "yellow")

    def crowned(self, crowned: Sequence[Crowned]) -> None:
        """Which winners are in the registry, and under which aliases."""
        for c in crowned:
            what = "registered as" if c.is_new else "stands in the registry as"
            aliases = "".join(f", @{alias}" for alias in c.model.aliases)
            self._say(f"{c.trial} {what} {c.model.name} version {c.model.version}{aliases}")

    def served(self, served: Sequence[Served]) -> None:
        """The champions' scores through Ray Serve beside those offline."""
        if not served:
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name, justify in (
            ("champion on Ray Serve", "left"),
            ("held-out rows", "right"),
            ("served", "right"),
            ("offline", "right"),
            ("", "left"),
        ):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for s in served:
            verdict = Text("equal", "green") if s.equal else Text(f"differs by {s.largest_difference:.2g}", "bold red")
            table.add_row(s.model, str(s.rows), score(s.served), score(s.offline), verdict)
        self._console.print()
        self._console.print(table)

    def end(self, settings: Settings, outcome: Outcome, crowned: Sequence[Crowned], seconds: float) -> None:
        """Where everything is, the next three commands, and how long it took."""
        name = self._experiment.name
        places = [
            ("journal", shown(settings.journal_uri)),
            ("MLflow", shown(settings.tracking_uri)),
            ("datasets", shown(settings.data_uri)),
            ("report, curves", shown(outcome.layout.home)),
        ]
        if crowned:
            alias = self._experiment.champion.alias if self._experiment.champion else "champion"
            places.append((f"{alias}s", ", ".join(f"{c.model.name}@{c.model.version}" for c in crowned)))
        commands = [
            (f"tiltyard report {name} --open", "the answer, curves, what mattered, where time went"),
            ("tiltyard up", "a cluster to look at: Ray dashboard, MLflow with these runs"),
            ("tiltyard models", "champions and where they came from")
            if crowned
            else ("tiltyard runs", "every launch that is recorded"),
        ]
        self._console.print()
        self._console.print(closing(places, commands))
        trials = outcome.plan.num_trials
        verdict = f"{trials} trials answered from the record" if outcome.state == "reused" else f"{trials} trials"
        self._say(f"\n{verdict} in {seconds:.0f} s.")

    def without_winner(self, datasets: Sequence[str]) -> None:
        """Datasets on which no trial came to a score."""
        if datasets:
            self._say(f"No trial has a score on {', '.join(datasets)}; see why: tiltyard leaderboard --all", "bold red")

    def _time_left(self, tick: Tick) -> float | None:
        """From the share of epochs that is done; the start-up of Ray is not extrapolated, nor what is being ended."""
        if self._first_work_s is None or tick.work_done < FIRST_GUESS or tick.states.get("interrupted"):
            return None
        return (tick.elapsed_s - self._first_work_s) * (1 - tick.work_done) / tick.work_done

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)
