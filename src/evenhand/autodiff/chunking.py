"""How many tasks' passes through the trunk are taken at once.

One by one is always right and usually fastest on a processor that a single pass keeps busy. A pass
that is vectorised over a chunk of tasks starts each operation once for all of them, which pays
where the network is small or the device wide; it holds the chunk's gradients by every activation
at once, and rounds differently in the last bits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from evenhand.text import quoted

if TYPE_CHECKING:  # what is asked for is checked without torch: the tool refuses mistakes at once
    from torch import Tensor

    from evenhand.autodiff.jacobian import Jacobian

JacobianMode = Literal["looped", "batched", "measured"] | int
MOST = 1_000_000
"""A larger chunk is a mistake."""
GAIN = 0.95
"""A larger chunk must take less than this share of the time of the one before."""


class Passes(Protocol):
    """What can take the m gradients in chunks of tasks."""

    tasks: tuple[str, ...]
    shared: list[Tensor]

    def taken(self, targets: Sequence[Tensor], chunk: int) -> Jacobian: ...


class Chunking:
    """The size of a chunk, as asked for or measured once.

    Args:
        wanted: "looped" (one task at a time), "batched" (all), the size of a chunk, or "measured":
            at the first call sizes 1, 2, 8, 32, … are timed until the next is not faster.

    Attributes:
        measured: the size that measuring found; None before.

    Raises:
        ValueError: `wanted` is something else.
    """

    def __init__(self, wanted: JacobianMode) -> None:
        number = isinstance(wanted, int) and not isinstance(wanted, bool) and 1 <= wanted <= MOST
        if not number and wanted not in ("looped", "batched", "measured"):
            raise ValueError(
                f"jacobian={quoted(wanted)}: must be 'looped', 'batched', 'measured' or the "
                "number of tasks to differentiate at once"
            )
        self.wanted = wanted
        self.measured: int | None = None

    def __call__(self, passes: Passes) -> int:
        """The size for this graph."""
        match self.wanted:
            case "looped":
                return 1
            case "batched":
                return len(passes.tasks)
            case "measured":
                if self.measured is None:
                    self.measured = _fastest(passes)
                return self.measured
            case size:
                return size


def _fastest(passes: Passes) -> int:
    best, least = 1, _seconds(passes, 1)
    size = 2
    while best * 4 >= size and best < len(passes.tasks):
        try:
            seconds = _seconds(passes, size)
        except ValueError:  # this network cannot be differentiated so
            break
        if seconds > GAIN * least:
            break
        best, least = size, seconds
        size *= 4
    return best


def _seconds(passes: Passes, chunk: int) -> float:
    """The time of the m passes and their Gramian, the better of two after one to warm up."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        float(passes.taken(passes.shared, chunk).gramian().sum())  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])
