"""What the passes of a step agree by, where there are several ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evenhand.autodiff.gradients import Gradient
from evenhand.autodiff.jacobian import Jacobian
from evenhand.autodiff.reducer import Reducer
from evenhand.distributed.ranks import Ranks
from evenhand.distributed.sharded import ShardedJacobian
from evenhand.distributed.wrappers import Managed


class RanksReducer(Reducer):
    """Means over ranks.

    Args:
        ranks: all of them.
        managed: the leaves that a wrapper reduces when their gradients are handed over.
    """

    alone = False

    def __init__(self, ranks: Ranks, managed: Callable[[], Managed]) -> None:
        self._ranks = ranks
        self._managed = managed

    def reduced(self, jacobian: Jacobian) -> Jacobian:
        if jacobian.leading:  # networks of an ensemble have Gramians of their own
            return jacobian.replaced(self._ranks.means)
        return ShardedJacobian.of(self._ranks, jacobian)

    def combined(self, jacobian: Jacobian, weights: Tensor) -> tuple[Gradient, bool]:
        managed = self._managed()
        handed_over = not managed.partly and all(id(t) in managed.all for t in jacobian.targets)
        if isinstance(jacobian, ShardedJacobian) and handed_over:
            return jacobian.combined_here(
                weights
            ), False  # the wrapper's reduction gathers the parts
        return jacobian.combined(weights), True

    def gradient(self, found: Gradient, leaves: Sequence[Tensor]) -> list[Tensor | None]:
        return self._ranks.means(found, leaves)

    def mean(self, value: Tensor) -> Tensor:
        return self._ranks.sum(value) / self._ranks.size

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of a value that all have."""
        return self._ranks.sum(value)

    def whole(self, part: Tensor, shape: Sequence[int], dim: int) -> Tensor:
        """The tensor of this shape of which every rank has a chunk along a dimension."""
        return self._ranks.whole(part, shape, dim)

    def gramian_of_features(self, gramian: Tensor) -> Tensor:
        # A loss is the mean of the ranks' losses, so a rank's ∂L/∂Z is 1/R of its own.
        return self._ranks.sum(gramian) / self._ranks.size**2

    def features_of_all(self, jacobian: Tensor, sizes: Sequence[int]) -> Tensor:
        lengths = self._ranks.lengths(sizes)
        found: list[Tensor] = []
        for k, piece in enumerate(torch.split(jacobian, list(sizes), dim=-1)):
            found += self._ranks.side_by_side(piece, [there[k] for there in lengths])
        return torch.cat(found, dim=-1) / self._ranks.size

    def features_here(self, direction: Tensor, sizes: Sequence[int]) -> Tensor:
        lengths = self._ranks.lengths(sizes)
        every = [there[k] for k in range(len(sizes)) for there in lengths]
        pieces = torch.split(direction, every, dim=-1)
        return torch.cat(pieces[self._ranks.rank :: self._ranks.size], dim=-1) * self._ranks.size

    def features_in_all(self, size: int) -> int:
        return sum(there for (there,) in self._ranks.lengths([size]))

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        return self._ranks.anywhere(flags)

    def settled(
        self,
        leaves: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        agreed: frozenset[int],
    ) -> list[Tensor | None]:
        managed = self._managed()
        found = list(gradients)
        ours = [
            k
            for k, leaf in enumerate(leaves)
            if id(leaf) not in agreed and id(leaf) not in managed.all
        ]
        means = self._ranks.means([found[k] for k in ours], [leaves[k] for k in ours])
        for k, mean in zip(ours, means, strict=True):
            found[k] = mean
        if managed.partly:
            theirs = [k for k, leaf in enumerate(leaves) if id(leaf) in managed.all]
            self._shared_out(leaves, found, theirs, agreed, managed)
        for k, leaf in enumerate(leaves):
            g = found[k]
            if id(leaf) in managed.sparse and g is not None and not g.is_sparse:
                found[k] = g.to_sparse(1)
        return found

    def _shared_out(
        self,
        leaves: Sequence[Tensor],
        found: list[Tensor | None],
        theirs: Sequence[int],
        agreed: frozenset[int],
        managed: Managed,
    ) -> None:
        """Leave gradients to the ranks whose forward pass has used the leaf.

        The wrapper adds zeros for all others, so that of what is agreed those few must hand over
        more.
        """
        waits = [float(id(leaves[k]) in managed.waiting) for k in theirs]
        told = torch.tensor(waits, dtype=torch.float32, device=self._ranks.device)
        heard = self._ranks.sum(told).tolist()
        for k, here, count in zip(theirs, waits, heard, strict=True):
            g = found[k]
            if g is None or (not here and count):
                found[k] = None
            elif id(leaves[k]) in agreed and count:
                found[k] = g * (self._ranks.size / count)

    @property
    def hands_over(self) -> bool:
        return bool(self._managed().all)

    def __reduce__(self) -> tuple[type[Reducer], tuple[()]]:
        return Reducer, ()  # a copy finds its ranks in its own first step
