"""The gradients g_i of m tasks at some tensors, and the few products that anybody wants of them.

Three forms, one meaning. A task's gradient is a `Row`, a tensor per target, None where the task
does not reach it. `Dense` holds all rows, target by target: as the tensors that autograd made
while the tasks are few, so that nothing is copied, and stacked [m, ...] when they are more, so that
Gramian and combination are matrix products. `Factored` holds gradients by the features Z of heads
that are linear, Y_i = Z W_iᵀ + b_i, as the pair (δ_i, W_i) with δ_i = ∂L_i/∂Y_i; the rows δ_i W_i,
each as large as Z, are formed only when asked for, and the Gramian is

    ⟨δ_i W_i, δ_j W_j⟩ = Σ_pq (δ_iᵀ δ_j)_pq (W_i W_jᵀ)_pq.

Leading dimensions of the targets (`members`) are independent networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from evenhand.gradients import Row

Column = Tensor | Sequence[Tensor | None] | None
"""All tasks' gradients by one target: stacked [m, ...], or one by one; None if none reaches it."""

FEW = 3
"""Up to so many tasks rows are kept as they come: the inner products of pairs cost less than copies
of the rows."""


class Rows(ABC):
    """g_i for each of m tasks."""

    @abstractmethod
    def row(self, i: int) -> Row:
        """g_i."""

    @abstractmethod
    def gramian(self) -> Tensor:
        """⟨g_i, g_j⟩, [..., m, m], in single precision at least."""

    @abstractmethod
    def combined(self, weights: Tensor) -> Row:
        """Σ_i weights_i g_i, weights [..., m]; None where every row is."""

    @abstractmethod
    def against(self, row: Row) -> Tensor:
        """⟨g_i, row⟩, [..., m]."""

    @abstractmethod
    def column(self, k: int) -> Column:
        """All tasks' gradients by the k-th target."""


class Dense(Rows):
    """The rows themselves.

    Args:
        columns: for each target, all tasks' gradients by it.
        targets: what is differentiated by.
        members: the shape that all targets begin with.
        m: how many tasks.
    """

    def __init__(
        self, columns: Iterable[Column], targets: Sequence[Tensor], members: torch.Size, m: int
    ) -> None:
        self.columns = list(columns)
        self.targets = targets
        self.members = members
        self.m = m

    @classmethod
    def gathered(
        cls, rows: Iterable[Row], targets: Sequence[Tensor], members: torch.Size, m: int
    ) -> Dense:
        """From rows that come one after another and need not be kept as they are."""
        if m <= FEW or members:
            columns: list[Column] = [tuple(column) for column in zip(*rows, strict=True)]
            return cls(columns, targets, members, m)
        stacks: list[Tensor | None] = [None] * len(targets)
        for i, row in enumerate(rows):
            for k, entry in enumerate(row):
                if entry is not None:
                    stack = stacks[k]
                    if stack is None:
                        stack = stacks[k] = entry.new_zeros(m, *entry.shape)
                    stack[i] = entry
        return cls(stacks, targets, members, m)

    def among(self, positions: Sequence[int]) -> Dense:
        """The same rows at some of the targets."""
        columns = [self.columns[k] for k in positions]
        return Dense(columns, [self.targets[k] for k in positions], self.members, self.m)

    def map(self, function: Callable[[Tensor], Tensor]) -> Dense:
        """With every tensor replaced by what `function` makes of it."""
        columns = [_mapped(column, function) for column in self.columns]
        return Dense(columns, self.targets, self.members, self.m)

    def row(self, i: int) -> Row:
        return [None if column is None else column[i] for column in self.columns]

    def column(self, k: int) -> Column:
        return self.columns[k]

    def gramian(self) -> Tensor:
        reference = self.targets[0]
        dtype = torch.promote_types(reference.dtype, torch.float32)
        gramian = torch.zeros(*self.members, self.m, self.m, dtype=dtype, device=reference.device)
        pairs = []
        for column in self.columns:
            if column is None or not any(entry is not None for entry in column):
                continue
            if self.m <= FEW and not self.members:
                pairs.append(_inner_products(column, dtype))
            else:
                block = self._matrix(column).to(dtype)
                gramian += block @ block.mT
        if pairs:
            total = torch.stack([product for column in pairs for product in column])
            upper = total.view(len(pairs), -1).sum(0)
            rows, columns = torch.triu_indices(self.m, self.m, device=upper.device)
            gramian[rows, columns] = upper
            gramian[columns, rows] = upper
        return gramian

    def combined(self, weights: Tensor) -> Row:
        return [self._combined(column, weights) for column in self.columns]

    def _combined(self, column: Column, weights: Tensor) -> Tensor | None:
        if isinstance(column, Tensor):
            total: Tensor = weights.to(column.dtype) @ column.flatten(1)
            return total.view(column.shape[1:])
        sum_so_far: Tensor | None = None
        for entry, weight in zip(column or (), weights.unbind(-1), strict=column is not None):
            if entry is not None:
                by = beside(weight, entry)
                sum_so_far = entry * by if sum_so_far is None else sum_so_far.addcmul_(entry, by)
        return sum_so_far

    def against(self, row: Row) -> Tensor:
        reference = self.targets[0]
        total = reference.new_zeros(*self.members, self.m)
        for column, other in zip(self.columns, row, strict=True):
            if column is None or other is None:
                continue
            flat = other.reshape(*self.members, -1, 1)
            total += (self._matrix(column) @ flat).squeeze(-1)
        return total

    def _matrix(self, column: Tensor | Sequence[Tensor | None]) -> Tensor:
        """[..., m, n]."""
        if not isinstance(column, Tensor):
            some = next(entry for entry in column if entry is not None)
            column = torch.stack([torch.zeros_like(some) if g is None else g for g in column])
        return column.reshape(self.m, *self.members, -1).movedim(0, -2)

    def jacobian(self) -> Tensor:
        """The rows flattened and joined, [..., m, n]; zeros where a task does not reach."""
        pieces = []
        for column, target in zip(self.columns, self.targets, strict=True):
            if column is None or not any(entry is not None for entry in column):
                size = target.numel() // self.members.numel()
                pieces.append(target.new_zeros(*self.members, self.m, size))
            else:
                pieces.append(self._matrix(column))
        return torch.cat(pieces, dim=-1)


