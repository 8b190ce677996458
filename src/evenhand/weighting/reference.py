"""The reference point: the losses that the tasks aim at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients


class Reference:
    """A point z* in the space of losses, by task; by default the origin.

    Raises:
        ValueError: an entry is not finite.
    """

    @checked
    def __init__(self, values: Mapping[str, float] | None) -> None:
        wrong = {t: z for t, z in (values or {}).items() if not math.isfinite(z)}
        if wrong:
            raise ValueError(f"a reference point must be finite, got {wrong}")
        self.values = None if values is None else dict(values)

    def require(self, tasks: Sequence[str]) -> None:
        """Raises ValueError unless every task has an entry and every entry a task."""
        if self.values is not None and set(tasks) != set(self.values):
            raise ValueError(
                f"a reference point for {', '.join(self.values)}, "
                f"but the tasks are {', '.join(tasks)}: give one number for each"
            )

    def shift(self, g: TaskGradients) -> Tensor:
        """L − z* of the active tasks, [..., m], float64."""
        losses = g.losses.double()
        if self.values is None:
            return losses
        point = [self.values[task] for task in g.tasks]
        return losses - torch.tensor(point, dtype=torch.float64, device=losses.device)

    def extra_repr(self) -> str:
        """What a method's own `extra_repr` says of it."""
        return "" if self.values is None else f"reference={self.values}"
