"""What can be counted before anything is trained: labels, constant and rare targets, duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from evenhand.data.labels import LabelCount
from evenhand.data.problem import PARTS, Problem, Split, Task

RARE = 10
"""A class with fewer training labels than this is rare."""
CLASSES = 1000
"""An integer target with more different values than this is no class."""


@dataclass(frozen=True)
class TaskFacts:
    """One task's targets.

    Attributes:
        labels: how many there are in each part held in memory.
        constant: whether all training labels are the same.
        rarest: the rarest class among the training labels and how often it is there; None where
            targets are no classes.
    """

    labels: Mapping[str, LabelCount]
    constant: bool
    rarest: tuple[int, int] | None

    @property
    def few(self) -> bool:
        """Whether a class has fewer labels than `RARE`."""
        return self.rarest is not None and self.rarest[1] < RARE


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
    rows = {name: _rows(part) for name, part in held.items()}
    groups = None
    if problem.pool is not None and problem.pool.groups is not None:
        groups = len(torch.unique(problem.pool.groups))
    return Description(
        {
            name: _facts(task, counts[name], held.get("train"), name)
            for name, task in problem.tasks.items()
        },
        {
            (first, second): sum(count for row, count in rows[second].items() if row in rows[first])
            for first, second in combinations(held, 2)
        },
        groups,
        tuple(name for name in PARTS if name not in held),
    )


def _rows(part: Split) -> Counter[bytes]:
    flat = (
        part.inputs.detach().cpu().contiguous().flatten(1)
        if part.inputs.ndim > 1
        else (part.inputs.detach().cpu().unsqueeze(1))
    )
    return Counter(row.tobytes() for row in flat.numpy())


def _facts(
    task: Task, counts: Mapping[str, LabelCount], train: Split | None, name: str
) -> TaskFacts:
    if train is None or name not in train.targets:
        return TaskFacts(counts, False, None)
    target = train.targets[name]
    labels = target[task.labels.entries(target)]
    constant = len(labels) > 0 and bool((labels == labels[0]).all())
    return TaskFacts(counts, constant, _rarest(labels))


def _rarest(labels: Tensor) -> tuple[int, int] | None:
    """Of whole numbers, few of them: the one that is there least often."""
    if not len(labels) or not bool((labels == labels.round()).all()):
        return None
    values, counts = torch.unique(labels, return_counts=True)
    if len(values) > min(CLASSES, max(2, len(labels) // 2)):
        return None
    least = int(counts.argmin())
    return int(values[least]), int(counts[least])
