"""What tasks share: one trunk, or a network for each, tied by a penalty or mixed between layers.

The functions here make what a recipe has as its `network`: they take the problem's own network,
with one trunk and a head for each task, for the measure of every column.
"""

from __future__ import annotations

from evenhand.arguments import checked
from evenhand.sharing.base import HardSharing, Sharing
from evenhand.sharing.columns import Columns, Size, Start
from evenhand.sharing.stitched import CrossStitchNetwork, Stitched
from evenhand.sharing.tied import Tied, TiedNetwork
from evenhand.sharing.ties import Flattening, SquaredDistance, Tie, TraceNorm

__all__ = [
    "Columns",
    "CrossStitchNetwork",
    "HardSharing",
    "Sharing",
    "SquaredDistance",
    "Stitched",
    "Tie",
    "Tied",
    "TiedNetwork",
    "TraceNorm",
    "cross_stitch",
    "hard_sharing",
    "soft_sharing",
    "trace_norm_sharing",
]


@checked
def hard_sharing(width: float = 1.0) -> HardSharing:
    """One trunk for all tasks: the problem's own network, so many times as wide."""
    return HardSharing(width)


@checked
def soft_sharing(weight: float = 1e-3, *, size: Size = "full", start: Start = "same") -> Tied:
    """A network for each task, tied by the squared distance of their trunks: `SquaredDistance`.

    Args:
        weight: λ.
        size, start: as in `Columns`.

    Raises:
        ValueError: one of them is out of range.
    """
    return Tied(size, start, SquaredDistance(weight))


@checked
def trace_norm_sharing(
    weight: float = 1e-3,
    flattening: Flattening = "laf",
    *,
    size: Size = "full",
    start: Start = "same",
) -> Tied:
    """A network for each task, tied by the trace norm of their stacked trunks: `TraceNorm`.

    Args:
        weight: λ.
        flattening: "laf", "tucker" or "tt".
        size, start: as in `Columns`.

    Raises:
        ValueError: one of them is out of range.
    """
    return Tied(size, start, TraceNorm(weight, flattening))


@checked
def cross_stitch(own: float = 0.9, *, size: Size = "full", start: Start = "same") -> Stitched:
    """A network for each task, mixed behind every stage: `CrossStitchNetwork`.

    Args:
        own: α_ii at the beginning.
        size, start: as in `Columns`.

    Raises:
        ValueError: one of them is out of range.
    """
    return Stitched(size, start, own)
