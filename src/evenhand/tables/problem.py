"""From a table and a question to a problem; the preparation is fitted anew for every split.

`TableProblem` is what a comparison is given: a function from the number of a split to a `Problem`.
It reads and examines the table once. The rows are divided by a `Pool`, whose `make` is told the
parts; there the preparation of inputs and targets is fitted to the training rows of that split, and
to no others. The `Problem` carries what was fitted (`Problem.preparation`), so that whoever keeps
its network keeps with it what turns new rows into inputs and outputs into units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evenhand.data.problem import Problem, Split
from evenhand.data.splits import Parts, Pool, strata
from evenhand.files import parsed
from evenhand.network import MultiTaskNetwork
from evenhand.tables import preparation
from evenhand.tables.examined import Examined, opened
from evenhand.tables.kinds import FORMATS, Reading, present
from evenhand.tables.network import network
from evenhand.tables.preparation import Column, Moments, OneHot, Scaled
from evenhand.tables.question import Question
from evenhand.tables.reading import plain
from evenhand.tables.scores import SCORES
from evenhand.tables.shape import Shape
from evenhand.tables.targets import Target
from evenhand.text import quoted

FORMAT = "evenhand-table-1"
RATES = (1e-3, 3e-3, 1e-2)
"""Of Adam."""
STEPS = 1_000
"""About so many steps are trained at most by default; no fewer than `EPOCHS[0]` epochs."""
EPOCHS = (15, 100)
BATCHES = (16, 256)


@dataclass(frozen=True)
class Prepared:
    """What turns rows of a table into inputs, and a network's outputs into cells.

    Attributes:
        columns: of the inputs.
        targets: by the name of their task.
        shape: of the network, with its widths.
        missing: cells that mean "blank", besides the usual ones.
    """

    columns: tuple[Column, ...]
    targets: Mapping[str, Target]
    shape: Shape
    missing: tuple[str, ...] = ()

    def titles(self) -> list[str]:
        """What each of the network's inputs is."""
        return [title for column in self.columns for title in column.titles()]

    def network(self, tasks: Sequence[str], width: float = 1.0) -> MultiTaskNetwork:
        """A network for some of the tasks; its weights are drawn from torch's global stream."""
        return self.scaled(tasks, width)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the table"

    def scaled(self, tasks: Sequence[str], width: float) -> MultiTaskNetwork:
        """The same, its hidden layers so many times as wide."""
        outputs = {name: target.outputs for name, target in self.targets.items()}
        return network(self.shape, len(self.titles()), outputs, tasks, width)

    def inputs(self, readings: Mapping[str, Reading]) -> Tensor:
        """Columns that were read -> float [n, d]."""
        return torch.from_numpy(preparation.applied(self.columns, readings))

    def to_json(self) -> str:
        """Everything, in a form that other programs can read."""
        said = {
            "format": FORMAT,
            "inputs": [column.to_dict() for column in self.columns],
            "targets": [target.to_dict() for target in self.targets.values()],
            "missing": list(self.missing),
            "network": str(self.shape),
            "network_inputs": self.titles(),
        }
        return json.dumps(said, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Prepared:
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        where = "this is no preparation of a table"
        found = parsed(_Format, text, where).format
        if found != FORMAT:
            raise ValueError(f"it has the format {quoted(found)}, not {FORMAT}")
        written = parsed(_Written, text, where)
        said = json.loads(text)
        columns = tuple(Column.from_dict(entry) for entry in said["inputs"])
        for entry in (*written.inputs, *written.targets):
            _require_numbers(entry, where)
        targets = {target.title: target for target in written.targets}
        return cls(columns, targets, Shape.of(written.network), written.missing)


@dataclass(frozen=True)
class _Format:
    format: str


@dataclass(frozen=True)
class _Number(Scaled):
    name: str
    kind: Literal["numeric", "boolean"]


@dataclass(frozen=True)
class _Category(OneHot):
    name: str
    kind: Literal["category"]


@dataclass(frozen=True, kw_only=True)
class _Date(Moments):
    name: str
    kind: Literal["date"]


@dataclass(frozen=True)
class _Written:
    """What must stand in the file."""

    inputs: tuple[_Number | _Category | _Date, ...]
    targets: tuple[Target, ...]
    network: str
    missing: tuple[str, ...]


def _require_numbers(entry: _Number | _Category | _Date | Target, where: str) -> None:
    """See that a column can be scaled by what was written, and has as many names as it needs.

    Raises:
        ValueError: it cannot.
    """
    match entry:
        case Target():
            numbers, scale = (entry.mean, *entry.weights), entry.scale
            if entry.kind == "boolean" and len(entry.names) != 2:
                raise ValueError(
                    f"{where}: {quoted(entry.name)} has {len(entry.names)} names, not 2"
                )
        case _Category():
            numbers, scale = (), 1.0
        case _Date():
            numbers, scale = (entry.middle, entry.days.mean, entry.days.median), entry.days.scale
            if entry.form not in ("", "iso", *FORMATS):
                raise ValueError(f"{where}: no date is read as {quoted(entry.form)}")
        case _Number():
            numbers, scale = (entry.mean, entry.median), entry.scale
    if not (all(map(math.isfinite, (*numbers, scale))) and scale > 0):
        raise ValueError(f"{where}: the numbers of {quoted(entry.name)} are not finite")


@dataclass(frozen=True, eq=False)
class TableProblem:
    """The number of a split -> the problem of a table, divided for that split.

    Args:
        file: of the table.
        question: what is asked of it.
        held: the table as it was examined already, where there is no file.
    """

    file: str
    question: Question
    held: Examined | None = field(default=None, repr=False)

    @cached_property
    def examined(self) -> Examined:
        """The table, looked at.

        Raises:
            ValueError: see `examined.examined`.
        """
        return opened(self.file, self.question) if self.held is None else self.held

    def __call__(self, split: int) -> Problem:
        """The problem with the parts of a split; other designs are the pool's.

        Raises:
            ValueError: see `examined.examined`; or the rows are too few.
        """
        table = self.examined
        if table.test:
            return self.made(self._beside_test(split))
        return self.pool.problem("hold-out", 1, split)

    @cached_property
    def pool(self) -> Pool:
        """All rows, and what divides them."""
        table = self.examined
        return Pool(
            table.rows,
            self.made,
            strata=_strata(table, table.rows),
            groups=None if table.groups is None else torch.from_numpy(table.groups),
            times=None if table.times is None else torch.from_numpy(table.times),
        )

    def _beside_test(self, split: int) -> Parts:
        """The official test rows, and the others divided into training and validation."""
        table = self.examined
        count = table.rows - table.test
        groups = None if table.groups is None else torch.from_numpy(table.groups[:count])
        pool = Pool(count, self.made, strata=_strata(table, count), groups=groups)
        return pool.beside(torch.arange(count, table.rows), split)

    def made(self, parts: Parts) -> Problem:
        """The problem with these parts, everything fitted to the training rows."""
        table, question = self.examined, self.question
        rows = parts.train.numpy()
        shape = Shape.of(question.network).sized(len(rows))
        columns = tuple(
            Column.of(name, reading, rows)
            for name, reading in table.inputs.items()
            if preparation.varies(reading, rows)
        )
        if not columns:
            raise ValueError(
                f"{table.name}: no input varies in the training part, which has {len(rows):,} of "
                f"{table.rows:,} rows"
            )
        fitted = {
            target.title: (target.fitted(reading, rows, question.balance), reading)
            for target, reading in table.targets.values()
        }
        targets = {t: target for t, (target, _) in fitted.items()}
        prepared = Prepared(columns, targets, shape, question.missing)
        weights = None if table.weights is None else _relative(table.weights, rows)
        inputs = prepared.inputs(table.inputs)
        encoded = {t: target.encoded(r, weights) for t, (target, r) in fitted.items()}
        train, validation, test = (
            Split(inputs[part], {t: labels[part] for t, labels in encoded.items()})
            for part in (parts.train, parts.validation, parts.test)
        )
        batch = question.batch or batch_for(len(rows))
        return Problem(
            name=plain(table.name),
            summary=summary(table),
            citation="a table of one's own",
            tasks={
                t: target.task(SCORES[target.metric], weights is not None)
                for t, (target, _) in fitted.items()
            },
            network=prepared.network,
            train=train,
            validation=validation,
            test=test,
            batch_size=batch,
            epochs=epochs_for(len(rows), batch),
            optimizer="adam",
            rates=RATES,
            official_test=bool(table.test),
            scaled=prepared.network,
            design="hold-out" if table.times is None else "time",
            preparation=prepared,
        )


def summary(table: Examined) -> str:
    """One line: how many rows, inputs and targets."""
    test = f" and {table.test:,} of the test set" if table.test else ""
    inputs, targets = len(table.inputs), len(table.targets)
    return (
        f"{table.rows - table.test:,} rows{test}, {inputs} input{'s' * (inputs != 1)}, "
        f"{targets} target{'s' * (targets != 1)}"
    )


def batch_for(rows: int) -> int:
    """The power of two nearest to a 25th of the training rows, from 16 to 256."""
    least, most = BATCHES
    return min(most, max(least, int(2 ** round(math.log2(max(1.0, rows / 25))))))


def epochs_for(rows: int, batch: int) -> int:
    """So many that about `STEPS` steps are made."""
    least, most = EPOCHS
    return min(most, max(least, round(STEPS / math.ceil(rows / batch))))


def _relative(weights: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> Any:
    """Weights of which the mean over the training rows is 1.

    Raises:
        ValueError: every training row weighs nothing.
    """
    mean = weights[rows].mean()
    if not mean > 0:
        raise ValueError("every row of a training part weighs nothing")
    return weights / mean


def _strata(table: Examined, rows: int) -> Tensor | None:
    """A number for each of the first `rows`: which targets have a label, and of which class."""
    columns = []
    for target, reading in table.targets.values():
        there = present(reading.values)
        own = there.astype(np.int64)
        if target.kind in ("boolean", "category"):
            cells = np.array(
                ["" if not t else str(v) for t, v in zip(there, reading.values, strict=True)]
            )
            own = np.unique(cells, return_inverse=True)[1].reshape(-1).astype(np.int64)
        columns.append(torch.from_numpy(own[:rows]))
    return strata(columns)


def table_problem(file: str, options: Mapping[str, Any]) -> TableProblem:
    """The problem of a file, with the options that a command or a manifest has."""
    return TableProblem(file, Question.of(options))
