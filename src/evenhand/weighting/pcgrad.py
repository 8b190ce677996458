"""Projecting conflicting gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients, cosines, norms
from evenhand.weighting.base import Weighting
from evenhand.weighting.traits import Traits


class PCGrad(Weighting):
    """v = Σ_i g_i', where g_i' meets the other gradients in random order and yields to each.

    g_i' starts as g_i; for j ≠ i in random order, if g_i'·g_j < 0 then
    g_i' ← g_i' − (g_i'·g_j)/‖g_j‖² g_j. Yu et al., "Gradient Surgery for Multi-Task Learning"
    (NeurIPS 2020, arXiv 2001.06782), Algorithm 1: the g_j projected on are the original ones, and
    v is the sum, not the mean. All g_i' lie in the span of the gradients, so their coefficients,
    and with them the weights w = Σ_i (coefficients of g_i'), follow from the Gramian alone.

    For two tasks w_i = 1 + max(0, −g_1·g_2)/‖g_i‖², and v conflicts with neither; for three or more
    it may conflict with some. The orders are drawn from (seed, step), one for each task i; with
    three or more tasks, reordering the tasks therefore draws other orders. A zero gradient is
    projected on by nobody.

    LibMTL and the code of Nash-MTL let g_i' meet g_i itself too, which changes it only after other
    projections have turned it against g_i. TorchJD agrees with us but for its random stream.

    Example:
        >>> from evenhand import TaskGradients
        >>> PCGrad()(TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]])))
        tensor([2.3200, 1.1953])
    """

    traits = Traits(needs="gramian")

    def weigh(self, g: TaskGradients) -> Tensor:
        gramian = g.gramian.double()
        length, cosine = norms(gramian), cosines(gramian)
        # Row i holds g_i' as coefficients of the unit gradients: nothing is divided on the way.
        a = torch.diag_embed(length)
        for j in visiting_orders(g, "pcgrad").unbind(-1):
            conflict = meet(a @ cosine, j).clamp_max(0)
            a = a.scatter_add(-1, j.unsqueeze(-1), -others(conflict, j).unsqueeze(-1))
        w = torch.where(length > 0, a.sum(-2) / length, torch.ones_like(length))
        return w.to(g.gramian)


def visiting_orders(g: TaskGradients, purpose: str) -> Tensor:
    """For each task i the order in which it meets all tasks, [..., m, m], from the clock."""
    *lead, m = g.losses.shape
    generators = [g.clock.generator(purpose, member=k) for k in range(math.prod(lead))]
    orders = [torch.randperm(m, generator=chance) for chance in generators for _ in range(m)]
    return torch.stack(orders).reshape(*lead, m, m).to(g.losses.device)


def meet(values: Tensor, j: Tensor) -> Tensor:
    """The entry [i, j_i] of each row of values [..., m, m], for j [..., m]."""
    return values.gather(-1, j.unsqueeze(-1)).squeeze(-1)


def others(values: Tensor, j: Tensor) -> Tensor:
    """`values` [..., m], but zero where a task meets itself (j_i = i)."""
    return values.masked_fill(j == torch.arange(j.shape[-1], device=j.device), 0)
