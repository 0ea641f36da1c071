"""What a sweep or a team may still use, in metered seconds. Decides; never acts."""

from tiltyard.money.budget import Budget, Seconds, reserve, settle

__all__ = ["Budget", "Seconds", "reserve", "settle"]
