"""Targets: from cells to what losses compare, and from a network's outputs back to cells.

    numeric    standardised by the training rows; squared error; answers in the column's unit
    boolean    one logit; binary cross-entropy
    category   a logit per class; cross-entropy
    labels     a logit per label; binary cross-entropy, the mean over the labels

A blank cell is no label. Where rows have weights, a target's last column is the weight of its row,
the mean 1 over the training rows, and its loss is the mean of weight times loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from evenhand.asking import of_table, way, ways
from evenhand.data.problem import Task
from evenhand.tables.kinds import Reading
from evenhand.tables.reading import plain
from evenhand.tables.scores import Collected, Score

LONGEST = 60
"""Letters of a task's name."""
MISSING = -1
"""Stands for no label among numbers of classes."""
Kind = Literal["numeric", "boolean", "category", "labels"]
Losses = Callable[[Tensor, Tensor], Tensor]
"""(outputs [b, ...], bare targets [b, ...]) -> each sample's loss [b]."""


@dataclass(frozen=True)
class Target:
    """A column that is to be predicted.

    Attributes:
        name: of the column.
        kind: what it is.
        metric: the name of its metric, see `scores`.
        names: boolean: what no and yes are called; category: the classes; labels: the labels.
        mean, scale: numeric: how it is standardised.
        weights: boolean: that of yes beside 1 of no; category: one per class; none where classes
            count as often as they come.
    """

    name: str
    kind: Kind
    metric: str
    names: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0
    weights: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """How many numbers a network says of a row."""
        return {"numeric": 1, "boolean": 1}.get(self.kind, len(self.names))

    @property
    def title(self) -> str:
        """The name of the task: that of the column, fit to be printed."""
        name = plain(self.name)
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"

    def fitted(self, reading: Reading, rows: npt.NDArray[np.int64], balance: bool) -> Target:
        """The same, standardised and balanced by these rows.

        Raises:
            ValueError: a class that is to be balanced has no training row.
        """
        made = asdict(self)
        cells = reading.values[rows]
        if self.kind == "numeric":
            known = cells[~np.isnan(cells)]
            if len(known):
                deviation = float(known.std())
                made |= {"mean": float(known.mean()), "scale": deviation if deviation > 0 else 1.0}
        elif balance and self.kind != "labels":
            codes = self._codes(cells)
            counts = np.bincount(codes[codes >= 0], minlength=len(self.names))
            if not counts.all():
                rare = self.names[int(counts.argmin())]
                raise ValueError(
                    f"target {self.title!r}: no training row of class {rare!r}, so its classes "
                    "cannot be balanced"
                )
            even = counts.sum() / (len(counts) * counts)
            made["weights"] = tuple(even.tolist())
        return Target(**made)

    # To tensors -------------------------------------------------------------------------------

    def encoded(self, reading: Reading, weights: npt.NDArray[np.float64] | None) -> Tensor:
        """The column's targets: float [n, k], NaN where blank; for classes int64 [n].

        With weights, float64 [n, k + 1].
        """
        cells = reading.values
        if self.kind == "category" and weights is None:
            return torch.from_numpy(self._codes(cells))
        found = self._columns(cells)
        if weights is None:
            return torch.from_numpy(found).float()
        blank = (weights == 0)[:, None]  # a row without weight is none
        found = np.where(blank, np.nan, found)
        return torch.from_numpy(np.concatenate([found, weights[:, None]], axis=1))

    def _columns(self, cells: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        if self.kind == "labels":
            found = np.full((len(cells), len(self.names)), np.nan)
            for row, labels in enumerate(cells):
                if labels is not None:
                    found[row] = [float(name in labels) for name in self.names]
            return found
        if self.kind == "numeric":
            standardised: npt.NDArray[np.float64] = (cells[:, None] - self.mean) / self.scale
            return standardised
        codes = self._codes(cells).astype(np.float64)
        codes[codes == MISSING] = np.nan
        return codes[:, None]

    def _codes(self, cells: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The number of each cell's class, `MISSING` where blank."""
        if cells.dtype.kind == "f":
            return np.where(np.isnan(cells), MISSING, np.nan_to_num(cells)).astype(np.int64)
        place = {name: k for k, name in enumerate(self.names)}
        return np.array(
            [MISSING if cell is None else place[cell] for cell in cells], dtype=np.int64
        )

    # The task ---------------------------------------------------------------------------------

    def task(self, scores: Score, weighted: bool) -> Task:
        """Its loss and its metric."""
        classes = self.kind == "category"
        answer = ANSWERS[self.kind]
        loss = partial(_mean, self._losses(), classes) if weighted else partial(_plain, self)
        return Task(
            loss,
            partial(
                Collected,
                scores.functions[self.kind],
                answer,
                weighted,
                self.scale if scores.in_unit else 1.0,
            ),
            scores.title,
            scores.higher_is_better,
            missing=MISSING if classes and not weighted else None,
            bare=partial(_bare, classes) if weighted else None,
        )

    def _losses(self) -> Losses:
        return partial(_each, self)

    # Back to cells ----------------------------------------------------------------------------

    def said(self, output: Tensor) -> Tensor:
        """What a network's outputs mean, float64 [n, outputs]: numbers in the column's unit, or
        probabilities of yes, of each class or of each label.
        """
        found = ANSWERS[self.kind](output.detach().double())
        return found * self.scale + self.mean if self.kind == "numeric" else found

    def answers(self, output: Tensor) -> dict[str, list[Any]]:
        """Columns that say what a network's outputs [n, outputs] mean.

        The answer under the column's name; beside it, where there are classes, the probability of
        yes or of each class or label.
        """
        said = self.said(output)
        if self.kind == "numeric":
            return {self.name: said[:, 0].tolist()}
        if self.kind == "boolean":
            yes = said[:, 0]
            words = [self.names[int(p > 0.5)] for p in yes.tolist()]
            return {self.name: words, f"{self.name}: P({self.names[1]})": yes.tolist()}
        columns = {
            f"{self.name}: P({name})": said[:, k].tolist() for k, name in enumerate(self.names)
        }
        if self.kind == "category":
            chosen = [self.names[k] for k in said.argmax(dim=1).tolist()]
            return {self.name: chosen, **columns}
        sets = [
            ";".join(name for name, p in zip(self.names, row, strict=True) if p > 0.5)
            for row in said.tolist()
        ]
        return {self.name: sets, **columns}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Target:
        """What `to_dict` said."""
        rest = {"names": tuple(said["names"]), "weights": tuple(said["weights"])}
        return cls(**{**said, **rest})


def _each(target: Target, output: Tensor, labels: Tensor) -> Tensor:
    match target.kind:
        case "numeric":
            return functional.mse_loss(output, labels, reduction="none").mean(dim=1)
        case "category":
            weights = output.new_tensor(target.weights) if target.weights else None
            return functional.cross_entropy(output, labels, weights, reduction="none")
    found = functional.binary_cross_entropy_with_logits(output, labels, reduction="none")
    if target.weights:
        no, yes = target.weights
        found = found * (no + (yes - no) * labels)
    return found.mean(dim=1)


def _plain(target: Target, output: Tensor, labels: Tensor) -> Tensor:
    return _each(target, output, labels).mean()


def _mean(losses: Losses, classes: bool, output: Tensor, labels: Tensor) -> Tensor:
    """Over the samples, of weight times loss."""
    return (losses(output, _bare(classes, labels)) * labels[:, -1].to(output)).mean()


def _bare(classes: bool, labels: Tensor) -> Tensor:
    """Targets without their weights."""
    return labels[:, 0].long() if classes else labels[:, :-1].float()


def _same(output: Tensor) -> Tensor:
    return output


def _softmax(output: Tensor) -> Tensor:
    return output.softmax(dim=1)


ANSWERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "numeric": _same,
    "boolean": torch.sigmoid,
    "category": _softmax,
    "labels": torch.sigmoid,
}
"""Outputs -> standardised numbers, or probabilities."""


def asked(name: str, reading: Reading, metric: str) -> Target:
    """A column that was read, as a target; its classes are those of all rows.

    Raises:
        ValueError: it is blank everywhere, always the same, or has too many classes.
    """
    title = plain(name)
    match reading.kind:
        case "empty":
            raise ValueError(f"target {title!r} is blank in every row")
        case "date":
            raise ValueError(f"target {title!r} is a date: give days or hours as a number")
        case "numeric":
            known = np.unique(reading.values[~np.isnan(reading.values)])
            if len(known) < 2:
                raise ValueError(f"target {title!r} is {known[0]:g} in every row: nothing to learn")
            return Target(name, "numeric", metric)
    counts = counted(reading)
    if len(counts) < 2:
        only = next(iter(counts), "blank")
        raise ValueError(f"target {title!r} is {only!r} in every row: nothing to learn")
    if len(counts) > MOST:
        raise ValueError(
            f"target {title!r} has {len(counts):,} different values: more than {MOST} classes are "
            "no classes; "
            + ways("group them", way("take them for numbers", of_table("kinds", {name: "numeric"})))
        )
    if reading.kind == "boolean" or (reading.kind == "category" and len(counts) == 2):
        return Target(name, "boolean", metric, _yes_last(counts, reading))
    return Target(
        name, "labels" if reading.kind == "labels" else "category", metric, _sorted(counts)
    )


MOST = 200
"""The most classes of a target."""


def counted(reading: Reading) -> Counter[str]:
    """How often each class or label of a target comes."""
    if reading.kind == "boolean":
        known = reading.values[~np.isnan(reading.values)]
        return Counter(reading.words[int(value)] for value in known.tolist())
    if reading.kind == "labels":
        return Counter(label for cell in reading.values if cell is not None for label in cell)
    return Counter(cell for cell in reading.values if cell is not None)


def _yes_last(counts: Counter[str], reading: Reading) -> tuple[str, ...]:
    """No and yes; of other words, the commoner and the rarer."""
    if reading.kind == "boolean":
        return reading.words
    no, yes = sorted(counts, key=lambda name: (-counts[name], name))
    return no, yes


def _sorted(names: Sequence[str] | Counter[str]) -> tuple[str, ...]:
    """Numbers by size, else by letter."""
    if all(name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))
