"""Arrays and data frames as tables: a column is what its type says, and none is left out.

A file's columns are looked at (`examined`), since its cells are text. Who hands over an array or a
data frame has chosen its columns and their types:

    numbers                     numeric
    truth values                boolean
    categories                  category, whatever they are made of
    dates                       date
    text                        what the cells show, see `kinds.found`

Targets keep the values of their classes, so that predictions are of the type that came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from evenhand.asking import PYTHON, NoSettings, asked_as
from evenhand.tables import kinds, targets
from evenhand.tables.kinds import Reading
from evenhand.tables.reading import Table, columns_of, held, is_frame, plain, shown, typed
from evenhand.tables.scores import USUAL, score
from evenhand.tables.targets import Target

Array = npt.NDArray[Any]
Kind = Literal["numeric", "category"]

CLASSES: tuple[tuple[str, Any], ...] = (
    ("text", str),
    ("truth values", bool | np.bool_),
    ("numbers", int | float | np.integer | np.floating),
)
"""What classes may be, the first that fits."""
COUNTED = 10
"""Whole numbers with no more different values may be classes."""


class InFrame:
    """Who hands over a data frame says by its columns what a table's options say of a file's."""

    def option(self, name: str, value: Any) -> str:
        return PYTHON.option(name, value)

    def of_table(self, name: str, value: Any) -> str:
        match name, value:
            case "drop", [column]:
                return f"X.drop(columns=[{column!r}])"
            case "kinds", dict() as said:
                return " and ".join(f"X[{c!r}].astype({DTYPES[k]!r})" for c, k in said.items())
            case "missing", _:
                return "NaN"
        return ""


DTYPES = {"category": "category", "numeric": "float", "boolean": "bool", "date": "datetime64[ns]"}
"""What pandas calls a kind."""


# Inputs -----------------------------------------------------------------------------------------


def unmasked(given: Any) -> Any:
    """A masked array with NaN where it is masked; anything else as it is."""
    if not isinstance(given, np.ma.MaskedArray):
        return given
    kind = np.float64 if given.dtype.kind in "fiub" else object
    return np.ma.filled(given.astype(kind), np.nan)


def input_table(given: Any, names: Sequence[str]) -> Table:
    """A matrix [n, d] or a data frame as a table whose columns have these names."""
    columns = columns_of(given) if is_frame(given) else None
    cells = given.T if columns is None else columns.values()
    return held(dict(zip(names, cells, strict=True)), "X")


def input_names(given: Any) -> list[str]:
    """The names of a data frame's columns; x0, x1, … of a matrix'.

    Raises:
        ValueError: two columns have the same name.
    """
    columns = columns_of(given) if is_frame(given) else None
    return [f"x{k}" for k in range(given.shape[1])] if columns is None else list(columns)


@asked_as(InFrame())
def input_readings(given: Any, table: Table) -> dict[str, Reading]:
    """The columns of `input_table`, each read as what its type says; without those that are blank.

    Raises:
        ValueError: a number is infinite, or text cannot be told to be categories.
    """
    categories = _categories(given)
    found = {}
    for category, (name, cells) in zip(categories, table.columns.items(), strict=True):
        if category or cells.dtype.kind in "fM":
            kind = "category" if category else {"f": "numeric", "M": "date"}[cells.dtype.kind]
            found[name] = kinds.read_as(kind, name, cells)
        else:
            found[name] = kinds.found(name, cells)
    return {name: reading for name, reading in found.items() if reading.kind != "empty"}


def joined(first: Reading, second: Reading) -> Reading:
    """Cells of one kind, one after the other."""
    return replace(first, values=np.concatenate([first.values, second.values]))


def _categories(given: Any) -> list[bool]:
    """Which columns of a data frame have the type of categories."""
    if not is_frame(given):
        return [False] * given.shape[1]
    return [str(kind) == "category" for kind in given.dtypes]


# Targets ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A target as its user holds it.

    Attributes:
        target: what is trained; its classes are text.
        classes: the values that they stand for, sorted; None of a target that is numeric.
    """

    target: Target
    classes: Array | None = None

    @property
    def name(self) -> str:
        """Of the column."""
        return self.target.name

    def reading(self, cells: Array) -> Reading:
        """Cells of this target, as `Targets` has them.

        Raises:
            ValueError: a cell is no number, or a class that is not among these.
        """
        if self.classes is None:
            return _numbers(self.name, cells)
        place = {value: code for code, value in enumerate(self.classes.tolist())}
        codes = np.full(len(cells), np.nan)
        for row, cell in enumerate(cells.tolist()):
            if not nothing(cell):
                if cell not in place:
                    raise ValueError(
                        f"target {shown(self.name)} has the class {cell!r} in row {row + 1}, and "
                        f"no training row has it; there are {_some(self.classes.tolist())}"
                    )
                codes[row] = place[cell]
        if self.target.kind == "boolean":
            return Reading("boolean", codes, words=(self.target.names[0], self.target.names[1]))
        texts = np.empty(len(cells), dtype=object)
        texts[:] = [None if np.isnan(c) else self.target.names[int(c)] for c in codes]
        return Reading("category", texts)


