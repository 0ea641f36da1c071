"""What Tiltyard tells the outside: notices to people and their tools."""

from tiltyard.telemetry.notices import Mail, Notice, Receiver, Webhook

__all__ = ["Mail", "Notice", "Receiver", "Webhook"]
