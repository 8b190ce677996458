"""How much of an examination fits into a time, measured on the problem itself.

What was left out is told: a source of any size has its answer in about the time that was given, and
the answer says what it rests on. Where the time suffices, nothing here changes a number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from evenhand.comparison.budget import duration
from evenhand.doctor.agreement import FEWEST
from evenhand.doctor.ladder import Effort

USUAL, VERIFYING = 60.0, 1800.0
"""Seconds where nothing is said: to look, and to verify."""
COSTS, LOOKS = 0.2, 0.7
"""Shares of the time for measuring what methods cost, and for looking at gradients."""
STAGES = 4.0
"""The whole ladder takes about so many times its first rung."""
SHORTEST = 20
"""Steps: a shorter training shows nothing of what becomes of gradients."""


class Clock:
    """What is left of a time, by the wall."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun = time.perf_counter()

    def left(self) -> float:
        """Seconds, negative when it is over."""
        return self.seconds - (time.perf_counter() - self._begun)

    def __str__(self) -> str:
        return duration(self.seconds)


@dataclass(frozen=True)
class Extent:
    """How much is looked at.

    Attributes:
        steps: of the plain sum between the first look and the last; 0 where there is one look.
        looks: how many.
        batches: of each look.
    """

    steps: int
    looks: int
    batches: int

    def seconds(self, step: float, tasks: int) -> float:
        """What it takes, if a step of the plain sum takes `step` seconds.

        A batch of a look takes about as long as tasks + 3 steps: the passes that find what is
        shared, each task's backward pass, and a forward pass after the step of each task.
        """
        return step * (self.steps + self.looks * self.batches * (tasks + 3))


def extent(wanted: Extent, step: float, tasks: int, seconds: float) -> Extent | None:
    """As much of what is wanted as fits into a time; None where not even one look does.

    Args:
        wanted: all of it.
        step: seconds of a step of the plain sum, reading its batch included.
        tasks: how many.
        seconds: that there are.

    Example:
        >>> extent(Extent(600, 3, 16), step=0.01, tasks=2, seconds=40)
        Extent(steps=600, looks=3, batches=16)
        >>> extent(Extent(600, 3, 16), step=0.2, tasks=2, seconds=40)
        Extent(steps=80, looks=3, batches=8)
        >>> extent(Extent(600, 3, 16), step=1.0, tasks=2, seconds=40)
        Extent(steps=0, looks=1, batches=8)
        >>> extent(Extent(600, 3, 16), step=5.0, tasks=2, seconds=40)
    """
    if wanted.seconds(step, tasks) <= seconds:
        return wanted
    fewer = min(wanted.batches, 2 * FEWEST)
    for batches in (wanted.batches, fewer, FEWEST):
        looks = replace(wanted, steps=0, batches=batches).seconds(step, tasks)
        steps = int((seconds - looks) / step)
        if looks <= 0.6 * seconds and steps >= SHORTEST:
            return Extent(min(wanted.steps, steps), wanted.looks, batches)
    for batches in (wanted.batches, fewer, FEWEST):
        once = Extent(0, 1, batches)
        if once.seconds(step, tasks) <= seconds:
            return once
    return None


def affordable(
    wanted: Effort, seconds_of: Callable[[Effort], float], seconds: float
) -> tuple[Effort | None, tuple[str, ...]]:
    """An effort whose first rung leaves time for the others, and what was given up for it.

    Given up, in this order: rates but the middle one; splits beyond 3; epochs, down to a third;
    splits beyond 2. None where that is still too much.

    Args:
        wanted: all of it.
        seconds_of: what the first rung takes.
        seconds: that there are for all rungs.
    """
    rates = sorted(wanted.rates)
    middle = replace(wanted, rates=(rates[(len(rates) - 1) // 2],))
    three = replace(middle, splits=min(3, wanted.splits))
    shorter = replace(three, epochs=max(1, wanted.epochs // 3))
    least = replace(shorter, splits=2)
    for effort in (wanted, middle, three, shorter, least):
        if STAGES * seconds_of(effort) <= seconds:
            return effort, _given_up(wanted, effort)
    return None, ()


def _given_up(wanted: Effort, kept: Effort) -> tuple[str, ...]:
    pairs: Sequence[tuple[str, int, int]] = (
        ("rates", len(wanted.rates), len(kept.rates)),
        ("splits", wanted.splits, kept.splits),
        ("epochs", wanted.epochs, kept.epochs),
    )
    return tuple(f"{all_ - left} of {all_} {what}" for what, all_, left in pairs if left < all_)
