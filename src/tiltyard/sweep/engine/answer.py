"""What the record says that a launch came to: its trials as results, the leaderboard, the outcome. Starts nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Claim, Journal
from tiltyard.sweep.engine.finals import Look
from tiltyard.sweep.engine.layout import Layout
from tiltyard.sweep.engine.outcome import Outcome
from tiltyard.sweep.engine.prepare import Prepared
from tiltyard.sweep.engine.rows import results_of
from tiltyard.sweep.growth import Growth
from tiltyard.sweep.leaderboard import Leaderboard, Result, finalists, leaderboard
from tiltyard.sweep.plan import order_dependent
from tiltyard.tracking import TrackerReport
from tiltyard.types import trains_itself


class Answer:
    """Reads the record of a launch, whole each time.

    Args:
        experiment: What was to be done.
        growth: With the plan, and what has joined it.
        known: What is known of cells, by cell and epoch; it grows as packs end.
        prepared: By dataset.
        journal: The record.
        claim: Of the launch.
        layout: Where files lie.
        started: When the launch began, in seconds of the epoch.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        growth: Growth,
        known: Mapping[tuple[str, int], CellScore],
        prepared: Mapping[str, Prepared],
        journal: Journal,
        claim: Claim,
        layout: Layout,
        started: float,
    ) -> None:
        self._experiment, self._growth, self._known, self._prepared = experiment, growth, known, prepared
        self._journal, self._claim, self._layout, self._started = journal, claim, layout, started

    @property
    def is_there(self) -> bool:
        """Some trial of each dataset has trained to the end."""
        return {r.dataset for r in self.results() if r.state == "done"} == set(self._prepared)

    def results(self) -> list[Result]:
        """Every recorded trial as a line to rank."""
        return results_of(self._journal.trials(self._claim.key), self._known, self._experiment.objective.also)

    def with_model(self, results: Sequence[Result]) -> list[Result]:
        """Those that leave a model behind, which the test split can score: no training of a user's own does."""
        models = {t.cell: t.model for t in self._growth.plan.trials}
        return [r for r in results if not trains_itself(models[r.cell])]

    def finalists(self, with_model: Sequence[Result]) -> dict[str, list[Result]]:
        """Of each dataset the best, best first."""
        objective, most = self._experiment.objective, self._experiment.search.finalists
        return {
            dataset: finalists([r for r in with_model if r.dataset == dataset], objective.direction, most)
            for dataset in self._prepared
        }

    def board(self, look: Look) -> Leaderboard:
        """The ranking, with what was seen on the test split."""
        objective = self._experiment.objective
        return leaderboard(
            experiment=self._experiment.name,
            key=self._claim.key,
            metric=objective.metric,
            mode=objective.direction,
            results=self.results(),
            tests=look.scores,
            tied=look.tied,
            test_looks=look.number,
            replicate_tests=look.replicates,
            order_dependent=order_dependent(self._experiment),
        )

    def outcome(
        self,
        state: str,
        reason: str | None,
        board: Leaderboard,
        results: Sequence[Result],
        tracker: TrackerReport | None,
        run_ids: Mapping[str, str],
        *,
        by_person: bool = False,
    ) -> Outcome:
        """What a launch is answered with."""
        recorded = self._journal.launch(self._claim.key)
        return Outcome(
            state=state,
            reason=reason,
            by_person=by_person,
            plan=self._growth.plan,
            claim=self._claim,
            leaderboard=board,
            results=results,
            prepared=self._prepared,
            scores=self._known,
            layout=self._layout,
            seconds=time.time() - self._started,
            parent_run_id=recorded.parent_run_id if recorded else None,
            run_ids=run_ids,
            tracker=tracker,
        )
