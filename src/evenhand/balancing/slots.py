"""The two methods of a balancer, composed: what a call's gradients come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from evenhand.aggregation import Aggregator
from evenhand.autodiff.accumulation import Accumulated
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.autodiff.passes import Passes, Update
from evenhand.balancing.balance import Balance
from evenhand.linalg.solution import Solution
from evenhand.schedules import Clock
from evenhand.weighting.base import Gradients, Method, Outcome, Weighting, worst
from evenhand.weighting.state import State, put, take

if TYPE_CHECKING:
    from evenhand.distributed.fully_sharded import ShardedPasses

Differentiated = Union[Passes, Accumulated, "ShardedPasses"]
"""Where an update comes from: the passes of one batch, or the sums of several."""


@dataclass(frozen=True)
class Solved:
    """What a step comes to: nothing is changed yet.

    Attributes:
        update: the gradients of the network's leaves.
        learned: those of the learned weights.
        balance: what to tell.
        state: the methods' next state; None for a step that is skipped.
        clock: when it was.
        solves: for each slot that was asked, how its solves ended.
        sharers: the positions of the tasks that share something; None if all do.
        unfreed: whether passes have left a part of the graph: of heads, and of the trunk.
    """

    update: Update
    learned: Gradients
    balance: Balance
    state: State | None
    clock: Clock
    solves: Mapping[str, Sequence[Solution]]
    sharers: Sequence[int] | None = None
    unfreed: tuple[bool, bool] = False, False


@dataclass(frozen=True)
class _Answer:
    """What a slot's method made of a call, and the gradients of its learned weights."""

    outcome: Outcome
    gradients: Gradients


