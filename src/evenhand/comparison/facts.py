"""What is known of a split before training: rows, labels, and targets that say little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from evenhand.asking import option
from evenhand.comparison.constant import empty_outputs, labels
from evenhand.comparison.folder import RESULT
from evenhand.data.problem import Problem, Split
from evenhand.files import parsed, read_text

CLASSES = 100
"""A target with more different values is a quantity, and has no rarest class."""


@dataclass(frozen=True)
class Target:
    """The test targets of one task.

    Attributes:
        count: how many labels there are.
        values: how many different ones; None for targets of more than one number, or quantities.
        rarest: how many labels the rarest value has; None as `values`.
        rarest_value: that value, as text.
    """

    count: int
    values: int | None = None
    rarest: int | None = None
    rarest_value: str = ""


@dataclass(frozen=True)
class Facts:
    """A split, counted.

    Attributes:
        rows: samples of each part; -1 where the training data do not say.
        units: independent things in train and validation together, and in test.
        training: labels of each task in the training part, where that is held in memory.
        test: each task's test targets.
        validation: labels of each task in the validation part.
    """

    rows: tuple[int, int, int]
    units: tuple[int, int]
    training: Mapping[str, int]
    test: Mapping[str, Target]
    validation: Mapping[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """n_test / (n − n_test), in units."""
        learning, test = self.units
        return test / learning

    @property
    def validation_ratio(self) -> float:
        """Validation rows for each training row."""
        train, validation, _ = self.rows
        return validation / train if train > 0 else 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, file: Path) -> Facts:
        """What `file` holds.

        Raises:
            ValueError: it is damaged; the message says what to do.
        """
        resume = option("resume", True)
        again = f"delete it and the {RESULT} beside it, and {resume} makes both again"
        return parsed(cls, read_text(file), f"{file} is damaged ({again})")


def facts(problem: Problem) -> Facts:
    """Count the rows and labels of a problem's parts."""
    empty = empty_outputs(problem)
    train = problem.train
    if isinstance(train, Split):
        rows = len(train)
        training = {t: len(labels(problem, train, t, empty[t])) for t in problem.tasks}
    else:
        batches = len(train)  # type: ignore[arg-type]  # `Problem.train`: an iterable with a length
        rows, training = batches * problem.batch_size, {}
    sizes = (rows, len(problem.validation), len(problem.test))
    validation = {t: len(labels(problem, problem.validation, t, empty[t])) for t in problem.tasks}
    test = {t: _target(labels(problem, problem.test, t, empty[t])) for t in problem.tasks}
    units = problem.units or (sizes[0] + sizes[1], sizes[2])
    return Facts(sizes, units, training, test, validation)


def _target(found: Tensor) -> Target:
    if not len(found) or found[0].numel() != 1:
        return Target(len(found))
    values, counts = torch.unique(found.flatten(), return_counts=True)
    if len(values) > CLASSES or (found.is_floating_point() and len(values) > 2):
        return Target(len(found))
    rarest = int(counts.argmin())
    return Target(len(found), len(values), int(counts[rarest]), f"{values[rarest].item():g}")
