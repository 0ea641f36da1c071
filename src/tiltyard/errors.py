"""Every error Tiltyard raises on purpose, as one tree.

::

    TiltyardError
    ├── SpecError                 an experiment, policy or cluster description that cannot be run as written
    │   ├── KeyConflictError      the same key was used before with other content
    │   └── PreflightError        a plan that would deadlock, never place, or never end
    ├── DataError                 a dataset, version, file, column or row that is not what it must be
    │   ├── DatasetNotFoundError  no such dataset, version or column
    │   ├── CheckFailedError      a declared check refused the rows
    │   └── CommitConflictError   somebody else committed first and retrying is not safe
    ├── ModelError                a model that cannot be built, imported, packed or loaded
    │   ├── UnpackableError       a model that cannot share a pack, with the reason
    │   └── DigestMismatchError   bytes that are not the ones that were recorded
    ├── TrainingError             a member, batch or label that training cannot take
    ├── JournalError              the record cannot be opened, migrated or written
    │   ├── FencedError           a late attempt tried to write after a newer one took over
    │   └── AlreadyClaimedError   somebody else holds the key
    ├── BudgetExceededError       more was asked for than is left
    ├── RegistryError             no such model, version or alias
    │   └── RegistryAwayError     the registry or its artifacts did not answer
    ├── ServingError              a deployment or request that failed for a stated reason
    ├── SubmitError               a job that could not be packed, sent or followed
    ├── ClusterError              Kubernetes or KubeRay answered no
    └── MachineError              something this machine lacks: a port, a program, a folder, memory

A message says what was found, what was wanted, and what to do now.
"""

from __future__ import annotations


class TiltyardError(Exception):
    """Base of all errors that are for the user to read; the command line prints them without a traceback."""


class SpecError(TiltyardError):
    """An experiment, policy or cluster description that cannot be run as written."""


class KeyConflictError(SpecError):
    """The same key was used before with other content."""


class PreflightError(SpecError):
    """A plan that would deadlock, never be placed, or never end."""


class DataError(TiltyardError):
    """A dataset, version, file, column or row that is not what it must be."""


class DatasetNotFoundError(DataError):
    """No such dataset, version or column."""


class CheckFailedError(DataError):
    """A declared check refused the rows."""


class CommitConflictError(DataError):
    """Somebody else committed first, and retrying is not safe."""


class ModelError(TiltyardError):
    """A model that cannot be built, imported, packed or loaded."""


class UnpackableError(ModelError):
    """A model that cannot share a pack; the message names the layer and the reason."""


class DigestMismatchError(ModelError):
    """Bytes that are not the ones that were recorded."""


class TrainingError(TiltyardError):
    """A member, batch or label that training cannot take."""


class JournalError(TiltyardError):
    """The record cannot be opened, migrated or written."""


class FencedError(JournalError):
    """A late attempt tried to write after a newer one took over."""


class AlreadyClaimedError(JournalError):
    """Somebody else holds the key."""


class BudgetExceededError(TiltyardError):
    """More was asked for than is left."""


class RegistryError(TiltyardError):
    """No such model, version or alias."""


class RegistryAwayError(RegistryError):
    """The registry or its artifacts did not answer; what was asked for may exist."""


class ServingError(TiltyardError):
    """A deployment or request that failed for a stated reason."""


class SubmitError(TiltyardError):
    """A job that could not be packed, sent or followed."""


class ClusterError(TiltyardError):
    """Kubernetes or KubeRay answered no."""


class MachineError(TiltyardError):
    """Something this machine lacks: a port, a program, a folder, memory."""
