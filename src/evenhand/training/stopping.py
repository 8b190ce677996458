"""Early stopping and reduce-on-plateau: one counter over all epochs, whatever the phase."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evenhand.arguments import checked, require_fields
from evenhand.training.records import Record

Monitor = Callable[[Record, Record], float]
"""(record, the first record) -> the quantity to minimise."""


def total(record: Record, first: Record) -> float:
    """Σ_i L_i on the validation set, the papers' choice. A large loss decides alone."""
    return math.fsum(record.validation.values())


def relative(record: Record, first: Record) -> float:
    """Mean over tasks of L_i / L_i(before training) on the validation set.

    Indifferent to the scale of a loss, so no task decides alone.
    """
    ratios = [loss / max(first.validation[t], 1e-12) for t, loss in record.validation.items()]
    return math.fsum(ratios) / len(ratios)


@checked
def loss_of(task: str) -> Monitor:
    """L_task on the validation set. The monitor raises ValueError if there is no such task."""
    return lambda record, first: _of(task, record.validation, "validation loss")


@checked
def metric_of(task: str, higher_is_better: bool = True) -> Monitor:
    """The metric of a task on the validation set, with the sign that makes lower better.

    The monitor raises ValueError if there is no such task.
    """
    sign = -1.0 if higher_is_better else 1.0
    return lambda record, first: sign * _of(task, record.metrics, "metric")


def _of(task: str, values: Mapping[str, float], what: str) -> float:
    if task not in values:
        raise ValueError(f"no {what} of {task!r}; there is one of {', '.join(values)}")
    return values[task]


@dataclass
class _Counter:
    """How long ago a quantity last improved by more than `min_delta`."""

    patience: int | None = None
    min_delta: float = 0.0
    best: float = field(default=math.inf, kw_only=True)
    waited: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        require_fields(self)
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be at least 1 epoch, or None")

    def improved(self, value: float) -> bool:
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


@dataclass
class EarlyStopping(_Counter):
    """Stop after `patience` epochs without improvement; None never stops, but keeps the best.

    Attributes:
        untrained: whether the network before training, of which the first value is, may be the best
            one. If not, that value is neither kept nor counted, as in protocols that first look
            after an epoch.
        begun: whether there was a value.
    """

    untrained: bool = field(default=True, kw_only=True)
    begun: bool = field(default=False, kw_only=True)

    def improved(self, value: float) -> bool:
        first, self.begun = not self.begun, True
        return False if first and not self.untrained else super().improved(value)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.begun = state.get("begun", True)  # an older one was of a training that had begun


@dataclass
class Plateau(_Counter):
    """Multiply every learning rate by `factor` after `patience` epochs without improvement."""

    factor: float = 0.75
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < 1:
            raise ValueError(f"factor={self.factor}: must lie between 0 and 1")

    def reduces(self, value: float) -> bool:
        """Count one epoch; whether the rates are to be reduced now."""
        self.improved(value)
        if self.exhausted:
            self.waited = 0
            return True
        return False
