"""A running average of each task's gradient."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from evenhand.aggregation.base import Aggregator
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import put, take
from evenhand.weighting.per_coordinate import like_gradients, nothing


class Tracking(Aggregator):
    """An aggregator of averaged gradients: y_i ← y_i + r_k (g_i − y_i), from y_i = 0.

    k counts the calls in which task i spoke. It averages over batches, so it looks at parameters.
    """

    tracked: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__(at="parameters")

    @abstractmethod
    def rate(self, count: Tensor) -> Tensor:
        """r_k for k = 1, 2, …, [..., m]."""

    def setup(self, total: int) -> None:
        """y, and k."""
        self.register_buffer("tracked", nothing(total))
        self.register_buffer("count", torch.zeros(total, dtype=torch.float64))

    def track(self, g: TaskGradients) -> Tensor:
        """The averages of the tasks that speak, [..., m, n]; the new state is staged."""
        history = like_gradients(self.tracked, g)
        tracked = take(history, g)
        count = take(self.count, g) + 1
        rate = self.rate(count).to(history).unsqueeze(-2)
        tracked = tracked + rate * (g.jacobian.mT.to(history) - tracked)
        self.stage(
            tracked=put(history, g, tracked),
            count=put(self.count, g, count.expand(*tracked.shape[:-2], -1)),
        )
        return tracked.mT
