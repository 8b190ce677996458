"""What can be counted before anything is trained: labels, constant and rare targets, duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from evenhand.data.labels import LabelCount
from evenhand.data.problem import PARTS, Problem, Split
from evenhand.tables.problem import Prepared

RARE = 10
"""A class with fewer training labels than this is rare."""
CLASSES = 1000
"""An integer target with more different values than this is no class."""
REPEATS = 20
"""Fewer samples that repeat the inputs of others say nothing of the noise of labels."""


@dataclass(frozen=True)
class TaskFacts:
    """One task's targets.

    Attributes:
        labels: how many there are in each part held in memory.
        constant: whether all training labels are the same.
        rarest: the rarest class among the training labels, its name where it has one, and how often
            it is there; None where targets are no classes.
        unexplained: the share of the labels' variance (of classes, of their indicators) that is
            left between training samples with equal inputs, which no model of these inputs
            explains; None where fewer than `REPEATS` samples repeat the inputs of others.
        repeats: how many do.
    """

    labels: Mapping[str, LabelCount]
    constant: bool
    rarest: tuple[int | str, int] | None
    unexplained: float | None = None
    repeats: int = 0

    @property
    def few(self) -> bool:
        """Whether a class has fewer labels than `RARE`."""
        return self.rarest is not None and self.rarest[1] < RARE

    @property
    def blank(self) -> dict[str, LabelCount]:
        """The parts in which some samples have no label."""
        return {part: count for part, count in self.labels.items() if count.used < count.samples}


@dataclass(frozen=True)
class Description:
    """What was counted.

    Attributes:
        tasks: by name.
        duplicates: samples of the second part whose inputs stand in the first one as well, bit for
            bit, by pair of parts held in memory.
        groups: how many groups keep samples on one side; None where samples stand for themselves.
        unread: parts that are not held in memory and were not read.
    """

    tasks: Mapping[str, TaskFacts]
    duplicates: Mapping[tuple[str, str], int]
    groups: int | None
    unread: tuple[str, ...]


def describe(problem: Problem) -> Description:
    """Count. Parts that are read from elsewhere are not read for it."""
    counts = problem.label_counts()
    parts = {name: getattr(problem, name) for name in PARTS}
    held = {name: part for name, part in parts.items() if isinstance(part, Split)}
    rows = {name: Counter(_bytes(part)) for name, part in held.items()}
    same = _numbered(held["train"]) if "train" in held else None
    groups = None
    if problem.pool is not None and problem.pool.groups is not None:
        groups = len(torch.unique(problem.pool.groups))
    return Description(
        {
            name: _facts(problem, name, counts[name], held.get("train"), same)
            for name in problem.tasks
        },
        {
            (first, second): sum(count for row, count in rows[second].items() if row in rows[first])
            for first, second in combinations(held, 2)
        },
        groups,
        tuple(name for name in PARTS if name not in held),
    )


def _bytes(part: Split) -> list[bytes]:
    """Each sample's inputs."""
    inputs = part.inputs.detach().cpu().contiguous()
    return [row.tobytes() for row in inputs.reshape(len(inputs), -1).numpy()]


def _numbered(part: Split) -> Tensor | None:
    """A number for each sample, equal where the inputs are; None where none repeat."""
    place: dict[bytes, int] = {}
    numbers = [place.setdefault(row, len(place)) for row in _bytes(part)]
    return torch.tensor(numbers) if len(place) < len(numbers) else None


def _facts(
    problem: Problem,
    name: str,
    counts: Mapping[str, LabelCount],
    train: Split | None,
    same: Tensor | None,
) -> TaskFacts:
    if train is None or name not in train.targets:
        return TaskFacts(counts, False, None)
    task, target = problem.tasks[name], train.targets[name]
    used = task.labels.samples(target)
    unexplained, repeats = None, 0
    # The last column of some targets is the weight of the row.
    complete = target[used] if task.bare is None else task.bare(target[used])
    if same is not None:
        unexplained, repeats = _unexplained(complete, same[used])
    if task.bare is not None:
        target = complete
    known = task.labels.entries(target)
    labels = target[known]
    constant = len(labels) > 0 and bool((labels == labels[0]).all())
    names = _class_names(problem, name)
    rarest: tuple[int | str, int] | None = _rarest(labels)
    if target.ndim > 1 and target.shape[1] == len(names) > 1:  # yes or no for each label
        there = torch.where(known, target, torch.zeros_like(target)).sum(0)
        least = int(there.argmin())
        constant, rarest = False, (names[least], int(there[least]))
    elif rarest is not None and isinstance(rarest[0], int) and 0 <= rarest[0] < len(names):
        rarest = (names[rarest[0]], rarest[1])
    return TaskFacts(counts, constant, rarest, unexplained, repeats)


def _unexplained(labels: Tensor, same: Tensor) -> tuple[float | None, int]:
    """The variance of labels [n] or [n, k] among equal inputs over that of all, and its freedom.

    The pure error of the analysis of variance, s² = Σ_g Σ_{i in g} (y_i − ȳ_g)² / (n − G).
    """
    if labels.ndim > 2 or not len(labels):
        return None, 0
    groups = torch.unique(same, return_inverse=True)[1]
    freedom = len(labels) - int(groups.max()) - 1
    values = labels.reshape(len(labels), -1).double()
    if not labels.is_floating_point():
        kinds, codes = torch.unique(labels, return_inverse=True)
        if labels.ndim > 1 or len(kinds) > CLASSES:
            return None, freedom
        values = torch.nn.functional.one_hot(codes).double()
    total = float(values.var(0).sum()) if len(values) > 1 else 0.0
    if freedom < REPEATS or not total > 0:
        return None, freedom
    sums = torch.zeros(int(groups.max()) + 1, values.shape[1], dtype=torch.float64)
    sums.index_add_(0, groups, values)
    within = float((values - (sums / groups.bincount().unsqueeze(1))[groups]).square().sum())
    return within / freedom / total, freedom


def _class_names(problem: Problem, task: str) -> tuple[str, ...]:
    """Of a table's target; there are none elsewhere."""
    if not isinstance(problem.preparation, Prepared):
        return ()
    return problem.preparation.targets[task].names


def _rarest(labels: Tensor) -> tuple[int, int] | None:
    """Of classes, the one that is there least often.

    Whole numbers are classes; of floating point, zeros and ones alone are.
    """
    if not len(labels):
        return None
    values, counts = torch.unique(labels, return_counts=True)
    if labels.is_floating_point() and not bool(((values == 0) | (values == 1)).all()):
        return None
    if len(values) > min(CLASSES, max(2, len(labels) // 2)):
        return None
    least = int(counts.argmin())
    return int(values[least]), int(counts[least])
