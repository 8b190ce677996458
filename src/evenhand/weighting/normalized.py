"""Gradients brought to a common scale before a method sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Gradients, Outcome, Weighting, Wrapper
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Needs, joined

SCALES: dict[str, tuple[Needs, Callable[[TaskGradients], Tensor]]] = {
    "none": ("nothing", lambda g: torch.ones_like(g.losses)),
    "l2": ("norms", lambda g: g.norms),
    "loss": ("losses", lambda g: g.losses),
    "loss+": ("norms", lambda g: g.losses * g.norms),
}


class Normalized(Wrapper):
    """Let `base` weigh the gradients g_i / s_i, where s_i is a scale of task i.

    ========  ===========  ========================
    by        s_i          the base sees
    ========  ===========  ========================
    "none"    1            the gradients as they are
    "l2"      ‖g_i‖        unit vectors
    "loss"    L_i          relative changes of the losses
    "loss+"   L_i ‖g_i‖    unit vectors over the losses
    ========  ===========  ========================

    With k the weights that `base` finds, the result is

    - w_i = k_i by default: what was solved for scaled gradients multiplies the raw losses. So do
      Sener & Koltun (NeurIPS 2018, arXiv 1810.04650) in their released training; the paper's text
      has no normalisation. Σ k_i g_i is not the point that was solved for: even with MGDA inside
      it can hurt a task, and at a Pareto-stationary point it need not be zero.
    - w_i = k_i / s_i with ``back=True``: the direction Σ k_i g_i / s_i *is* the point that was
      solved for, so what `base` promises about g_i·v ≥ 0 and about stationary points holds; its
      length is that of the scaled gradients, at most 1 for MGDA with "l2".

    LibMTL has the same names (``mgda_gn``) and descends Σ k_i g_i / s_i, the normalised gradients:
    that is ``back=True`` here, in the aggregator slot, since its heads step on their own losses.
    Only with ``rep_grad=True`` does it multiply the raw gradients by k_i, as Sener & Koltun do.

    A scale that is 0 (a task at its minimum) counts as 1, so nothing is divided by zero.

    Args:
        base: any weighting; place and further needs are its own.
        by: the scale.
        back: divide the weights by the scale again.

    Raises:
        ValueError: `by` is unknown; or, when weighing, a loss is negative and `by` divides by it.

    Example:
        >>> from evenhand import MGDA, TaskGradients
        >>> g = TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]]))
        >>> Normalized(MGDA(), by="l2")(g)
        tensor([0.5000, 0.5000])
        >>> Normalized(MGDA(), by="l2", back=True)(g)
        tensor([0.1000, 0.0385])
    """

    @checked
    def __init__(self, base: Weighting, by: str = "none", back: bool = False) -> None:
        if by not in SCALES:
            raise ValueError(f"by={by!r}: must be one of {', '.join(map(repr, SCALES))}")
        needs, _ = SCALES[by]
        super().__init__(base, needs=needs)
        self.by = by
        self.back = back
        solved_for = back or by == "none"
        self.traits = replace(
            joined(base.traits, needs=needs),
            feasible=base.traits.feasible and solved_for,
            stationary=base.traits.stationary and solved_for,
            scale_invariant=solved_for and (base.traits.scale_invariant or by in ("l2", "loss")),
        )

    def init(self, total: int) -> State:
        """The scales of the last call too, for a base that looks at losses after the update."""
        state = super().init(total)
        if self.traits.after:
            state["scale"] = torch.ones(total, dtype=torch.float64)
        return state

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        scale = self._scale_of(g)
        weights, base, solves = self.base.advance(g.scaled(1 / scale), state["base"])
        following: State = {"base": base}
        if self.traits.after:
            following["scale"] = put(state["scale"], g, scale)
        return Outcome(weights / scale if self.back else weights, following, solves)

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        return self.base.learn(g.scaled(1 / self._scale_of(g.at(self.at))), state["base"])

    def after(self, losses: TaskGradients, state: State) -> State:
        if not self.traits.after:
            return state
        scaled = losses.scaled(1 / take(state["scale"], losses).to(losses.losses))
        return {**state, "base": self.base.after(scaled, state["base"])}

    def _scale_of(self, g: TaskGradients) -> Tensor:
        _, scale_of = SCALES[self.by]
        scale = scale_of(g)
        if bool((scale < 0).any()):
            raise ValueError(
                f"by={self.by!r} divides by the losses, which must be >= 0, but are "
                f"{dict(zip(g.tasks, g.losses.tolist(), strict=True))}: use by='l2'"
            )
        return torch.where(scale == 0, torch.ones_like(scale), scale)

    def extra_repr(self) -> str:
        return f"by={self.by!r}, back={self.back}"
