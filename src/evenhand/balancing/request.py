"""A call of a balancer as the user made it, and the same step when it has been checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from evenhand.autodiff.call import Call
from evenhand.autodiff.replay import Trunk
from evenhand.autodiff.sharing import Sharing
from evenhand.network import Nest, Outputs
from evenhand.schedules import Clock, Phase


@dataclass(frozen=True)
class Request:
    """What a user asks for; `Balancer.backward` explains each part.

    `samples` is None where nobody is to see any, and then none is missing.
    """

    losses: Mapping[str, Tensor | None]
    shared: Iterable[Tensor] | None = None
    own: Mapping[str, Iterable[Tensor]] | None = None
    features: Nest | Outputs | nn.Module | None = None
    plus: Tensor | None = None
    samples: Sequence[Mapping[str, Tensor]] | None = ()
    phase: Phase | None = None
    clock: Clock | None = None
    scale: float | Tensor | None = None
    counts: Mapping[str, float] | None = None
    retain: bool = False

    @property
    def wants_the_sum(self) -> bool:
        """Whether nothing is asked for that the backward pass of a sum of losses does not do."""
        asked = (self.phase, self.shared, self.own, self.counts)
        return all(given is None for given in asked)


@dataclass(frozen=True)
class Step:
    """One call, as far as it is known before anything is differentiated.

    Attributes:
        tasks: all tasks.
        call: the active ones and their losses.
        sharing: whose the leaves are that they reach.
        clock: when.
        features, outputs: the representation as the user gave it.
        samples: losses on further batches; None where nobody is to see any.
        counts: how many labels each loss is the mean of, or None.
        trunk: how the features can be made again, where that was recorded.
    """

    tasks: tuple[str, ...]
    call: Call
    sharing: Sharing
    clock: Clock
    features: Sequence[Tensor]
    outputs: Outputs | None
    samples: Sequence[Mapping[str, Tensor]] | None
    counts: Mapping[str, float] | None
    trunk: Trunk | None = None
