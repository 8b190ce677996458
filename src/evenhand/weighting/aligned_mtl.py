"""Aligning the independent components of the gradient matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.preference import Preferring
from evenhand.weighting.traits import Traits

Scale = Literal["min", "median", "rmse"]
SCALES = ("min", "median", "rmse")


class AlignedMTL(Preferring):
    """w = B p with B = σ G^(−1/2): the gradients' principal components, all made of length σ.

    With G = V diag(λ_1 ≥ … ≥ λ_r) Vᵀ over the r eigenvalues that are not zero, B = σ V
    diag(λ)^(−1/2) Vᵀ, so BJ is what J would be with all its singular values equal to σ. Senushkin
    et al., "Independent Component Alignment for Multi-Task Learning" (CVPR 2023, arXiv 2305.19000),
    Algorithm 1, with σ = √λ_r. ``at="representation"`` is their Aligned-MTL-UB.

    An eigenvalue counts as zero below m·eps·λ_1, eps being that of the Gramian's dtype: the rank,
    and with it σ, is a matter of precision, so norms that differ by more than 1e3 in float32 (1e7
    in float64) merge. If all gradients are zero, w = p. The direction may conflict with a task,
    does not vanish at a Pareto-stationary point, and depends on the scale of the losses.

    TorchJD agrees. The released code has p_i = 1 (m times longer), and LibMTL knows σ = √λ_r only.

    Args:
        preference: p, the importance of each task; 1/M by default.
        scale: what σ² is: the least eigenvalue ("min", the paper), the lower median ("median") or
            the mean ("rmse") of those that are not zero; the last two are in the released code.

    Raises:
        ValueError: scale is none of these, or see `Preferring`.

    Example:
        >>> from evenhand import TaskGradients
        >>> AlignedMTL()(TaskGradients.of(jacobian=torch.tensor([[2.0, 0.0], [0.0, 4.0]])))
        tensor([0.5000, 0.2500])
    """

    traits = Traits(needs="gramian")

    @checked
    def __init__(
        self,
        preference: Mapping[str, float] | None = None,
        *,
        scale: Scale = "min",
        at: Place = "parameters",
    ) -> None:
        super().__init__(preference, at=at)
        if scale not in SCALES:
            raise ValueError(f"scale={scale!r}: must be one of {', '.join(SCALES)}")
        self.scale = scale

    def weigh(self, g: TaskGradients) -> Tensor:
        gramian = g.gramian.double()
        p = self.preferred(g).unsqueeze(-1)
        eigenvalues, v = torch.linalg.eigh(gramian)  # ascending
        tolerance = gramian.shape[-1] * torch.finfo(g.gramian.dtype).eps
        kept = eigenvalues > tolerance * eigenvalues[..., -1:]
        kept &= eigenvalues > 0
        ratio = self._squared_length(eigenvalues, kept) / eigenvalues
        roots = torch.where(kept, ratio, 0).sqrt().unsqueeze(-1)
        w = torch.where(
            kept.any(-1, keepdim=True), (v @ (roots * (v.mT @ p))).squeeze(-1), p[..., 0]
        )
        return w.to(g.gramian)

    def _squared_length(self, eigenvalues: Tensor, kept: Tensor) -> Tensor:
        """σ², [..., 1], from ascending eigenvalues of which the last r are `kept`."""
        m, rank = kept.shape[-1], kept.sum(-1, keepdim=True).clamp_min(1)
        match self.scale:
            case "min":
                return eigenvalues.gather(-1, m - rank)
            case "median":
                return eigenvalues.gather(-1, m - rank + (rank - 1) // 2)
            case "rmse":
                return (eigenvalues * kept).sum(-1, keepdim=True) / rank

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), f"scale={self.scale!r}")))
