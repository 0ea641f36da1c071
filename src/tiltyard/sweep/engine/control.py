"""What people ask of a running sweep, taken up by its driver: pause, continue, stop a trial, add trials.

The driver looks into the journal every `LOOK_EVERY_S`. A request is obeyed, then answered, and the answer is a decision
with who asked and why. What was answered belongs to the key: a resumed launch, and ``tiltyard resume --plan``, obey it
again (`replay`), and come to the same trials. A pause ends with its launch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from tiltyard.experiment import Experiment
from tiltyard.journal import Claim, Journal, Request
from tiltyard.sweep.growth import Growth
from tiltyard.sweep.halving import Machine, Withdrawal

LOOK_EVERY_S = 1.0


def replay(journal: Journal, key: str, growth: Growth) -> dict[str, Withdrawal]:
    """Obeys the answered requests of a key again: waves join the growth; the trials that were stopped, by cell."""
    withdrawn = {}
    for request in journal.requests.of(key, state="done"):
        if request.kind == "stop":
            reason = _why_stopped(request)
            withdrawn[str(request.detail["cell"])] = Withdrawal(
                after_epoch=int(request.answer["after_epoch"]), reason=reason
            )
        elif request.kind == "add":
            for variant, dataset in request.answer["waves"]:
                growth.add_wave(variant, dataset, int(request.detail["trials"]))
    return withdrawn


class Control:
    """Takes up what is asked of one launch.

    Args:
        journal: Where it is asked and answered.
        claim: The right to answer.
        experiment: Of the launch.
        growth: What trials join.
        clock: Seconds that only rise.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        claim: Claim,
        experiment: Experiment,
        growth: Growth,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._claim, self._experiment, self._growth = journal, claim, experiment, growth
        self._clock, self._looked = clock, -LOOK_EVERY_S
        self.paused: str | None = None
        """By whom, while nothing new is to start."""

    def look(self, machine: Machine, *, at_once: bool = False) -> bool:
        """Obeys and answers what was asked since; True where a trial was stopped or trials were added."""
        now = self._clock()
        if not at_once and now - self._looked < LOOK_EVERY_S:
            return False
        self._looked = now
        changed = False
        for request in self._journal.requests.of(self._claim.key, state="asked"):
            state, answer = self._obey(request, machine)
            self._answer(request, state, answer)
            changed = changed or (state == "done" and request.kind in {"stop", "add"})
        return changed

    def refuse_rest(self) -> None:
        """The sweep has ended: what was asked too late is told so."""
        for request in self._journal.requests.of(self._claim.key, state="asked"):
            self._answer(request, "refused", {"said": "it came too late: the sweep had ended"})

    def _obey(self, request: Request, machine: Machine) -> tuple[str, Mapping[str, Any]]:
        match request.kind:
            case "pause":
                self.paused = request.actor
                return "done", {
                    "said": "paused: nothing new starts; what trains goes on to the end of its rung",
                    "fence": self._claim.fence,
                }
            case "continue":
                was, self.paused = self.paused, None
                return "done", {"said": "it goes on" if was else "it was not paused", "fence": self._claim.fence}
            case "stop":
                return self._stop(request, machine)
            case "add":
                return self._add(request)
        return "refused", {"said": f"this version of Tiltyard does not know {request.kind!r}"}

    def _stop(self, request: Request, machine: Machine) -> tuple[str, Mapping[str, Any]]:
        cell = str(request.detail["cell"])
        if cell not in {t.cell for t in self._growth.plan.trials}:
            return "refused", {"said": "no such trial is planned"}
        done = machine.withdraw(cell, _why_stopped(request))
        if done is None:
            return "refused", {"said": f"it has ended: {machine.state_of(cell).state}"}
        return "done", {"said": f"stopped after {done.after_epoch} epochs", "after_epoch": done.after_epoch}

    def _add(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        trials = int(request.detail["trials"])
        variant, dataset = request.detail.get("variant"), request.detail.get("dataset")
        wanted = [
            (v, d)
            for v in ([variant] if variant else [v.name for v in self._experiment.variants if v.space])
            for d in ([dataset] if dataset else [d.name for d in self._experiment.datasets])
        ]
        if not wanted:
            return "refused", {"said": "no variant of the experiment searches anything"}
        why = next(
            (why for v, d in wanted if (why := self._growth.why_not(v, d, trials * len(wanted))) is not None), None
        )
        if why is not None:
            return "refused", {"said": why}
        for v, d in wanted:
            self._growth.add_wave(v, d, trials)
        told = ", ".join(f"{trials} of {v} on {d}" for v, d in wanted)
        return "done", {"said": f"added {told}", "waves": [list(w) for w in wanted]}

    def _answer(self, request: Request, state: str, answer: Mapping[str, Any]) -> None:
        if not self._journal.requests.answer(self._claim, request.number, state=state, answer=answer):
            return
        self._journal.decide(
            kind="request",
            subject=request.subject,
            actor=request.actor,
            evidence={"request": request.number, "kind": request.kind, "key": self._claim.key, **request.detail},
            reasons=[request.reason] if request.reason else [],
            outcome=f"{state}: {answer['said']}",
            once=f"request/{request.number}",
            claim=self._claim,
        )


def _why_stopped(request: Request) -> str:
    return f"stopped by {request.actor}" + (f": {request.reason}" if request.reason else "")
