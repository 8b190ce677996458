"""The min-norm point of the gradients' convex hull."""

from __future__ import annotations

from evenhand.autodiff.gradients import TaskGradients
from evenhand.linalg import min_norm
from evenhand.weighting.base import Solved, Weighting
from evenhand.weighting.traits import Traits


class MGDA(Weighting):
    """w = argmin ‖Σ w_i g_i‖² over the simplex; the point is zero or improves every task.

    Désidéri (2012), and Sener & Koltun (NeurIPS 2018, arXiv 1810.04650), equation (3). With
    ``at="representation"`` the gradients are ∂L_i/∂Z over the whole batch of features: MGDA-UB,
    their equation (MGDA-UB), which needs one pass through the trunk for any number of tasks and
    is equivalent when ∂Z/∂θ has full rank (their theorem 1).

    Σw = 1, so the step is m times shorter than the sum's; nothing is rescaled. The point is exact
    (see `linalg.min_norm`); Sener & Koltun's released training solves it by projected gradient
    with weights cut at .001 and .999, TorchJD by 100 steps of Frank-Wolfe.

    As `aggregator` it steps each head on its own loss (their Algorithm 2); as `weighting` it
    scales the heads by w_i too (their released code).

    Example:
        >>> import torch
        >>> from evenhand import TaskGradients
        >>> MGDA()(TaskGradients.of(jacobian=torch.tensor([[3.0, 0.0], [1.0, 2.0]])))
        tensor([0.2500, 0.7500])
    """

    traits = Traits(needs="gramian", feasible=True, stationary=True)

    def weigh(self, g: TaskGradients) -> Solved:
        solution = min_norm(g.gramian)
        return Solved(solution.weights, solution)
