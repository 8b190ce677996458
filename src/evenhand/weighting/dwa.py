"""Dynamic weight average."""

from __future__ import annotations

import torch

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits


class DWA(StatefulWeighting):
    """w_i = M exp(r_i/T) / Σ_j exp(r_j/T), r_i = L̄_i(t−1) / L̄_i(t−2): slow tasks weigh more.

    L̄_i(t) is the mean of task i's losses over epoch t. Liu, Johns & Davison, "End-to-End Multi-Task
    Learning with Attention" (CVPR 2019, arXiv 1803.10704), Dynamic Weight Average. Until a task has
    two finished epochs r_i = 1, so the first two epochs have weights 1.

    Epochs are those of the clock: in a loop of your own pass ``clock=Clock(epoch=…)`` to
    `Balancer.backward`, or no epoch ever ends and all weights stay 1. Each task has means of its
    own, over the steps in which it was active; r_i is the ratio for its last two such epochs. Σw =
    M over all tasks, and an absent task takes its weight with it. Losses are expected to be
    positive; r_i = 1 where both means are zero.

    TorchJD agrees, given its ``step()`` at the end of each epoch, and so does LibMTL.

    Args:
        temperature: T > 0; the larger, the more equal the weights.

    Raises:
        ValueError: `temperature` is not positive.

    Example:
        >>> from evenhand import Clock, Running, TaskGradients
        >>> dwa = Running(DWA(), ["a", "b"])
        >>> for epoch, losses in enumerate([[4.0, 4.0], [1.0, 4.0], [1.0, 4.0]]):
        ...     g = TaskGradients.of(
        ...         losses=torch.tensor(losses), tasks=["a", "b"], clock=Clock(epoch=epoch)
        ...     )
        ...     weights = dwa(g)
        >>> weights
        tensor([0.8147, 1.1853])
    """

    traits = Traits(needs="losses", counts_epochs=True)

    @checked
    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be > 0")
        self.temperature = temperature

    def init(self, total: int) -> State:
        """The epoch under way (which, sum and count) and the last two means of each task."""
        names = ("epoch", "running", "count", "last", "previous", "finished")
        return {name: torch.zeros(total, dtype=torch.float64) for name in names}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        over = (state["epoch"] != g.clock.epoch) & (state["count"] > 0)
        mean = state["running"] / state["count"].clamp_min(1)
        last = torch.where(over, mean, state["last"])
        previous = torch.where(over, state["last"], state["previous"])
        finished = state["finished"] + over
        running = torch.where(over, 0, state["running"])
        count = torch.where(over, 0, state["count"])
        here = torch.full_like(g.losses, g.clock.epoch, dtype=torch.float64)
        rates = torch.where(finished >= 2, (last / previous).nan_to_num(nan=1.0), 1.0)
        weights = g.total * (rates / self.temperature).softmax(-1)
        return Outcome(
            take(weights, g).expand_as(g.losses).to(g.losses),
            {
                "epoch": put(state["epoch"], g, here),
                "running": put(running, g, take(running, g) + g.losses),
                "count": put(count, g, (take(count, g) + 1).expand_as(g.losses)),
                "last": last,
                "previous": previous,
                "finished": finished,
            },
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
