"""Whose the leaves are that the losses of one call reach: what a call of a balancer rests on."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from evenhand.network import Reading


@dataclass
class Owners:
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
        sharers: the mask of the tasks, by position among all, that reach a balanced leaf. Others
            have a loss and share nothing, and are nobody's to balance.
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
    sharers: int = -1

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


class Looked(Protocol):
    """What is new in every call: the features, and how the heads read them."""

    features: Sequence[Tensor]
    readings: list[Reading]


class Decided:
    """A decision that is remembered; its leaves are held weakly."""

    def __init__(self, owners: Owners) -> None:
        self._balanced = _weak(owners.balanced)
        self._carried = _weak(owners.carried)
        self._beyond = _weak(owners.beyond)
        self._alone = [_weak(mine) for mine in owners.alone]
        self._common = _weak([leaf for leaf, _ in owners.common])
        self._masks = [mask for _, mask in owners.common]
        self._extra = _weak(owners.extra)
        self._frozen = _weak(owners.frozen)
        self._last_layer = _weak(owners.last_layer)
        self._sharers = owners.sharers
        self._has_features = owners.features is not None
        self._has_readings = bool(owners.readings)

    def again(self, found: Looked) -> Owners | None:
        """The same decision for another call; None if one of its leaves is gone."""
        try:
            return Owners(
                balanced=_alive(self._balanced),
                carried=_alive(self._carried),
                beyond=_alive(self._beyond),
                alone=[_alive(mine) for mine in self._alone],
                common=list(zip(_alive(self._common), self._masks, strict=True)),
                extra=_alive(self._extra),
                frozen=_alive(self._frozen),
                features=list(found.features) if self._has_features else None,
                readings=found.readings if self._has_readings else [],
                last_layer=tuple(_alive(self._last_layer)),
                sharers=self._sharers,
            )
        except ReferenceError:
            return None


def _weak(leaves: Sequence[Tensor]) -> list[weakref.ref[Tensor]]:
    return [weakref.ref(leaf) for leaf in leaves]


def _alive(references: Sequence[weakref.ref[Tensor]]) -> list[Tensor]:
    found = []
    for reference in references:
        leaf = reference()
        if leaf is None:
            raise ReferenceError
        found.append(leaf)
    return found
