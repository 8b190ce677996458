"""What ranks of a data-parallel run agree by: all that they must agree on passes a `Reducer`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evenhand.autodiff.gradients import Gradient
from evenhand.autodiff.jacobian import Jacobian


class Reducer:
    """What ranks of a data-parallel run agree by; this one is alone.

    Gradients by parameters are means over ranks. Of the representation, each rank has the part
    that its samples are.

    Attributes:
        alone: whether there is no other process, so that nothing need be replaced by its mean.
    """

    alone = True

    @property
    def hands_over(self) -> bool:
        """Whether a wrapper of the model reduces some gradients after the step."""
        return False

    def reduced(self, jacobian: Jacobian) -> Jacobian:
        """The mean over ranks of all tasks' gradients."""
        return jacobian

    def combined(self, jacobian: Jacobian, weights: Tensor) -> tuple[Gradient, bool]:
        """A combination of the tasks' gradients, and whether it is the mean over ranks already."""
        return jacobian.combined(weights), True

    def gradient(self, found: Gradient, leaves: Sequence[Tensor]) -> list[Tensor | None]:
        """The mean over ranks of a gradient by these leaves."""
        return list(found)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks of a value that all have."""
        return value

    def gramian_of_features(self, gramian: Tensor) -> Tensor:
        """G at the representation of all ranks' samples, from that of this rank's."""
        return gramian

    def features_of_all(self, jacobian: Tensor, sizes: Sequence[int]) -> Tensor:
        """J at the representation of all ranks' samples, [..., m, n].

        Args:
            jacobian: this rank's, the columns of one feature tensor after the other.
            sizes: how many columns each has.
        """
        return jacobian

    def features_here(self, direction: Tensor, sizes: Sequence[int]) -> Tensor:
        """This rank's part of a direction at the representation of all ranks' samples."""
        return direction

    def features_in_all(self, size: int) -> int:
        """How many coordinates the representation has on all ranks."""
        return size

    def settled(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        agreed: frozenset[int],
    ) -> list[Tensor | None]:
        """What each leaf is to be handed; `agreed` are those (by identity) that are means already.

        A leaf whose gradients a wrapper reduces is handed this rank's own.
        """
        return list(gradients)

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether some rank has set it."""
        return list(flags)
