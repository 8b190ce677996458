"""Words that come from outside, made fit for a line: of a terminal, a table, a message."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

LINE = 80
"""The most characters of something given that a message quotes."""


def plain(text: str, most: int | None = None) -> str:
    """The text without what moves a cursor or cannot be encoded, cut to `most` characters.

    Control characters, lone surrogates, marks of direction and line ends are written as Python
    escapes.
    """
    if most is not None and len(text) > most:
        text = f"{text[: max(0, most - 1)]}…"
    if text.isprintable():
        return text
    return "".join(c if _prints(c) else _escape(c) for c in text)


def quoted(value: Any, most: int = LINE) -> str:
    """`repr` of something given, at most a line of it."""
    return plain(repr(value[: most + 1] if isinstance(value, str) else value), most)


def steady(value: Any) -> str:
    """`repr` without addresses in memory: the same text in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _prints(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
