"""Jacobian descent by unconflicting projection of gradients."""

from __future__ import annotations

import torch

from evenhand.autodiff.gradients import TaskGradients
from evenhand.linalg import project_cone
from evenhand.weighting.base import Solved
from evenhand.weighting.preference import Preferring
from evenhand.weighting.traits import Traits


class UPGrad(Preferring):
    """v = Σ_i p_i π(g_i), where π projects onto the dual cone {x : g_j·x ≥ 0 for all j}.

    Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization" (2024, arXiv 2406.16232),
    equation (3): each gradient is changed as little as it takes to conflict with no task, and then
    they are averaged. v conflicts with no task, and each g_i has an influence in proportion to its
    norm. Where a combination of the gradients is zero with all weights positive, so is v; where
    some weights must be zero, v may still improve those tasks.

    The projections are exact (see `linalg.project_cone`). TorchJD scales the Gramian to trace 1,
    sets it to zero if its trace is below 1e-4, adds 1e-4 to its diagonal, and solves that: its
    weights differ from the third digit on, and near a stationary point it does not project at all.

    Args:
        preference: p, how much each task's projected gradient counts; 1/M by default.

    Raises:
        ValueError: see `Preferring`.

    Example:
        >>> from evenhand import TaskGradients
        >>> UPGrad()(TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]])))
        tensor([1.1600, 0.5976])
    """

    traits = Traits(needs="gramian", feasible=True)

    def weigh(self, g: TaskGradients) -> Solved:
        gramian = g.gramian
        solution = project_cone(gramian, torch.diag_embed(self.preferred(g)))
        return Solved(solution.weights.sum(-2).to(gramian), solution)
