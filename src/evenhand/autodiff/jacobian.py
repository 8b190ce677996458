"""The gradients g_i of m tasks at some tensors, and the few products that anybody wants of them.

A `Jacobian` has a column per target: all tasks' gradients by it. Columns come in several forms with
one meaning, each holding what costs least:

    Few        the m tensors as autograd made them, while m is small: nothing is copied
    Dense      one tensor [m, ...]: Gramian and combination are matrix products
    Heads      by the features of linear heads, δ_i W_i, kept as the factors δ_i and W_i
    Product    by a layer's weight, δ_iᵀ A, likewise (`factors.py`), where samples are few
    Scattered  by an embedding's table, likewise, the rows that a batch looks up
    Sparse     gradients that come sparse, and stay so

A task's gradient by all targets is a `Gradient`, None where the task does not reach a target.
Leading dimensions of the targets (`leading`) are independent networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from evenhand.autodiff.gradients import Gradient

FEW = 3
"""Up to so many tasks tensors are kept as they come: the inner products of pairs cost less than
copies."""
SMALL = 8192
"""Numbers of a gradient whose copy costs less than a call."""


class Column(ABC):
    """∂L_i/∂target for each of m tasks."""

    @abstractmethod
    def entry(self, i: int) -> Tensor | None:
        """Task i's."""

    @abstractmethod
    def dense(self) -> Tensor | None:
        """All tasks', [m, ...], zeros where one does not reach; None if none does."""

    @abstractmethod
    def gramian(self) -> Tensor | None:
        """The inner products, [..., m, m], in single precision at least; None if none reaches."""

    @abstractmethod
    def combined(self, weights: Tensor) -> Tensor | None:
        """Σ_i weights_i · entry i, weights [..., m]; None if none reaches."""

    @abstractmethod
    def against(self, other: Tensor) -> Tensor | None:
        """Each entry's inner product with `other`, [..., m]; None if none reaches."""


class Filled(Column):
    """One that is put there task by task, or slice by slice."""

    @abstractmethod
    def put(self, where: int | slice, gradient: Tensor | None) -> None:
        """What autograd found for task `where`, or for a slice of the tasks, [c, ...]."""

    def so_far(self) -> list[Tensor | None]:
        """What was put for each task until now, where gradients are kept as they come.

        Raises:
            ValueError: they are kept as factors, and a sparse gradient cannot join them.
        """
        raise ValueError("a sparse gradient cannot join factors; take Balancer(factored='never')")


class Few(Filled):
    """The tensors as they come.

    Args:
        entries: one per task.
        leading: the shape that the target begins with.
    """

    def __init__(self, entries: Iterable[Tensor | None], leading: torch.Size) -> None:
        self.entries = list(entries)
        self.leading = leading

    def so_far(self) -> list[Tensor | None]:
        return self.entries

    def put(self, where: int | slice, gradient: Tensor | None) -> None:
        if isinstance(where, int):
            self.entries[where] = gradient
        elif gradient is not None:
            self.entries[where] = gradient.unbind()

    def entry(self, i: int) -> Tensor | None:
        return self.entries[i]

    def dense(self) -> Tensor | None:
        return dense_of(self.entries)

    def gramian(self) -> Tensor | None:
        return _gramian(self.dense(), self.leading)

    @property
    def some(self) -> Tensor | None:
        """An entry; None if no task reaches."""
        return next((entry for entry in self.entries if entry is not None), None)

    def filled(self, i: int) -> Tensor:
        """Entry i; zeros where the task does not reach, as some task does."""
        entry = self.entries[i]
        if entry is None:
            assert self.some is not None
            entry = torch.zeros_like(self.some)
        return entry

    def products(self) -> list[Tensor]:
        """⟨g_i, g_j⟩ for i ≤ j of a single network, scalars; none if no task reaches."""
        some = self.some
        if some is None:
            return []
        flat = [None if g is None else real(g).reshape(-1) for g in self.entries]
        zero = real(some).new_zeros(())
        pairs = combinations_with_replacement(flat, 2)
        return [zero if g is None or h is None else torch.dot(g, h) for g, h in pairs]

    def combined(self, weights: Tensor) -> Tensor | None:
        total: Tensor | None = None
        for entry, weight in zip(self.entries, weights.unbind(-1), strict=True):
            if entry is not None:
                by = beside(weight, entry)
                total = entry * by if total is None else total.addcmul_(entry, by)
        return total

    def against(self, other: Tensor) -> Tensor | None:
        return _against(self.dense(), other, self.leading)


