"""Impartial learning, the gradient part: equal projections on all gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients, cosines, norms
from evenhand.weighting.base import Weighting
from evenhand.weighting.traits import Traits


class IMTLG(Weighting):
    """Weights with Σw = 1 for which v = Σ w_i g_i has the same projection on every gradient.

    With unit gradients u_i = g_i/‖g_i‖: v·u_i = v·u_j for all i, j. Liu et al., "Towards Impartial
    Multi-task Learning" (ICLR 2021), the closed form of IMTL-G. The authors take
    the gradients at the shared feature: ``at="representation"``.

    v is a multiple of the point nearest to zero in the *affine* hull of the u_i, and that is how it
    is found: v ∝ Σ y_i u_i with Σ y_i = 1 and Σ y_i u_i·u_j the same for all j. So it exists for
    dependent gradients too (of several y the shortest is taken), w_i ∝ y_i/‖g_i‖, and norms that
    span many orders of magnitude do no harm. For two tasks w_i ∝ 1/‖g_i‖.

    Weights may be negative. Where Σ y_i/‖g_i‖ < 0 the paper's Σw = 1 turns v round, so that it
    climbs every loss: hence none of the guarantees, although the line of v never depends on the
    scale of the losses. Where that sum vanishes no multiple has Σw = 1, and the weights are zero;
    so they are for a zero gradient, which has no direction to project on.

    TorchJD generalises by w ∝ G⁺‖g‖ instead. That is the same for independent gradients (unless
    norms differ so much that its pseudo-inverse takes the short ones for dependent). Where zero is
    in the affine hull of the u_i, as for two opposite gradients, the paper's formula and this
    one have v = 0, and TorchJD a v whose projections are not equal.

    Example:
        >>> from evenhand import TaskGradients
        >>> IMTLG()(TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]])))
        tensor([0.7222, 0.2778])
    """

    traits = Traits(needs="gramian")

    def weigh(self, g: TaskGradients) -> Tensor:
        gramian = g.gramian.double()
        length = norms(gramian)
        y = affine_point(cosines(gramian), length > 0, torch.finfo(g.gramian.dtype).eps)
        w = torch.where(length > 0, y / length, torch.zeros_like(length))
        total = w.sum(-1, keepdim=True)
        vanishes = total.abs() <= 1e-12 * w.abs().sum(-1, keepdim=True)
        return torch.where(vanishes, torch.zeros_like(w), w / total).to(g.gramian)


def affine_point(cosine: Tensor, active: Tensor, precision: float) -> Tensor:
    """The y of least yᵀCy with Σ y = 1, the shortest if several, [..., m]; 0 where not `active`.

    The conditions are linear, [[C, 1], [1ᵀ, 0]] [y; −κ] = [0; 1] with κ = yᵀCy, and always have
    a solution; eigenvalues below the precision of C count as zero.
    """
    m = cosine.shape[-1]
    one = active.to(cosine).unsqueeze(-1)
    top = torch.cat((cosine, one), dim=-1)
    bottom = torch.cat((one.mT, torch.zeros_like(one[..., :1, :])), dim=-1)
    system = torch.cat((top, bottom), dim=-2)
    inverse: Tensor = torch.linalg.pinv(system, rtol=(m + 1) * precision, hermitian=True)
    return inverse[..., :m, m]
