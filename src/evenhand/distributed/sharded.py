"""All tasks' gradients of which each rank keeps a part.

Gradients are added up over ranks by a reduce-scatter: of the coordinates of all targets, joined,
each rank gets the mean for an R-th. The Gramian is the sum over parts, a combination is made part
by part and gathered. That is half of what a sum on every rank would send, and an R-th of
its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evenhand.autodiff.gradients import Gradient
from evenhand.autodiff.jacobian import Jacobian, numbers, real
from evenhand.distributed.ranks import Ranks


@dataclass(frozen=True)
class _Part:
    """This rank's part of the gradients by the targets of one type and place.

    Attributes:
        targets: the positions of these targets among all.
        starts: where each begins among the joined coordinates; one more for the end.
        values: [m, n_s], coordinates rank · n_s to (rank + 1) · n_s.
    """

    targets: list[int]
    starts: list[int]
    values: Tensor

    def here(self, chosen: set[int], rank: int) -> list[slice]:
        """Which columns of `values` belong to the chosen targets."""
        width = self.values.shape[1]
        first = rank * width
        found: list[slice] = []
        for k, begin, end in zip(self.targets, self.starts, self.starts[1:], strict=False):
            begin, end = max(begin - first, 0), min(end - first, width)
            if k not in chosen or begin >= end:
                continue
            if found and found[-1].stop == begin:
                begin = found.pop().start
            found.append(slice(begin, end))
        return found


class ShardedJacobian(Jacobian):
    """The mean over ranks of Jacobians, of which this rank keeps a part.

    Args:
        ranks: all of them.
        parts: this rank's.
        jacobian: one of the same tasks.
        every: all targets.
        chosen: the positions of those that are meant, in order.
    """

    def __init__(
        self,
        ranks: Ranks,
        parts: Sequence[_Part],
        jacobian: Jacobian,
        every: Sequence[Tensor],
        chosen: Sequence[int],
    ) -> None:
        targets = [every[k] for k in chosen]
        super().__init__([], targets, jacobian.leading, jacobian.m, jacobian.like, len(chosen))
        self._ranks = ranks
        self._parts = parts
        self._every = every
        self._chosen = list(chosen)

    @classmethod
    def of(cls, ranks: Ranks, jacobian: Jacobian) -> ShardedJacobian:
        """The mean over ranks of what every rank has, of a single network."""
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for k, target in enumerate(jacobian.targets):
            dtype = torch.empty(0, dtype=target.dtype).real.dtype
            kinds.setdefault((dtype, target.device), []).append(k)
        parts = []
        for (dtype, device), places in kinds.items():
            starts = [0]
            for k in places:
                starts.append(starts[-1] + numbers(jacobian.targets[k]))
            width = -(-starts[-1] // ranks.size)
            joined = torch.zeros(jacobian.m, width * ranks.size, dtype=dtype, device=device)
            for k, begin, end in zip(places, starts, starts[1:], strict=False):
                dense = jacobian.columns[k].dense()
                if dense is not None:
                    plain = torch.view_as_real(dense) if dense.is_complex() else dense
                    joined[:, begin:end] = plain.reshape(jacobian.m, end - begin)
            by_rank = joined.view(jacobian.m, ranks.size, width).transpose(0, 1)
            parts.append(_Part(places, starts, ranks.scattered(by_rank) / ranks.size))
        found = cls(ranks, parts, jacobian, jacobian.targets, range(len(jacobian.targets)))
        found.looked_at = jacobian.looked_at
        return found

    def among(self, positions: Sequence[int]) -> Jacobian:
        chosen = [self._chosen[k] for k in positions]
        return ShardedJacobian(self._ranks, self._parts, self, self._every, chosen)

    def gramian(self) -> Tensor:
        dtype = torch.promote_types(self._dtype, torch.float32)
        gramian = torch.zeros(self.m, self.m, dtype=dtype, device=self._device)
        seen = set(self._chosen[: self.looked_at])
        for part in self._parts:
            for columns in part.here(seen, self._ranks.rank):
                block = real(part.values[:, columns])
                gramian += (block @ block.mT).to(gramian)
        return self._ranks.sum(gramian)

    def combined(self, weights: Tensor) -> Gradient:
        gathered = [
            self._ranks.joined(weights.to(part.values) @ part.values) for part in self._parts
        ]
        return self._cut(gathered)

    def combined_here(self, weights: Tensor) -> Gradient:
        """R times this rank's part of a combination, zeros elsewhere: the mean over ranks is it."""
        size, rank = self._ranks.size, self._ranks.rank
        spread = []
        for part in self._parts:
            whole = part.values.new_zeros(size, part.values.shape[1])
            whole[rank] = size * (weights.to(part.values) @ part.values)
            spread.append(whole.view(-1))
        return self._cut(spread)

    def _cut(self, joined: Sequence[Tensor]) -> Gradient:
        """The pieces of vectors over all coordinates that belong to the chosen targets."""
        pieces: dict[int, Tensor] = {}
        for part, vector in zip(self._parts, joined, strict=True):
            for k, begin, end in zip(part.targets, part.starts, part.starts[1:], strict=False):
                pieces[k] = _shaped(vector[begin:end], self._every[k])
        return [pieces[k] for k in self._chosen]

    def gradient(self, i: int) -> Gradient:
        unit = torch.zeros(self.m, dtype=self._dtype, device=self._device)
        unit[i] = 1
        return self.combined(unit)

    def against(self, direction: Gradient) -> Tensor:
        seen = slice(self.looked_at)
        flat = [
            torch.zeros(numbers(t), dtype=self._dtype, device=self._device)
            if other is None
            else real(other.to_dense()).reshape(-1).to(self._device, self._dtype)
            for t, other in zip(self.targets[seen], direction[seen], strict=True)
        ]
        return self.matrix() @ torch.cat(flat)

    def matrix(self) -> Tensor:
        pieces: dict[int, Tensor] = {}
        for part, whole in zip(self._parts, self._whole, strict=True):
            for k, begin, end in zip(part.targets, part.starts, part.starts[1:], strict=False):
                pieces[k] = real(whole[:, begin:end]).to(self._device)
        if not self._chosen[: self.looked_at]:
            return self.like.new_zeros(self.m, 0)
        return torch.cat([pieces[k] for k in self._chosen[: self.looked_at]], dim=-1)

    @cached_property
    def _whole(self) -> list[Tensor]:
        return [self._ranks.columns(part.values) for part in self._parts]


def _shaped(piece: Tensor, target: Tensor) -> Tensor:
    if target.is_complex():
        return torch.view_as_complex(piece.reshape(*target.shape, 2).clone())
    return piece.view(target.shape)