class Dense(Filled):
    """One tensor for all tasks.

    Args:
        m: how many tasks.
        leading: the shape that the target begins with.
        tensor: [m, ...], where it is known already.
    """

    def __init__(self, m: int, leading: torch.Size, tensor: Tensor | None = None) -> None:
        self.m = m
        self.leading = leading
        self._tensor = tensor
        self._entries: list[Tensor | None] = [None] * m  # until they are stacked, after all passes

    def so_far(self) -> list[Tensor | None]:
        return self._entries

    def put(self, where: int | slice, gradient: Tensor | None) -> None:
        if isinstance(where, int):
            self._entries[where] = gradient
        elif gradient is not None and len(gradient) == self.m:
            self._tensor = gradient
        elif gradient is not None:
            self._entries[where] = gradient.unbind()

    def entry(self, i: int) -> Tensor | None:
        return self._entries[i] if self._tensor is None else self._tensor[i]

    def dense(self) -> Tensor | None:
        if self._tensor is None:
            self._tensor = dense_of(self._entries)
            self._entries = []
        return self._tensor

    def gramian(self) -> Tensor | None:
        return _gramian(self.dense(), self.leading)

    def combined(self, weights: Tensor) -> Tensor | None:
        tensor = self.dense()
        if tensor is None:
            return None
        if self.leading:
            return Few(tensor.unbind(), self.leading).combined(weights)
        shape = tensor.shape[1:]
        return (weights.to(tensor.dtype) @ tensor.reshape(self.m, shape.numel())).view(shape)

    def against(self, other: Tensor) -> Tensor | None:
        return _against(self.dense(), other, self.leading)


class Sparse(Filled):
    """Sparse gradients [n, ...], as `torch.nn.Embedding(sparse=True)` gives them.

    The rows that any task has are numbered; products are of those rows alone.

    Args:
        entries: one per task, each sparse or None.
    """

    def __init__(self, entries: Iterable[Tensor | None]) -> None:
        self.entries = list(entries)
        self._found: tuple[Tensor, Tensor] | None = None

    @classmethod
    def taking(cls, column: Filled) -> Sparse:
        """With the entries that another column has so far."""
        entries = column.so_far()
        return cls(None if g is None or g.is_sparse else g.to_sparse(1) for g in entries)

    def so_far(self) -> list[Tensor | None]:
        return self.entries

    def put(self, where: int | slice, gradient: Tensor | None) -> None:
        if isinstance(where, slice):
            raise ValueError(
                "sparse gradients cannot be taken for several tasks at once; take "
                "Balancer(jacobian='looped')"
            )
        if gradient is not None and not gradient.is_sparse:
            gradient = gradient.to_sparse(1)
        self.entries[where] = None if gradient is None else gradient.coalesce()

    def entry(self, i: int) -> Tensor | None:
        return self.entries[i]

    def dense(self) -> Tensor | None:
        return dense_of([None if g is None else g.to_dense() for g in self.entries])

    def _jacobians(self) -> tuple[Tensor, Tensor] | None:
        """The numbers of the rows that some task has, [u], and what they hold, [m, u, ...]."""
        if self._found is None:
            some = [g for g in self.entries if g is not None]
            if not some:
                return None
            numbers = torch.unique(torch.cat([g.indices()[0] for g in some]))
            values = some[0].values()
            rows = values.new_zeros(len(self.entries), len(numbers), *values.shape[1:])
            for row, entry in zip(rows, self.entries, strict=True):
                if entry is not None:
                    row[torch.searchsorted(numbers, entry.indices()[0])] = entry.values()
            self._found = numbers, rows
        return self._found

    def gramian(self) -> Tensor | None:
        found = self._jacobians()
        return None if found is None else _gramian(found[1], torch.Size())

    def combined(self, weights: Tensor) -> Tensor | None:
        found = self._jacobians()
        if found is None:
            return None
        numbers, rows = found
        shape = next(g.shape for g in self.entries if g is not None)
        mixed = (weights.to(rows.dtype) @ rows.flatten(1)).view(rows.shape[1:])
        return torch.sparse_coo_tensor(
            numbers.unsqueeze(0), mixed, shape, is_coalesced=True, check_invariants=False
        )

    def against(self, other: Tensor) -> Tensor | None:
        found = self._jacobians()
        if found is None:
            return None
        numbers, rows = found
        there = other.coalesce().to_dense() if other.is_sparse else other
        return _against(rows, there[numbers], torch.Size())


