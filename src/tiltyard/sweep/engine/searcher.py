"""Lets Ray Tune run what the state machine says, rung after rung, within one ``Tuner``.

Ray Tune asks a searcher for the next configuration. This one asks `Conductor.next_pack`; ``None`` means "not now" while a
rung is open, `Searcher.FINISHED` ends the run.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

from ray.tune import Callback, Stopper
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from tiltyard.sweep.engine.memory import OUT_OF_MEMORY
from tiltyard.sweep.engine.tuners import last_error


class Conductor(Protocol):
    """Who decides: the driver, around `tiltyard.sweep.halving.Machine`."""

    def next_pack(self) -> str | None:
        """The next pack to start, written to storage already; None where nothing can start now."""

    def pack_ended(self, pack_id: str, *, failed: bool) -> None:
        """A Tune trial ended: its result is in the journal, or it failed for good."""

    def pack_ran_out(self, pack_id: str, why: str) -> None:
        """Ray ended a pack's process, for its node ran low on memory; it is tried again."""

    def tick(self) -> None:
        """Called all the time while packs run: checks the claim, shows progress, obeys requests."""

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left."""

    @property
    def stopping(self) -> bool:
        """The sweep ends: nothing new starts."""

    @property
    def saving(self) -> bool:
        """Running packs still have time to save what they have; after it they are ended."""


class Led:
    """Holds the live driver, which stays behind when Ray Tune pickles or copies its ``Tuner`` into a folder."""

    _conductor: Conductor

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_conductor"}

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class PackSearcher(Led, Searcher):
    """Hands out pack ids."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__(metric=None, mode=None)
        self._conductor = conductor
        self._packs: dict[str, str] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Nothing to set: the space is not Ray Tune's."""
        del metric, mode, config, spec
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next pack, "wait", or "finished"."""
        if self._conductor.done or self._conductor.stopping:
            return str(Searcher.FINISHED)
        pack_id = self._conductor.next_pack()
        if pack_id is None:
            return str(Searcher.FINISHED) if self._conductor.done or self._conductor.stopping else None
        self._packs[trial_id] = pack_id
        return {"pack": pack_id}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ray Tune's results carry no scores."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes the end of a pack on."""
        del result
        pack_id = self._packs.pop(trial_id, None)
        if pack_id is not None:
            self._conductor.pack_ended(pack_id, failed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the record, and `Tuner.restore` is never used."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""


class Heartbeat(Led, Callback):
    """Ray Tune's event loop, as our clock; and what it says of a pack that died and is tried again."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """After every turn of the loop."""
        del iteration, trials, info
        self._conductor.tick()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """An attempt at a pack died and another will start."""
        del iteration, trials, info
        why = last_error(trial)
        if why.startswith(OUT_OF_MEMORY):
            self._conductor.pack_ran_out(trial.config["pack"], why)


class Unheard(TrialProgressCallback):
    """In the place of Ray Tune's own progress, which prints a line for each trial that ends, however quiet it is asked to be."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """Says nothing."""

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        """Says nothing: the reason stands on the trial."""

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        """Says nothing."""


class StopNow(Led, Stopper):
    """Ends every running pack when the conductor says so; what is finished is in the journal."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never for a single one."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """True once the whole sweep is to stop."""
        return self._conductor.stopping and not self._conductor.saving
