"""The tasks bargain for the direction, and settle as Nash would have them."""

from __future__ import annotations

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.linalg import nash_weights
from evenhand.weighting.base import Solved, Weighting
from evenhand.weighting.traits import Traits


class NashMTL(Weighting):
    """w > 0 with Gw = 1/w: v maximises Σ_i log g_i·v among the directions of its length, √m.

    The Nash bargaining solution: the one direction that is Pareto-optimal, symmetric, independent
    of irrelevant alternatives and invariant to the scale of the losses. Navon et al., "Multi-Task
    Learning as a Bargaining Game" (ICML 2022, arXiv 2202.01017), Claim 3.1 and Algorithm 1. Each
    task's share g_i·v = 1/w_i is positive. The weights, unlike v, do change with the losses' scale
    (w_i ∝ 1/s_i), so it matters to the heads which slot this is in.

    Solved exactly (see `linalg.nash_weights`). Where a convex combination of gradients is zero
    there is no solution, and v = 0; but a task whose own gradient is zero has weight zero, and
    the others settle without it.

    The released code, LibMTL and TorchJD linearise the problem and call a conic solver up to 20
    times, from w = 1 or from the last call's w, and keep what they have when it fails. Where that
    arrives they agree with us: with TorchJD 0.18 on random matrices mostly to 1e-8, but in one of
    ten first calls not at all, and for gradients of length 1e-3 in eight of ten. They solve anew in
    one call out of ``update_weights_every``: that is ``Every(NashMTL(), steps=…)`` here.

    Args:
        max_norm: scale w down so that ‖v‖ is at most this. The released code clips at 1 by default,
            trunk gradients only; as `weighting` this scales the heads too.

    Raises:
        ValueError: max_norm is not positive.

    Example:
        >>> import torch
        >>> NashMTL()(TaskGradients.of(jacobian=torch.tensor([[2.0, 0.0], [0.0, 4.0]])))
        tensor([0.5000, 0.2500])
    """

    traits = Traits(needs="gramian", feasible=True, scale_invariant=True)

    @checked
    def __init__(self, max_norm: float | None = None, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: must be > 0, or None")
        self.max_norm = max_norm

    def weigh(self, g: TaskGradients) -> Solved:
        solution = nash_weights(g.gramian)
        w = solution.weights
        if self.max_norm is None:
            return Solved(w, solution)
        length = solution.squared_norm.sqrt().clamp_min(self.max_norm)
        return Solved(w * (self.max_norm / length).unsqueeze(-1).to(w), solution)

    def extra_repr(self) -> str:
        return "" if self.max_norm is None else f"max_norm={self.max_norm}"
