"""The kinds of attacks, and how many of each make a run of more than a thousand."""

from __future__ import annotations

import random
from collections.abc import Callable

import commands
import hostile
import processes
import words
from ground import Ground
from harness import Tally

Attack = Callable[[Ground, Tally, random.Random], None]
KINDS: dict[str, tuple[Attack, int]] = {
    "configurations and command lines": (words.options, 600),
    "tables": (hostile.tables, 140),
    "hostile places": (hostile.places, 120),
    "damaged files": (hostile.files, 140),
    "full and failing disks, and on": (processes.disk, 50),
    "signals, and on": (processes.signals, 50),
    "SIGKILL, and on": (processes.kill, 50),
    "two writers": (processes.writers, 40),
    "streams closed or full": (commands.streams, 60),
    "commands stopped, and again": (commands.stopped, 60),
}
