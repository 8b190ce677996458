"""What a method is: a function of the tasks' gradients, and of a state that it gets and returns.

A `Weighting` gives one weight per task, an `Aggregator` a direction. One without a state says
`weigh(g)` or `merge(g)`, and nothing else. One with a state makes the first one in `init`, gets the
present one as an argument and returns the next:

    outcome = method.advance(g, state)        # value, state, solves
    gradients = method.learn(g, state)        # of its learned weights, if it has any
    state = method.after(losses, state)       # the losses after the update, if it wants them

All three change nothing. The `Balancer` holds the state, and replaces it once the step stands.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from evenhand.autodiff.gradients import PLACES, Place, TaskGradients
from evenhand.linalg.solution import SEVERITY, TOLERANCE, Solution
from evenhand.schedules import Clock
from evenhand.weighting.state import State, moved
from evenhand.weighting.traits import Needs, Traits, dearest

Gradients = dict[nn.Parameter, Tensor]
"""The gradient of each learned weight that has one in a call."""


class Solved(NamedTuple):
    """Weights, and the solution of the problem that they were found by."""

    weights: Tensor
    solution: Solution


class Outcome(NamedTuple):
    """What a method made of one call.

    Attributes:
        value: the weights [..., m] of a weighting, the direction [..., n] of an aggregator.
        state: the next state.
        solves: the solutions that the value rests on, with their certificates.
    """

    value: Tensor
    state: State
    solves: tuple[Solution, ...] = ()


def worst(solves: Sequence[Solution]) -> str | None:
    """The worst status of these solves (see `linalg.Solution`); None if there are none."""
    return max((solve.status for solve in solves), key=SEVERITY.index, default=None)


def warn_of(method: Method, solves: Sequence[Solution]) -> bool:
    """Warn of a solve that missed its tolerance, if one did; say whether there was one."""
    missed = [(float(s.gap.max()), s.iterations) for s in solves if s.status == "inaccurate"]
    if missed:
        gap, iterations = max(missed)
        warnings.warn(
            f"{type(method).__name__}: a solve ended {gap:.1e} from its optimum after "
            f"{iterations} iterations, further than {TOLERANCE:.0e} and than the rounding of its "
            "Gramian accounts for; its weights are used. "
            "A balancer says this once; Balance.status says how each step's solves ended",
            RuntimeWarning,
            stacklevel=3,
        )
    return bool(missed)


class Method(nn.Module, ABC):
    """What weightings and aggregators have in common: a place, a state, traits.

    Attributes:
        at: the place at which gradients are looked at.
        traits: what the method needs and promises.
    """

    traits: Traits = Traits()

    def __init__(self, *, at: Place = "parameters") -> None:
        super().__init__()
        if at not in PLACES and not callable(at):
            raise ValueError(f"at={at!r}: must be one of {', '.join(PLACES)}, or a callable")
        self.at: Place = at

    def require(self, tasks: Sequence[str]) -> None:
        """Raise ValueError unless the method can serve these tasks. Any will do by default."""

    def init(self, total: int) -> State:
        """The first state, for `total` tasks. None is needed by default."""
        return {}

    def needs(self, state: State, clock: Clock) -> Needs:
        """The most expensive thing that the next call will look at: at most `traits.needs`."""
        return self.traits.needs

    def advance(self, g: TaskGradients, state: State) -> Outcome:
        """The value for g, whatever place g looks at, and the next state.

        Raises:
            AttributeError: the method has set an attribute of its own on the way. That would
                outlive a step that fails, and a checkpoint would miss it.
        """
        with self._unchanging():
            return self._outcome(g.at(self.at), state)

    def forward(self, g: TaskGradients) -> Tensor:
        """The value for g in a first call, from the state that `init` makes.

        `Running` goes on from call to call.
        """
        outcome = self.advance(g, moved(self.init(g.total), g.losses.device))
        warn_of(self, outcome.solves)
        return outcome.value

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        """The gradients of the learned weights in `state`, which `advance` got with the same g."""
        return {}

    def after(self, losses: TaskGradients, state: State) -> State:
        """The next state, given the losses after the update (g with losses alone)."""
        return state

    @abstractmethod
    def _outcome(self, g: TaskGradients, state: State) -> Outcome:
        """What `advance` gives, from gradients at the method's own place."""

    @contextmanager
    def _unchanging(self) -> Iterator[None]:
        before = self.__dict__.get("_calculating", False)
        self.__dict__["_calculating"] = True
        try:
            yield
        finally:
            self.__dict__["_calculating"] = before

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_calculating", False):
            raise AttributeError(
                f"{type(self).__name__} sets self.{name} while it looks at gradients: it would "
                "stay if the step fails, and a checkpoint would miss it. Make it part of the "
                "state: see StatefulWeighting"
            )
        super().__setattr__(name, value)


class Weighting(Method):
    """TaskGradients -> task weights [..., m]. A method without a state implements `weigh`.

    Serves two slots of a `Balancer`: as `weighting` its weights multiply the losses everywhere,
    as `aggregator` they combine the gradients of the trunk alone.

    Example:
        >>> class InverseNorms(Weighting):
        ...     def weigh(self, g):
        ...         return 1 / g.norms
    """

    @abstractmethod
    def weigh(self, g: TaskGradients) -> Tensor | Solved:
        """The weights of the active tasks, from gradients at the method's own place.

        Where a solver found them, its solution goes with them, as `Solved`.
        """

    def _outcome(self, g: TaskGradients, state: State) -> Outcome:
        found = self.weigh(g)
        if isinstance(found, Solved):
            return Outcome(found.weights, state, (found.solution,))
        return Outcome(found, state)


class StatefulWeighting(Weighting):
    """A weighting that goes on from call to call. It implements `init` and `weigh_from`.

    Example:
        >>> import torch
        >>> class Patient(StatefulWeighting):
        ...     def init(self, total):
        ...         return {"calls": torch.zeros((), dtype=torch.int64)}
        ...
        ...     def weigh_from(self, g, state):
        ...         return Outcome(g.losses / (1 + state["calls"]), {"calls": state["calls"] + 1})
    """

    @abstractmethod
    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        """The weights and the next state, from gradients at the method's own place."""

    def weigh(self, g: TaskGradients) -> Tensor | Solved:
        """The weights in a first call."""
        return self.weigh_from(g, moved(self.init(g.total), g.losses.device)).value

    def _outcome(self, g: TaskGradients, state: State) -> Outcome:
        return self.weigh_from(g, state)


class Wrapper(StatefulWeighting):
    """A weighting made from another one, whose place is the base's and whose state holds its.

    Args:
        base: the other one.
        needs: what the wrapper itself looks at.
    """

    def __init__(self, base: Weighting, *, needs: Needs = "nothing") -> None:
        super().__init__(at=base.at)
        self.base = base
        self.looks_at = needs

    def require(self, tasks: Sequence[str]) -> None:
        self.base.require(tasks)

    def init(self, total: int) -> State:
        """The base's state, under "base"."""
        return {"base": self.base.init(total)}

    def needs(self, state: State, clock: Clock) -> Needs:
        return dearest(self.looks_at, self.base.needs(state["base"], clock))

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        return self.base.learn(g, state["base"])

    def after(self, losses: TaskGradients, state: State) -> State:
        return {**state, "base": self.base.after(losses, state["base"])}
