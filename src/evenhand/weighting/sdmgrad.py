"""Stochastic direction-oriented multi-objective gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.double_sampling import check, cross_gramian
from evenhand.weighting.preference import Preferring
from evenhand.weighting.shares import equal_shares, redistribute
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits


class SDMGrad(Preferring, StatefulWeighting):
    """A min-norm point pulled towards a preferred direction: (w + λ p)/(1 + λ).

    w approximates argmin ‖Σ (w_i + λ p_i) g_i‖² over the simplex for the expected gradients, by
    steps of stochastic gradient descent with momentum μ,

        u ← μ u + A (w + λ p),   w ← Π(w − β u),   A = J₁ J₂ᵀ / scale²,

    J₁, J₂ being Jacobians on two independent batches. λ = 0 is MGDA, λ → ∞ descends Σ p_i L_i.
    Xiao, Ban & Ji, "Direction-oriented Multi-objective Learning" (NeurIPS 2023, arXiv 2305.18409),
    the algorithm SDMGrad.

    As in the authors' code: A is of one pair of batches for all steps of a call (the algorithm
    draws a pair for each) and divided by scale² = (mean_i √A_ii⁺)², so that β does not depend on
    the scale of the gradients; there is momentum; and the direction is divided by 1 + λ. w goes on
    from the last call's, as in the algorithm. (Where no A_ii is positive, scale² = max |A_ij|.)
    Absent tasks keep their part of w, and the active ones share the rest. β is large: where the
    gradients are collinear the steps jump from corner to corner and amplify rounding.

    With ``batches=3`` the network steps on the first batch and the other two make up J₁ J₂ᵀ: the
    algorithm. With ``batches=2`` the first serves both. TorchJD agrees, given that product.
    LibMTL has β = 5. The released multi-task code writes the three batches' gradients into one
    and the same tensor, so its A is the last batch's own Gramian: it has no double sampling.

    Args:
        strength: λ >= 0. .3 in the authors' experiments.
        preference: p, the preferred weights (on the simplex in the paper); 1/M by default.
        lr: β > 0.
        momentum: μ in [0, 1).
        steps: how many steps a call takes, >= 1.
        batches: 2 or 3.
        at: "parameters", "last_layer" or a callable.

    Raises:
        ValueError: an argument is out of range; see also `Preferring`; or, in a call, further
            batches are missing.

    Example:
        >>> from evenhand import TaskGradients
        >>> jacobian = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
        >>> method, other = SDMGrad(strength=0.0, batches=2), TaskGradients.of(jacobian=jacobian)
        >>> method(TaskGradients.of(jacobian=jacobian, samples=[other])).shape
        torch.Size([2])
    """

    traits = Traits(needs="jacobian")

    @checked
    def __init__(
        self,
        strength: float = 0.3,
        preference: Mapping[str, float] | None = None,
        *,
        lr: float = 10.0,
        momentum: float = 0.5,
        steps: int = 20,
        batches: int = 3,
        at: Place = "parameters",
    ) -> None:
        super().__init__(preference, at=at)
        if not strength >= 0 or not lr > 0:
            raise ValueError(f"strength={strength}, lr={lr}: must be >= 0 and > 0")
        if not 0 <= momentum < 1 or steps < 1:
            raise ValueError(f"momentum={momentum}, steps={steps}: must be in [0, 1) and >= 1")
        check(self, batches, at)
        self.strength = strength
        self.lr = lr
        self.momentum = momentum
        self.steps = steps
        self.traits = replace(self.traits, batches=batches)

    def init(self, total: int) -> State:
        """The simplex part w."""
        return {"shares": equal_shares(total)}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        cross = cross_gramian(g, self.traits.batches)
        cross = cross / _squared_scale(cross)[..., None, None]
        pull = self.strength * self.preferred(g).cpu()
        w = take(state["shares"], g).cpu().expand_as(pull)
        share = w.sum(-1, keepdim=True)
        velocity = torch.zeros_like(w)
        for _ in range(self.steps):
            slope = (cross @ (w + pull).unsqueeze(-1)).squeeze(-1)
            velocity = self.momentum * velocity + slope
            w = redistribute(w - self.lr * velocity, share)
        weights = ((w + pull) / (1 + self.strength)).to(g.losses)
        return Outcome(weights, {"shares": put(state["shares"], g, w)})

    def extra_repr(self) -> str:
        inner = f"lr={self.lr}, momentum={self.momentum}, steps={self.steps}"
        parts = (f"strength={self.strength}", super().extra_repr(), inner)
        return ", ".join(filter(None, (*parts, f"batches={self.traits.batches}")))


def _squared_scale(cross: Tensor) -> Tensor:
    """(mean_i √A_ii⁺)², or max |A_ij| where that is zero, or 1 where A is; [...]."""
    scale = cross.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().mean(-1).square()
    scale = torch.where(scale > 0, scale, cross.abs().amax((-2, -1)))
    return torch.where(scale > 0, scale, 1)
