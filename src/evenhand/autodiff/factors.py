"""Weights that enter the graph through one product, whose gradients need not be formed.

Where W is used once, as Y = A Wᵀ (a linear layer on r rows, or a convolution on r patches), the
gradient of task i is g_i = δ_iᵀ A with δ_i = ∂L_i/∂Y [r, o] and A [r, k]. With the kernel
K = A Aᵀ [r, r] the inner products are

    ⟨g_i, g_j⟩ = Σ_st K_st ⟨δ_i, δ_j⟩_st = ⟨δ_i, K δ_j⟩,

and Σ w_i g_i = (Σ w_i δ_i)ᵀ A is one product for any number of tasks. So a pass through the trunk
need only bring δ_i to each layer; no Jacobian is formed, and no second pass is taken. It pays where
rows are few beside the widths: r² o < r o k, roughly. The table of an embedding is looked up: g_i
has the rows δ_i, added up where an index repeats, and zeros elsewhere.

All is read off autograd's own nodes, which hold A and say how often W is used; hooks on modules,
wrappers around them and the casts of mixed precision are no obstacle. What is not recognised, or
used more than once (tied weights, losses that contain derivatives of the network), is
differentiated by itself as ever, so the result is exact for every network.

δ_i alone decide the rounding of g_i; sums over r × r terms that cancel would lose more, so
the kernel and its products are taken in double precision. Memory: m r o numbers for δ
instead of m o k for the gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional

from evenhand.autodiff.jacobian import Dense, Filled

Factored = Literal["auto", "never", "always"]
"""Where gradients by layers' weights are kept as factors: where that takes less arithmetic, nowhere
(they are formed), or wherever it can be done."""

Users = Mapping[Any, Sequence[tuple[Any, int]]]
"""For each node of the graph the nodes that use its output, and as which argument."""

DOUBLE = {"cpu": 3, "cuda": 32}
"""What a product in double precision takes, in single ones: measured on a processor; what most
graphics cards are built for. On other devices, which may have no such type, factors never pay."""
NEVER = 1e30
WORTH = 1e6
"""Multiplications, about .1 ms, for which it is worth to go through the graph."""


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """One use of one weight.

    Attributes:
        weight: the parameter W.
        node: the node that computed Y.
    """

    weight: Tensor
    node: Any

    @property
    def edge(self) -> GradientEdge:
        """What to differentiate by: Y."""
        return GradientEdge(self.node, 0)

    @abstractmethod
    def pays(self, m: int) -> bool:
        """Whether `column` takes less arithmetic than m gradients."""

    @abstractmethod
    def column(self, m: int) -> Filled:
        """An empty column, into which gradients by Y are put; call it before the graph is gone."""


class Linear(Layer):
    """Y = A Wᵀ, a product of matrices."""

    @cached_property
    def saved(self) -> Tensor:
        """What the node has saved of its input. A checkpoint hands it out once in a pass."""
        name = "_saved_mat1" if self.node.name() == "AddmmBackward0" else "_saved_self"
        return cast(Tensor, getattr(self.node, name)).detach()

    @property
    def inputs(self) -> Tensor:
        """A, [r, k]."""
        return self.saved

    @property
    def count(self) -> int:
        """The number of rows, r."""
        return len(self.inputs)

    def flat(self, delta: Tensor) -> Tensor:
        """∂L/∂Y as [..., r, o]."""
        return delta

    def pays(self, m: int) -> bool:
        return _product_pays(self.weight, m, self.count)

    def column(self, m: int) -> Filled:
        return Product(self, m)


class Convolution(Linear):
    """Y = A Wᵀ with the patches A that a convolution sees."""

    @cached_property
    def saved(self) -> Tensor:
        return cast(Tensor, self.node._saved_input).detach()

    @property
    def inputs(self) -> Tensor:
        node, x = self.node, self.saved
        flat = x.ndim == 3  # one dimension: a picture of height 1
        patches = functional.unfold(
            x.unsqueeze(2) if flat else x,
            _plane(self.weight.shape[2:], 1),
            dilation=_plane(node._saved_dilation, 1),
            padding=_plane(node._saved_padding, 0),
            stride=_plane(node._saved_stride, 1),
        )
        return patches.mT.reshape(-1, patches.shape[1])

    @property
    def count(self) -> int:
        node = self.node
        sizes = zip(
            self.saved.shape[2:],
            self.weight.shape[2:],
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            strict=True,
        )
        places = prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return int(len(self.saved) * places)

    def flat(self, delta: Tensor) -> Tensor:
        """[..., b, o, places] → [..., r, o]."""
        channels = -self.weight.ndim + 1
        last = delta.movedim(channels, -1)
        return last.reshape(*delta.shape[: channels - 1], -1, delta.shape[channels])


class Embedding(Layer):
    """Y = W[indices]."""

    def pays(self, m: int) -> bool:
        return _lookup_pays(self.weight, self.node._saved_indices.numel())

    def column(self, m: int) -> Filled:
        return Scattered(self.weight, self.node._saved_indices, self.node._saved_padding_idx, m)


# Columns ---------------------------------------------------------------------------------------


class Product(Filled):
    """g_i = δ_iᵀ A, as its factors."""

    def __init__(self, layer: Linear, m: int) -> None:
        self.layer = layer
        self.inputs = layer.inputs
        self.deltas = Dense(m, torch.Size())

    def put(self, where: int | slice, gradient: Tensor | None) -> None:
        self.deltas.put(where, None if gradient is None else self.layer.flat(gradient))

    def entry(self, i: int) -> Tensor | None:
        delta = self.deltas.entry(i)
        return None if delta is None else self._gradient(delta)

    def dense(self) -> Tensor | None:
        deltas = self.deltas.dense()
        return None if deltas is None else self._gradient(deltas)

    def gramian(self) -> Tensor | None:
        deltas = self.deltas.dense()
        if deltas is None:
            return None
        a, deltas = self.inputs.double(), deltas.double()
        through = (a @ a.mT) @ deltas
        return deltas.flatten(1) @ through.flatten(1).mT

    def combined(self, weights: Tensor) -> Tensor | None:
        delta = self.deltas.combined(weights)
        return None if delta is None else self._gradient(delta)

    def against(self, other: Tensor) -> Tensor | None:
        deltas = self.deltas.dense()
        if deltas is None:
            return None
        through = self.inputs.to(other.dtype) @ other.flatten(1).mT
        return deltas.to(other.dtype).flatten(1) @ through.flatten()

    def _gradient(self, delta: Tensor) -> Tensor:
        """δᵀA, [..., r, o] → the weight's shape, and its type, as autograd casts it."""
        gradient = (delta.mT @ self.inputs).to(self.layer.weight.dtype)
        return gradient.reshape(*delta.shape[:-2], *self.layer.weight.shape)


