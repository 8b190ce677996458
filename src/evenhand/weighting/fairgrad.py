"""Fair resource allocation: α-fair shares of the descent."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.linalg import nash_weights
from evenhand.weighting.base import Solved, Weighting
from evenhand.weighting.traits import Traits


class FairGrad(Weighting):
    """w > 0 with Gw = w^(−1/α): the tasks' descents g_i·v, shared α-fairly.

    v maximises Σ_i (g_i·v)^(1−α)/(1−α), for α = 1 Σ_i log g_i·v, among the directions of its
    length; g_i·v = w_i^(−1/α). Ban and Ji, "Fair Resource Allocation in Multi-Task Learning" (ICML
    2024, arXiv 2402.15638), Algorithm 1. α = 0 is the mean, α = 1 proportional fairness
    (`NashMTL`), α → ∞ max-min fairness. For α > 0 v improves every task. Its direction does not
    depend on the scale of the losses if α = 1, and does otherwise.

    Solved exactly (see `linalg.nash_weights`). Where a convex combination of gradients is zero
    there is no solution, and v = 0; but a task whose own gradient is zero has weight zero, and the
    others settle without it. TorchJD and the released code hand the system to scipy's least squares
    from w = 1/m: accurate for gradients of length 0.1 and more; those much shorter than 1e-3 leave
    it where it began, without a word.

    Args:
        alpha: α ≥ 0; the paper tries values from 1 to 10, and mostly reports 2. For α = 0 the
            utility Σ g_i·v is linear and the sum of the gradients its best direction: w_i = 1/m for
            the m tasks in the call, no gradient is looked at, and no task is promised anything.

    Raises:
        ValueError: α is out of range.

    Example:
        >>> import torch
        >>> FairGrad(alpha=1)(TaskGradients.of(jacobian=torch.tensor([[2.0, 0.0], [0.0, 4.0]])))
        tensor([0.5000, 0.2500])
    """

    traits = Traits(needs="gramian", feasible=True)

    @checked
    def __init__(self, alpha: float = 2.0, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if not (alpha >= 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha={alpha}: must be a finite number >= 0")
        self.alpha = alpha
        if alpha == 0:
            self.traits = Traits(needs="nothing")
        self.traits = replace(self.traits, scale_invariant=alpha == 1)

    def weigh(self, g: TaskGradients) -> Tensor | Solved:
        if self.alpha == 0:
            return torch.full_like(g.losses, 1 / len(g.tasks))
        solution = nash_weights(g.gramian, self.alpha)
        said = solution.weights.to(g.losses)
        if bool(((said == 0) & (solution.weights.to(said.device) > 0)).any()):
            raise ValueError(
                f"FairGrad: the weights of {', '.join(map(repr, g.tasks))} are too small for "
                f"{str(said.dtype).removeprefix('torch.')}: their gradients are huge; scale the "
                "losses down"
            )
        return Solved(solution.weights, solution)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
