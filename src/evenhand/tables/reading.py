"""Reading a table: CSV, TSV, Parquet, ARFF, or what Python holds already.

A column is kept as text until its kind is known (`kinds`), so that nothing is guessed on the way
in: a postcode keeps its zeros, and a cell that is no number can be shown with its row. Columns that
come with a type (Parquet, data frames) keep it.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.files import LARGE, read_bytes, require_file
from evenhand.tables import arff
from evenhand.text import composed, quoted

Cells = npt.NDArray[Any]
"""One column: text (objects, None where blank), float64 (NaN where blank), or datetime64."""

BLANK = frozenset({"", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A"})
"""What a cell says that says nothing."""
NO_TABLES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined")
"""Encodings that Python has for other things; some take minutes for a page."""
SEPARATORS = (",", ";", "\t", "|")
LINES = 50
"""Of which the separator is told."""


@dataclass(frozen=True)
class Table:
    """Columns of equal length, by name.

    Attributes:
        name: of the file, for people.
        columns: in their order.
        unreadable: columns that hold something else, lists perhaps, and what. They can be left out.

    Raises:
        ValueError: there is no column or no row.
    """

    name: str
    columns: Mapping[str, Cells]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(next(iter(self.unreadable.values()), f"{self.name} has no column"))
        if not len(self):
            raise ValueError(f"{self.name} has a header and no row")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def rows(self, index: npt.NDArray[np.int64]) -> Table:
        """The rows at `index`."""
        some = {name: cells[index] for name, cells in self.columns.items()}
        return Table(self.name, some, self.unreadable)


def read(file: Path, missing: Sequence[str] = (), encoding: str = "utf-8") -> Table:
    """The table in a file; its kind is told by the name's ending.

    `.csv`, `.tsv`, `.txt` (each also with `.gz`), `.parquet` (needs pyarrow) and `.arff` are known.
    The separator of text is the one of comma, semicolon, tab and bar that divides the first lines
    alike.

    Args:
        file: what to read.
        missing: cells that mean "blank", besides `BLANK`.
        encoding: of text.

    Raises:
        ValueError: the file cannot be read, its text is in another encoding, a line has more or
            fewer cells than the header, a name stands twice in the header, or there is no row.
    """
    try:
        stamp = file.stat()
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    require_file(file)
    return _read(file, tuple(missing), encoding, (stamp.st_mtime_ns, stamp.st_size))


@lru_cache(maxsize=4)
def _read(file: Path, missing: tuple[str, ...], encoding: str, stamp: tuple[int, int]) -> Table:
    endings = [ending.lower() for ending in file.suffixes]
    packed = bool(endings) and endings[-1] == ".gz"
    ending = (endings[:-1] if packed else endings)[-1:]
    reader = READERS.get("".join(ending))
    if reader is None:
        known = ", ".join(READERS)
        raise ValueError(f"{file}: a table's name must end in one of {known} (or .gz after it)")
    try:
        content = _unpacked(file) if packed else read_bytes(file)
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {file}: {said}") from error
    return reader(file.name, content, frozenset(missing) | BLANK, encoding)


def _unpacked(file: Path) -> bytes:
    """What a gzip file holds, within the bounds of a file: it may be a thousand times its size."""
    with gzip.open(io.BytesIO(read_bytes(file))) as packed:
        content = packed.read(LARGE + 1)
    if len(content) > LARGE:
        raise ValueError(f"{file} holds more than {LARGE} bytes: no more are read")
    return content


# Text -------------------------------------------------------------------------------------------


def _separated(
    name: str, content: bytes, blank: frozenset[str], encoding: str, separator: str | None = None
) -> Table:
    text = _decoded(name, content, encoding)
    # Line ends are left to the csv module: a quoted cell may hold some.
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator or _separator(text), strict=True
    )
    header, rows, numbers = _table_lines(name, lines)
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{name}, line {number}: {len(row)} cells, but the header has {len(header)}"
            )
    columns = zip(*rows, strict=True) if rows else [() for _ in header]
    kept = {
        title: _text_cells(cells, blank)
        for title, cells in zip(_checked(name, header), columns, strict=True)
    }
    return Table(name, kept)


def _table_lines(name: str, lines: Any) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows, and the line on which each row ends; empty lines are no rows.

    Raises:
        ValueError: quotes do not match, or there is no line.
    """
    header: list[str] | None = None
    rows: list[list[str]] = []
    numbers: list[int] = []
    whole = 0
    try:
        for row in lines:
            whole = lines.line_num
            several = header is None or len(header) > 1
            if not row or (several and len(row) == 1 and not row[0].strip()):
                continue
            if header is None:
                header = row
                continue
            rows.append(row)
            numbers.append(whole)
    except csv.Error as error:
        ended = str(error) == "unexpected end of data"
        said = "a quote is opened and not closed" if ended else str(error)
        raise ValueError(f"{name}, line {whole + 1}: {said}") from error
    if header is None:
        raise ValueError(f"{name} is empty")
    return header, rows, numbers