@dataclass(frozen=True)
class Targets:
    """Targets as their user holds them.

    Attributes:
        columns: by name: arrays of numbers or truth values, or objects.
        single: whether it is one without a second dimension, [n].
        named: whether the names are the user's.
        categories: those whose type is that of categories.
    """

    columns: Mapping[str, Array]
    single: bool
    named: bool = False
    categories: frozenset[str] = frozenset()

    @classmethod
    def of(cls, given: Any) -> Targets:
        """Those of an array [n] or [n, targets], a series or a data frame.

        Names are kept where they are text; else they are y0, y1, ….

        Raises:
            ValueError: it has more dimensions or none, two columns have the same name, or a cell
                holds several values.
        """
        if is_frame(given, "Series"):
            return cls._of_frame(given.to_frame(), single=True)
        if is_frame(given):
            return cls._of_frame(given, single=False)
        # A list is taken apart as objects: numpy would make text of [1.5, "a"].
        listed = isinstance(given, list | tuple)
        array = np.array(given, dtype=object) if listed else np.asarray(given)
        if array.ndim not in (1, 2) or (array.ndim == 2 and not array.shape[1]):
            raise ValueError(f"y has the shape {array.shape}: must be [n] or [n, targets]")
        columns = array[:, None].T if array.ndim == 1 else array.T
        return cls({f"y{k}": _values(c) for k, c in enumerate(columns)}, array.ndim == 1)

    @classmethod
    def _of_frame(cls, frame: Any, single: bool) -> Targets:
        columns = columns_of(frame)
        if not columns:
            raise ValueError("y is a data frame without columns")
        named = all(isinstance(name, str) for name in frame.columns)
        names = list(columns) if named else [f"y{k}" for k in range(len(columns))]
        typed_so = [name for name, is_so in zip(names, _categories(frame), strict=True) if is_so]
        cells = map(_values, columns.values())
        return cls(dict(zip(names, cells, strict=True)), single, named, frozenset(typed_so))

    def rows(self, index: Array) -> Targets:
        """The rows at `index`."""
        return replace(self, columns={name: c[index] for name, c in self.columns.items()})


@asked_as(NoSettings())
def numeric_outcome(name: str, cells: Array, metric: str | None) -> Outcome:
    """A target that is a number.

    Raises:
        ValueError: it is text, infinite, blank everywhere or always the same.
    """
    said = metric or USUAL["numeric"]
    score(said, "numeric", shown(name))
    return Outcome(targets.asked(name, _numbers(name, cells), said))


