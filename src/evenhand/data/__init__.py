"""Problems: the data that ships, is made or is fetched, one file per source."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from evenhand.data.labels import LabelCount, Labelling, labelled
from evenhand.data.problem import Batch, Problem, Split, Stream, Task
from evenhand.sources import SOURCES, Source, source

__all__ = [
    "SOURCES",
    "Batch",
    "LabelCount",
    "Labelling",
    "Problem",
    "Source",
    "Split",
    "Stream",
    "Task",
    "labelled",
    "problem",
]


def problem(name: str, seed: int = 0) -> Problem:
    """The problem called `name`, its split and pairing determined by `seed`.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    entry = source(name)
    load: Callable[[int], Problem] = getattr(import_module(entry.module), entry.maker)
    return load(seed)
