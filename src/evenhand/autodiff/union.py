"""Which tasks have reached which leaf, in all calls so far."""

from __future__ import annotations

import weakref

from torch import Tensor


class Union:
    """Which tasks have reached which leaf in any call so far, held weakly.

    Each entry has two masks over all tasks: those that reach it by the graph, and those whose
    gradient there was once not zero.
    """

    def __init__(self) -> None:
        self._masks: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._changes = [0]  # a list, so that what forgets a leaf need not hold the union

    @property
    def changes(self) -> int:
        """How often something was added or forgotten."""
        return self._changes[0]

    def __len__(self) -> int:
        return len(self._masks)

    def of(self, leaf: Tensor) -> int:
        """The tasks that have reached `leaf`."""
        found = self._masks.get(id(leaf))
        return found[1] if found is not None and found[0]() is leaf else 0

    def seen(self, leaf: Tensor) -> int:
        """The tasks whose gradient at `leaf` was once not zero."""
        found = self._masks.get(id(leaf))
        return found[2] if found is not None and found[0]() is leaf else 0

    def add(self, leaf: Tensor, mask: int, seen: int = 0) -> int:
        """Add tasks to a leaf's; returns all that have reached it."""
        key = id(leaf)
        found = self._masks.get(key)
        if found is not None and found[0]() is leaf:
            if mask & ~found[1] or seen & ~found[2]:
                self._masks[key] = found[0], found[1] | mask, found[2] | seen
                self._changes[0] += 1
            return found[1] | mask
        masks, changes = self._masks, self._changes

        def dropped(ref: weakref.ref[Tensor]) -> None:
            if key in masks and masks[key][0] is ref:
                del masks[key]
                changes[0] += 1

        masks[key] = weakref.ref(leaf, dropped), mask, seen
        changes[0] += 1
        return mask

    def items(self) -> list[tuple[Tensor, int]]:
        """The leaves that are alive, with the tasks that have reached them."""
        alive = [(ref(), mask) for ref, mask, _ in self._masks.values()]
        return [(leaf, mask) for leaf, mask in alive if leaf is not None]

    def __reduce__(self) -> tuple[type[Union], tuple[()]]:
        return Union, ()  # weak references do not outlive the process
