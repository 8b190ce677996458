"""Conflict-free inverse gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients, cosines, norms
from evenhand.weighting.preference import Preferring
from evenhand.weighting.traits import Traits


class ConFIG(Preferring):
    """The direction whose cosines with all gradients are as p, and as long as they agree with it.

    With unit gradients u_i as rows of U: x = U⁺p, v = (Σ_i g_i·x̂) x̂, where x̂ = x/‖x‖. Liu, Chu
    and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks" (ICLR
    2025, arXiv 2408.11104), equation (2). p is equal by default, so that v·u_i is the same for
    every task; its length does not matter.

    Since U⁺ = Uᵀ(UUᵀ)⁺, x is in the span of the gradients and the cosines C = UUᵀ tell it: x = Σ
    y_i u_i with y = C⁺p, ‖x‖² = pᵀy, and w_i = y_i/‖g_i‖ · (Σ_j ‖g_j‖ (Cy)_j)/‖x‖².

    If the u_i are independent, no task conflicts with v and its line does not depend on the scale
    of the losses; if they are dependent, U⁺p is a least-squares answer and v promises nothing.
    Where p is orthogonal to the range of C (two opposite gradients, say) x = 0, and so are the
    weights; a zero gradient has weight zero.

    TorchJD and the released code invert U itself: the same, but eigenvalues of C, whose roots are
    U's singular values, count as zero below m·eps here. For two tasks the released code has a
    closed form, likewise the same.

    Args:
        preference: p; equal by default.

    Raises:
        ValueError: see `Preferring`.

    Example:
        >>> from evenhand import TaskGradients
        >>> ConFIG()(TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]])))
        tensor([1.8000, 0.6923])
    """

    traits = Traits(needs="gramian")

    def weigh(self, g: TaskGradients) -> Tensor:
        gramian = g.gramian.double()
        tolerance = gramian.shape[-1] * torch.finfo(g.gramian.dtype).eps
        length, cosine = norms(gramian), cosines(gramian)
        p = self.preferred(g)
        y = (torch.linalg.pinv(cosine, rtol=tolerance, hermitian=True) @ p.unsqueeze(-1)).squeeze(
            -1
        )
        met = (cosine @ y.unsqueeze(-1)).squeeze(-1)  # u_i·x: p, or what of it can be met
        exists = met.norm(dim=-1, keepdim=True) > tolerance * p.norm(dim=-1, keepdim=True)
        agreement = (length * met).sum(-1, keepdim=True) / (met * y).sum(-1, keepdim=True)
        w = torch.where(exists & (length > 0), agreement * y / length, 0)
        return w.to(g.gramian)
