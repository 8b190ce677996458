"""The coordinate-wise trimmed mean."""

from __future__ import annotations

from torch import Tensor

from evenhand.aggregation.base import Aggregator
from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients


class TrimmedMean(Aggregator):
    """In every coordinate the mean of the entries without the `trim` largest and smallest.

    Yin et al., "Byzantine-Robust Distributed Learning" (ICML 2018), the coordinate-wise trimmed
    mean, where `trim` is β m. Made for workers of which some may lie, it keeps a few corrupted
    tasks (a broken label set) from steering. ``trim=0`` is the mean, the largest possible `trim`
    the median of an odd number of tasks. TorchJD agrees.

    Args:
        trim: how many entries to leave out at either end, >= 0.

    Raises:
        ValueError: trim is negative, or (in a call) fewer than 2·trim + 1 tasks are active.

    Example:
        >>> import torch
        >>> jacobian = torch.tensor([[1.0, 5.0], [2.0, 0.0], [9.0, 1.0]])
        >>> TrimmedMean()(TaskGradients.of(jacobian=jacobian))
        tensor([2., 1.])
    """

    @checked
    def __init__(self, trim: int = 1, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if trim < 0:
            raise ValueError(f"trim={trim}: must be >= 0")
        self.trim = trim

    def merge(self, g: TaskGradients) -> Tensor:
        m = len(g.tasks)
        if m <= 2 * self.trim:
            raise ValueError(
                f"TrimmedMean(trim={self.trim}) needs at least {2 * self.trim + 1} tasks "
                f"in a call, and {m} are active"
            )
        ordered = g.jacobian.sort(dim=-2).values
        return ordered.narrow(-2, self.trim, m - 2 * self.trim).mean(-2)

    def extra_repr(self) -> str:
        return f"trim={self.trim}"
