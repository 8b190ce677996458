"""Preparing the inputs: fitted to the training rows, applied to any rows, kept as JSON.

    numeric    (x - mean) / deviation; a blank cell gets the median first
    boolean    as numeric, no is 0 and yes is 1
    category   one column per value, 1 where the cell is it; a blank cell is a value of its own
               where training rows have one; what is rarer than the MOST commonest, and what
               training rows do not know, is "other"
    date       days, as numeric; and where in the year, in the week and (where moments have hours)
               in the day, as sine and cosine

Every kind that is made numeric has one more column where training rows have blanks: 1 where the
cell was blank. These are scikit-learn's `SimpleImputer(strategy="median", add_indicator=True)`
followed by `StandardScaler`, and `OneHotEncoder(max_categories=…,
handle_unknown="infrequent_if_exist")`; a test holds the numbers to theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evenhand.tables.kinds import Reading, present
from evenhand.tables.reading import plain

Floats = npt.NDArray[np.float64]
MOST = 50
"""The most columns that a category becomes."""
BLANK = "(blank)"
OTHER = "(other)"
DAY, WEEK, YEAR = 86_400.0, 7 * 86_400.0, 365.2425 * 86_400.0


@dataclass(frozen=True)
class Scaled:
    """A numeric column: (x − mean) / scale, blanks filled with the median.

    Attributes:
        median: of the training cells that are not blank; it fills the others.
        mean: of the filled training cells.
        scale: their deviation (by n), 1 where they do not vary.
        blanks: whether a column says which cells were blank.
    """

    median: float
    mean: float
    scale: float
    blanks: bool

    @classmethod
    def fitted(cls, values: Floats) -> Scaled:
        """To training cells, NaN where blank."""
        known = values[~np.isnan(values)]
        median = float(np.median(known)) if len(known) else 0.0
        filled = np.where(np.isnan(values), median, values)
        mean, deviation = float(filled.mean()), float(filled.std())
        # A constant's deviation is rounding error, as scikit-learn takes it too.
        eps = np.finfo(np.float64).eps
        still = deviation <= 10 * eps * max(1.0, abs(mean)) * math.sqrt(len(filled))
        return cls(median, mean, 1.0 if still else deviation, bool(len(known) < len(values)))

    def applied(self, values: Floats) -> Floats:
        """[n] -> [n, 1 or 2]."""
        blank = np.isnan(values)
        scaled = (np.where(blank, self.median, values) - self.mean) / self.scale
        return np.stack([scaled, blank], axis=1) if self.blanks else scaled[:, None]

    def titles(self, name: str) -> list[str]:
        return [name, f"{name} {BLANK}"] if self.blanks else [name]


@dataclass(frozen=True)
class OneHot:
    """A category: a column for each value.

    Attributes:
        values: in their order, the blank (None) last.
        other: whether one more column is 1 for any other value; without it, these are all zeros.
    """

    values: tuple[str | None, ...]
    other: bool

    @classmethod
    def fitted(cls, cells: npt.NDArray[Any]) -> OneHot:
        """To training cells, None where blank."""
        counts = Counter(cells.tolist())
        ordered = [*sorted(v for v in counts if v is not None), *([None] if None in counts else [])]
        if len(ordered) <= MOST:
            return cls(tuple(ordered), False)
        # The commonest stay; of equally common ones the last in order, as scikit-learn takes them.
        kept = set(sorted(ordered, key=lambda value: counts[value])[-(MOST - 1) :])
        return cls(tuple(value for value in ordered if value in kept), True)

    def applied(self, cells: npt.NDArray[Any]) -> Floats:
        """[n] -> [n, values and other]."""
        place = {value: k for k, value in enumerate(self.values)}
        width = len(self.values) + self.other
        found = np.zeros((len(cells), width))
        for row, cell in enumerate(cells.tolist()):
            at = place.get(cell, len(self.values) if self.other else None)
            if at is not None:
                found[row, at] = 1.0
        return found

    def titles(self, name: str) -> list[str]:
        said = [BLANK if v is None else v for v in self.values] + [OTHER] * self.other
        return [f"{name}={value}" for value in said]

    def unknown(self, cells: npt.NDArray[Any]) -> Counter[str]:
        """The values that training rows did not show by themselves, and how often they are here."""
        return Counter(cell for cell in cells.tolist() if cell is not None and not self._has(cell))

    def _has(self, value: str) -> bool:
        return value in self.values


@dataclass(frozen=True)
class Moments:
    """A date: days, scaled; sine and cosine of the place in the year, the week and the day.

    Attributes:
        days: how days since 1970 are scaled.
        hours: whether training cells have hours.
        middle: seconds since 1970 that fill a blank.
        form: the format of dates that were text, "iso" or as `datetime.strptime` has it; "" if they
            came as dates. Further rows are read in it, as 3/4/2025 could be either.
    """

    days: Scaled
    hours: bool
    middle: float
    form: str = ""

    @classmethod
    def fitted(cls, seconds: Floats, form: str = "") -> Moments:
        """To training cells, seconds since 1970, NaN where blank."""
        known = seconds[~np.isnan(seconds)]
        middle = float(np.median(known)) if len(known) else 0.0
        return cls(Scaled.fitted(seconds / DAY), bool((known % DAY != 0).any()), middle, form)

    def applied(self, seconds: Floats) -> Floats:
        filled = np.where(np.isnan(seconds), self.middle, seconds)
        turns = [2 * math.pi * (filled % span) / span for span in self._spans()]
        waves = [wave(turn) for turn in turns for wave in (np.sin, np.cos)]
        return np.concatenate([self.days.applied(seconds / DAY), np.stack(waves, axis=1)], axis=1)

    def titles(self, name: str) -> list[str]:
        parts = ["year", "week", "day"][: len(self._spans())]
        waves = [f"{name} ({part}, {wave})" for part in parts for wave in ("sine", "cosine")]
        return [*self.days.titles(f"{name} (days)"), *waves]

    def _spans(self) -> tuple[float, ...]:
        return (YEAR, WEEK, DAY) if self.hours else (YEAR, WEEK)


Fitted = Scaled | OneHot | Moments


@dataclass(frozen=True)
class Column:
    """An input: its name in the table, its kind, and how it is prepared."""

    name: str
    kind: Literal["numeric", "boolean", "category", "date"]
    fitted: Fitted

    @classmethod
    def of(cls, name: str, reading: Reading, rows: npt.NDArray[np.int64]) -> Column:
        """Fitted to these rows of a column that was read."""
        cells = reading.values[rows]
        match reading.kind:
            case "numeric" | "boolean":
                return cls(name, reading.kind, Scaled.fitted(cells))
            case "category":
                return cls(name, "category", OneHot.fitted(cells))
            case "date":
                return cls(name, "date", Moments.fitted(cells, reading.form))
        raise ValueError(f"an input cannot be of kind {reading.kind!r}")

    def titles(self) -> list[str]:
        """What each of the columns it becomes is called."""
        return self.fitted.titles(plain(self.name))

    @property
    def form(self) -> str:
        """The format of its dates, "" where there is none."""
        return self.fitted.form if isinstance(self.fitted, Moments) else ""

    @property
    def fitted_blanks(self) -> bool:
        """Whether training rows had blanks."""
        match self.fitted:
            case OneHot(values=values):
                return None in values
            case Moments(days=days):
                return days.blanks
            case Scaled(blanks=blanks):
                return blanks

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, **asdict(self.fitted)}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Column:
        """What `to_dict` said."""
        rest = {key: value for key, value in said.items() if key not in ("name", "kind")}
        made: Fitted
        match said["kind"]:
            case "category":
                made = OneHot(tuple(rest["values"]), rest["other"])
            case "date":
                made = Moments(**rest | {"days": Scaled(**rest["days"])})
            case "numeric" | "boolean":
                made = Scaled(**rest)
            case other:
                raise ValueError(f"there is no kind {other!r}")
        return cls(said["name"], said["kind"], made)


def applied(columns: Sequence[Column], readings: Mapping[str, Reading]) -> npt.NDArray[np.float32]:
    """The inputs of a network, [n, d]."""
    made = [column.fitted.applied(readings[column.name].values) for column in columns]
    return np.concatenate(made, axis=1).astype(np.float32)


def varies(reading: Reading, rows: npt.NDArray[np.int64]) -> bool:
    """Whether these cells are not all the same, blanks counted as a value."""
    cells = reading.values[rows]
    there = present(cells)
    if not there.all() and there.any():
        return True
    return len(set(cells[there].tolist())) > 1
