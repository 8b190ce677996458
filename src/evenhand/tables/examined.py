"""A table looked at: what its columns are, what becomes of them, and what is odd about them.

Every decision that nobody asked for is a sentence in `Examined.notes`. A column whose kind was
given has been looked at by its reader: it is neither left out nor refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evenhand.asking import of_table
from evenhand.tables import kinds, targets
from evenhand.tables.kinds import Reading, as_text, present
from evenhand.tables.preparation import MOST
from evenhand.tables.question import Question, nearest
from evenhand.tables.reading import Cells, Table, read, shown
from evenhand.tables.scores import USUAL
from evenhand.tables.targets import Target

FEW = 10
"""Rows below which nothing can be divided into training, validation and test."""
CLASSES = 10
"""A target of whole numbers with no more different ones is taken to be classes."""
COPIED = 0.99999
"""The correlation from which on two columns of numbers are the same thing."""
COMPARED = 10_000
"""Rows by which columns of numbers are held against each other."""
IDENTIFYING = 20
"""Rows from which on a column without repetition is taken for an identifier."""
PAIRS = 10
"""Columns that say the same are named up to so many pairs."""
RARE = 0.05
"""A class of a smaller share is worth a word."""


@dataclass(frozen=True)
class Examined:
    """A table as it is going to be used.

    Attributes:
        name: of the file.
        rows: how many; the official test rows are the last.
        test: how many of them are the official test set.
        inputs: the columns to predict from, by name.
        targets: what is predicted, and its cells.
        groups: the group of each row, int64, or None.
        times: when each row was taken, float64, or None.
        weights: of each row, float64, or None.
        notes: what was decided, and what is odd, in sentences.
    """

    name: str
    rows: int
    test: int
    inputs: Mapping[str, Reading]
    targets: Mapping[str, tuple[Target, Reading]]
    groups: npt.NDArray[np.int64] | None = None
    times: npt.NDArray[np.float64] | None = None
    weights: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = field(default=())


def examined(table: Table, question: Question, test: Table | None = None) -> Examined:
    """Find the columns' kinds, and see that the question can be asked of the table.

    Raises:
        ValueError: a column is not there (the message names the nearest), cannot be what it is
            asked to be, or cannot be told; there are too few rows; nothing is left to predict from.
    """
    question.require_columns(table)
    official = 0
    if test is not None:
        official = len(test)
        table = _joined(table, test)
    if len(table) - official < FEW:
        raise ValueError(
            f"{table.name} has {len(table) - official} rows: at least {FEW} are needed to train, "
            "validate and test"
        )
    notes: list[str] = []
    cells = table.columns
    asked = {name: _target(name, cells[name], question, notes) for name in question.targets}
    titles = [target.title for target, _ in asked.values()]
    if len(set(titles)) < len(titles):
        raise ValueError(f"two targets would be printed alike: {', '.join(titles)}; rename one")
    groups = None if question.group is None else _groups(question.group, cells[question.group])
    times = None if question.time is None else _times(question.time, cells[question.time], question)
    weights = None
    if question.weight is not None:
        weights = _weights(question.weight, cells[question.weight])
    if groups is not None and official:
        _require_apart(question.group or "", cells[question.group or ""], groups, official)
    inputs = _inputs(table, question, asked, notes)
    notes += _duplicates(inputs, question)
    notes += _repeated(inputs, len(table), official, groups)
    found = Examined(
        table.name, len(table), official, inputs, asked, groups, times, weights, tuple(notes)
    )
    _require_labels(found)
    return found


def opened(file: str, question: Question) -> Examined:
    """As `examined`, of files.

    Raises:
        ValueError: as `read` and `examined`.
    """
    table = read(Path(file), question.missing, question.encoding)
    return examined(table, question, tested(question))


def tested(question: Question) -> Table | None:
    """The official test set, if there is one.

    Raises:
        ValueError: as `read`.
    """
    if question.test is None:
        return None
    return read(Path(question.test), question.missing, question.encoding)


# Rows -------------------------------------------------------------------------------------------


def _joined(table: Table, test: Table) -> Table:
    """Both, the test rows last."""
    if lacking := [name for name in table.columns if name not in test.columns]:
        raise ValueError(
            f"{test.name} has no column {shown(lacking[0])}, which {table.name} has; "
            f"{nearest(lacking[0], list(test.columns))}"
        )
    both = {}
    for name, cells in table.columns.items():
        other = test.columns[name]
        if cells.dtype.kind != other.dtype.kind:
            cells, other = as_text(cells), as_text(other)
        both[name] = np.concatenate([cells, other])
    return Table(table.name, both)


# Columns with a part ----------------------------------------------------------------------------


def _target(
    name: str, cells: Cells, question: Question, notes: list[str]
) -> tuple[Target, Reading]:
    kind = question.kinds.get(name)
    reading = kinds.read_as(kind, name, cells) if kind else kinds.found(name, cells)
    if kind is None and reading.kind == "numeric" and _counts(reading.values):
        reading = kinds.read_as("category", name, cells)
        values = sorted({text for text in reading.values if text is not None}, key=float)
        notes.append(
            f"target {shown(name)} has {len(values)} whole numbers ({', '.join(values)}): they are "
            f"taken for classes; {of_table('kinds', {name: 'numeric'})} takes them for numbers"
        )
    made = targets.asked(name, reading, "")
    metric = question.metrics.get(name, USUAL[made.kind])
    from evenhand.tables.scores import score

    score(metric, made.kind, shown(name))
    made = targets.asked(name, reading, metric)
    blank = int((~present(reading.values)).sum())
    if made.kind == "labels" and blank:
        notes.append(
            f"target {shown(name)} is blank in {blank:,} rows: they count as not labelled; where "
            "none of the labels holds, write a word for that, such as none"
        )
    notes += _imbalance(made, reading, question)
    return made, reading


def _counts(values: npt.NDArray[np.float64]) -> bool:
    """Whether numbers look like classes: few whole ones, each of them more than once."""
    known, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    whole = bool((known == np.round(known)).all())
    return whole and len(known) <= CLASSES and bool((counts > 1).all())


def _imbalance(target: Target, reading: Reading, question: Question) -> Iterator[str]:
    if target.kind not in ("boolean", "category"):
        return
    counts = targets.counted(reading)
    total = sum(counts.values())
    rarest = min(target.names, key=lambda name: counts[name])
    share = counts[rarest] / total
    if share < RARE and len(target.names) <= 20:
        weighed = (
            "classes are weighted to count equally"
            if question.balance
            else f"{of_table('balance', True)} lets classes count equally in the loss"
        )
        other = {"boolean": "ap", "category": "balanced-accuracy"}[target.kind]
        asked = of_table("metrics", {target.name: other})
        metric = "" if target.metric == other else f", {asked} scores it"
        yield (
            f"target {shown(target.name)}: {rarest!r} is rare ({counts[rarest]:,} of {total:,} "
            f"labels, {share:.1%}); {weighed}{metric}"
        )


def _groups(name: str, cells: Cells) -> npt.NDArray[np.int64]:
    there = present(cells)
    if not there.all():
        row = int((~there).argmax()) + 1
        raise ValueError(
            f"{of_table('group', name)}: row {row} is blank ({int((~there).sum())} in all)"
        )
    names, codes = np.unique(as_text(cells).astype(str), return_inverse=True)
    if len(names) < 3:
        raise ValueError(
            f"{of_table('group', name)}: there are {len(names)} groups; training, validation and "
            "test need one each at least"
        )
    return codes.astype(np.int64)


def _require_apart(name: str, cells: Cells, groups: npt.NDArray[np.int64], official: int) -> None:
    both = np.intersect1d(groups[:-official], groups[-official:])
    if len(both):
        one = as_text(cells)[int((groups == both[0]).argmax())]
        raise ValueError(
            f"{of_table('group', name)}: {len(both)} groups, such as {shown(str(one))}, stand both "
            "in the table and in the test set"
        )


def _times(name: str, cells: Cells, question: Question) -> npt.NDArray[np.float64]:
    kind = question.kinds.get(name)
    reading = kinds.read_as(kind, name, cells) if kind else kinds.found(name, cells)
    asked = of_table("time", name)
    if reading.kind not in ("date", "numeric", "boolean"):
        raise ValueError(f"{asked}: it must be dates or numbers, and is {reading.kind}")
    blank = np.isnan(reading.values)
    if blank.any():
        row = int(blank.argmax()) + 1
        raise ValueError(f"{asked}: row {row} is blank ({int(blank.sum())} in all)")
    if len(np.unique(reading.values)) < FEW:
        raise ValueError(f"{asked}: fewer than {FEW} different times cannot be divided")
    values: npt.NDArray[np.float64] = reading.values
    return values


def _weights(name: str, cells: Cells) -> npt.NDArray[np.float64]:
    asked = of_table("weight", name)
    reading = kinds.read_as("numeric", name, cells)
    if reading.kind == "empty":
        raise ValueError(f"{asked}: every cell is blank")
    values = reading.values
    wrong = ~(values >= 0)  # blank ones too
    if wrong.any():
        row = int(wrong.argmax()) + 1
        raise ValueError(f"{asked}: row {row} is blank or below 0")
    if not (values > 0).any():
        raise ValueError(f"{asked}: every row weighs nothing")
    made: npt.NDArray[np.float64] = values
    return made


def _require_labels(found: Examined) -> None:
    """See that a fixed test set and the rest have labels of every target."""
    if not found.test:
        return
    for name, (_, reading) in found.targets.items():
        there = present(reading.values)
        for part, some in (("table", there[: -found.test]), ("test set", there[-found.test :])):
            if not some.any():
                raise ValueError(f"target {shown(name)} has no label in the {part}")


# Inputs -----------------------------------------------------------------------------------------


def _inputs(
    table: Table,
    question: Question,
    asked: Mapping[str, tuple[Target, Reading]],
    notes: list[str],
) -> dict[str, Reading]:
    spoken = {*question.targets, *question.drop, question.group, question.time, question.weight}
    names = question.inputs or [name for name in table.columns if name not in spoken]
    refused: list[str] = []
    found: dict[str, Reading] = {}
    for name in names:
        cells, kind = table.columns[name], question.kinds.get(name)
        try:
            reading = kinds.read_as(kind, name, cells) if kind else kinds.found(name, cells)
        except ValueError as error:
            refused.append(str(error))
            continue
        if kind == "labels":
            refused.append(f"column {shown(name)}: only targets can be labels")
            continue
        why = "" if kind else _useless(name, cells, reading) or _copies(name, reading, asked)
        if why:
            notes.append(f"column {shown(name)} is left out: {why}")
            continue
        if reading.told:
            notes.append(f"column {shown(name)}: {reading.told}")
        if not kind and (hint := _grouping(name, cells)):
            notes.append(hint)
        if reading.kind == "category" and (values := _distinct(reading)) > MOST:
            notes.append(
                f"column {shown(name)} has {values:,} values: the {MOST - 1} commonest of the "
                "training rows are told apart, the others are one"
            )
        found[name] = reading
    if refused:
        raise ValueError("; ".join(refused))
    if not found:
        why = f" ({'; '.join(notes[:2])}{'; …' if len(notes) > 2 else ''})" if notes else ""
        raise ValueError(f"{table.name}: no column is left to predict from{why}")
    return found


def _useless(name: str, cells: Cells, reading: Reading) -> str:
    """Why a column says nothing of new rows; "" if it may."""
    if reading.kind == "empty":
        return "every cell is blank"
    there = present(reading.values)
    values = reading.values[there]
    distinct = len(set(values.tolist()))
    if distinct == 1 and there.all():
        return "every cell is the same"
    keep = f"{of_table('kinds', {name: reading.kind})} keeps it"
    if distinct < len(values) or len(values) < IDENTIFYING:
        return ""
    if reading.kind == "category":
        return f"likely an identifier, since no value repeats ({keep})"
    if reading.kind == "numeric" and _running(values, name):
        return f"likely an identifier, whole numbers of which none repeats ({keep})"
    return ""


def _distinct(reading: Reading) -> int:
    return len({value for value in reading.values.tolist() if value is not None})


def _running(values: npt.NDArray[np.float64], name: str) -> bool:
    """Whether whole numbers are numbers of rows: one after the other, or called an id."""
    if not (values == np.round(values)).all():
        return False
    words = name.lower().replace("-", "_").replace(" ", "_").split("_")
    called = {"id", "index", "key", "number", "nr", "no", "uid", "uuid"} & set(words)
    steps = np.diff(np.sort(values))
    return bool(called or name.endswith("Id") or name.endswith("ID") or (steps == 1).all())


def _grouping(name: str, cells: Cells) -> str:
    """A hint where a column looks as if it said which rows belong together."""
    words = set(name.lower().replace("-", "_").replace(" ", "_").split("_"))
    if not words & {"subject", "patient", "person", "user", "customer", "household", "participant"}:
        return ""
    distinct = len({text for text in as_text(cells) if text is not None})
    if not 2 < distinct < 0.9 * len(cells):
        return ""
    return (
        f"column {shown(name)} repeats: if rows of one {name} resemble each other, "
        f"{of_table('group', name)} keeps them on one side of every split"
    )


def _copies(name: str, reading: Reading, asked: Mapping[str, tuple[Target, Reading]]) -> str:
    """Which target a column gives away; "" if none."""
    for target, (_, labels) in asked.items():
        if _same(reading, labels):
            return (
                f"it copies the target {shown(target)} "
                f"({of_table('kinds', {name: reading.kind})} keeps it, if it is known before the "
                "target is)"
            )
    return ""


def _same(one: Reading, other: Reading) -> bool:
    """Whether two columns tell each other: correlated without rest, or one to one."""
    both = present(one.values) & present(other.values)
    if both.sum() < FEW or "labels" in (one.kind, other.kind):
        return False
    a, b = one.values[both], other.values[both]
    if "category" not in (one.kind, other.kind):
        return _correlation(a.astype(float), b.astype(float)) > COPIED
    first, second = set(a.tolist()), set(b.tolist())
    pairs = set(zip(a.tolist(), b.tolist(), strict=True))
    return len(first) == len(second) == len(pairs) and 2 <= len(first) < 0.5 * len(a)


def _correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """|r|, 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    largest = np.abs(a).max(), np.abs(b).max()
    if not all(largest):
        return 0.0
    a, b = a / largest[0], b / largest[1]
    return float(abs(a @ b) / np.sqrt((a @ a) * (b @ b)))