class Heads(Column):
    """By the features Z of heads that are linear, Y_i = Z W_iᵀ + b_i: δ_i W_i, δ_i = ∂L_i/∂Y_i.

    The rows, each as large as Z, are formed only when asked for, and the Gramian is

        ⟨δ_i W_i, δ_j W_j⟩ = Σ_pq (δ_iᵀ δ_j)_pq (W_i W_jᵀ)_pq.

    Args:
        deltas: δ_i for each task, [..., o_i].
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
        flat = [d if d.ndim == 2 else d.reshape(-1, d.shape[-1]) for d in deltas]
        self._delta = torch.cat(flat, dim=-1)  # [b, Σo]
        with torch.no_grad():
            self._matrix = torch.cat(list(matrices))  # [Σo, k]

    def entry(self, i: int) -> Tensor | None:
        return self._deltas[i] @ self._matrices[i].detach()

    def dense(self) -> Tensor | None:
        m = len(self._deltas)
        dense = self._features.new_empty(m, *self._features.shape)
        for delta, matrix, out in zip(self._deltas, self._matrices, dense, strict=True):
            torch.matmul(delta, matrix.detach(), out=out)
        return dense

    def gramian(self) -> Tensor | None:
        b, width = self._delta.shape
        k, m = self._matrix.shape[1], len(self._deltas)
        if width**2 * (b + k) > m * b * k * (m + width):
            return _gramian(self.dense(), torch.Size())
        delta, matrix = self._delta, self._matrix
        if delta.dtype in (torch.float16, torch.bfloat16):
            delta, matrix = delta.float(), matrix.float()
        products = (delta.mT @ delta) * (matrix @ matrix.mT)
        return products if max(self._widths) == 1 else self._summed(self._summed(products).mT)

    def combined(self, weights: Tensor) -> Tensor | None:
        spread = weights.to(self._delta.dtype)
        if max(self._widths) > 1:
            widths = torch.tensor(self._widths, device=spread.device)
            spread = spread.repeat_interleave(widths, output_size=self._delta.shape[1])
        return ((self._delta * spread) @ self._matrix).view_as(self._features)

    def against(self, other: Tensor) -> Tensor | None:
        through = other.reshape(-1, other.shape[-1]) @ self._matrix.mT
        return self._summed((self._delta * through).sum(0, keepdim=True)).squeeze(0)

    def _summed(self, values: Tensor) -> Tensor:
        """[n, Σo] → [n, m]: the sums over each task's outputs."""
        if max(self._widths) == 1:
            return values
        return torch.stack(
            [piece.sum(-1) for piece in torch.split(values, self._widths, dim=-1)], dim=-1
        )


SMALLEST = 1e-28
"""A squared norm below it is too near to where single precision underflows to be exact."""
FEW_NUMBERS = 16
"""Below so many Python looks at numbers sooner than torch finds their least."""


