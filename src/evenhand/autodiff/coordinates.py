"""The coordinates that histories are kept by: those of every leaf that was ever looked at.

A history over coordinates (a running average of each gradient) has a row for each number in the
parameters that a method looks at. Which these are may change from call to call: a layer is frozen,
dropped, unfrozen. So each leaf gets rows of its own, in the order in which leaves are met; one that
is absent keeps its rows, and a newcomer's begin with zeros.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evenhand.autodiff.gradients import Columns, Place
from evenhand.autodiff.jacobian import numbers


@dataclass
class _Entry:
    """The rows of one leaf; of a loaded state its name alone is known at first."""

    leaf: weakref.ref[Tensor] | None
    name: str | None
    size: int


class Coordinates:
    """The leaves that were looked at, by place, in the order in which they were met."""

    def __init__(self) -> None:
        self._entries: dict[str, list[_Entry]] = {}
        self._chosen: dict[Any, int] = {}  # callables, numbered as they come

    def columns(
        self,
        place: Place,
        leaves: Sequence[Tensor],
        names: Mapping[Tensor, str],
        leading: torch.Size,
    ) -> Columns:
        """Where these leaves' coordinates stand; those that are new are added at the end.

        Features are other tensors in every call: of them the numbers alone are counted.
        """
        if place == "representation":
            return Columns(sum(numbers(leaf) // leading.numel() for leaf in leaves))
        key = place if isinstance(place, str) else self._chosen.setdefault(place, len(self._chosen))
        entries = self._entries.setdefault(str(key), [])
        found = [self._position(entries, leaf, names.get(leaf)) for leaf in leaves]
        anew = bool(entries) and bool(leaves) and not any(k is not None for k in found)
        if anew:
            entries.clear()  # another model: nothing of it was there before
        for at, leaf in enumerate(leaves):
            if found[at] is None:
                found[at] = len(entries)
                size = numbers(leaf) // leading.numel()
                entries.append(_Entry(weakref.ref(leaf), names.get(leaf), size))
        starts = [0]
        for entry in entries:
            starts.append(starts[-1] + entry.size)
        positions = [k for k in found if k is not None]
        if positions == list(range(len(entries))):
            return Columns(starts[-1], anew=anew)
        index = [torch.arange(starts[k], starts[k + 1]) for k in positions]
        return Columns(starts[-1], torch.cat(index) if index else torch.arange(0), anew)

    def _position(self, entries: Sequence[_Entry], leaf: Tensor, name: str | None) -> int | None:
        for k, entry in enumerate(entries):
            if entry.leaf is not None and entry.leaf() is leaf:
                return k
        for k, entry in enumerate(entries):
            gone = entry.leaf is None or entry.leaf() is None
            if gone and name is not None and entry.name == name:
                entry.leaf = weakref.ref(leaf)
                return k
        return None

    def state(self) -> dict[str, Any]:
        """By place, the name and size of each leaf's rows."""
        return {
            place: [[entry.name, entry.size] for entry in entries]
            for place, entries in self._entries.items()
        }

    def load_state(self, state: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Restore what `state` gave."""
        self._entries = {
            place: [_Entry(None, name, int(size)) for name, size in entries]
            for place, entries in state.items()
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> Coordinates:
        other = Coordinates()
        other.load_state(self.state())
        for place, entries in self._entries.items():
            for mine, its in zip(entries, other._entries[place], strict=True):
                leaf = None if mine.leaf is None else mine.leaf()
                if leaf is not None:
                    its.leaf = weakref.ref(memo.get(id(leaf), leaf))
        return other

    def __reduce__(self) -> tuple[Callable[..., Coordinates], tuple[Any]]:
        return _loaded, (self.state(),)


def _loaded(state: Mapping[str, Sequence[Sequence[Any]]]) -> Coordinates:
    coordinates = Coordinates()
    coordinates.load_state(state)
    return coordinates
