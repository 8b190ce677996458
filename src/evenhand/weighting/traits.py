"""What a method declares about itself, and how a method made from others declares theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Needs = Literal["nothing", "losses", "product", "norms", "gramian", "jacobian"]
"""What a method looks at, from the cheapest to the dearest. What is dearer includes the rest."""


@dataclass(frozen=True)
class Traits:
    """What a method needs from the loop around it, and what it promises.

    A method made from others joins theirs with `joined`.

    Attributes:
        needs: the most expensive thing that the method looks at.
        batches: how many independent batches it wants (`TaskGradients.samples` has the others).
        after: whether it wants the losses again after the update, on the same batch.
        counts_epochs: whether it looks at the clock's epoch, which a loop must then tell it.
        learned: whether it has learned weights, which an optimizer must know from the start.
        feasible: whether it promises g_i·v ≥ 0 for every task, as an aggregator.
        stationary: whether it promises v = 0 at a Pareto-stationary point, as an aggregator.
        scale_invariant: whether it promises that the direction of v does not change when the
            losses (and so their gradients) are multiplied one by one by positive factors.

    Raises:
        ValueError: `needs` is unknown, or `batches` is less than 1.
    """

    needs: Needs = "gramian"
    batches: int = 1
    after: bool = False
    counts_epochs: bool = False
    learned: bool = False
    feasible: bool = False
    stationary: bool = False
    scale_invariant: bool = False

    def __post_init__(self) -> None:
        if self.needs not in get_args(Needs):
            raise ValueError(f"needs={self.needs!r}: must be one of {', '.join(get_args(Needs))}")
        if self.batches < 1:
            raise ValueError(f"batches={self.batches}: a method looks at one batch at least")

    @property
    def reads_gradients(self) -> bool:
        """Whether the method cannot work in a phase in which the trunk is frozen."""
        return self.needs in ("product", "norms", "gramian", "jacobian")


def joined(*parts: Traits, needs: Needs = "nothing") -> Traits:
    """The traits of a method made from others, which itself looks at `needs`.

    It needs whatever a part needs, and promises what all parts promise. Where the combination
    promises less or more than that, say so with `dataclasses.replace`.

    Example:
        >>> joined(Traits(needs="losses", after=True), Traits(needs="norms"))
        Traits(needs='norms', batches=1, after=True, counts_epochs=False, learned=False, \
feasible=False, stationary=False, scale_invariant=False)
    """
    return Traits(
        needs=dearest(needs, *(part.needs for part in parts)),
        batches=max((part.batches for part in parts), default=1),
        after=any(part.after for part in parts),
        counts_epochs=any(part.counts_epochs for part in parts),
        learned=any(part.learned for part in parts),
        feasible=all(part.feasible for part in parts),
        stationary=all(part.stationary for part in parts),
        scale_invariant=all(part.scale_invariant for part in parts),
    )


def dearest(*needs: Needs) -> Needs:
    """The most expensive of these."""
    return max(needs, key=get_args(Needs).index)
