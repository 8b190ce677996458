"""Losses for the methods that divide by them or take their logarithm."""

from __future__ import annotations

from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients

SMALLEST_LOSS = 1e-12
"""A loss below this counts as this wherever a method divides by it or takes its logarithm.

So a task that is solved has a weight, and a finite one.
"""


def positive(values: Tensor, g: TaskGradients, method: str) -> Tensor:
    """`values` [..., m] (losses, or what they exceed a bound by), float64 and at least 1e-12.

    Raises:
        ValueError: a value is negative; the message names the tasks.
    """
    if guilty := below_zero(values, g):
        raise ValueError(
            f"{method} takes the logarithm of the losses, which must be >= 0, or above reference= "
            f"where it has one; below are those of {', '.join(guilty)}"
        )
    return values.double().clamp_min(SMALLEST_LOSS)


def require_bounded(g: TaskGradients, method: str) -> None:
    """For methods whose learned weights would grow without end where a loss is negative.

    Raises:
        ValueError: a loss is negative; the message names the tasks.
    """
    if guilty := below_zero(g.losses, g):
        raise ValueError(
            f"{method} learns weights by an objective that has no minimum where a loss is "
            f"negative; below zero are those of {', '.join(guilty)}: add a constant that bounds "
            "them, or take another method"
        )


def below_zero(values: Tensor, g: TaskGradients) -> list[str]:
    """The tasks with a negative value in any network of a stack."""
    negative = (values < 0).reshape(-1, values.shape[-1]).any(0)
    if not bool(negative.any()):
        return []
    return [task for task, bad in zip(g.tasks, negative.tolist(), strict=True) if bad]
