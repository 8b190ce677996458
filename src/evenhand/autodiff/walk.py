"""One walk of the autograd graph: which losses reach which leaves.

Every node gets a bitmask with a bit per loss. A first visit of each node counts the edges that lead
to it. In the second a node hands its mask on to what it leads to, as soon as all that leads to it
has done so (Kahn, Communications of the ACM 5 (1962) 558-562). That is two visits of each node for
any number of losses.

A node with several outputs passes on what arrives at any of them, so beyond it the graph alone may
not tell two losses apart. Two kinds of such nodes are known: what hands each of its inputs on to
one output (`PASSING`: module hooks, DDP's sink) is looked through, output by output; what puts
unrelated tensors side by side (`JOINING`, and functions that the graph does not show the inside of,
compiled ones among them) marks all that lies beyond it as `joint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import or_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

LEAF = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # not in its stubs
"""What adds to the `.grad` of a leaf: where the graph ends."""
Node = Any
Edge = tuple[Node, int]
"""A node and the number of one of its outputs: where a tensor hangs in the graph. No node: none."""

PASSING = frozenset({"_DDPSinkBackward", "BackwardHookFunctionBackward"})
JOINING = frozenset(
    {
        *("CatBackward0", "StackBackward0", "BlockDiagBackward0", "CopySlices", "WhereBackward0"),
        *("IndexPutBackward0", "IndexPutImplBackward0", "UnsafeIndexPutBackward0", "PutBackward0"),
        *("IndexCopyBackward0", "IndexAddBackward0", "IndexReduceBackward0", "IndexFillBackward1"),
        *("SliceScatterBackward0", "SelectScatterBackward0", "DiagonalScatterBackward0"),
        *("AsStridedScatterBackward0", "ScatterBackward0", "ScatterAddBackward0"),
        *("ScatterReduceBackward0", "MaskedScatterBackward0", "MaskedFillBackward1"),
        *("NestedTensorFromTensorListBackward0", "ComplexBackward0"),
    }
)
OPAQUE = "CppFunction"
"""The type of nodes of C++ that have none of their own: TorchScript's, and those of extensions."""


@dataclass
class Reach:
    """What a walk found.

    Attributes:
        leaves: for each leaf that requires a gradient, the mask of the losses that reach it; the
            leaves of a chain of layers in the order of the layers.
        stops: for each edge at which the walk was to end, the mask of the losses that reach it.
        joint: the leaves that some loss reaches through a joining node.
        joint_stops: the edges at which the walk was to end, likewise.
    """

    leaves: dict[Tensor, int] = field(default_factory=dict)
    stops: dict[Edge, int] = field(default_factory=dict)
    joint: set[Tensor] = field(default_factory=set)
    joint_stops: set[Edge] = field(default_factory=set)


def edge_of(tensor: Tensor) -> Edge:
    """Where a tensor that requires a gradient hangs in the graph."""
    node = tensor.grad_fn
    if node is not None:
        return node, tensor.output_nr
    found = get_gradient_edge(tensor)
    return found.node, found.output_nr


def is_opaque(kind: type) -> bool:
    """Whether the graph does not show what nodes of this type do inside.

    They are of functions that are written in Python, compiled, scripted, or of an extension.
    """
    return issubclass(kind, BackwardCFunction) or kind.__name__ == OPAQUE


