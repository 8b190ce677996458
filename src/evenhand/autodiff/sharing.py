"""Whose the leaves are that the losses of one call reach: what a call of a balancer rests on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from evenhand.network import Reading


@dataclass
class Sharing:
    """Whose the leaves are that the losses of one call reach, and that train in it.

    Attributes:
        balanced: the leaves whose gradients methods look at and combine.
        carried: leaves that several tasks have reached and that are no parameters, beside others
            that are (inputs that a physics-informed loss differentiates by): their gradients are
            combined like those of the balanced ones, and nobody looks at them.
        beyond: those of both that do not lie behind the features.
        alone: for each active task, the other leaves that no other active task reaches.
        common: the other leaves that several active tasks reach, each with the mask of the active
            tasks whose gradients it gets.
        extra: leaves that `plus` alone reaches.
        frozen: leaves that get no gradient in a named phase.
        features: what every path from a loss to a balanced leaf behind it passes, or None.
        readings: how the head of each active task reads the features, where each loss sees one.
        last_layer: the last shared layer, where the structure tells.
    """

    balanced: list[Tensor] = field(default_factory=list)
    carried: list[Tensor] = field(default_factory=list)
    beyond: list[Tensor] = field(default_factory=list)
    alone: list[list[Tensor]] = field(default_factory=list)
    common: list[tuple[Tensor, int]] = field(default_factory=list)
    extra: list[Tensor] = field(default_factory=list)
    frozen: list[Tensor] = field(default_factory=list)
    features: list[Tensor] | None = None
    readings: list[Reading] = field(default_factory=list)
    last_layer: tuple[Tensor, ...] = ()

    @property
    def trained(self) -> list[Tensor]:
        """Every leaf that gets a gradient."""
        alone = [leaf for mine in self.alone for leaf in mine]
        return [
            *self.balanced,
            *self.carried,
            *alone,
            *(leaf for leaf, _ in self.common),
            *self.extra,
        ]
