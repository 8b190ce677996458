"""Problems: the data that ships, is made or is fetched, one file per source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from evenhand.arguments import checked
from evenhand.data.labels import LabelCount, Labelling, labelled
from evenhand.data.problem import Batch, Problem, Split, Stream, Task
from evenhand.sources import SOURCES, Source, is_function, is_table, source

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
    "resolved",
]


@checked
def problem(name: str, seed: int = 0) -> Problem:
    """The problem called `name`, its split and pairing determined by `seed`.

    Raises:
        ValueError: there is none; the message names the nearest ones.
    """
    entry = source(name)
    load: Callable[[int], Problem] = getattr(import_module(entry.module), entry.maker)
    return load(seed)


def resolved(text: str, options: Mapping[str, Any]) -> Problem | Callable[[int], Problem]:
    """What a source stands for: a problem, or a function from the number of a split to one.

    Args:
        text: a data set's name, a table's file, or `module:function`.
        options: what a table is told, see `tables.question.Question`; nothing else has options.

    Raises:
        ValueError: there is no such source; or it has no such option.
    """
    if is_table(text):
        from evenhand.tables.problem import table_problem

        return table_problem(text, options)
    if options:
        raise ValueError(
            f"only a table has targets and columns ({', '.join(options)}); {text} has none"
        )
    if is_function(text):
        from evenhand.data.functions import called

        return called(text)
    entry = source(text)
    load: Callable[[int], Problem] = getattr(import_module(entry.module), entry.maker)
    return load
