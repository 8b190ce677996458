"""Krum: trust the gradients that have company."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Weighting
from evenhand.weighting.traits import Traits


class Krum(Weighting):
    """The gradient with the nearest neighbours, or the mean of the `selected` best (Multi-Krum).

    The score of task i is the sum of ‖g_i − g_j‖² over the m − f − 2 gradients nearest to g_i, at
    least one; the least score wins. Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning
    with Adversaries" (NeurIPS 2017). Made for workers of which `byzantine` = f may lie,
    it tolerates as many corrupted tasks (a broken label set), if 2f + 2 < m. It selects, so it is a
    weighting: w_i = 1/selected or 0. Ties go to the task that comes first; so does everything
    between two tasks.

    TorchJD adds up ‖g_i − g_j‖, not its square, and asks for m ≥ f + 3.

    Args:
        byzantine: f >= 0, how many tasks may be corrupted.
        selected: how many gradients to average, >= 1; all, if fewer are active.

    Raises:
        ValueError: an argument is out of range, or (in a call) too few tasks are active.

    Example:
        >>> from evenhand import TaskGradients
        >>> Krum()(TaskGradients.of(jacobian=torch.tensor([[1.0], [1.5], [9.0]])))
        tensor([1., 0., 0.])
    """

    traits = Traits(needs="gramian")

    @checked
    def __init__(self, byzantine: int = 0, selected: int = 1, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if byzantine < 0 or selected < 1:
            raise ValueError(
                f"byzantine={byzantine}, selected={selected}: must be >= 0 and >= 1 tasks"
            )
        self.byzantine = byzantine
        self.selected = selected

    def weigh(self, g: TaskGradients) -> Tensor:
        m, f = len(g.tasks), self.byzantine
        least = 2 * f + 3 if f else 1
        if m < least:
            raise ValueError(
                f"Krum(byzantine={f}) needs at least {least} tasks in a call, and {m} are active"
            )
        # Two nearest neighbours are as far from each other: rounding must not break that tie.
        gramian = (g.gramian + g.gramian.mT).double() / 2
        squared = gramian.diagonal(dim1=-2, dim2=-1)
        distances = squared.unsqueeze(-1) + squared.unsqueeze(-2) - 2 * gramian
        distances = distances.clamp_min(0) + torch.diag_embed(torch.full_like(squared, torch.inf))
        scores = distances.sort(dim=-1).values[..., : max(m - f - 2, 1)].sum(-1)
        best = scores.argsort(dim=-1, stable=True)[..., : self.selected]
        return torch.zeros_like(g.gramian[..., 0]).scatter(-1, best, 1 / best.shape[-1])

    def extra_repr(self) -> str:
        return f"byzantine={self.byzantine}, selected={self.selected}"
