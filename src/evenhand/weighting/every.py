"""Weights refreshed every k steps."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting, Wrapper, put, take


class Every(Wrapper):
    """The base's weights, solved at every `steps`-th call and repeated in between.

    Between two solves nothing is asked of the gradients, so a call costs one backward pass; the
    weights are then up to ``steps - 1`` calls old, and what the base promises about the current
    gradients (a feasible direction, say) holds at the solves only. A call in which a task speaks
    that has no weight yet solves at once. The base's history advances at the solves. Nash-MTL's
    released code offers the same under the name update_weights_every.

    Raises:
        ValueError: `steps` is less than 1.

    Example:
        >>> from evenhand import MGDA, Balancer
        >>> lazy = Balancer(aggregator=Every(MGDA(), steps=10))
    """

    age: Tensor
    known: Tensor

    def __init__(self, base: Weighting, steps: int) -> None:
        super().__init__(base)
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        self.steps = steps
        if steps > 1:
            self.feasible = self.stationary = False

    def setup(self, total: int) -> None:
        """No weights are known, and the next call solves."""
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))
        self.register_buffer("known", torch.full((total,), torch.nan, dtype=torch.float64))

    def weigh(self, g: TaskGradients) -> Tensor:
        old = take(self.known, g)
        if int(self.age) > 0 and not bool(old.isnan().any()):
            self.stage(age=(self.age + 1) % self.steps)
            return old.to(g.losses)
        weights: Tensor = self.base(g)
        self.stage(age=torch.ones_like(self.age) % self.steps, known=put(self.known, g, weights))
        return weights
