"""The mean gradient, projected so that it conflicts with no task."""

from __future__ import annotations

from evenhand.autodiff.gradients import TaskGradients
from evenhand.linalg import project_cone
from evenhand.weighting.base import Solved
from evenhand.weighting.preference import Preferring
from evenhand.weighting.traits import Traits


class DualProj(Preferring):
    """v = π(Σ_i p_i g_i), where π projects onto the dual cone {x : g_j·x ≥ 0 for all j}.

    The least change to the mean gradient that makes it conflict with no task: Lopez-Paz and
    Ranzato, "Gradient Episodic Memory for Continual Learning" (NeurIPS 2017), equation (11), with
    all tasks in the role of the memory; named so by Quinton and Rey (arXiv 2406.16232). `UPGrad`
    projects the gradients one by one and averages then.

    The projection is exact (see `linalg.project_cone`); TorchJD regularises it as it does UPGrad's.

    Args:
        preference: p, the weights of the mean; 1/M by default.

    Raises:
        ValueError: see `Preferring`.

    Example:
        >>> import torch
        >>> DualProj()(TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]])))
        tensor([0.6600, 0.5000])
    """

    traits = Traits(needs="gramian", feasible=True)

    def weigh(self, g: TaskGradients) -> Solved:
        solution = project_cone(g.gramian, self.preferred(g))
        return Solved(solution.weights.to(g.gramian), solution)
