"""Weights refreshed every k steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.schedules import Clock
from evenhand.weighting.base import Gradients, Outcome, Weighting, Wrapper
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Needs, joined


class Every(Wrapper):
    """The base's weights, solved at every `steps`-th call and repeated in between.

    Between two solves nothing is asked of the gradients, so a call costs one backward pass; the
    weights are then up to ``steps - 1`` calls old, and what the base promises about the current
    gradients (a feasible direction, say) holds at the solves only. A call in which a task is active
    that has no weight yet solves at once. The base's history advances at the solves. Nash-MTL's
    released code offers the same under the name update_weights_every.

    Raises:
        ValueError: `steps` is less than 1.

    Example:
        >>> from evenhand import MGDA, Balancer
        >>> lazy = Balancer(aggregator=Every(MGDA(), steps=10))
    """

    @checked
    def __init__(self, base: Weighting, steps: int) -> None:
        super().__init__(base)
        if steps < 1:
            raise ValueError(f"steps={steps}: must be at least 1")
        self.steps = steps
        self.traits = joined(base.traits)
        if steps > 1:
            self.traits = replace(self.traits, feasible=False, stationary=False)

    def init(self, total: int) -> State:
        """The number of calls since the last solve, and its weights; none are known yet."""
        known = torch.full((total,), torch.nan, dtype=torch.float64)
        return super().init(total) | {"age": torch.zeros((), dtype=torch.int64), "known": known}

    def needs(self, state: State, clock: Clock) -> Needs:
        """Nothing between two solves, once every task has a weight; else what the base needs."""
        if int(state["age"]) > 0 and not bool(state["known"].isnan().any()):
            return "nothing"
        return super().needs(state, clock)

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        """What the base learns at a solve, and nothing in between."""
        return {} if self._repeats(g, state) else super().learn(g, state)

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        age, known = state["age"], state["known"]
        if self._repeats(g, state):
            old = take(known, g).to(g.losses)
            return Outcome(old, {**state, "age": (age + 1) % self.steps})
        weights, base, solves = self.base.advance(g, state["base"])
        following = {
            "age": torch.ones_like(age) % self.steps,
            "known": put(known, g, weights),
            "base": base,
        }
        return Outcome(weights, following, solves)

    def _repeats(self, g: TaskGradients, state: State) -> bool:
        return int(state["age"]) > 0 and not bool(take(state["known"], g).isnan().any())
