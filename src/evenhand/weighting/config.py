"""Conflict-free inverse gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients, cosines, norms
from evenhand.linalg.extremes import lengths
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

    With κ the ratio of U's extreme singular values, v has a relative error of about eps·κ² from C,
    eps that of the gradients' dtype, and of eps·κ from U itself, which ``precise=True`` factorises
    by QR, at the cost of a second copy of the gradients. For float32 rows of 3000 entries and
    κ = 10, 100, 1000 the median errors were 2e-6, 1e-4, 1e-2 and 7e-7, 6e-6, 5e-5. κ is above 100
    where gradients are within a degree of dependent.

    TorchJD and the released code invert U itself: the same, but eigenvalues of C, whose roots are
    U's singular values, count as zero below m·eps here (with `precise`, singular values below
    m·eps of the largest). For two tasks the released code has a closed form, likewise the same.

    Args:
        preference: p; equal by default.
        precise: look at the gradients themselves instead of their products.

    Raises:
        ValueError: see `Preferring`.

    Example:
        >>> from evenhand import TaskGradients
        >>> ConFIG()(TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]])))
        tensor([1.8000, 0.6923])
    """

    traits = Traits(needs="gramian")

    @checked
    def __init__(
        self,
        preference: Mapping[str, float] | None = None,
        *,
        precise: bool = False,
        at: Place = "parameters",
    ) -> None:
        super().__init__(preference, at=at)
        self.precise = precise
        if precise:
            self.traits = replace(self.traits, needs="jacobian")

    def weigh(self, g: TaskGradients) -> Tensor:
        p = self.preferred(g)
        length, y, met = _from_rows(g, p) if self.precise else _from_products(g, p)
        tolerance = p.shape[-1] * torch.finfo(g.losses.dtype).eps
        exists = met.norm(dim=-1, keepdim=True) > tolerance * p.norm(dim=-1, keepdim=True)
        agreement = (length * met).sum(-1, keepdim=True) / (met * y).sum(-1, keepdim=True)
        w = torch.where(exists & (length > 0), agreement * y / length, 0)
        return w.to(g.losses)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), "precise=True" * self.precise)))


def _from_products(g: TaskGradients, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖g_i‖, y = C⁺p and Cy, the products u_i·x: p, or what of it can be met; float64."""
    gramian = g.gramian.double()
    cosine = cosines(gramian)
    tolerance = gramian.shape[-1] * torch.finfo(g.gramian.dtype).eps
    y = torch.linalg.pinv(cosine, rtol=tolerance, hermitian=True) @ p.unsqueeze(-1)
    return norms(gramian), y.squeeze(-1), (cosine @ y).squeeze(-1)


def _from_rows(g: TaskGradients, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same from Uᵀ = QR, of which only R [.., k, m] is needed: C = RᵀR, x = Qz, Rᵀz = p."""
    length = lengths(g.jacobian).squeeze(-1)
    unit = g.jacobian / torch.where(length > 0, length, 1).unsqueeze(-1)
    r = torch.linalg.qr(unit.mT, mode="r").R.double()
    inverse = torch.linalg.pinv(r, rtol=unit.shape[-2] * torch.finfo(unit.dtype).eps)
    z = inverse.mT @ p.unsqueeze(-1)
    return length.double(), (inverse @ z).squeeze(-1), (r.mT @ z).squeeze(-1)
