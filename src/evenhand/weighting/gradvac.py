"""Gradient vaccine: similar tasks are to have similar gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients, cosines, norms
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.pcgrad import Meetings, visiting_orders
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits


class GradVac(StatefulWeighting):
    """v = Σ_i g_i', where g_i' is turned towards each other gradient up to their usual cosine.

    Wang, Tsvetkov, Firat and Cao, "Gradient Vaccine" (ICLR 2021, arXiv 2010.05874). φ̂_ij is a
    moving average of the cosine φ_ij between g_i' and g_j, from 0. For j ≠ i in random order, if
    φ_ij < φ̂_ij then

        g_i' ← g_i' + ‖g_i'‖ (φ̂_ij √(1 − φ_ij²) − φ_ij √(1 − φ̂_ij²)) / (‖g_j‖ √(1 − φ̂_ij²)) g_j,

    after which their cosine is φ̂_ij (with φ̂ = 0 it is PCGrad's projection); then, in any case,
    φ̂_ij ← (1 − β) φ̂_ij + β φ_ij with the cosine from before. Everything lies in the span of the
    gradients. φ̂ is kept by pair; a pair of which one is absent waits.

    A pair with a zero gradient has no cosine: nothing is added and φ̂ stays. (So does one in which
    g_i' has cancelled to less than the precision of the Gramian.) No coefficient reaches φ̂ = 1.
    The paper applies it to groups of parameters, too: that is `PerBlock` around it.

    TorchJD and LibMTL default to β = 0.5. TorchJD adds 1e-8 to both denominators, LibMTL adds
    nothing in its release 1.1.5 and 1e-8 to both in its repository since. Both of LibMTL's update
    φ̂_ij only after a turn, with a φ_ij that is below it: from 0 it falls and never rises, so
    nothing is ever asked of tasks that agree.

    Args:
        beta: β in [0, 1], the rate of the moving average.

    Raises:
        ValueError: β is out of range.

    Example:
        >>> from evenhand import TaskGradients
        >>> GradVac()(TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]])))
        tensor([2.3200, 1.1953])
    """

    traits = Traits(needs="gramian")

    @checked
    def __init__(self, beta: float = 0.01, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if not 0 <= beta <= 1:
            raise ValueError(f"beta={beta}: the rate of a moving average is in [0, 1]")
        self.beta = beta

    def init(self, total: int) -> State:
        """φ̂, [M, M]."""
        return {"phi": torch.zeros(total, total, dtype=torch.float64)}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        gramian = g.gramian.double()
        noise = 4 * torch.finfo(g.gramian.dtype).eps
        length, cosine = norms(gramian), cosines(gramian)
        rows = take(state["phi"].mT, g).mT
        target = take(rows, g).expand_as(gramian)
        orders = visiting_orders(g, "gradvac")
        there = (length > 0).unsqueeze(-2).expand_as(target).gather(-1, orders).unbind(-1)
        usuals, steps = target.gather(-1, orders).unbind(-1), []
        met = Meetings(length, cosine, lengths=True)
        for other, exists, usual in zip(met.in_turn(orders), there, usuals, strict=True):
            seen = other & exists & (met.squared > noise * met.size.square())
            size = met.squared.clamp_min(0).sqrt()
            phi = torch.where(seen, met.products / size, 0).clamp(-1, 1)
            turn = size * (usual * rest(phi) / rest(usual) - phi)
            met.add(torch.where(seen & (phi < usual) & (usual < 1), turn, 0))
            steps.append(torch.where(seen, self.beta * (phi - usual), 0))
        target = target.scatter_add(-1, orders, torch.stack(steps, dim=-1))
        w = torch.where(length > 0, met.coefficients.sum(-2) / length, torch.ones_like(length))
        phi = put(state["phi"].mT, g, put(rows, g, target).mT).mT
        return Outcome(w.to(g.gramian), {"phi": phi})

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


def rest(cosine: Tensor) -> Tensor:
    """√(1 − φ²), the sine."""
    return (1 - cosine.square()).sqrt()