@dataclass(frozen=True, eq=False)
class Slots:
    """A weighting, which scales the losses everywhere, and an aggregator, which merges the trunk's.

    Either may be None and then changes nothing. The state of both is a tree with a branch for each
    slot, beside `last_weights`, those of the weighting in each task's last call.
    """

    weighting: Weighting | None
    aggregator: Weighting | Aggregator | None

    @cached_property
    def by_name(self) -> dict[str, Method]:
        """What the slots hold."""
        slots = {"weighting": self.weighting, "aggregator": self.aggregator}
        return {name: method for name, method in slots.items() if method is not None}

    @cached_property
    def methods(self) -> list[Method]:
        """The same, without names."""
        return list(self.by_name.values())

    @cached_property
    def _nested(self) -> list[Method]:
        return [m for slot in self.methods for m in slot.modules() if isinstance(m, Method)]

    # What they want ---------------------------------------------------------------------------

    @cached_property
    def further_batches(self) -> int:
        """How many batches beside the first they want to see."""
        return max((method.traits.batches for method in self.methods), default=1) - 1

    @cached_property
    def looks_at_features(self) -> bool:
        """Whether some method looks at the representation."""
        return any(method.at == "representation" for method in self._nested)

    @cached_property
    def looks_nowhere_else(self) -> bool:
        """Whether no method looks at gradients anywhere but at the representation."""
        reading = [method for method in self._nested if method.traits.reads_gradients]
        return all(method.at == "representation" for method in reading)

    @cached_property
    def merges_features(self) -> bool:
        """Whether a direction is made at the representation, so that the trunk is needed later."""
        aggregator = self.aggregator
        return isinstance(aggregator, Aggregator) and aggregator.at == "representation"

    @cached_property
    def keeps_features(self) -> bool:
        """Whether the tasks' gradients by the representation are wanted themselves."""
        wanted = any(method.traits.needs == "jacobian" for method in self._nested)
        return self.merges_features or (self.looks_at_features and wanted)

    @cached_property
    def places(self) -> list[Place]:
        """Where the slots look."""
        return [method.at for method in self.methods]

    # What they remember -----------------------------------------------------------------------

    def init(self, total: int) -> State:
        """The state before the first call, for so many tasks."""
        last = torch.ones(total, dtype=torch.float64)
        return {"last_weights": last} | {n: m.init(total) for n, m in self.by_name.items()}

    def after(self, view: TaskGradients, state: State) -> State:
        """The state after an update, from the losses on the same batch."""
        last = take(state["last_weights"], view).to(view.losses)
        weighted = view.scaled(last.expand_as(view.losses))
        seen = {"weighting": view, "aggregator": weighted}
        changed = {name: m.after(seen[name], state[name]) for name, m in self.by_name.items()}
        return {**state, **changed}

    # What they make of a call -----------------------------------------------------------------

    def weights_by_losses(self, view: TaskGradients, state: State) -> Tensor | None:
        """The weighting's weights, [..., m], where losses alone decide them; else None."""
        if self.weighting is None or self.weighting.traits.reads_gradients:
            return None
        return self.weighting.advance(view, state["weighting"]).value

    def solve(self, source: Differentiated, view: TaskGradients, state: State) -> Solved:
        """The update of a step, and the state after it.

        The weighting sees the raw losses and gradients. What it answers, c, scales both for the
        aggregator, whose answer w then makes w∘c of the trunk's gradients and c of all others.
        Methods that look at gradients see the tasks that share something in this step. One that
        shares nothing has no gradient to balance: it keeps its last c, and its w is 0.

        Raises:
            NonFiniteError: a gradient is NaN or infinite.
        """
        balanced = bool(source.shared)
        sharers = _sharers(source)
        answers: dict[str, _Answer] = {}
        weights: Tensor | None = None
        if self.weighting is not None:
            weights = take(state["last_weights"], view).to(view.losses).expand_as(view.losses)
            reads = self.weighting.traits.reads_gradients
            if balanced or not reads:
                answer = self._ask("weighting", view, state, sharers if reads else None)
                answers["weighting"] = answer
                weights = _among_all(answer.outcome.value, weights, sharers if reads else None)
        trunk, aggregator = weights, self.aggregator
        if aggregator is not None and aggregator.traits.reads_gradients and not balanced:
            aggregator = None  # one that reads losses goes on, though its weights move nothing
        if aggregator is None:
            update = source.in_span(None, weights)
        else:
            weighted = view if weights is None else view.scaled(weights)
            some = sharers if aggregator.traits.reads_gradients else None
            answers["aggregator"] = self._ask("aggregator", weighted, state, some)
            merged = answers["aggregator"].outcome.value
            if isinstance(aggregator, Aggregator):
                trunk = None
                update = source.off_span(merged, aggregator.at, weights)
            else:
                if some is not None:
                    merged = _among_all(merged, torch.zeros_like(view.losses), some)
                trunk = merged if weights is None else merged * weights
                update = source.in_span(trunk, weights)
        update = source.settled(update)
        source.require_finite(update)
        heads = torch.ones_like(view.losses) if weights is None else weights
        if not balanced:
            trunk = None
        elif self.aggregator is None and trunk is None:
            trunk = heads
        learned: Gradients = {}
        changed: State = {}
        if weights is not None:
            changed["last_weights"] = put(state["last_weights"], view, weights.detach())
        for name, answer in answers.items():
            if answer.outcome.state is not state[name]:
                changed[name] = answer.outcome.state
            learned |= answer.gradients
        after = {**state, **changed} if changed else state
        solves = {name: answer.outcome.solves for name, answer in answers.items()}
        balance = self._told_of(source, view, heads, trunk, solves)
        left = source.unfreed
        return Solved(update, learned, balance, after, view.clock, solves, sharers, left)

    def _ask(
        self, slot: str, g: TaskGradients, state: State, sharers: Sequence[int] | None
    ) -> _Answer:
        """What the method in a slot makes of a call; it changes nothing."""
        if sharers is not None:
            g = g.among(sharers)
        method, mine = self.by_name[slot], state[slot]
        return _Answer(method.advance(g, mine), method.learn(g, mine))

    def _told_of(
        self,
        source: Differentiated,
        view: TaskGradients,
        heads: Tensor,
        trunk: Tensor | None,
        solves: Mapping[str, Sequence[Solution]],
    ) -> Balance:
        return Balance(
            tasks=view.tasks,
            losses=view.losses,
            weights=heads,
            trunk_weights=trunk,
            gramian=source.known_gramian(*self.places),
            status=worst([solve for ended in solves.values() for solve in ended]),
            left_out=source.call.left_out,
        )


def _sharers(source: Differentiated) -> list[int] | None:
    """The positions, among the active tasks, of those that share something; None if all do."""
    mask = source.sharers
    found = [at for at, k in enumerate(source.call.index) if mask >> k & 1]
    return found if 0 < len(found) < len(source.call.index) else None


def _among_all(value: Tensor, others: Tensor, positions: Sequence[int] | None) -> Tensor:
    """Values [..., k] at some positions among others [..., m]."""
    if positions is None:
        return value
    at = torch.tensor(positions, device=value.device)
    others = others.to(value).expand(*value.shape[:-1], others.shape[-1])
    return others.index_copy(-1, at, value)