def _decoded(name: str, content: bytes, encoding: str) -> str:
    if encoding.lower().replace("_", "-") in NO_TABLES:
        raise ValueError(f"encoding={quoted(encoding)}: no table is in it")
    try:
        text = content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except LookupError as error:
        raise ValueError(f"encoding={quoted(encoding)}: there is no such encoding") from error
    except UnicodeError as error:
        line = content[: getattr(error, "start", 0)].count(b"\n") + 1
        raise ValueError(
            f"{name}, line {line}: this is not {encoding}; name the encoding (latin-1, cp1252, "
            "utf-16, …)"
        ) from error
    if "\0" in text:
        raise ValueError(f"{name} holds zero bytes: it is no text, or in another encoding")
    return text


def _separator(text: str) -> str:
    """The one that divides the first lines into equally many cells, the most of them."""
    first = list(itertools.islice(io.StringIO(text, newline=""), LINES))
    best, most = ",", 1
    for separator in SEPARATORS:
        try:
            rows = csv.reader(first, delimiter=separator)
            counts = [len(row) for row in rows if len(row) > 1 or any(map(str.strip, row))]
        except csv.Error:
            continue
        if counts and counts.count(counts[0]) > 0.8 * len(counts) and counts[0] > most:
            best, most = separator, counts[0]
    return best


def _checked(name: str, header: Sequence[str]) -> list[str]:
    """The names of the columns, see `composed`; one without a name (an index) is numbered.

    Raises:
        ValueError: one stands twice.
    """
    titles = [composed(title.strip()) or f"column {k + 1}" for k, title in enumerate(header)]
    if len(set(titles)) < len(titles):
        twice = Counter(titles).most_common(1)[0][0]
        raise ValueError(f"{name}: two columns are called {shown(twice)}")
    return titles


def _text_cells(cells: Iterable[str], blank: frozenset[str]) -> Cells:
    stripped = (cell.strip() for cell in cells)
    return _objects([None if cell in blank else cell for cell in stripped])


def _objects(values: Sequence[Any]) -> Cells:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


# Other files ------------------------------------------------------------------------------------


def _tabbed(name: str, content: bytes, blank: frozenset[str], encoding: str) -> Table:
    return _separated(name, content, blank, encoding, "\t")


def _parquet(name: str, content: bytes, blank: frozenset[str], encoding: str) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("reading Parquet needs pyarrow: pip install 'evenhand[tables]'") from error
    try:
        found = parquet.ParquetFile(pyarrow.BufferReader(content)).read()
    except (pyarrow.ArrowException, OSError) as error:  # damaged pages are OSErrors
        raise ValueError(f"{name} is no Parquet file: {error}") from error
    names = _checked(name, found.column_names)
    columns = (column.to_pylist() for column in found.columns)
    return Table(name, *_apart(dict(zip(names, columns, strict=True)), blank))


def _arff(name: str, content: bytes, blank: frozenset[str], encoding: str) -> Table:
    text = _decoded(name, content, encoding)
    try:
        found = arff.columns(text)
    except ValueError as error:
        raise ValueError(f"{name} is no ARFF file that can be read: {error}") from error
    names = _checked(name, [title for title, _ in found])
    return Table(
        name,
        {
            title: _text_cells(["" if cell is None else cell for cell in cells], blank)
            if isinstance(cells, list)
            else cells
            for title, (_, cells) in zip(names, found, strict=True)
        },
    )


Reader = Callable[[str, bytes, frozenset[str], str], Table]
READERS: Mapping[str, Reader] = {
    ".csv": _separated,
    ".tsv": _tabbed,
    ".txt": _separated,
    ".parquet": _parquet,
    ".arff": _arff,
}


# What Python holds ------------------------------------------------------------------------------


