"""Words that come from outside, made fit for a line: of a terminal, a table, a message."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

LINE = 80
"""The most characters of something given that a message quotes."""

NAME = 40
"""The most characters of a name in a table, a figure or a sentence."""


def plain(text: str, most: int | None = None) -> str:
    """The text without what trains a cursor or cannot be encoded, cut to `most` characters.

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


def unknown(name: Any, known: Iterable[str], what: str, argument: str = "") -> str:
    """What to say of a name that is none of those known: the nearest, or what there is."""
    names = list(known)
    near = difflib.get_close_matches(str(name)[:LINE], names, n=1, cutoff=0.4)
    there = (
        f"did you mean {quoted(near[0])}?" if near else f"there is {plain(', '.join(names), 160)}"
    )
    given = f"{argument}=" if argument else ""
    return f"{given}{quoted(name)}: no {what} has this name; {there}"


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): what looks the same is the same.

    Some systems write ö as one character, others as o and a mark behind it.
    """
    return unicodedata.normalize("NFC", name)


def steady(value: Any) -> str:
    """`repr` without addresses in memory: the same text in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def warned(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as a line, without a place in our code; fits `warnings.formatwarning`."""
    return f"evenhand: {plain(' '.join(str(message).split()))}\n"


def _prints(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
