"""How a setting is asked for, in the words of whoever asks: of Python, or of a command line.

What is wrong with a table is found far below the door through which its reader came in. A sentence
that names a setting which would help has it from `option` or `of_table`; each door says once, by
`asked_as`, how its settings are spelled. Where nothing is said, it is Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol


class Spelling(Protocol):
    """How a door's settings are spelled; "" for one that it does not have."""

    def option(self, name: str, value: Any) -> str:
        """A setting, by its name in Python, with a value, or None where any will do."""
        ...

    def of_table(self, name: str, value: Any) -> str:
        """What is told of a table's columns, by the names of `tables.question.Question`."""
        ...


@dataclass(frozen=True)
class InPython:
    """`evenhand.compare(columns, targets=…, table={'kinds': …}, splits=5)`."""

    def option(self, name: str, value: Any) -> str:
        return f"{name}={'...' if value is None else repr(value)}"

    def of_table(self, name: str, value: Any) -> str:
        return f"table={{{name!r}: {'...' if value is None else repr(value)}}}"


@dataclass(frozen=True)
class NoSettings:
    """Nothing can be set any more: a network that was trained reads further rows."""

    def option(self, name: str, value: Any) -> str:
        return ""

    of_table = option


PYTHON = InPython()
_asked: ContextVar[Spelling] = ContextVar("asked", default=PYTHON)


@contextmanager
def asked_as(spelling: Spelling) -> Iterator[None]:
    """Inside, settings are spelled so; it decorates functions, too."""
    before = _asked.set(spelling)
    try:
        yield
    finally:
        _asked.reset(before)


def option(name: str, value: Any = None) -> str:
    """A setting as it is asked for, `--splits 5` or `splits=5`; the value is left out if None."""
    return _asked.get().option(name, value)


def of_table(name: str, value: Any = None) -> str:
    """What is told of a table: `--group person`, or `table={'group': 'person'}`."""
    return _asked.get().of_table(name, value)


def way(text: str, setting: str) -> str:
    """What one may do, with the setting behind it; "" where there is no such setting."""
    return f"{text} ({setting})" if setting else ""


def ways(*several: str) -> str:
    """What one may do, as a list: `a, b, or c`; those that are "" are left out."""
    some = [one for one in several if one]
    if len(some) < 3:
        return " or ".join(some)
    return f"{', '.join(some[:-1])}, or {some[-1]}"