@asked_as(NoSettings())
def class_outcome(name: str, cells: Array, metric: str | None) -> Outcome:
    """A target with classes: the values that its cells have, blank ones left aside.

    Raises:
        ValueError: there are fewer than two, more than `targets.MOST`, or they mix text and
            numbers.
    """
    known = [cell for cell in cells.tolist() if not nothing(cell)]
    _require_one_type(name, known)
    if fractions := [v for v in known if isinstance(v, float) and not v.is_integer()]:
        raise ValueError(
            f"target {shown(name)} is continuous, such as {fractions[0]:g}: classes are text, "
            "truth values or whole numbers"
        )
    classes = np.unique(np.array(known, dtype=None if cells.dtype == object else cells.dtype))
    if len(classes) < 2:
        only = f"one class, {classes[0]!r}, in all rows" if len(classes) else "no class in any row"
        raise ValueError(f"target {shown(name)} has {only}: at least 2 classes are needed")
    names = tuple(str(value) for value in classes.tolist())
    kind: targets.Kind = "boolean" if len(classes) == 2 else "category"
    said = metric or USUAL[kind]
    score(said, kind, shown(name))
    outcome = Outcome(Target(name, kind, said, names), classes)
    asked = targets.asked(name, outcome.reading(cells), said)
    return replace(outcome, target=replace(asked, names=names))


def _require_one_type(name: str, values: Sequence[Any]) -> None:
    """See that classes are of one type, so that numpy changes none into another."""
    found = sorted({next((t for t, of in CLASSES if isinstance(v, of)), "") for v in values})
    if "" in found:
        odd = next(v for v in values if not any(isinstance(v, of) for _, of in CLASSES))
        raise ValueError(
            f"target {shown(name)} holds a {type(odd).__name__}: classes are text, truth values or "
            "whole numbers"
        )
    if len(found) > 1:
        raise ValueError(f"the classes of target {shown(name)} mix {' and '.join(found)}")


def kind_by_type(name: str, cells: Array) -> tuple[Kind, str]:
    """What a target without the type of categories is, and a word where that may surprise.

    Text and truth values are classes, and so are numbers that are 0 or 1; other numbers are
    numbers.
    """
    known = [cell for cell in cells.tolist() if not nothing(cell)]
    if any(isinstance(cell, str | bool | np.bool_) for cell in known):
        return "category", ""
    values = set(known)
    if values <= {0, 1}:
        return "category", ""
    whole = all(isinstance(v, int) or (isinstance(v, float) and v.is_integer()) for v in values)
    if len(values) <= COUNTED and whole:
        said = ", ".join(f"{value:g}" for value in sorted(values))
        return "numeric", (
            f"target {shown(name)} has {len(values)} whole numbers ({said}): they are taken for "
            f"numbers; target_kinds={{{name!r}: 'category'}} takes them for classes, 'numeric' "
            "says that they are numbers"
        )
    return "numeric", ""


def nothing(cell: Any) -> bool:
    """Whether a cell is blank: None, NaN or pandas' NA. Text never is, not even ""."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, float | np.floating) and bool(cell != cell)


def _numbers(name: str, cells: Array) -> Reading:
    if cells.dtype.kind == "O":
        if texts := [cell for cell in cells if isinstance(cell, str)]:
            raise ValueError(
                f"target {shown(name)} is text, such as {plain(texts[0])}, and must be numbers "
                "here; text can be the classes of a target"
            )
        values = [
            None if nothing(c) else float(c) if isinstance(c, bool | np.bool_) else c for c in cells
        ]
        cells = typed(values, name)
    elif cells.dtype.kind == "b":
        cells = cells.astype(np.float64)
    else:
        cells = typed(cells, name)
    if cells.dtype.kind == "M":
        raise ValueError(f"target {shown(name)} is a date: give days or hours as a number")
    return kinds.read_as("numeric", name, cells)


def _values(cells: Array | Iterable[Any]) -> Array:
    """A column: an array of numbers or truth values, or objects."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiub":
        return cells
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "c":
        raise ValueError("Complex data not supported")
    values = list(cells)
    if several := [v for v in values if isinstance(v, list | tuple | set | dict | np.ndarray)]:
        raise ValueError(f"a cell of y holds a {type(several[0]).__name__}: must be a single value")
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


def _some(values: Sequence[Any]) -> str:
    first = ", ".join(map(repr, values[:10]))
    return first if len(values) <= 10 else f"{first}, … ({len(values)})"


Maker = Callable[[str, Array, str | None], Outcome]
MAKERS: Mapping[Kind, Maker] = {"numeric": numeric_outcome, "category": class_outcome}
"""By the kind that a target is said to be of."""
