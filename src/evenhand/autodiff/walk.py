"""One walk of the autograd graph: which losses reach which leaves.

Every node gets a bitmask with a bit per loss. A first visit of each node counts the edges that lead
to it. In the second a node hands its mask on to what it leads to, as soon as all that leads to it
has done so (Kahn, Communications of the ACM 5 (1962) 558-562). That is two visits of each node for
any number of losses.

A node with several outputs passes on what arrives at any of them, so beyond it the graph alone may
not tell two losses apart. Two kinds of such nodes are known: what hands each of its inputs on to
one output (`PASSING`: module hooks, DDP's sink) is looked through, output by output; what puts
unrelated tensors side by side (`JOINING`, and functions written in Python, compiled ones among
them) marks all that lies beyond it as `joint`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

LEAF = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined]  # not in its stubs
"""What adds to the `.grad` of a leaf: where the graph ends."""
Node = Any
Edge = tuple[Node, int]
"""A node and the number of one of its outputs: where a tensor hangs in the graph."""

PASSING = frozenset({"_DDPSinkBackward", "BackwardHookFunctionBackward"})
JOINING = frozenset(
    {
        "CatBackward0",
        "StackBackward0",
        "CopySlices",
        "IndexPutBackward0",
        "IndexCopyBackward0",
        "SliceScatterBackward0",
        "SelectScatterBackward0",
        "DiagonalScatterBackward0",
        "ScatterBackward0",
        "MaskedScatterBackward0",
        "BlockDiagBackward0",
    }
)


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
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    found = get_gradient_edge(tensor)
    return found.node, found.output_nr


def is_python(kind: type) -> bool:
    """Whether nodes of this type are of a function that is written in Python, or compiled."""
    return issubclass(kind, BackwardCFunction)


def walk(roots: Sequence[tuple[Edge, int]], stops: Iterable[Edge] = (), counted: int = -1) -> Reach:
    """Walk from where losses hang, each with its mask.

    Args:
        roots: edges, each with the mask that it gives to all that it reaches.
        stops: edges beyond which the walk does not go.
        counted: the bits of losses to whom a joining node matters.
    """
    ends: dict[Node, set[int]] = {}
    for node, number in stops:
        ends.setdefault(node, set()).add(number)
    # One bit above all others travels along and says that a joining node was passed.
    joined = 1 << max((mask.bit_length() for _, mask in roots), default=0)
    reach = Reach()
    masks: dict[Node, int] = {}
    for root, mask in roots:
        node, number = _through(*root, ends)
        if node in ends and number in ends[node]:
            reach.stops[node, number] = reach.stops.get((node, number), 0) | mask
        elif node is not None:
            masks[node] = masks.get(node, 0) | mask
    leaves = {node: masks.pop(node) for node in [*masks] if type(node) is LEAF}
    edges, waits = _found(list(masks), ends)
    ready = [node for node in masks if not waits[node]]
    while ready:
        node = ready.pop()
        mask, here = masks[node], edges[node]
        if len(here) > 1 and mask & counted and not mask & joined and _joins(type(node)):
            mask |= joined
        for child, number in here:
            if child is None:
                continue
            if child in ends and number in ends[child]:
                plain = mask & ~joined
                reach.stops[child, number] = reach.stops.get((child, number), 0) | plain
                if mask & joined:
                    reach.joint_stops.add((child, number))
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


def _found(
    starts: Sequence[Node], ends: Mapping[Node, set[int]]
) -> tuple[dict[Node, Sequence[tuple[Node | None, int]]], dict[Node, int]]:
    """The edges of all nodes but leaves, and how many edges of others lead to each."""
    edges: dict[Node, Sequence[tuple[Node | None, int]]] = {}
    waits = dict.fromkeys(starts, 0)
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        edges[node] = here = _edges(node, ends)
        for child, number in here:
            if child is None or type(child) is LEAF or (child in ends and number in ends[child]):
                continue
            known = waits.get(child)
            if known is None:
                waits[child] = 1
                waiting.append(child)
            else:
                waits[child] = known + 1
    return edges, waits


def _edges(node: Node, ends: Mapping[Node, set[int]]) -> Sequence[tuple[Node | None, int]]:
    """Where a node leads to, seen through what hands each input on to one output."""
    edges = cast(Sequence[tuple[Node | None, int]], node.next_functions)
    for child, _ in edges:
        kind = type(child)
        if (_KINDS.get(kind) or _kind(kind))[0]:  # once for every edge: no call where it is known
            return [_through(*edge, ends) for edge in edges]
    return edges


def _through(
    node: Node | None, number: int, ends: Mapping[Node, set[int]]
) -> tuple[Node | None, int]:
    while node is not None and _passes(type(node)) and number < len(node.next_functions):
        if node in ends and number in ends[node]:
            break
        node, number = node.next_functions[number]
    return node, number


_KINDS: dict[type, tuple[bool, bool]] = {}
"""For each type of node: whether it passes its inputs on one by one, whether it joins them."""


def _kind(kind: type) -> tuple[bool, bool]:
    found = _KINDS.get(kind)
    if found is None:
        passing = kind.__name__ in PASSING
        joining = is_python(kind) or kind.__name__ in JOINING
        found = _KINDS[kind] = passing, not passing and joining
    return found


def _passes(kind: type) -> bool:
    return _kind(kind)[0]


def _joins(kind: type) -> bool:
    return _kind(kind)[1]
