"""What kind a column is: numbers, yes or no, categories, dates, sets of labels.

    numeric    every cell is a number
    boolean    0/1, true/false, yes/no, t/f, y/n
    category   text of few different values
    date       every cell is a date or a moment, in one format
    labels     several names in a cell, such as red;blue (only where it is asked for)
    empty      no cell says anything

A column that is almost numbers, and one of free text, is refused: its reader must say what it is.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evenhand.asking import of_table, way, ways
from evenhand.sources import KINDS
from evenhand.tables.reading import Cells, shown

Kind = Literal["numeric", "boolean", "category", "date", "labels", "empty"]
Floats = npt.NDArray[np.float64]

TRUE = frozenset({"1", "true", "yes", "t", "y", "1.0"})
FALSE = frozenset({"0", "false", "no", "f", "n", "0.0"})
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WHOLE = re.compile(r"[+-]?\d+")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?")
GROUPED = re.compile(
    r"\d{1,3}((,\d{3})+\.\d+|(\.\d{3})+,\d+|(,\d{3})+|(\.\d{3}){2,}|"
    r"([ '\u2019\u00a0\u202f]\d{3})+([.,]\d+)?)|\d+([.,]\d*)?|[.,]\d+"
)
"""A number, perhaps with marks between its thousands: 1,234.50 or 1.234,50 or 1 234 or 1'234."""
DRESSED = re.compile(rf"[+-]?[$€£¥]?\s?[+-]?({GROUPED.pattern})\s?[$€£¥%]?")
"""A number that is written for people: $5, 12 %, -1,234.50 €."""
INFINITE = frozenset({"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})
FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d/%m/%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d-%b-%Y",
    "%d %b %Y",
)
"""Of dates, besides ISO 8601."""
MOSTLY = 0.5
"""A column of text with more numbers than this is a column of numbers with mistakes."""
LEVELS = 10
"""Numbers with signs, 10% and 20%, may be a category where there are no more of them."""
LONG, WORDS = 40, 5
"""Free text has cells of so many letters or words in the mean, and few that repeat."""
REPEATED = 0.5
"""In free text, the different cells are more than this share of all."""


@dataclass(frozen=True)
class Reading:
    """A column read as one kind.

    Attributes:
        kind: which.
        values: numeric, boolean: float64, NaN where blank; date: seconds since 1970, float64;
            category: text, None where blank; labels: tuples of names, None where blank.
        told: what was decided in reading it; "" if nothing.
        words: boolean: how no and yes are written.
        form: date: the format in which its text was read, "" if it came as dates.
    """

    kind: Kind
    values: Cells
    told: str = ""
    words: tuple[str, str] = ("0", "1")
    form: str = ""


def found(name: str, cells: Cells) -> Reading:
    """The column as the kind that its cells show.

    Raises:
        ValueError: it mixes numbers and text, holds an infinite number, is free text, or its dates
            can be read in two ways.
    """
    if not present(cells).any():
        return Reading("empty", cells)
    if cells.dtype.kind == "M":
        return Reading("date", _seconds(cells))
    if cells.dtype.kind == "f":
        return _numbers(name, cells)
    texts = Counter(cell for cell in cells if cell is not None)
    if _truths(texts):
        return Reading("boolean", _mapped(cells, _truth), words=_words(texts))
    numeric = sum(count for text, count in texts.items() if _number(text) is not None)
    if numeric == sum(texts.values()):
        return read_as("numeric", name, cells)
    dressed = {text: n for text, n in texts.items() if _number(text) is None and _dressed(text)}
    if len(dressed) > LEVELS and numeric + sum(dressed.values()) > MOSTLY * sum(texts.values()):
        raise ValueError(
            f"column {shown(name)} holds numbers with signs or marks between thousands, such as "
            f"{_short(next(iter(dressed)))}: "
            + ways("write digits and a point alone", _as_category(name))
        )
    if numeric > MOSTLY * sum(texts.values()):
        raise ValueError(_mixed(name, cells))
    if _format(name, list(texts)) is not None:
        return read_as("date", name, cells)
    if free_text(texts):
        raise ValueError(
            f"column {shown(name)} is free text ({len(texts):,} different cells, such as "
            f"{_short(next(iter(texts)))}): "
            + ways(way("leave it out", of_table("drop", [name])), _as_category(name))
        )
    return Reading("category", cells)


def read_as(kind: str, name: str, cells: Cells, form: str = "") -> Reading:
    """The column as the kind that its reader says; dates in a format, if all cells have it.

    Raises:
        ValueError: a cell is not of that kind; or there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"{shown(name)}={kind}: a kind must be one of {', '.join(KINDS)}")
    if not present(cells).any():
        return Reading("empty", cells)
    return _date(name, cells, form) if kind == "date" else AS[kind](name, cells)


def present(cells: Cells) -> npt.NDArray[np.bool_]:
    """Which cells are not blank."""
    if cells.dtype.kind == "f":
        return ~np.isnan(cells)
    if cells.dtype.kind == "M":
        return ~np.isnat(cells)
    return np.array([cell is not None for cell in cells], dtype=bool)


def as_text(cells: Cells) -> Cells:
    """The cells as text, None where blank: whole numbers without a point, dates as ISO 8601."""
    if cells.dtype.kind == "O":
        return cells
    there = present(cells)
    said: list[str | None] = []
    for cell, is_there in zip(cells.tolist(), there, strict=True):
        if not is_there:
            said.append(None)
        elif isinstance(cell, float):
            said.append(str(int(cell)) if cell == int(cell) else repr(cell))
        else:
            said.append(str(cell))
    made = np.empty(len(said), dtype=object)
    made[:] = said
    return made


def free_text(texts: Counter[str]) -> bool:
    """Whether cells are sentences that hardly repeat."""
    total = sum(texts.values())
    if len(texts) <= REPEATED * total:
        return False
    letters = sum(len(text) * count for text, count in texts.items()) / total
    words = sum(len(text.split()) * count for text, count in texts.items()) / total
    return letters > LONG or words >= WORDS


# Kinds ------------------------------------------------------------------------------------------


def _numeric(name: str, cells: Cells) -> Reading:
    if cells.dtype.kind == "M":
        return Reading("numeric", _seconds(cells))
    if cells.dtype.kind == "f":
        return Reading("numeric", _finite(name, cells))
    commas = _commas(cells)
    with_commas = [text for text in cells if text is not None and "," in text]
    if with_commas and all(THOUSANDS.fullmatch(text) for text in with_commas):
        raise ValueError(
            f"column {shown(name)}: {_short(with_commas[0])} may be a thousand or a fraction: "
            "write numbers without commas, or fractions with more or fewer than three digits"
        )
    values = _mapped(cells, lambda text: _number(text, commas))
    wrong = np.isnan(values) & present(cells)
    if wrong.any():
        raise ValueError(_mixed(name, cells))
    told = "commas are decimal points" if commas else ""
    return Reading("numeric", _finite(name, values), told)


def _numbers(name: str, cells: Cells) -> Reading:
    values = _finite(name, cells)
    only = set(np.unique(values[~np.isnan(values)]).tolist())
    return Reading("boolean" if only <= {0.0, 1.0} else "numeric", values)


def _boolean(name: str, cells: Cells) -> Reading:
    texts = Counter(cell for cell in as_text(cells) if cell is not None)
    if not _truths(texts):
        wrong = next(text for text in texts if _truth(text) is None)
        raise ValueError(
            f"column {shown(name)} is no yes or no: {_short(wrong)} is none of 0/1, true/false, "
            "yes/no, t/f, y/n"
        )
    return Reading("boolean", _mapped(as_text(cells), _truth), words=_words(texts))


def _category(name: str, cells: Cells) -> Reading:
    return Reading("category", as_text(cells))


def _date(name: str, cells: Cells, known: str = "") -> Reading:
    if cells.dtype.kind == "M":
        return Reading("date", _seconds(cells))
    texts = as_text(cells)
    distinct = list(dict.fromkeys(cell for cell in texts if cell is not None))
    alike = known and all(_moment(text, known) is not None for text in distinct)
    form = known if alike else _format(name, distinct)
    if form is None:
        wrong = next((t for t in distinct if _moment(t, "iso") is None), distinct[0])
        raise ValueError(
            f"column {shown(name)} is no date: {_short(wrong)} (write 2026-01-31, or 31.1.2026, in "
            "all cells alike)"
        )
    moments = {text: _moment(text, form) for text in distinct}
    told = "" if form == "iso" else f"dates read as {form}"
    return Reading("date", _mapped(texts, lambda text: moments[text]), told, form=form)


def _labels(name: str, cells: Cells) -> Reading:
    texts = as_text(cells)
    separator = ";" if any(";" in t for t in texts if t) else "|"
    made = np.empty(len(texts), dtype=object)
    made[:] = [None] * len(texts)
    for k, text in enumerate(texts):
        if text is not None:
            parts = (part.strip() for part in text.split(separator))
            made[k] = tuple(dict.fromkeys(part for part in parts if part))
    return Reading("labels", made, f"labels divided by {separator!r}")


AS: dict[str, Callable[[str, Cells], Reading]] = {
    "numeric": _numeric,
    "boolean": _boolean,
    "category": _category,
    "date": _date,
    "labels": _labels,
}


# Cells ------------------------------------------------------------------------------------------


def _mapped(cells: Cells, value: Callable[[str], float | None]) -> Floats:
    known: dict[str, float] = {}
    out = np.full(len(cells), np.nan)
    for k, cell in enumerate(cells):
        if cell is None:
            continue
        if cell not in known:
            read = value(cell)
            known[cell] = np.nan if read is None else read
        out[k] = known[cell]
    return out


def _number(text: str, commas: bool | None = None) -> float | None:
    """The number that a text is; with decimal commas if so said (None: either)."""
    if text.lower() in INFINITE:
        return float(text)
    if (WHOLE if commas else NUMBER).fullmatch(text):
        return float(text)
    if commas is not False and COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    return None


def _dressed(text: str) -> bool:
    """Whether it is a number as people write it, with signs or with marks between thousands."""
    return DRESSED.fullmatch(text) is not None


def _commas(cells: Cells) -> bool:
    """Whether commas are decimal points: no fewer cells have one than have a point."""
    texts = [cell for cell in cells if cell is not None]
    commas = sum(COMMA.fullmatch(text) is not None for text in texts)
    return commas > 0 and commas >= sum("." in text and _number(text) is not None for text in texts)


def _finite(name: str, values: Floats) -> Floats:
    wrong = np.isinf(values)
    if wrong.any():
        row = int(wrong.argmax()) + 1
        raise ValueError(
            f"column {shown(name)} holds {values[wrong][0]} in row {row} ({int(wrong.sum())} of "
            f"{len(values):,}): "
            + ways("correct it", "leave it blank", _as_blank([str(values[wrong][0])]))
        )
    over = np.abs(values) > HUGE
    if over.any():
        row = int(over.argmax()) + 1
        raise ValueError(
            f"column {shown(name)} holds {values[over][0]:g} in row {row}: numbers must be below "
            f"{HUGE:g}; " + ways("correct it", _as_blank([f"{values[over][0]:g}"]))
        )
    return values


HUGE = 1e100
"""Squares of larger numbers overflow."""


def _truths(texts: Counter[str]) -> bool:
    return bool(texts) and all(_truth(text) is not None for text in texts)


def _words(texts: Counter[str]) -> tuple[str, str]:
    """How no and yes are written most often."""
    ranked = sorted(texts, key=lambda text: (-texts[text], text))
    no, yes = (next((t for t in ranked if _truth(t) == value), "") for value in (0.0, 1.0))
    return no or "0", yes or "1"


def _truth(text: str) -> float | None:
    lower = text.lower()
    return 1.0 if lower in TRUE else 0.0 if lower in FALSE else None


def _mixed(name: str, cells: Cells) -> str:
    commas = _commas(cells)
    wrong = [(k, t) for k, t in enumerate(cells) if t is not None and _number(t, commas) is None]
    row, text = wrong[0]
    return (
        f"column {shown(name)} mixes numbers and text: {_short(text)} in row {row + 1} "
        f"({len(wrong):,} of {len(cells):,} cells are no numbers): "
        + ways("correct them", _as_blank(None), _as_category(name))
    )


def _as_category(name: str) -> str:
    return way("make it a category", of_table("kinds", {name: "category"}))


def _as_blank(cells: list[str] | None) -> str:
    return way("name what stands for blank", of_table("missing", cells))


def _seconds(cells: Cells) -> Floats:
    seconds = cells.astype("datetime64[s]")
    values = seconds.astype(np.int64).astype(np.float64)
    values[np.isnat(seconds)] = np.nan
    return values


def _format(name: str, texts: Sequence[str]) -> str | None:
    """In which all texts are dates; "iso" for ISO 8601, None if there is none.

    Raises:
        ValueError: days and months cannot be told apart.
    """
    if not texts or not all(4 < len(t) < 40 and any(c.isdigit() for c in t) for t in texts[:20]):
        return None
    for form in ("iso", *FORMATS):
        if all(_moment(text, form) is not None for text in texts):
            swapped = form.replace("%d/%m", "%m/%d")
            if swapped != form and all(_moment(text, swapped) is not None for text in texts):
                raise ValueError(
                    f"column {shown(name)} is a date of which day and month cannot be told apart "
                    f"({_short(texts[0])}): write 2026-01-31"
                )
            return form
    return None


def _moment(text: str, form: str) -> float | None:
    """Seconds since 1970; a moment without a zone is taken to be in UTC."""
    try:
        if form == "iso":
            if "-" not in text:  # 20260131 and 2026 are numbers
                return None
            moment = datetime.datetime.fromisoformat(text)
        else:
            moment = datetime.datetime.strptime(text, form)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - EPOCH).total_seconds()


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _short(text: str) -> str:
    """A cell in quotes, no longer than 30 letters."""
    return shown(text if len(text) <= 30 else f"{text[:29]}…")
