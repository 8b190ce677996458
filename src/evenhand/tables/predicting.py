"""Predicting rows of a table by a network that was kept: columns by name, answers in their unit."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenhand.asking import NoSettings, asked_as
from evenhand.files import MEBIBYTE, read_text
from evenhand.network import MultiTaskNetwork
from evenhand.tables import kinds
from evenhand.tables.kinds import Reading, present
from evenhand.tables.preparation import OneHot
from evenhand.tables.problem import Prepared
from evenhand.tables.question import nearest
from evenhand.tables.reading import Cells, Table, plain, shown
from evenhand.text import quoted

MOST_BYTES = 64 * MEBIBYTE
"""Of a preparation."""
ROWS = 4096
"""That are predicted at a time."""
NAMED = 3


@dataclass(frozen=True)
class Predictor:
    """A network, and what turns rows into its inputs and its outputs into cells.

    Attributes:
        prepared: the table's preparation.
        network: what answers.
        serves: the tasks that it answers, where its weights were chosen for some alone.
    """

    prepared: Prepared
    network: MultiTaskNetwork
    serves: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Predictor:
        """The predictor in the folder of a run.

        Raises:
            ValueError: there is none: the run is not finished, or was not on a table.
        """
        from evenhand.comparison.weights import PREPARED, read_weights
        from evenhand.recipes import sharing_of

        weights, about = read_weights(folder)
        file = folder / PREPARED
        if not file.exists():
            raise ValueError(
                f"{folder} has no {PREPARED}: it was not trained on a table, so that no file can "
                "be read for it"
            )
        try:
            text = read_text(file, MOST_BYTES)
            prepared = Prepared.from_json(text)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        tasks, known = tuple(about["tasks"]), about.get("preparation", "")
        if known not in ("", hashlib.sha256(text.encode()).hexdigest()):
            raise ValueError(f"{file} is not what the weights beside it were trained with")
        if lost := [task for task in tasks if task not in prepared.targets]:
            raise ValueError(f"{file}: nothing is said of the task {quoted(lost[0])}")
        with torch.random.fork_rng(devices=[]):
            sharing = sharing_of(about["recipe"], about["label"], tuple(prepared.targets))
            network = sharing.network(prepared, tasks)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{folder}: {about['recipe']} has a network of another shape than its table's; "
                "predict by one of the recipes"
            ) from error
        return cls(prepared, network.eval(), tuple(about["serves"]))

    def readings(self, table: Table) -> tuple[dict[str, Reading], list[str]]:
        """The table's inputs as they were read in training, and what there is to tell.

        Raises:
            ValueError: a column is not there, or holds something of another kind.
        """
        names = list(table.columns)
        asked = [column.name for column in self.prepared.columns]
        if odd := [name for name in asked if name in table.unreadable]:
            raise ValueError(f"{table.name}: {table.unreadable[odd[0]]}")
        lacking = [name for name in asked if name not in names]
        if lacking:
            more = f" (nor {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            raise ValueError(
                f"{table.name} has no column {shown(lacking[0])}{more}, from which the network "
                f"predicts; {nearest(lacking[0], names)}"
            )
        found, notes = {}, []
        for column in self.prepared.columns:
            cells = table.columns[column.name]
            reading = read_alike(column.kind, column.name, cells, column.form)
            if column.form and reading.form not in ("", column.form):
                notes.append(
                    f"column {shown(column.name)}: dates read as {reading.form}, in training as "
                    f"{column.form}"
                )
            if not present(cells).any():
                notes.append(f"column {shown(column.name)} is blank in every row")
            if isinstance(column.fitted, OneHot):
                unknown = column.fitted.unknown(reading.values)
                notes += [_unknown(column.name, unknown, column.fitted.other)] if unknown else []
            elif not column.fitted_blanks and not present(reading.values).all():
                count = int((~present(reading.values)).sum())
                notes.append(
                    f"column {shown(column.name)} is blank in {count:,} rows, and never was in "
                    "training: the median stands in"
                )
            found[column.name] = reading
        return found, notes

    def outputs(self, readings: dict[str, Reading]) -> dict[str, torch.Tensor]:
        """What the network says of the rows, by task."""
        inputs = self.prepared.inputs(readings)
        parts: list[dict[str, torch.Tensor]] = []
        with torch.no_grad():
            for rows in torch.split(inputs, ROWS):
                said = self.network(rows)
                parts.append({task: said[task] for task in self.serves})
        return {task: torch.cat([part[task] for part in parts]) for task in self.serves}

    def predicted(self, table: Table) -> tuple[dict[str, list[Any]], list[str]]:
        """Columns of answers (and probabilities beside them), and what there is to tell.

        Raises:
            ValueError: as `readings`.
        """
        readings, notes = self.readings(table)
        said = self.outputs(readings)
        columns: dict[str, list[Any]] = {}
        for task, output in said.items():
            columns |= self.prepared.targets[task].answers(output)
        return columns, notes


def read_alike(kind: str, name: str, cells: Cells, form: str = "") -> Reading:
    """Further cells of a column of this kind; all may be blank. Dates had this format.

    Raises:
        ValueError: a cell is not of that kind.
    """
    with asked_as(NoSettings()):
        reading = kinds.read_as(kind, name, cells, form)
    if reading.kind != "empty":
        return reading
    if kind == "category":
        return Reading("category", np.full(len(cells), None, dtype=object))
    return Reading("numeric", np.full(len(cells), np.nan))


def _unknown(name: str, unknown: Counter[str], other: bool) -> str:
    first = ", ".join(f"{plain(v)} ({n})" for v, n in unknown.most_common(NAMED))
    more = f", … ({len(unknown)} values)" if len(unknown) > NAMED else ""
    how = "one of the rare ones" if other else "none of the known ones"
    return (
        f"column {shown(name)}: {unknown.total():,} rows have values that training did not tell "
        f"apart, {first}{more}: each counts as {how}"
    )
