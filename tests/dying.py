"""A problem that kills who asks for it; workers import it from here."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from evenhand import data
from evenhand.data import Problem


def dying(split: int) -> Problem:
    """Kills the first process that is not the test's."""
    marker = Path(os.environ["EVENHAND_TEST_DYING"])
    if str(os.getpid()) != marker.read_text() and not marker.with_suffix(".died").exists():
        marker.with_suffix(".died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return data.problem("quadrants", split)