def _duplicates(inputs: Mapping[str, Reading], question: Question) -> Iterator[str]:
    """Inputs that say the same."""
    numeric = [n for n, r in inputs.items() if r.kind in ("numeric", "boolean")]
    filled = []
    for name in numeric:
        values = inputs[name].values[:COMPARED]
        known = values[~np.isnan(values)]
        centred = np.where(np.isnan(values), 0.0, values - (known.mean() if len(known) else 0.0))
        scaled = centred / (np.abs(centred).max() or 1.0)
        filled.append(scaled / (np.linalg.norm(scaled) or 1.0))
    if len(filled) > 1:
        matrix = np.abs(np.stack(filled) @ np.stack(filled).T)
        pairs = np.argwhere(np.triu(matrix, 1) > COPIED).tolist()
        for i, j in pairs[:PAIRS]:
            yield f"columns {shown(numeric[i])} and {shown(numeric[j])} say the same"
        if len(pairs) > PAIRS:
            yield f"{len(pairs) - PAIRS:,} more pairs of columns say the same"


def _repeated(
    inputs: Mapping[str, Reading],
    rows: int,
    official: int,
    groups: npt.NDArray[np.int64] | None,
) -> Iterator[str]:
    """Rows that repeat others, which may stand on two sides of a split."""
    codes = [_coded(reading) for reading in inputs.values()]
    _, first, place = np.unique(
        np.stack(codes, axis=1), axis=0, return_index=True, return_inverse=True
    )
    repeats = rows - len(first)
    if official:
        place = place.reshape(-1)
        shared = int(np.isin(place[-official:], place[:-official]).sum())
        if shared:
            yield f"{shared:,} of {official:,} test rows have the inputs of a row of the table"
    elif repeats and groups is None:
        yield (
            f"rows whose inputs are those of another row: {repeats:,} of {rows:,}; if they are one "
            f"thing measured again, name a column that says so by {of_table('group')}"
        )


def _coded(reading: Reading) -> npt.NDArray[np.int64]:
    """Each cell as a number that only equal cells share; numbers count as equal in six digits."""
    values: Any = reading.values
    if values.dtype.kind == "f":
        scale = np.nanmax(np.abs(values)) if not np.isnan(values).all() else 1.0
        values = np.round(np.nan_to_num(values / (scale or 1.0), nan=2.0), 6)
    else:
        values = np.array(["" if cell is None else f"={cell}" for cell in values])
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