class Scattered(Filled):
    """Rows of a table at the places that were looked up; zeros elsewhere.

    Args:
        table: W, [n, d].
        indices: of the rows that were looked up.
        padding: the row that gets no gradient; negative for none.
        m: how many tasks.
    """

    def __init__(self, table: Tensor, indices: Tensor, padding: int, m: int) -> None:
        self.table = table
        self.places, self.order = torch.unique(indices, return_inverse=True)
        self.trained = (self.places != padding).unsqueeze(-1)
        self.found = Dense(m, torch.Size())

    def put(self, where: int | slice, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        several = isinstance(where, slice)
        lead, width = gradient.shape[: 1 if several else 0], self.table.shape[1]
        sums = gradient.new_zeros(*lead, len(self.places), width)
        sums.index_add_(-2, self.order.flatten(), gradient.reshape(*lead, -1, width))
        self.found.put(where, sums * self.trained)

    def entry(self, i: int) -> Tensor | None:
        return self._spread(self.found.entry(i))

    def dense(self) -> Tensor | None:
        return self._spread(self.found.dense())

    def gramian(self) -> Tensor | None:
        return self.found.gramian()

    def combined(self, weights: Tensor) -> Tensor | None:
        return self._spread(self.found.combined(weights))

    def against(self, other: Tensor) -> Tensor | None:
        return self.found.against(other[self.places])

    def _spread(self, found: Tensor | None) -> Tensor | None:
        """[..., u, d] → [..., n, d]."""
        if found is None:
            return None
        whole = found.new_zeros(*found.shape[:-2], *self.table.shape)
        whole[..., self.places, :] = found
        return whole


# Where they pay --------------------------------------------------------------------------------


def may_pay(targets: Iterable[Tensor], m: int, least: int) -> bool:
    """Whether factors of some targets could save what it costs to look for them.

    How often a weight was used is not known yet: what is best for factors, but `least` rows.
    """
    weights = [weight for weight in targets if weight.ndim > 1 and weight.numel()]
    # Up to k/2 rows are the best, of k inputs, so no weight saves more than this.
    most = [w.numel() * (m * m + m * max(w.numel() // len(w), 2 * least) / 2) for w in weights]
    if sum(most) < WORTH:
        return False
    saved = 0.0
    for weight in weights:
        looked_up = m * weight.numel() if _lookup_pays(weight, least) else 0
        saved += max(_saved(weight, m, _best_rows(weight, m, least)), looked_up, 0)
        if saved >= WORTH:
            return True
    return False


def _best_rows(weight: Tensor, m: int, least: int) -> float:
    """Where `_saved`, a parabola in r that opens downwards, is largest."""
    o, k, double = _shape_and_cost(weight)
    return max(((m - 1) * o * k - double * m * m * o) / (2 * double * (k + m * o)), least)


def _product_pays(weight: Tensor, m: int, r: int) -> bool:
    return _saved(weight, m, r) > 0


def _saved(weight: Tensor, m: int, r: float) -> float:
    """Multiplications of m gradients, less the kernel, its products with δ, their Gramian, the sum.

    With r rows: m r o k + m² o k − c (r² k + m r² o + m² r o) − r o k, where c = 3 on a processor.
    """
    o, k, double = _shape_and_cost(weight)
    kernel = r * r * k + m * r * r * o + m * m * r * o
    return (m - 1) * r * o * k + m * m * o * k - double * kernel


def _shape_and_cost(weight: Tensor) -> tuple[int, int, float]:
    """Outputs, inputs, and what a product in double precision takes."""
    double = DOUBLE.get(weight.device.type, NEVER) if weight.dtype != torch.float64 else 1
    return len(weight), weight.numel() // len(weight), double


def _lookup_pays(weight: Tensor, count: int) -> bool:
    return 2 * count < len(weight)


# Finding them ----------------------------------------------------------------------------------


def layers(roots: Iterable[Any], targets: Sequence[Tensor]) -> dict[int, Layer]:
    """By its position, each of `targets` that is the weight of one layer used once.

    Args:
        roots: the nodes from which gradients will be taken.
        targets: parameters.
    """
    users = _users(roots)
    found = {}
    for position, weight in enumerate(targets):
        if weight.ndim < 2 or not weight.is_leaf or weight.is_complex() or not weight.numel():
            continue
        layer = _layer(weight, users)
        if layer is not None:
            found[position] = layer
    return found


@contextmanager
def passing_gradients(found: Mapping[int, Layer]) -> Iterator[dict[int, int]]:
    """Inside, where the gradient of each layer's output lies in memory when its node takes it.

    What is differentiated by the output gets the gradient that arrives there; hooks that stand on
    the output run after that, just before its node. See `changed`.
    """
    passed: dict[int, int] = {}

    def noted(k: int, gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None:
            passed[k] = gradients[0].data_ptr()

    handles = [layer.node.register_prehook(partial(noted, k)) for k, layer in found.items()]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def changed(gradient: Tensor | None, address: int) -> bool:
    """Whether a hook put another tensor in the place of this one before the layer's node ran."""
    return gradient is not None and gradient.data_ptr() != address


def _users(roots: Iterable[Any]) -> Users:
    users: dict[Any, list[tuple[Any, int]]] = defaultdict(list)
    waiting = list({root: None for root in roots if root is not None})
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        for argument, (child, _) in enumerate(node.next_functions):
            if child is not None:
                users[child].append((node, argument))
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)
    return users


def _layer(weight: Tensor, users: Users) -> Layer | None:
    found, cast_to = _use_of(weight, users)
    if cast_to and isinstance(found, Linear) and found.saved.device != weight.device:
        return None  # the cast on the way brought it to another device
    return found


def _use_of(weight: Tensor, users: Users) -> tuple[Layer | None, bool]:
    """The layer of a weight, and whether it is cast on the way."""
    node, argument, transposed, cast_to = get_gradient_edge(weight).node, 0, False, False
    while len(users.get(node, ())) == 1:
        ((node, argument),) = users[node]
        match node.name():
            case "ToCopyBackward0":
                cast_to = True
            case "TBackward0" if not transposed:
                transposed = True
            case "AddmmBackward0" if transposed and argument == 2 and node._saved_alpha == 1:
                return Linear(weight, node), cast_to
            case "MmBackward0" if transposed and argument == 1:
                return Linear(weight, node), cast_to
            case "ConvolutionBackward0" if argument == 1 and not transposed and _is_plain(node):
                return Convolution(weight, node), cast_to
            case "EmbeddingBackward0" if not (
                transposed or cast_to or node._saved_sparse or node._saved_scale_grad_by_freq
            ):
                return Embedding(weight, node), cast_to
            case _:
                return None, cast_to
    return None, cast_to


def _is_plain(node: Any) -> bool:
    """Whether a convolution is one of unfolded patches with one matrix."""
    plain = node._saved_groups == 1 and not node._saved_transposed
    return plain and len(node._saved_stride) < 3


def _plane(sizes: Iterable[int], height: int) -> tuple[int, ...]:
    """Two sizes, where there may be one."""
    sizes = tuple(sizes)
    return sizes if len(sizes) == 2 else (height, *sizes)
