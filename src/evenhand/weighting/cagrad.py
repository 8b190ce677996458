"""Conflict-averse gradient descent."""

from __future__ import annotations

import math
from dataclasses import replace

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.linalg import cagrad_weights
from evenhand.weighting.base import Solved, Weighting
from evenhand.weighting.traits import Traits


class CAGrad(Weighting):
    """The direction near the mean gradient g_0 that does most for the task it does least for.

        maximise min_i g_i·v   over ‖v − g_0‖ ≤ c‖g_0‖

    Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning" (NeurIPS 2021, arXiv
    2110.14048), Algorithm 1: v = g_0 + (c‖g_0‖/‖g_w‖) g_w with g_w = Σ w_i g_i, w the solution of
    the dual problem on the simplex. c = 0 is the mean gradient; c < 1 converges to a minimum of the
    mean loss; for c >= 1 no task conflicts with v and any Pareto-stationary point may be the end; c
    → ∞ points towards MGDA's direction.

    Solved exactly (see `linalg.cagrad_weights`, also for the case g_w = 0). The released code,
    LibMTL and Nash-MTL's use SLSQP with 1e-8 added to the norms and then divide v by 1 + c² (their
    ``rescale=1``), which the paper does not; TorchJD does not either, but has v = 0 where
    ‖g_w‖² < 1e-8 Σ‖g_i‖² or Σ‖g_i‖² < 1e-4.

    In a call from which tasks are absent, g_0 is the mean of the active ones.

    Args:
        c: radius of the ball in units of ‖g_0‖, >= 0; the paper's experiments have 0.2 to 0.9.

    Raises:
        ValueError: c is negative or not finite.

    Example:
        >>> import torch
        >>> CAGrad(c=0.5)(TaskGradients.of(jacobian=torch.tensor([[2.0, 0.0], [0.0, 2.0]])))
        tensor([0.7500, 0.7500])
    """

    traits = Traits(needs="gramian")

    @checked
    def __init__(self, c: float = 0.5, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if not (c >= 0 and math.isfinite(c)):
            raise ValueError(f"c={c}: the radius must be a finite number >= 0")
        self.c = c
        self.traits = replace(self.traits, feasible=c >= 1)

    def weigh(self, g: TaskGradients) -> Solved:
        solution = cagrad_weights(g.gramian, self.c)
        return Solved(solution.weights, solution)

    def extra_repr(self) -> str:
        return f"c={self.c}"
