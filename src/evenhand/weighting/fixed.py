"""Weights chosen by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting
from evenhand.weighting.traits import Traits


class Fixed(Weighting):
    """Weights given once, by task; "grid search" tries several of these.

    Args:
        weights: finite numbers >= 0 for every task.

    Raises:
        ValueError: a weight is negative or not finite, or (when the tasks become known) a task
            has no weight or a weight has no task.

    Example:
        >>> import torch
        >>> from evenhand import TaskGradients
        >>> fixed = Fixed({"seg": 1.0, "depth": 0.25})
        >>> fixed(TaskGradients.of(losses=torch.ones(2), tasks=["seg", "depth"]))
        tensor([1.0000, 0.2500])
    """

    traits = Traits(needs="nothing")

    @checked
    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        wrong = {t: w for t, w in weights.items() if not (math.isfinite(w) and w >= 0)}
        if wrong:
            raise ValueError(f"weights must be finite and >= 0, got {wrong}")
        self.weights = dict(weights)

    def require(self, tasks: Sequence[str]) -> None:
        if set(tasks) != set(self.weights):
            raise ValueError(
                f"fixed weights for {', '.join(self.weights)}, "
                f"but the tasks are {', '.join(tasks)}: give one weight for each"
            )
        super().require(tasks)

    def weigh(self, g: TaskGradients) -> Tensor:
        return g.losses.new_tensor([self.weights[t] for t in g.tasks]).expand_as(g.losses)

    def extra_repr(self) -> str:
        return repr(self.weights)
