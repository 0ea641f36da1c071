"""Who may be champion, what happens when one no longer holds, and how that is recorded. Decides; never acts."""

from tiltyard.governance.gates import Gate, Look, Verdict, judge

__all__ = ["Gate", "Look", "Verdict", "judge"]
