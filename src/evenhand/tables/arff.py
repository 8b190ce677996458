"""ARFF, the format of Weka and of OpenML, with dense and with sparse rows.

    @relation people
    @attribute age numeric
    @attribute 'lives in' {Bern, 'San José'}
    @attribute born date "yyyy-MM-dd"
    @data
    31, 'San José', 1994-05-01
    {0 44, 2 1981-11-30}

What a sparse row leaves out is 0, or the first value of a nominal attribute. The format:
https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.text import quoted

QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
ATTRIBUTE = re.compile(rf"@attribute\s+({QUOTED}|\S+?)\s*(?:\s|(?=\{{))\s*(\S.*)", re.IGNORECASE)
CELL = re.compile(rf"\s*({QUOTED}|[^,'\"]*)\s*(?:,|$)")
ENTRY = re.compile(rf"(\d+)\s+({QUOTED}|\S.*)")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf(inity)?", re.IGNORECASE)
NUMBERS = ("numeric", "real", "integer")
DATES = {"yyyy": "%Y", "yy": "%y", "MM": "%m", "dd": "%d", "HH": "%H", "mm": "%M", "ss": "%S"}
"""Letters of a date's format, in Java's spelling and in Python's."""
USUAL = "yyyy-MM-dd'T'HH:mm:ss"
ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
ABSENT = "?"


@dataclass(frozen=True)
class Attribute:
    """A column as the header declares it.

    Attributes:
        name: of the column.
        kind: "numeric", "nominal", "string" or "date".
        values: nominal: what there may be.
        form: date: its format, in Python's spelling.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    form: str = ""

    @classmethod
    def of(cls, name: str, declared: str) -> Attribute:
        """As it is written behind the name.

        Raises:
            ValueError: there is no such type.
        """
        word, _, rest = declared.partition(" ")
        if declared.startswith("{") and declared.endswith("}"):
            return cls(name, "nominal", tuple(_cells(declared[1:-1])))
        if declared.lower() in NUMBERS:
            return cls(name, "numeric")
        if declared.lower() == "string":
            return cls(name, "string")
        if word.lower() == "date":
            return cls(name, "date", form=_form(_bare(rest.strip()) or USUAL))
        raise ValueError(f"the attribute {quoted(name)} has the type {quoted(declared)}")

    @property
    def left_out(self) -> str:
        """What a sparse row means that does not name it.

        Raises:
            ValueError: a row must name it.
        """
        if self.kind == "numeric":
            return "0"
        if self.kind == "nominal":
            return self.values[0]
        raise ValueError(f"a sparse row leaves out {quoted(self.name)}, which is a {self.kind}")

    def require(self, cell: str) -> None:
        """See that a cell is what was declared.

        Raises:
            ValueError: it is not.
        """
        if self.kind == "nominal" and cell not in self.values:
            raise ValueError(f"{quoted(cell)} is no value of {quoted(self.name)}")
        if self.kind == "numeric" and not NUMBER.fullmatch(cell):
            raise ValueError(f"{quoted(cell)} is no number, as {quoted(self.name)} has")
        if self.kind == "date":
            datetime.datetime.strptime(cell, self.form)

    def column(self, cells: Sequence[str | None]) -> npt.NDArray[Any] | list[str | None]:
        """Numbers, moments, or text as it stands."""
        if self.kind == "numeric":
            return np.array([np.nan if c is None else float(c) for c in cells], dtype=np.float64)
        if self.kind == "date":
            read = datetime.datetime.strptime
            found = [None if c is None else read(c, self.form) for c in cells]
            return np.array(found, dtype="datetime64[s]")
        return list(cells)


def columns(text: str) -> list[tuple[str, npt.NDArray[Any] | list[str | None]]]:
    """Name and cells of each column; None, NaN or NaT where the file says "?".

    Raises:
        ValueError: a line is not what the format has; the message begins with its number.
    """
    attributes: list[Attribute] = []
    rows: list[list[str | None]] = []
    data = False
    for number, line in enumerate(text.split("\n"), 1):
        said = line.strip()
        if not said or said.startswith("%"):
            continue
        try:
            if data:
                rows.append(_row(said, attributes))
            elif said.lower() == "@data":
                data = True
            elif not said.lower().startswith("@relation"):
                attributes.append(_attribute(said))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if not data:
        raise ValueError("it has no @data")
    return [(a.name, a.column([row[k] for row in rows])) for k, a in enumerate(attributes)]


def _attribute(line: str) -> Attribute:
    found = ATTRIBUTE.fullmatch(line)
    if found is None:
        raise ValueError(f"{quoted(line)} is no attribute")
    return Attribute.of(_bare(found[1]), found[2])


def _row(line: str, attributes: Sequence[Attribute]) -> list[str | None]:
    if line.startswith("{") and line.endswith("}"):
        named = dict(_entries(line[1:-1], len(attributes)))
        cells = [
            a.left_out if (cell := named.get(k)) is None else cell for k, a in enumerate(attributes)
        ]
    else:
        cells = list(_cells(line))
    if len(cells) != len(attributes):
        raise ValueError(f"{len(cells)} cells, but there are {len(attributes)} attributes")
    for cell, attribute in zip(cells, attributes, strict=True):
        if cell != ABSENT:
            attribute.require(cell)
    return [None if cell == ABSENT else cell for cell in cells]


def _entries(inside: str, count: int) -> Iterator[tuple[int, str]]:
    """Number of the attribute and cell of each entry of a sparse row."""
    for part in re.findall(rf"(?:{QUOTED}|[^,'\"])+", inside):
        found = ENTRY.fullmatch(part.strip())
        if found is None or int(found[1]) >= count:
            raise ValueError(f"{quoted(part)} must be the number of an attribute and its value")
        yield int(found[1]), _bare(found[2])


def _cells(line: str) -> Iterator[str]:
    at = 0
    while at <= len(line):
        found = CELL.match(line, at)
        if found is None:
            raise ValueError(f"quotes do not match in {quoted(line[at:])}")
        yield _bare(found[1].strip())
        at = found.end() + (found.end() == len(line) and not found[0].endswith(","))
        if at == len(line) and found[0].endswith(","):
            yield ""
            return


def _bare(word: str) -> str:
    """Without quotes."""
    if word[:1] not in ("'", '"'):
        return word
    return re.sub(r"\\(.)", lambda found: ESCAPED.get(found[1], found[1]), word[1:-1])


def _form(java: str) -> str:
    """A date's format in Python's spelling.

    Raises:
        ValueError: it has something else than years, months, days, hours, minutes and seconds, or
            one of them twice.
    """
    parts = re.findall(r"'[^']*'|[A-Za-z]+|[^A-Za-z']+", java)
    letters = [part for part in parts if part.isalpha()]
    if not letters or any(p not in DATES for p in letters) or len({*letters}) < len(letters):
        raise ValueError(f"dates written as {quoted(java)} cannot be read")
    return "".join(DATES.get(part, part.strip("'").replace("%", "%%")) for part in parts)