class Jacobian:
    """g_i for each of m tasks.

    Args:
        columns: all tasks' gradients by each target.
        targets: what is differentiated by.
        leading: the shape that all targets begin with.
        m: how many tasks.
        like: a tensor of the type and device that products have where there is no target.
        looked_at: how many of the columns, from the first, products are of; all by default. The
            others are combined with them and nothing else.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        targets: Sequence[Tensor],
        leading: torch.Size,
        m: int,
        like: Tensor,
        looked_at: int | None = None,
    ) -> None:
        self.columns = columns
        self.looked_at = len(columns) if looked_at is None else looked_at
        self.targets = targets
        self.leading = leading
        self.m = m
        self.like = like
        kinds = {t.dtype for t in targets} or {like.dtype}
        self._dtype = reduce(torch.promote_types, [k.to_real() for k in kinds])
        self._device = targets[0].device if targets else like.device

    @property
    def sizes(self) -> list[int]:
        """How many columns of the Jacobian each target has."""
        return [numbers(t) // self.leading.numel() for t in self.targets[: self.looked_at]]

    def among(self, positions: Sequence[int]) -> Jacobian:
        """The same gradients at some of the targets."""
        columns = [self.columns[k] for k in positions]
        targets = [self.targets[k] for k in positions]
        return Jacobian(columns, targets, self.leading, self.m, self.like)

    def replaced(
        self,
        function: Callable[[Sequence[Tensor | None], Sequence[Tensor]], Sequence[Tensor | None]],
    ) -> Jacobian:
        """With all columns [m, ...] replaced by what `function` makes of them.

        It also gets, for each, a tensor of the same shape and kind, and reads nothing of it.
        """
        likes = [t.detach().expand(self.m, *t.shape) for t in self.targets]
        whole = function([column.dense() for column in self.columns], likes)
        columns: list[Column] = [Dense(self.m, self.leading, dense) for dense in whole]
        return Jacobian(columns, self.targets, self.leading, self.m, self.like, self.looked_at)

    def gradient(self, i: int) -> Gradient:
        """g_i."""
        return [column.entry(i) for column in self.columns]

    def gramian_at_any_size(self) -> tuple[Tensor, bool]:
        """The same, in double precision where squares overflow single precision, or underflow.

        And whether its squares have been seen to be finite: those in single precision are.
        """
        gramian = self.gramian()
        if gramian.dtype != torch.float32 or gramian.device.type == "mps":
            return gramian, False
        squares = gramian.diagonal(dim1=-2, dim2=-1)
        bounds = squares if squares.numel() < FEW_NUMBERS else torch.stack(squares.aminmax())
        if all(SMALLEST <= s < torch.inf for s in bounds.reshape(-1).tolist()):
            return gramian, True
        return self._wide().gramian(), False

    def _wide(self) -> Jacobian:
        """The same gradients in double precision, those that are looked at."""
        columns: list[Column] = []
        targets = self.targets[: self.looked_at]
        for column in self.columns[: self.looked_at]:
            dense = column.dense()
            kind = None if dense is None else torch.promote_types(dense.dtype, torch.float64)
            wide = None if dense is None else dense.to(kind)
            columns.append(Dense(self.m, self.leading, wide))
        wider = Jacobian(columns, targets, self.leading, self.m, self.like)
        wider._dtype = torch.float64
        return wider

    def gramian(self) -> Tensor:
        """⟨g_i, g_j⟩, [..., m, m], in single precision at least."""
        small, others = self._small()
        blocks: list[Tensor] = []
        if small:
            entries = [column.filled(i) for i in range(self.m) for column in small]
            rows = real(flattened(entries)).reshape(self.m, -1)
            blocks.append(rows @ rows.mT)
        pairs: list[Tensor] = []
        for column in others:
            if isinstance(column, Few) and not self.leading:
                pairs += column.products()
            elif (block := column.gramian()) is not None:
                blocks.append(block)
        if pairs:
            blocks.append(self._of_pairs(pairs))
        dtype = torch.promote_types(self._dtype, torch.float32)
        if not blocks:
            return torch.zeros(*self.leading, self.m, self.m, dtype=dtype, device=self._device)
        gramian, *further = (block.to(self._device, dtype) for block in blocks)
        for block in further:
            gramian = gramian + block
        return gramian

    def _of_pairs(self, pairs: list[Tensor]) -> Tensor:
        """The Gramian of all columns' products of pairs: few operations for a two-task step."""
        if len({(p.dtype, p.device) for p in pairs}) > 1:
            dtype = torch.promote_types(self._dtype, torch.float32)
            pairs = [p.to(self._device, dtype) for p in pairs]
        upper = torch.stack(pairs).view(-1, self.m * (self.m + 1) // 2).sum(0)
        rows, columns = torch.triu_indices(self.m, self.m, device=upper.device)
        block = upper.new_empty(self.m, self.m)
        block[rows, columns] = upper
        block[columns, rows] = upper
        return block

    def _small(self) -> tuple[list[Few], Sequence[Column]]:
        """The columns that cost less side by side than the products of each, and the rest."""
        columns = self.columns[: self.looked_at]
        small: list[Few] = []
        others: list[Column] = []
        devices = set()
        for column in () if self.leading else columns:
            some = column.some if isinstance(column, Few) else None
            if isinstance(column, Few) and some is not None and some.numel() <= SMALL:
                small.append(column)
                devices.add(some.device)
            else:
                others.append(column)
        if len(small) < 2 or len(devices) > 1:
            return [], columns
        return small, others

    def combined(self, weights: Tensor) -> Gradient:
        """Σ_i weights_i g_i, weights [..., m]; None where every g_i is."""
        return [column.combined(weights) for column in self.columns]

    def against(self, direction: Gradient) -> Tensor:
        """⟨g_i, direction⟩, [..., m]."""
        total = torch.zeros(*self.leading, self.m, dtype=self._dtype, device=self._device)
        for column, other in zip(self.columns[: self.looked_at], direction, strict=True):
            if other is not None and (part := column.against(other)) is not None:
                total += part.to(total.device)
        return total

    def matrix(self) -> Tensor:
        """The gradients flattened and joined, [..., m, n]; zeros where a task does not reach."""
        pieces = []
        seen = slice(self.looked_at)
        for column, target in zip(self.columns[seen], self.targets[seen], strict=True):
            dense = column.dense()
            if dense is None:
                size = numbers(target) // self.leading.numel()
                empty = torch.zeros(*self.leading, self.m, size, dtype=self._dtype)
                pieces.append(empty.to(self._device))
            else:
                pieces.append(_matrix(real(dense), self.leading).to(self._device))
        if not pieces:
            return self.like.new_zeros(*self.leading, self.m, 0)
        return torch.cat(pieces, dim=-1)


def fill(columns: list[Filled], where: int | slice, found: Gradient) -> None:
    """Put what autograd found for a task, or for a slice of them.

    A column whose gradients turn out to be sparse is replaced by one that keeps them so.
    """
    for k, gradient in enumerate(found):
        if gradient is not None and gradient.is_sparse and not isinstance(columns[k], Sparse):
            columns[k] = Sparse.taking(columns[k])
        columns[k].put(where, gradient)


def plain_column(m: int, leading: torch.Size) -> Filled:
    """An empty column of the form that suits m tasks."""
    if m <= FEW or leading:
        return Few([None] * m, leading)
    return Dense(m, leading)


# Small arithmetic --------------------------------------------------------------------------------


def beside(weight: Tensor, gradient: Tensor) -> Tensor:
    """`weight`, [*leading], ready to multiply a gradient [*leading, ...]."""
    weight = weight.to(gradient.dtype)
    if not weight.ndim:
        return weight
    return weight.reshape(weight.shape + (1,) * (gradient.ndim - weight.ndim))


def dense_of(entries: Sequence[Tensor | None]) -> Tensor | None:
    """[m, ...], zeros for those that are None; None if all are."""
    some = next((entry for entry in entries if entry is not None), None)
    if some is None:
        return None
    return torch.stack([torch.zeros_like(some) if g is None else g for g in entries])


def real(tensor: Tensor) -> Tensor:
    """The same numbers as real ones, in single precision at least; a complex number is two."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def numbers(tensor: Tensor) -> int:
    """How many real numbers a tensor holds; a complex one is two."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """All their numbers in a row; of mixed types in the widest."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _matrix(dense: Tensor, leading: torch.Size) -> Tensor:
    """[m, *leading, ...] → [*leading, m, n]."""
    size = dense[0].numel() // leading.numel() if leading.numel() else 0
    return dense.reshape(dense.shape[0], *leading, size).movedim(0, -2)


def _gramian(dense: Tensor | None, leading: torch.Size) -> Tensor | None:
    if dense is None:
        return None
    block = _matrix(real(dense), leading)
    return block @ block.mT


def _against(dense: Tensor | None, other: Tensor, leading: torch.Size) -> Tensor | None:
    if dense is None:
        return None
    block, column = _matrix(real(dense), leading), real(other)
    return (block @ column.reshape(*leading, block.shape[-1], 1)).squeeze(-1)
