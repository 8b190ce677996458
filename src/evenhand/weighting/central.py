"""The direction that makes equal angles with the gradients."""

from __future__ import annotations

import torch

from evenhand.autodiff.gradients import TaskGradients, cosines, norms
from evenhand.linalg import min_norm
from evenhand.weighting.base import Solved, Weighting
from evenhand.weighting.traits import Traits


class CentralDirection(Weighting):
    """The min-norm point of the unit gradients, at the length that makes the weights sum to 1.

    With ḡ_i = g_i / ‖g_i‖,

        k = argmin ‖Σ k_i ḡ_i‖² over the simplex,   v = γ Σ k_i ḡ_i,   γ = 1 / Σ (k_i / ‖g_i‖)

    so that v = Σ w_i g_i with w_i ∝ k_i / ‖g_i‖ and Σ w_i = 1. Katrutsa et al. (arXiv 2007.06937);
    Nakamura, Grassi & Wolf (Neurocomputing 511 (2022) 43-53, arXiv 2204.06698), equations (3) and
    (4). As printed there, γ has the norms of the unit vectors, which would make it 1; with those
    of the gradients it does what the text says. For two tasks v is
    (g_1 ‖g_2‖ + g_2 ‖g_1‖) / (‖g_1‖ + ‖g_2‖), on their bisector; for more, every task with
    k_i > 0 has the same angle to v, and the others a smaller one.

    v = 0 exactly at Pareto-stationary points, g_i·v ≥ 0 for every task, and the direction (not
    the length) does not change when losses are multiplied by positive factors. The direction is
    that of ``Normalized(MGDA(), by="l2", back=True)``, the length differs. As ‖g_i‖ → 0, w_i → 1:
    a gradient that is zero takes all the weight (several share it), and nobody moves.

    Example:
        >>> g = TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]]))
        >>> CentralDirection()(g)
        tensor([0.7222, 0.2778])
    """

    traits = Traits(needs="gramian", feasible=True, stationary=True, scale_invariant=True)

    def weigh(self, g: TaskGradients) -> Solved:
        length = norms(g.gramian)
        # A unit vector's own product is 1, to the last bit: equal gradients then share evenly.
        own = (length > 0).to(length)
        solution = min_norm(cosines(g.gramian).diagonal_scatter(own, dim1=-2, dim2=-1))
        shortest = length.amin(-1, keepdim=True)
        # Where a gradient is zero, the solution is on zero gradients alone.
        weights = solution.weights * torch.where(length > 0, shortest / length, 1)
        return Solved(weights / weights.sum(-1, keepdim=True), solution)
