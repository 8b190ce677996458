"""How much each task counts, for the methods whose papers let a user say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Weighting


class Preferring(Weighting):
    """A weighting with a preference p: one number per task, by default 1/M for all M tasks.

    A task that is absent from a call takes its share with it; the others keep theirs.

    Args:
        preference: finite numbers >= 0 for every task, one of them > 0. They need not sum to 1.

    Raises:
        ValueError: a number is negative or not finite, all are zero, or (when the tasks become
            known) a task has no number or a number has no task.
    """

    @checked
    def __init__(
        self, preference: Mapping[str, float] | None = None, *, at: Place = "parameters"
    ) -> None:
        super().__init__(at=at)
        if preference is not None:
            wrong = {t: p for t, p in preference.items() if not (math.isfinite(p) and p >= 0)}
            if wrong:
                raise ValueError(f"preferences must be finite and >= 0, got {wrong}")
            if not any(preference.values()):
                raise ValueError(f"one preference must be > 0, got {dict(preference)}")
        self.preference = None if preference is None else dict(preference)

    def require(self, tasks: Sequence[str]) -> None:
        if self.preference is not None and set(tasks) != set(self.preference):
            raise ValueError(
                f"preferences for {', '.join(self.preference)}, "
                f"but the tasks are {', '.join(tasks)}: give one number for each"
            )
        super().require(tasks)

    def preferred(self, g: TaskGradients) -> Tensor:
        """P of the active tasks, [..., m], float64."""
        known = self.preference
        shares = [1 / g.total if known is None else known[task] for task in g.tasks]
        p = torch.tensor(shares, dtype=torch.float64, device=g.losses.device)
        return p.expand_as(g.losses)

    def extra_repr(self) -> str:
        return "" if self.preference is None else f"preference={self.preference}"