class Factored(Rows):
    """δ_i W_i, for heads that are linear.

    Args:
        deltas: ∂L_i/∂Y_i for each task, [..., o_i].
        matrices: W_i, [o_i, k].
        features: Z, [..., k].
    """

    def __init__(
        self, deltas: Sequence[Tensor], matrices: Sequence[Tensor], features: Tensor
    ) -> None:
        self._deltas = deltas
        self._matrices = matrices
        self._features = features
        self._widths = [w.shape[0] for w in matrices]
        self._delta = torch.cat([d.reshape(-1, d.shape[-1]) for d in deltas], dim=-1)  # [b, Σo]
        self._matrix = torch.cat(list(matrices))  # [Σo, k]

    def row(self, i: int) -> Row:
        return [self._deltas[i] @ self._matrices[i]]

    def column(self, k: int) -> Column:
        return [self.row(i)[k] for i in range(len(self._deltas))]

    def gramian(self) -> Tensor:
        b, width = self._delta.shape
        k, m = self._matrix.shape[1], len(self._deltas)
        if width**2 * (b + k) > m * b * k * (m + width):
            return self._dense().gramian()
        delta, matrix = self._delta, self._matrix
        if delta.dtype in (torch.float16, torch.bfloat16):
            delta, matrix = delta.float(), matrix.float()
        return self._summed(self._summed((delta.mT @ delta) * (matrix @ matrix.mT)).mT)

    def combined(self, weights: Tensor) -> Row:
        spread = weights.to(self._delta.dtype)
        if max(self._widths) > 1:
            widths = torch.tensor(self._widths, device=spread.device)
            spread = spread.repeat_interleave(widths, output_size=self._delta.shape[1])
        return [((self._delta * spread) @ self._matrix).view_as(self._features)]

    def against(self, row: Row) -> Tensor:
        (other,) = row
        if other is None:
            return self._delta.new_zeros(len(self._deltas))
        through = other.reshape(-1, other.shape[-1]) @ self._matrix.mT
        return self._summed((self._delta * through).sum(0, keepdim=True)).squeeze(0)

    def _summed(self, values: Tensor) -> Tensor:
        """[n, Σo] → [n, m]: the sums over each task's outputs."""
        if max(self._widths) == 1:
            return values
        return torch.stack(
            [piece.sum(-1) for piece in torch.split(values, self._widths, dim=-1)], dim=-1
        )

    def _dense(self) -> Dense:
        m = len(self._deltas)
        rows = (self.row(i) for i in range(m))
        return Dense.gathered(rows, [self._features], torch.Size(), m)


# Small arithmetic --------------------------------------------------------------------------------


def beside(weight: Tensor, gradient: Tensor) -> Tensor:
    """`weight`, one entry per member, ready to multiply the members' gradients."""
    weight = weight.to(gradient.dtype)
    if not weight.ndim:
        return weight
    return weight.reshape(weight.shape + (1,) * (gradient.ndim - weight.ndim))


def _inner_products(column: Tensor | Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """⟨g_i, g_j⟩ for i ≤ j, row by row."""
    flat = [None if g is None else g.reshape(-1).to(dtype) for g in column]
    some = next(g for g in flat if g is not None)
    zero = some.new_zeros(())
    return [
        zero if one is None or other is None else torch.dot(one, other)
        for i, one in enumerate(flat)
        for other in flat[i:]
    ]


def _mapped(column: Column, function: Callable[[Tensor], Tensor]) -> Column:
    if column is None or isinstance(column, Tensor):
        return None if column is None else function(column)
    return [None if entry is None else function(entry) for entry in column]
