"""Names with options, as they are typed: `ate-sg(shared=10,own=10)`.

The same spelling serves recipes, optimizers and networks. Nothing here loads torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from evenhand.text import quoted

Single = int | float | bool | str | None
Value = Single | tuple[Single, ...]
"""What an option is told; several values stand in parentheses, `betas=(0.9,0.99)`."""
WORDS: Mapping[str, Single] = {"true": True, "false": False, "none": None}
SPELLED = re.compile(r"\s*([^\s()=,][^()=,]*?)\s*(?:\((.*)\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Spelled:
    """A name and its options.

    `str` writes it as it was typed, without spaces and with the options in the order given, so
    that one spelling stands for one thing in folders, manifests and tables.

    Example:
        >>> str(Spelled.of("ate-sg( shared = 10, own=10 )"))
        'ate-sg(shared=10,own=10)'
        >>> Spelled.of("adam(eps=1e-3,betas=(0.9,0.99))").options
        {'eps': 0.001, 'betas': (0.9, 0.99)}
    """

    name: str
    options: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Spelled:
        """Read `name` or `name(key=value,…)`.

        Raises:
            ValueError: it is neither, an option stands twice, or a number is not finite.
        """
        found = SPELLED.fullmatch(text)
        if found is None:
            raise ValueError(f"{quoted(text)}: write name, or name(option=value,…)")
        name, inside = found.groups()
        options: dict[str, Value] = {}
        for pair in split_list(inside or ""):
            key, equals, value = (part.strip() for part in pair.partition("="))
            if not equals or not key.isidentifier() or not value:
                raise ValueError(f"{quoted(text)}: {quoted(pair)} must be option=value")
            if key in options:
                raise ValueError(f"{quoted(text)}: the option {quoted(key)} is given twice")
            options[key] = _value(value)
        return cls(name, options)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({','.join(f'{k}={written(v)}' for k, v in self.options.items())})"


def split_list(text: str) -> list[str]:
    """The items of `a,b(c=1,d=2),e`; commas in parentheses divide nothing, empty items are dropped.

    Raises:
        ValueError: a parenthesis is not closed, or closed without being open.

    Example:
        >>> split_list("sg, ate-sg(shared=10,own=10),mgda")
        ['sg', 'ate-sg(shared=10,own=10)', 'mgda']
    """
    items, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            items.append(text[start:place])
            start = place + 1
    if depth:
        raise ValueError(f"{quoted(text)}: its parentheses do not match")
    items.append(text[start:])
    return [item.strip() for item in items if item.strip()]


def _value(text: str) -> Value:
    if text.startswith("(") and text.endswith(")"):
        return tuple(map(_single, split_list(text[1:-1])))
    return _single(text)


def _single(text: str) -> Single:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if not math.isfinite(number):
            raise ValueError(f"{quoted(text)} is no finite number")
        return number
    return text


def written(value: Value) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return f"({','.join(map(written, value))})"
    return str(value).lower() if isinstance(value, bool) or value is None else f"{value}"
