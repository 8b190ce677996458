"""The collectives of a process group, for what a balancer has to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 25 * 2**20
"""Bytes that travel together, as in `DistributedDataParallel`."""
SINGLE = hasattr(dist, "reduce_scatter_single")
"""Whether this torch has the names that 2.13 gave to two collectives; it warns of the old ones."""


class Ranks:
    """The processes of a group, more than one, and what they tell each other.

    Every method is a collective: all ranks must call it, in the same order. What it returns is the
    same, bit for bit, on every rank.

    Args:
        group: the process group.

    Attributes:
        size: how many ranks there are, R.
        rank: which of them this is.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    @property
    def device(self) -> torch.device:
        """Where small messages are written."""
        backends = dist.get_backend_config(self.group)
        if torch.cuda.is_available() and "nccl" in backends:
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def gathered(self, told: Any) -> list[Any]:
        """What every rank tells, in the order of ranks."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, told, group=self.group)
        return found

    def sum(self, value: Tensor) -> Tensor:
        """Σ over ranks of tensors of one shape."""
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def anywhere(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set on some rank."""
        counted = self.sum(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return [count > 0 for count in counted.tolist()]

    def means(self, row: Sequence[Tensor | None], targets: Sequence[Tensor]) -> list[Tensor | None]:
        """The mean over ranks of each gradient; None where no rank has one.

        Args:
            row: this rank's gradients. None counts as zeros.
            targets: what they are gradients by: the same on every rank.
        """
        found: list[Tensor | None] = [None] * len(row)
        work = []
        for places in _buckets(targets):
            flat = torch.cat([_message(row[k], targets[k]) for k in places])
            work.append((places, flat, dist.all_reduce(flat, group=self.group, async_op=True)))
        for places, flat, handle in work:
            if handle is not None:
                handle.wait()
            flat /= self.size
            sizes = [2 + _numbers(targets[k]) for k in places]
            for k, piece in zip(places, torch.split(flat, sizes), strict=True):
                dense, sparse = piece[:2].tolist()
                if dense or sparse:
                    g = _like(piece[2:], targets[k])
                    found[k] = g if dense else g.to_sparse(1)
        return found

    def scattered(self, by_rank: Tensor) -> Tensor:
        """This rank's Σ over ranks of a tensor [R, ...], of which each rank gets one entry."""
        mine = torch.empty_like(by_rank[0], memory_format=torch.contiguous_format)
        scatter = dist.reduce_scatter_single if SINGLE else dist.reduce_scatter_tensor
        scatter(mine.view(-1), by_rank.contiguous().view(-1), group=self.group)
        return mine

    def joined(self, part: Tensor) -> Tensor:
        """All ranks' vectors of one length, one behind the other."""
        whole = part.new_empty(self.size * part.numel())
        gather = dist.all_gather_single if SINGLE else dist.all_gather_into_tensor
        gather(whole, part.contiguous(), group=self.group)
        return whole

    def columns(self, part: Tensor) -> Tensor:
        """All ranks' matrices [m, n_s], side by side."""
        m, width = part.shape
        whole = self.joined(part.reshape(-1)).view(self.size, m, width)
        return whole.transpose(0, 1).reshape(m, self.size * width)

    def whole(self, part: Tensor, shape: Sequence[int], dim: int) -> Tensor:
        """The tensor of this shape of which every rank has a chunk, as `torch.chunk` cuts it.

        `DTensor.full_tensor` is not asked for: it gathers by an operation whose name torch keeps on
        the heap, and two of those in a row end a process of gloo now and then by a signal
        (docs/scaling.md, "A fault of torch with gloo").
        """
        if part.is_complex():
            pairs = self.whole(torch.view_as_real(part), [*shape, 2], dim)
            return torch.view_as_complex(pairs.contiguous())
        rows = part.movedim(dim, 0)
        padded = rows.new_zeros(-(-shape[dim] // self.size), *rows.shape[1:])
        padded[: len(rows)] = rows
        joined = self.joined(padded.reshape(-1))
        joined = joined.view(self.size * len(padded), *rows.shape[1:])
        return joined[: shape[dim]].movedim(0, dim)

    def lengths(self, sizes: Sequence[int]) -> list[list[int]]:
        """Each rank's sizes; all have as many."""
        mine = torch.zeros(self.size, len(sizes), dtype=torch.float64, device=self.device)
        mine[self.rank] = torch.tensor(sizes, dtype=torch.float64)
        return [[int(size) for size in there] for there in self.sum(mine).tolist()]

    def side_by_side(self, matrix: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Every rank's matrix [..., n_r], in the order of ranks; `sizes` are the n_r."""
        most = max(sizes)
        mine = torch.nn.functional.pad(matrix, (0, most - matrix.shape[-1])).contiguous()
        found = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(found, mine, group=self.group)
        return [part[..., :size] for part, size in zip(found, sizes, strict=True)]


def _buckets(targets: Sequence[Tensor]) -> list[list[int]]:
    """Positions of what travels together: of one type, at one place, about `BUCKET` bytes."""
    kept: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    full: list[list[int]] = []
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for k, target in enumerate(targets):
        kind = _real(target.dtype), target.device
        size = target.numel() * target.element_size()
        if kind in kept and filled[kind] + size > BUCKET:
            full.append(kept.pop(kind))
        if kind not in kept:
            kept[kind], filled[kind] = [], 0
        kept[kind].append(k)
        filled[kind] += size
    return [*full, *kept.values()]


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.empty(0, dtype=dtype).real.dtype


def _numbers(target: Tensor) -> int:
    return target.numel() * (2 if target.is_complex() else 1)


def _message(g: Tensor | None, target: Tensor) -> Tensor:
    """Whether there is a dense and a sparse gradient, and its numbers."""
    dtype = _real(target.dtype)
    head = torch.zeros(2, dtype=dtype, device=target.device)
    if g is None:
        return torch.cat([head, head.new_zeros(_numbers(target))])
    head[1 if g.is_sparse else 0] = 1
    g = g.detach().to_dense() if g.is_sparse else g.detach()
    if g.is_complex():
        g = torch.view_as_real(g.resolve_conj())
    return torch.cat([head, g.reshape(-1).to(dtype)])


def _like(piece: Tensor, target: Tensor) -> Tensor:
    if target.is_complex():
        return torch.view_as_complex(piece.reshape(*target.shape, 2).clone())
    return piece.view(target.shape)