def walk(roots: Sequence[tuple[Edge, int]], stops: Iterable[Edge] = (), counted: int = -1) -> Reach:
    """Walk from where losses hang, each with its mask.

    Args:
        roots: edges, each with the mask that it gives to all that it reaches.
        stops: edges beyond which the walk does not go.
        counted: the bits of losses to whom a joining node matters.
    """
    ends = Ends.of(stops)
    # One bit above all others travels along and says that a joining node was passed.
    joined = 1 << reduce(or_, (mask for _, mask in roots), 0).bit_length()
    reach = Reach()
    masks: dict[Node, int] = {}
    leaves: dict[Node, int] = {}
    for root, mask in roots:
        edge = root if type(root[0]) in _PLAIN else _through(root, ends)
        node = edge[0]
        if node in ends.nodes and edge in ends.edges:
            reach.stops[edge] = reach.stops.get(edge, 0) | mask
        elif type(node) is LEAF:
            leaves[node] = leaves.get(node, 0) | mask
        elif node is not None:
            masks[node] = masks.get(node, 0) | mask
    edges, waits = _found(masks, ends)
    ready = [node for node in masks if not waits[node]]
    while ready:
        node = ready.pop()
        mask, here = masks[node], edges[node]
        kind: Any = type(node)
        # A constant beside a tensor has an edge, too: a loss may read the constant alone.
        if kind not in _PLAIN and len(here) > 1 and mask & counted and _joins(kind):
            mask |= joined
        for edge in here:
            child = edge[0]
            if child is None:
                continue
            if child in ends.nodes and edge in ends.edges:
                reach.stops[edge] = reach.stops.get(edge, 0) | mask & ~joined
                if mask & joined:
                    reach.joint_stops.add(edge)
            elif type(child) is LEAF:
                leaves[child] = leaves.get(child, 0) | mask
            else:
                masks[child] = masks.get(child, 0) | mask
                waits[child] -= 1
                if not waits[child]:  # all that leads to it has handed on its mask
                    ready.append(child)
    for node, mask in reversed(leaves.items()):  # those of the first layers first
        variable = node.variable
        reach.leaves[variable] = mask & ~joined
        if mask & joined:
            reach.joint.add(variable)
    return reach


class Ends(NamedTuple):
    """Where a walk ends: the edges, and the nodes that these are of, which are asked first."""

    edges: set[Edge]
    nodes: set[Node]

    @classmethod
    def of(cls, stops: Iterable[Edge]) -> Ends:
        """These edges."""
        edges = set(stops)
        return cls(edges, {node for node, _ in edges})


def _found(
    starts: Iterable[Node], ends: Ends
) -> tuple[dict[Node, Sequence[Edge]], dict[Node, int]]:
    """The edges of all nodes but leaves, and how many edges of others lead to each.

    They are seen through what hands each input on to one output.
    """
    edges: dict[Node, Sequence[Edge]] = {}
    waits = dict.fromkeys(starts, 0)
    waiting = list(waits)
    while waiting:
        node = waiting.pop()
        here = cast(Sequence[Edge], node.next_functions)
        for child, _ in here:
            kind: Any = type(child)
            if kind not in _PLAIN and _passes(kind):
                here = [_through(edge, ends) for edge in here]
                break
        edges[node] = here
        for edge in here:
            child = edge[0]
            if type(child) is LEAF or child is None:
                continue
            if child in ends.nodes and edge in ends.edges:
                continue
            known = waits.get(child)
            if known is None:
                waits[child] = 1
                waiting.append(child)
            else:
                waits[child] = known + 1
    return edges, waits


def _through(edge: Edge, ends: Ends) -> Edge:
    """Where an edge leads to past the nodes that hand each input on to one output."""
    while edge not in ends.edges:
        node, number = edge
        kind: Any = type(node)
        if node is None or not _passes(kind) or number >= len(node.next_functions):
            break
        edge = node.next_functions[number]
    return edge


_PLAIN: set[type] = {LEAF, type(None)}
"""Types of nodes that are known to do neither: no call is made for those of every edge."""


@cache
def _passes(kind: type) -> bool:
    """Whether nodes of this type hand each of their inputs on to one output."""
    passing = kind.__name__ in PASSING
    if not passing and not _joins(kind):
        _PLAIN.add(kind)
    return passing


@cache
def _joins(kind: type) -> bool:
    """Whether nodes of this type may put unrelated tensors side by side."""
    return kind.__name__ not in PASSING and (is_opaque(kind) or kind.__name__ in JOINING)
