"""Predicting rows of a table by a network that was kept: columns by name, answers in their unit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evenhand.network import MultiTaskNetwork
from evenhand.tables import kinds
from evenhand.tables.kinds import Reading, present
from evenhand.tables.preparation import OneHot
from evenhand.tables.problem import Prepared
from evenhand.tables.question import nearest
from evenhand.tables.reading import Table, plain, shown

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

        weights, about = read_weights(folder)
        file = folder / PREPARED
        if not file.exists():
            raise ValueError(
                f"{folder} has no {PREPARED}: it was not trained on a table, so that no file can "
                "be read for it"
            )
        prepared = Prepared.from_json(file.read_text())
        with torch.random.fork_rng(devices=[]):
            network = prepared.network(tuple(about["tasks"]))
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
        lacking = [c.name for c in self.prepared.columns if c.name not in names]
        if lacking:
            more = f" (nor {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            raise ValueError(
                f"{table.name} has no column {shown(lacking[0])}{more}, from which the network "
                f"predicts; {nearest(lacking[0], names)}"
            )
        found, notes = {}, []
        for column in self.prepared.columns:
            reading = kinds.read_as(column.kind, column.name, table.columns[column.name])
            if reading.kind == "empty":
                reading = _blank(column.kind, len(table))
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


def _blank(kind: str, rows: int) -> Reading:
    import numpy as np

    if kind == "category":
        cells = np.empty(rows, dtype=object)
        cells[:] = None
        return Reading("category", cells)
    return Reading("numeric", np.full(rows, np.nan))


def _unknown(name: str, unknown: Counter[str], other: bool) -> str:
    first = ", ".join(f"{plain(v)} ({n})" for v, n in unknown.most_common(NAMED))
    more = f", … ({len(unknown)} values)" if len(unknown) > NAMED else ""
    how = "one of the rare ones" if other else "none of the known ones"
    return (
        f"column {shown(name)}: {unknown.total():,} rows have values that training did not tell "
        f"apart, {first}{more}: each counts as {how}"
    )
