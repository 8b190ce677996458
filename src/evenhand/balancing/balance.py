"""What one backward call did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from evenhand.autodiff.gradients import cosines, norms

NonFinite = Literal["raise", "skip", "leave_out"]
"""What becomes of a step in which a task's loss or gradient is NaN or infinite."""
Zero = Literal["keep", "leave_out"]
"""What becomes of a task whose gradient is exactly zero."""


@dataclass(frozen=True)
class Balance:
    """What one backward call did. Tensors are detached; what was not computed is None.

    Attributes:
        tasks: the m tasks that spoke.
        losses: their raw losses, [m].
        weights: what multiplied each task's gradient in the heads, [m].
        trunk_weights: what multiplied it in the trunk, [m]; None for an `Aggregator`, and where
            the trunk rests.
        gramian: ⟨g_i, g_j⟩, [m, m], at the place the method looked at.
        applied: False when the step was skipped: a gradient overflowed under loss scaling.
        status: the worst way a solve of this call ended, "optimal", "stationary", "inaccurate" or
            "unbounded" (see `linalg.Solution`).
        left_out: tasks whose losses or gradients were not finite, or whose gradients were zero,
            where the step was skipped or taken without them.
    """

    tasks: tuple[str, ...]
    losses: Tensor
    weights: Tensor | None = None
    trunk_weights: Tensor | None = None
    gramian: Tensor | None = None
    applied: bool = True
    status: str | None = None
    left_out: tuple[str, ...] = ()

    @cached_property
    def norms(self) -> Tensor | None:
        """‖g_i‖, [m]."""
        return None if self.gramian is None else norms(self.gramian)

    @cached_property
    def cosines(self) -> Tensor | None:
        """cos(g_i, g_j), [m, m]; zero where a gradient is zero."""
        return None if self.gramian is None else cosines(self.gramian)