def held(
    columns: Mapping[str, Iterable[Any]], name: str = "table", *, strict: bool = True
) -> Table:
    """A table of columns in memory: lists, arrays or a data frame's columns, by name.

    Raises:
        ValueError: they are not equally long, a name stands twice, or there is no row.
        TypeError: a column holds something that is neither number, text, date nor blank. If not
            `strict` it is among `Table.unreadable` instead.
    """
    names = _checked(name, [str(title) for title in columns])
    given = dict(zip(names, columns.values(), strict=True))
    unreadable: dict[str, str] = {}
    if strict:
        made = {title: typed(cells, title, BLANK) for title, cells in given.items()}
    else:
        made, unreadable = _apart(given, BLANK)
    lengths = {title: len(cells) for title, cells in made.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: its columns are not equally long: {lengths}")
    return Table(name, made, unreadable)


def _apart(
    columns: Mapping[str, Iterable[Any]], blank: frozenset[str]
) -> tuple[dict[str, Cells], dict[str, str]]:
    """The columns that can be read, and why the others cannot."""
    made: dict[str, Cells] = {}
    unreadable: dict[str, str] = {}
    for name, values in columns.items():
        try:
            made[name] = typed(values, name, blank)
        except TypeError as error:
            unreadable[name] = str(error)
    return made, unreadable


def columns_of(frame: Any) -> Mapping[str, Any] | None:
    """The columns of a mapping or a pandas data frame, by name; None if it is neither."""
    if isinstance(frame, Mapping):
        return frame
    if not is_frame(frame):
        return None
    names = [str(name) for name in frame.columns]
    return {name: cells_of(frame.iloc[:, k]) for k, name in enumerate(_checked("table", names))}


def is_frame(given: Any, kind: str = "DataFrame") -> bool:
    """Whether it is a pandas data frame; or, as said, a series."""
    pandas = sys.modules.get("pandas")  # who has a data frame has imported it
    return pandas is not None and isinstance(given, getattr(pandas, kind))


def cells_of(series: Any) -> npt.NDArray[Any] | list[Any]:
    """The cells of a pandas series: an array of numbers or truth values, or Python's values."""
    plain = isinstance(series.dtype, np.dtype) and series.dtype.kind in "fiub"
    return series.to_numpy() if plain else series.tolist()  # type: ignore[no-any-return]


def typed(values: Iterable[Any], name: str, blank: frozenset[str] = BLANK) -> Cells:
    """A column of Python's values or of an array, as `Cells`.

    Raises:
        ValueError: it has more than one dimension.
        TypeError: a value is neither number, text, date nor blank.
    """
    if isinstance(values, np.ma.MaskedArray) and values.ndim == 1:
        values = values.tolist()  # None where masked
    cells = np.asarray(values) if isinstance(values, np.ndarray) else None
    if cells is not None and cells.ndim != 1:
        raise ValueError(f"column {shown(name)} has {cells.ndim} dimensions, not one")
    if cells is not None and cells.dtype.kind in "fiub":
        return cells.astype(np.float64) if cells.dtype.kind != "b" else _truths(cells.tolist())
    if cells is not None and cells.dtype.kind == "M":
        return cells.astype("datetime64[s]")
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"column {shown(name)} is a {type(values).__name__}: give a list of cells")
    return _of_objects(list(values), name, blank)


def _truths(values: Sequence[Any]) -> Cells:
    return _objects([None if value is None else str(bool(value)).lower() for value in values])


NUMBERS = int | float | np.integer | np.floating | Decimal
"""Real ones."""


def _of_objects(values: list[Any], name: str, blank: frozenset[str]) -> Cells:
    import datetime

    plain = [None if _nothing(value) else value for value in values]
    present = [value for value in plain if value is not None]
    if all(isinstance(value, bool | np.bool_) for value in present):
        return _truths(plain)
    if all(isinstance(value, NUMBERS) for value in present):
        try:
            return np.array([np.nan if v is None else float(v) for v in plain], dtype=np.float64)
        except OverflowError as error:
            raise ValueError(f"column {shown(name)} holds a whole number above 1e308") from error
    if all(isinstance(value, datetime.date | np.datetime64) for value in present):
        # A moment with a zone is told in UTC; numpy knows no zones.
        utc = [_utc(value) for value in plain]
        return np.array(utc, dtype="datetime64[s]")
    wrong = [v for v in present if not isinstance(v, str | NUMBERS | bool)]
    if wrong:
        raise TypeError(
            f"column {shown(name)} holds a {type(wrong[0]).__name__}: cells must be numbers, text, "
            "dates or blank"
        )
    return _text_cells(["" if value is None else str(value) for value in plain], blank)


def _utc(value: Any) -> Any:
    import datetime

    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).replace(tzinfo=None)
    return value


def _nothing(value: Any) -> bool:
    """None, and what is not equal to itself: NaN, NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float | np.floating | np.datetime64) and value != value


# Names ------------------------------------------------------------------------------------------


def shown(name: str) -> str:
    """A column's name in quotes, as it can be printed anywhere: see `plain`."""
    return f"'{plain(name)}'"


def plain(name: str) -> str:
    r"""A name in which what trains a terminal or turns writing round is spelled out.

    Line ends, control characters and marks of direction become `\n`, `\x1b`, `\u202e`; letters
    of all scripts stay.

    Example:
        >>> print(plain(chr(10) + "größe" + chr(0x202E)))
        \ngröße\u202e
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
