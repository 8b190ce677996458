"""What an aggregator is: TaskGradients -> a direction [n]."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Method


class Aggregator(Method):
    """TaskGradients -> direction [n] at the method's place. Methods implement `merge`."""

    needs = "jacobian"

    def __init__(self, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if at not in ("parameters", "representation"):
            raise ValueError(
                f"at={at!r}: an aggregator gives a direction for all shared parameters; "
                "at must be 'parameters' or 'representation'"
            )

    def forward(self, g: TaskGradients) -> Tensor:
        """The direction, [..., n]; an update subtracts it."""
        return self.merge(g.at(self.at))

    @abstractmethod
    def merge(self, g: TaskGradients) -> Tensor:
        """The direction, from gradients at the method's own place."""
