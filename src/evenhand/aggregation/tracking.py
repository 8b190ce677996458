"""A running average of each task's gradient."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from evenhand.aggregation.base import StatefulAggregator
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.per_coordinate import nothing, recalled, remembered
from evenhand.weighting.state import State, put, take


class Tracking(StatefulAggregator):
    """An aggregator of averaged gradients: y_i ← y_i + r_k (g_i − y_i), from y_i = 0.

    k counts the calls in which task i was active. The method averages over batches, so it looks at
    parameters.
    """

    def __init__(self) -> None:
        super().__init__(at="parameters")

    @abstractmethod
    def rate(self, count: Tensor) -> Tensor:
        """r_k for k = 1, 2, …, [..., m]."""

    def init(self, total: int) -> State:
        """y, and k."""
        return {"tracked": nothing(total), "count": torch.zeros(total, dtype=torch.float64)}

    def track(self, g: TaskGradients, state: State) -> tuple[Tensor, State]:
        """The averages of the active tasks, [..., m, n], and the next y and k."""
        history = recalled(state["tracked"], g)
        tracked = take(history, g)
        count = take(state["count"], g) + 1
        rate = self.rate(count).to(history).unsqueeze(-2)
        tracked = tracked + rate * (g.jacobian.mT.to(history) - tracked)
        following = {
            "tracked": remembered(state["tracked"], g, put(history, g, tracked)),
            "count": put(state["count"], g, count.expand(*tracked.shape[:-2], -1)),
        }
        return tracked.mT, following
