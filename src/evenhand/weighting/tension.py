"""The task tensioner: a pull towards the tasks that fall behind, on top of any direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients, norms
from evenhand.linalg import Solution, project_cone
from evenhand.weighting.base import Outcome, Weighting, Wrapper
from evenhand.weighting.positive import SMALLEST_LOSS
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import joined


class Tension(Wrapper):
    """v_n = v + Σ u_i: each task pulls the base's direction v towards its own gradient.

        ζ_i(t) = mean of the last T values of ‖g_i‖
        δ_i    = ζ_i(t) / ζ_i(t−1) + log10 L_i
        c_i    = α / (1 + exp(−e δ_i + e)) + 1 − α                       e = 2.71828…
        u_i    = c_i (g_i − v) / ‖g_i − v‖
        v_n    = v + Σ u_i,   subject to g_i·v_n ≥ 0

    Nakamura, Grassi & Wolf (Neurocomputing 511 (2022) 43-53, arXiv 2204.06698). A task
    whose loss is large or whose gradient grows pulls with c_i up to 1, others down to 1 − α. All
    of it stays in the span of the gradients: with v = Σ w_i g_i and n_i = ‖g_i − v‖,
    v_n = Σ [w_i (1 − Σ_j c_j / n_j) + c_i / n_i] g_i, from the Gramian alone.

    With two tasks and v on the segment between their gradients, the two pulls are opposite:
    v_n = v + (c_1 − c_2)(g_1 − g_2)/‖g_1 − g_2‖, at the ends of the segment too, where v = g_i
    and this is the limit from inside. Otherwise a task with g_i = v does not pull (u_i = 0); nor
    does one for which ‖g_i − v‖ drowns in the Gramian's rounding. With α = 0 the pulls of two
    tasks cancel, those of three or more do not.

    The window holds the last T norms of the calls in which the task was active. The first tension
    needs a previous mean, so it comes with the task's call number T + 1; before, and for a task
    that is absent, u_i = 0. The logarithm stops at L = 1e-12; norms that were all zero and still
    are count as unchanged (ζ(t)/ζ(t−1) = 1).

    Args:
        base: the direction to pull at; the paper's are `MGDA` and `CentralDirection`.
        alpha: α, between 0 and 1.
        period: T, at least 1.
        feasibility: how g_i·v_n ≥ 0 is brought about, at every call in which a task pulls (and at
            the others too, if the base does not promise it):
            "pass", as the authors' code does it: for each task in turn with g_i·v_n < 0,
            v_n ← g_i + s (v_n − g_i), s = ‖g_i‖ / (‖g_i‖ − v_n·ĝ_i), which makes g_i·v_n = 0 but
            may undo what earlier tasks got; "projection", onto the cone {x : g_i·x ≥ 0 for all
            i}; "none"; "auto", the pass where it is enough (two tasks and v on the segment
            between them) and the projection elsewhere.

    Raises:
        ValueError: `alpha`, `period` or `feasibility` is out of range.

    Example:
        >>> from evenhand import CentralDirection, Running
        >>> jacobian, losses = torch.tensor([[3.0, 4.0], [5.0, -12.0]]), torch.tensor([0.5, 2.0])
        >>> tension = Running(Tension(CentralDirection(), period=2), ["a", "b"])
        >>> for step in range(3):
        ...     weights = tension(TaskGradients.of(jacobian=jacobian, losses=losses))
        >>> weights
        tensor([0.7150, 0.2850])
    """

    @checked
    def __init__(
        self,
        base: Weighting,
        alpha: float = 0.3,
        period: int = 10,
        feasibility: str = "auto",
    ) -> None:
        super().__init__(base, needs="gramian")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: must be between 0 and 1")
        if period < 1:
            raise ValueError(f"period={period}: a window holds at least 1 norm")
        if feasibility not in FEASIBILITY:
            known = ", ".join(map(repr, FEASIBILITY))
            raise ValueError(f"feasibility={feasibility!r}: must be one of {known}")
        self.alpha = alpha
        self.period = period
        self.feasibility = feasibility
        self.traits = replace(
            joined(base.traits, needs="gramian"),
            feasible=feasibility in ("auto", "projection"),
            stationary=False,
            scale_invariant=False,
        )

    def init(self, total: int) -> State:
        """The last T norms of each task, and how many it has given."""
        window = torch.zeros(self.period, total, dtype=torch.float64)
        count = torch.zeros(total, dtype=torch.float64)
        return super().init(total) | {"window": window, "count": count}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        weights, base, solves = self.base.advance(g, state["base"])
        w = weights.double()
        strengths, history = self._strengths(g, state)
        pull = pulls(g.gramian, w, strengths)
        allowed, further = FEASIBILITY[self.feasibility](g.gramian, w + pull, on_segment(w))
        already = (pull == 0).all(-1, keepdim=True) & self.base.traits.feasible
        value = torch.where(already, w, allowed).to(weights)
        return Outcome(value, {**history, "base": base}, (*solves, *further))

    def _strengths(self, g: TaskGradients, state: State) -> tuple[Tensor, State]:
        """c_i, 0 where the window is not full yet; and the window with the new norm."""
        length = g.norms.double()
        count, window = take(state["count"], g), take(state["window"], g)
        window = window.expand(*length.shape[:-1], *window.shape[-2:])
        norms_so_far = torch.cat([window, length.unsqueeze(-2)], dim=-2)  # T + 1 of them
        history = {
            "window": put(state["window"], g, norms_so_far[..., 1:, :]),
            "count": put(state["count"], g, count + 1),
        }
        before, now = norms_so_far[..., :-1, :].mean(-2), norms_so_far[..., 1:, :].mean(-2)
        unchanged = (before == 0) & (now == 0)
        growth = torch.where(unchanged, torch.ones_like(now), now / before)
        delta = growth + g.losses.double().clamp_min(SMALLEST_LOSS).log10()
        strengths = self.alpha * torch.sigmoid(math.e * (delta - 1)) + 1 - self.alpha
        return torch.where(count >= self.period, strengths, 0), history

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, period={self.period}, feasibility={self.feasibility!r}"


def on_segment(weights: Tensor) -> Tensor:
    """Whether v is on the segment between the gradients of two tasks, [...]."""
    if weights.shape[-1] != 2:
        return torch.zeros(weights.shape[:-1], dtype=torch.bool, device=weights.device)
    rounding = 8 * torch.finfo(torch.float32).eps
    return (weights >= 0).all(-1) & ((weights.sum(-1) - 1).abs() <= rounding)


def pulls(gramian: Tensor, weights: Tensor, strengths: Tensor) -> Tensor:
    """Σ u_i as weights [..., m] of the gradients: Σ_i c_i (e_i − w) / ‖g_i − v‖."""
    precision, gramian = torch.finfo(gramian.dtype).eps, gramian.double()
    m = weights.shape[-1]
    each = torch.eye(m, dtype=weights.dtype, device=weights.device)
    towards = each - weights.unsqueeze(-2)  # row i: g_i − v
    if m == 2:  # on the segment these rows are multiples of ±(1, −1); at its ends, one is 0
        along = weights.new_tensor([[1.0, -1.0], [-1.0, 1.0]])
        towards = torch.where(on_segment(weights)[..., None, None], along, towards)
    squared = ((towards @ gramian) * towards).sum(-1)
    rounding = 4 * precision * (towards.abs() @ norms(gramian).unsqueeze(-1)).squeeze(-1).square()
    distance = torch.where(squared > rounding, squared.clamp_min(0).sqrt(), math.inf)
    return ((strengths / distance).unsqueeze(-1) * towards).sum(-2)


def one_pass(gramian: Tensor, weights: Tensor) -> Tensor:
    """The authors' pass: each task in turn moves v onto its own g_i·v = 0 if it is hurt.

    v ← g_i + s (v − g_i) multiplies every weight by s but w_i, which g_i·v = 0 determines.
    """
    gramian = gramian.double()
    for i in range(weights.shape[-1]):
        own = gramian[..., i, i]
        others = gramian[..., i, :].clone()
        others[..., i] = 0
        crossed = (others * weights).sum(-1)
        product = crossed + own * weights[..., i]
        s = own / (own - product)
        moved = s.unsqueeze(-1) * weights
        moved[..., i] = -s * crossed / own
        weights = torch.where((product < 0).unsqueeze(-1), moved, weights)
    return weights


Allowed = tuple[Tensor, tuple[Solution, ...]]
"""Weights that satisfy the constraint, and the solves that found them."""


def _projected(gramian: Tensor, weights: Tensor, segment: Tensor) -> Allowed:
    projection = project_cone(gramian, weights)
    # Pulls are of length 1 however small the gradients are; where the projection cancels them
    # down to their rounding, nothing that would move is left, and the rounding shall not.
    size = (weights.abs() * norms(gramian)).sum(-1)
    rounding = (4 * torch.finfo(weights.dtype).eps * size.square()).to(projection.squared_norm)
    gone = (projection.squared_norm <= rounding).unsqueeze(-1).to(weights.device)
    return torch.where(gone, 0, projection.weights), (projection,)


def _passed(gramian: Tensor, weights: Tensor, segment: Tensor) -> Allowed:
    return one_pass(gramian, weights), ()


def _auto(gramian: Tensor, weights: Tensor, segment: Tensor) -> Allowed:
    if bool(segment.all()):
        return _passed(gramian, weights, segment)
    projected, solves = _projected(gramian, weights, segment)
    if not bool(segment.any()):
        return projected, solves
    return torch.where(segment.unsqueeze(-1), one_pass(gramian, weights), projected), solves


def _unchanged(gramian: Tensor, weights: Tensor, segment: Tensor) -> Allowed:
    return weights, ()


FEASIBILITY: dict[str, Callable[[Tensor, Tensor, Tensor], Allowed]] = {
    "auto": _auto,
    "pass": _passed,
    "projection": _projected,
    "none": _unchanged,
}
