"""The small transactional record of what was claimed, decided, spent and finished."""

from tiltyard.journal.budgets import Hold
from tiltyard.journal.record import Journal
from tiltyard.journal.values import (
    Attempt,
    AttemptRow,
    CellScore,
    Claim,
    Decision,
    Launch,
    Owner,
    Request,
    Spend,
    TrialRow,
    TrialUpdate,
    storable,
)
from tiltyard.journal.works import Work, WorkClaim, WorkResult

__all__ = [
    "Attempt",
    "AttemptRow",
    "CellScore",
    "Claim",
    "Decision",
    "Hold",
    "Journal",
    "Launch",
    "Owner",
    "Request",
    "Spend",
    "TrialRow",
    "TrialUpdate",
    "Work",
    "WorkClaim",
    "WorkResult",
    "storable",
]
