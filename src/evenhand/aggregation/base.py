"""What an aggregator is: TaskGradients -> a direction [n]."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Method, Outcome
from evenhand.weighting.state import State, moved
from evenhand.weighting.traits import Traits


class Aggregator(Method):
    """TaskGradients -> direction [..., n]; an update subtracts it.

    A method without a state implements `merge`.
    """

    traits = Traits(needs="jacobian")

    def __init__(self, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if at not in ("parameters", "representation"):
            raise ValueError(
                f"at={at!r}: an aggregator gives a direction for all shared parameters; "
                "at must be 'parameters' or 'representation'"
            )

    @abstractmethod
    def merge(self, g: TaskGradients) -> Tensor:
        """The direction, from gradients at the method's own place."""

    def _outcome(self, g: TaskGradients, state: State) -> Outcome:
        return Outcome(self.merge(g), state)


class StatefulAggregator(Aggregator):
    """An aggregator that goes on from call to call. It implements `init` and `merge_from`."""

    @abstractmethod
    def merge_from(self, g: TaskGradients, state: State) -> Outcome:
        """The direction and the next state, from gradients at the method's own place."""

    def merge(self, g: TaskGradients) -> Tensor:
        """The direction in a first call."""
        return self.merge_from(g, moved(self.init(g.total), g.losses.device)).value

    def _outcome(self, g: TaskGradients, state: State) -> Outcome:
        return self.merge_from(g, state)
