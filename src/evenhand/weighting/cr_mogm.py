"""Averaging a method's weights over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.schedules import Clock
from evenhand.weighting.base import Outcome, Weighting, Wrapper
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import joined


class CRMOGM(Wrapper):
    """w(t) = α w(t−1) + (1 − α) ŵ(t), with ŵ the weights that `base` finds.

    Weights that depend on one batch alone are correlated with its gradients, and the direction
    Σ ŵ_i g_i is biased: on two convex objectives the stochastic MGDA, PCGrad and CAGrad need not
    converge to a Pareto optimum. With averaged weights they do, if α tends to 1 along with the
    decrease of the learning rate. Zhou, Zhang, Jiang, Zhong, Gu & Zhu, "On the Convergence of
    Stochastic Multi-Objective Gradient Manipulation and Beyond" (NeurIPS 2022), CR-MOGM.

    Each task has an average of its own, over the calls in which it is active, starting with its
    first ŵ_i. What `base` promises about one step (feasible, stationary) is not promised of the
    average. TorchJD agrees.

    Args:
        base: any weighting; the paper's are MGDA, PCGrad and CAGrad.
        alpha: α in [0, 1], or a function of the clock for a schedule of it, for example
            ``lambda clock: 1 - (1 + clock.step) ** -0.5``. 0 is `base` itself.

    Raises:
        ValueError: α is out of range (a schedule's, when it is).

    Example:
        >>> from evenhand import MGDA, Running, TaskGradients
        >>> averaged = Running(CRMOGM(MGDA(), alpha=0.5), ["a", "b"])
        >>> for rows in ([[3.0, 0.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]]):
        ...     g = TaskGradients.of(jacobian=torch.tensor(rows), tasks=["a", "b"])
        ...     weights = averaged(g)
        >>> weights
        tensor([0.3750, 0.6250])
    """

    @checked
    def __init__(self, base: Weighting, alpha: float | Callable[[Clock], float] = 0.9) -> None:
        super().__init__(base)
        self.traits = replace(
            joined(base.traits), feasible=False, stationary=False, scale_invariant=False
        )
        self.alpha = alpha
        if not callable(alpha):
            _require_rate(alpha)

    def init(self, total: int) -> State:
        """w, and in how many calls each task was active."""
        zeros = torch.zeros(total, dtype=torch.float64)
        return super().init(total) | {"average": zeros, "count": zeros.clone()}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        fresh, base, solves = self.base.advance(g, state["base"])
        alpha = _require_rate(self.alpha(g.clock)) if callable(self.alpha) else self.alpha
        count, average = take(state["count"], g), take(state["average"], g)
        kept = alpha * (count > 0).double()
        moved = kept * average + (1 - kept) * fresh
        count = (count + 1).expand_as(moved)
        following = {
            "average": put(state["average"], g, moved),
            "count": put(state["count"], g, count),
            "base": base,
        }
        return Outcome(moved.to(fresh), following, solves)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _require_rate(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: must be between 0 and 1")
    return alpha
