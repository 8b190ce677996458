"""The signals that ask a process to end. Imported before anything that takes long."""

from __future__ import annotations

import signal

ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in dir(signal)
)
"""Ctrl-C, kill, and a terminal that is closed; those that the system has."""
