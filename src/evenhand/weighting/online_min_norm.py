"""The min-norm point, followed from step to step at a cost that does not grow with the tasks."""

from __future__ import annotations

from dataclasses import replace

import torch

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.linalg import min_norm
from evenhand.schedules import Clock
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.shares import equal_shares
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Needs, Traits


class OnlineMinNorm(StatefulWeighting):
    """Mirror descent towards MGDA's weights, a step of it for each step of the network.

        w_i ← w_i exp(−η (Gw)_i / max_j |(Gw)_j|) / Z.

    Gw is the gradient of ½‖Σ w_i g_i‖², so this is the exponentiated gradient of Kivinen and
    Warmuth (Information and Computation 132 (1997) 1-63), or entropic mirror descent (Beck and
    Teboulle, Operations Research Letters 31 (2003) 167-175), on MGDA's problem, with a step that
    the scale of the losses does not change. Gw = J d with d = Jᵀw takes one pass for d, which is
    the update, and one product, for any number of tasks; MGDA takes m passes. The update uses the
    w that d was computed with, and the next one the new w. No weight falls below 1e-6/M, so every
    task finds its way back. Absent tasks keep their part, and the active ones share the rest.

    What it gives up: the weights lag behind the gradients, so a step may hurt a task and need not
    be zero at a Pareto-stationary point. `check` tells how far it is off; `benchmarks/online.py`
    measures that on 40 and 100 conflicting tasks.

    MoDo takes the same product from two further batches, which makes it unbiased, and projects
    additively; it computes the Jacobians for it.

    The product differentiates a backward pass. Operations without a second derivative, such as
    fused attention, are refused with the way out. Train-mode BatchNorm is no hindrance.

    Args:
        rate: η > 0.
        check: every so many calls the exact solution is computed too, at the cost of m passes, and
            ‖Σ w_i g_i‖² over its minimum kept as `excess` (1 is exact; NaN before the first
            check; infinite where the minimum is zero). 0 never does.
        at: where the gradients are taken. Elsewhere than at "parameters" G is at hand, and the
            product saves nothing.

    Raises:
        ValueError: `rate` or `check` is out of range; in a call, see above.

    Example:
        >>> from evenhand import Running
        >>> g = TaskGradients.of(jacobian=torch.tensor([[3.0, 0.0], [1.0, 2.0]]))
        >>> online = Running(OnlineMinNorm(rate=1.0), g.tasks)
        >>> online(g)
        tensor([0.5000, 0.5000])
        >>> online(g)  # on the way to (1/4, 3/4)
        tensor([0.4174, 0.5826])
    """

    traits = Traits(needs="product")

    @checked
    def __init__(self, rate: float = 0.5, check: int = 0, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if not rate > 0 or check < 0:
            raise ValueError(f"rate={rate}, check={check}: must be > 0 and >= 0")
        self.rate = rate
        self.check = check
        if check:
            self.traits = replace(self.traits, needs="gramian")

    def init(self, total: int) -> State:
        """The weights w, Σw = 1 over all tasks; the last check; the number of calls."""
        return {
            "shares": equal_shares(total),
            "excess": torch.full((), torch.nan, dtype=torch.float64),
            "calls": torch.zeros((), dtype=torch.int64),
        }

    def needs(self, state: State, clock: Clock) -> Needs:
        """The product; in a call that checks, the Gramian too."""
        return "gramian" if self._checks(state) else "product"

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        shares = take(state["shares"], g).expand(*g.losses.shape)
        share = shares.sum(-1, keepdim=True)
        weights = (shares / share).to(g.losses)
        slope = g.product(weights).to(shares)
        steepest = slope.abs().amax(-1, keepdim=True)
        moved = shares * torch.exp(-self.rate * slope / torch.where(steepest > 0, steepest, 1))
        floor = 1e-6 / state["shares"].shape[-1]
        moved = (moved / moved.sum(-1, keepdim=True) * share).clamp_min(floor)
        moved = moved / moved.sum(-1, keepdim=True) * share
        excess = state["excess"]
        if self._checks(state):
            squared = (weights * slope).sum(-1).double().cpu()
            excess = (squared / min_norm(g.gramian).squared_norm).to(excess.device)
        following = {
            "shares": put(state["shares"], g, moved),
            "excess": excess,
            "calls": state["calls"] + 1,
        }
        return Outcome(weights, following)

    def _checks(self, state: State) -> bool:
        return self.check > 0 and int(state["calls"]) % self.check == 0

    def extra_repr(self) -> str:
        return f"rate={self.rate}, check={self.check}"
