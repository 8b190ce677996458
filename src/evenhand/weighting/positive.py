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
    negative = (values < 0).reshape(-1, values.shape[-1]).any(0)
    if bool(negative.any()):
        guilty = [task for task, bad in zip(g.tasks, negative.tolist(), strict=True) if bad]
        raise ValueError(
            f"{method} takes the logarithm of the losses, which must be >= 0, or above reference= "
            f"where it has one; below are those of {', '.join(guilty)}"
        )
    return values.double().clamp_min(SMALLEST_LOSS)
