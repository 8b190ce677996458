"""A scalar whose ordinary backward pass gives leaves the gradients that somebody has made for them.

What reaches a leaf reaches it through autograd's own accumulation node: hooks on the leaf run once,
on what is delivered; optimizers in backward, DDP's reducer and sparse layouts see what they always
see. The engine runs a leaf's accumulation only when everything that leads to it has been heard, so
terms that are added to the scalar add up as they do for any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.function import once_differentiable

from evenhand.autodiff.hooks import without_hooks
from evenhand.autodiff.walk import Node

Source = Callable[[Tensor], Sequence[Tensor | None]]
"""The incoming gradient -> a gradient for each leaf."""


class _Delivery(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Source, value: Tensor, *leaves: Tensor) -> Tensor:
        ctx.source = source
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.source(gradient))


class _OnceDifferentiable(_Delivery):
    """For a scalar that a user holds: its gradients are made outside autograd, so it refuses a
    second derivative. The scalar of `deliver` never leaves it, and goes without the check.
    """

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Delivery.backward(ctx, gradient)


def delivered_by(source: Source, value: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """A scalar of this value, for whose every backward pass `source` makes the gradients once."""
    with torch.enable_grad():
        apply: Callable[..., Tensor] = _OnceDifferentiable.apply
        return apply(source, value, *leaves)


def deliver(leaves: Sequence[Tensor], gradients: list[Tensor | None]) -> None:
    """Hand leaves their gradients; the list is emptied, so that autograd may keep the tensors."""

    def handed_over(_: Tensor) -> Sequence[Tensor | None]:
        given = tuple(gradients)
        gradients.clear()
        return given

    with nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
        apply: Callable[..., Tensor] = _Delivery.apply
        scalar = apply(handed_over, _ZERO, *leaves)
    torch.autograd.backward(scalar, _ONE)


_ZERO, _ONE = torch.zeros(()), torch.ones(())


def keeps_graph() -> bool:
    """Inside a backward pass: whether it was asked to keep the graph for another one."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def shared_outside(losses: Sequence[Tensor]) -> bool:
    """Inside a backward pass: whether it goes through the graph of these losses too.

    So it does where a term that was added to the scalar shares their graph. Leaves do not count.
    """
    will_run = torch._C._will_engine_execute_node
    seen: set[Node] = set()
    waiting: list[Node] = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        edges = node.next_functions
        if node in seen or not edges:  # a leaf's accumulation leads nowhere
            continue
        if will_run(node):
            return True
        seen.add(node)
        waiting += [child for child, _ in edges if child is not None]
    return False


class _Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *losses: Tensor) -> Tensor:
        return torch.zeros((), dtype=losses[0].dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)


def release(losses: Sequence[Tensor], features: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Free what the graph of losses and features still keeps, though the user may hold them.

    Passes without any gradient do it: nodes run, compute nothing, and let go of what they have
    saved. One stops where a pass before has freed a part, where an optimizer in backward has
    changed a weight already, and at hooks on activations that cannot do with None. What is left
    then goes with them.
    """
    # The last pass for gradients may have freed the last loss's graph. A pass stops with an error
    # at what is freed, so the other losses come first.
    for some in (losses[:-1], losses[-1:], features):
        release_up_to(some, leaves, leaves)


def release_up_to(
    losses: Sequence[Tensor], ends: Sequence[Tensor], leaves: Sequence[Tensor]
) -> None:
    """`release` what lies between losses and `ends`; hooks of the leaves do not run."""
    if losses and ends:
        apply: Callable[..., Tensor] = _Nothing.apply
        with torch.enable_grad(), without_hooks(leaves), suppress(Exception):
            grad(apply(*losses), ends, allow_unused=True)


def released_at_the_end(
    losses: Sequence[Tensor], features: Sequence[Tensor], leaves: Sequence[Tensor]
) -> None:
    """`release` them when the backward pass that is under way has ended.

    Terms that share their graph and are differentiated in the same pass find it whole.
    """
    engine = torch.autograd.Variable._execution_engine
    engine.queue_callback(lambda: release(losses, features, leaves))
