"""Tiltyard."""
