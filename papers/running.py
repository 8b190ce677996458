"""How a long run is made: on which device, until when, and where it is kept if it is stopped.

The environment says so, and no cell: the same run on another day or machine is the same run.

    EVENHAND_DEVICE   cpu, cuda, … [cpu]
    EVENHAND_UNTIL    seconds since 1970, after which a run stops at the end of its epoch [never]
    EVENHAND_RUNS     a folder of checkpoints; runs that were stopped go on there [none is kept]
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ledger import key

from evenhand.data import Problem, Split
from evenhand.training.loop import Training
from evenhand.training.records import Record


class OutOfTime(Exception):
    """The time is over; what was trained since the last checkpoint is lost."""


def device() -> str:
    """Where networks and batches are."""
    return os.environ.get("EVENHAND_DEVICE", "cpu")


def on_device(problem: Problem) -> Problem:
    """The problem, its data in memory and its networks on the device."""
    where = device()
    parts = {
        name: cast(Split, getattr(problem, name)).to(where)
        for name in ("train", "validation", "test")
    }
    return replace(problem, network=lambda tasks: problem.network(tasks).to(where), **parts)


def records(
    training: Training,
    cell: Mapping[str, Any],
    after: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """All records of a run.

    Args:
        training: what is run.
        cell: tells the run; its checkpoints are kept under it.
        after: done after each epoch that is trained, and never twice. The checkpoint of an epoch is
            taken before, so it is done again when that is resumed.

    Raises:
        OutOfTime: before the last epoch.
    """
    until = float(os.environ.get("EVENHAND_UNTIL", math.inf))
    made = []
    for record in training.run(_folder(cell), checkpoint_every=5):
        made.append(record)
        if record.epoch and record.epoch == training.epoch:
            after(record)
        if time.time() >= until and not training.finished:
            raise OutOfTime(f"epoch {record.epoch} of {key(cell)}")
    return made


def _folder(cell: Mapping[str, Any]) -> Path | None:
    if not (root := os.environ.get("EVENHAND_RUNS")):
        return None
    folder = Path(root) / hashlib.sha256(key(cell).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
