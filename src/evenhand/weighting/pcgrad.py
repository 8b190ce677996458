"""Projecting conflicting gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from evenhand.arguments import checked
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
        met = Meetings(length, cosine)
        for other in met.in_turn(visiting_orders(g, "pcgrad")):
            met.add(-met.products.clamp_max(0) * other)
        w = torch.where(length > 0, met.coefficients.sum(-2) / length, torch.ones_like(length))
        return w.to(g.gramian)


def visiting_orders(g: TaskGradients, purpose: str) -> Tensor:
    """For each task i the order in which it meets all tasks, [..., m, m], from the clock."""
    *lead, m = g.losses.shape
    generators = [g.clock.generator(purpose, stream=k) for k in range(math.prod(lead))]
    orders = [
        torch.randperm(m, generator=chance, device="cpu") for chance in generators for _ in range(m)
    ]
    return torch.stack(orders).reshape(*lead, m, m).to(g.losses.device)


class Meetings:
    """The gradients g_i' while each meets the others one after the other, all i in step.

    g_i' is row i of `coefficients [..., m, m]`, in terms of the unit gradients: nothing is divided
    on the way. What a meeting looks at is its product with one unit gradient. For that g_i' need
    not be multiplied out at each meeting (m products of matrices, m⁴ multiplications): it is once
    for `BLOCK` meetings, within which the few products to come are kept up to date.

    Attributes:
        products: g_i'·u_j for the u_j that i meets now, [..., m].
        squared: ‖g_i'‖², [..., m], if `lengths` are asked for.
        size: the sum of |coefficients| of g_i', [..., m], likewise.
    """

    BLOCK = 64

    products: Tensor
    squared: Tensor
    size: Tensor

    @checked
    def __init__(self, length: Tensor, cosine: Tensor, lengths: bool = False) -> None:
        self.coefficients = torch.diag_embed(length)
        self._cosine = cosine
        self._lengths = lengths
        self._own = torch.arange(length.shape[-1], device=length.device)

    def in_turn(self, orders: Tensor) -> Iterator[Tensor]:
        """Whether i meets another than itself, [..., m], meeting by meeting.

        `orders [..., m, m]` holds for each i the j that it meets. At each meeting `add` is due.
        """
        for block in torch.split(orders, self.BLOCK, dim=-1):
            whole = self.coefficients @ self._cosine
            later, before = whole.gather(-1, block), self.coefficients.gather(-1, block)
            if self._lengths:
                self.squared = (whole * self.coefficients).sum(-1)
                self.size = self.coefficients.abs().sum(-1)
            among = self._among(block)
            changes: list[Tensor] = []
            others = (block != self._own.unsqueeze(-1)).unbind(-1)
            for k, other in enumerate(others):
                self.products = later[..., k]
                yield other
                changes.append(change := self._change)
                if self._lengths:  # u_j·u_j is 1, or 0 for a zero gradient
                    twice = 2 * self.products + change * among[..., k, k]
                    self.squared = self.squared + change * twice
                    self.size = self.size + (before[..., k] + change).abs() - before[..., k].abs()
                if k + 1 < len(others):
                    later = torch.addcmul(later, change.unsqueeze(-1), among[..., k, :])
            added = torch.stack(changes, dim=-1)
            self.coefficients = self.coefficients.scatter_add(-1, block, added)

    def add(self, change: Tensor) -> None:
        """Add change_i u_j to each g_i', [..., m], where j is what i meets now."""
        self._change = change

    def _among(self, block: Tensor) -> Tensor:
        """The cosines between those that a task meets in this block, [..., m, k, k]."""
        *lead, m, k = block.shape
        pairs = block.unsqueeze(-1) * m + block.unsqueeze(-2)
        return self._cosine.flatten(-2).gather(-1, pairs.reshape(*lead, -1)).reshape(*lead, m, k, k)
