"""Autograd's passes, and small arithmetic on what they return: lists of tensors, None where a loss
does not reach a target.

Nothing else in the library calls autograd for per-task gradients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from evenhand.autodiff.gradients import Gradient, Place, all_finite
from evenhand.autodiff.jacobian import SMALL, flattened, numbers


def gradient(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor | GradientEdge],
    gradients: Sequence[Tensor] | None = None,
    retain_graph: bool = True,
) -> Gradient:
    """What autograd finds at `inputs`; None where the outputs do not reach one."""
    if not inputs:
        return []
    if gradients is None and outputs[0].ndim:
        gradients = [torch.ones_like(output) for output in outputs]
    targets = cast(Sequence[Tensor], inputs)  # it takes a mixture of both
    try:
        row = torch.autograd.grad(
            outputs, targets, gradients, retain_graph=retain_graph, allow_unused=True
        )
    except RuntimeError as error:
        told = next((why for sign, why in REFUSALS.items() if sign in str(error)), None)
        if told is None:
            raise
        raise ValueError(f"{told}. Torch says: {error}") from error
    return cast(Gradient, row)


REFUSALS = {
    "use_reentrant=True": "gradients per task cannot be taken through torch.utils.checkpoint with "
    "use_reentrant=True: call it with use_reentrant=False",
    "donated buffers": "a compiled network frees what it has saved after one pass, and here "
    "several are taken: set torch._functorch.config.donated_buffer = False before it is compiled",
}
"""What torch says of a graph that has room for one pass only -> what would be right."""


def batched(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor | GradientEdge],
    gradients: Sequence[Tensor],
) -> Gradient:
    """One pass on gradients [c, ...] by the outputs; what it returns is [c, ...] too."""
    if not outputs:
        return [None] * len(inputs)
    try:
        with warnings.catch_warnings():  # an operation without a rule of its own is looped over
            warnings.filterwarnings("ignore", "There is a performance drop")
            row = torch.autograd.grad(
                outputs,
                cast(Sequence[Tensor], inputs),
                gradients,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
    except RuntimeError as error:
        raise ValueError(
            "this network cannot be differentiated for several tasks at once; take "
            f"Balancer(jacobian='looped'): {error}"
        ) from error
    return cast(Gradient, row)


def doubly(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], gradients: Sequence[Tensor] | None
) -> Gradient:
    """A pass that can be differentiated by `gradients`, or by what the outputs are made of."""
    return cast(
        Gradient,
        torch.autograd.grad(outputs, inputs, gradients, create_graph=True, allow_unused=True),
    )


def differentiated_along(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Gradient:
    """The derivative of what `doubly` made, along `vectors`."""
    try:
        return cast(Gradient, torch.autograd.grad(outputs, inputs, vectors, allow_unused=True))
    except RuntimeError as error:
        raise ValueError(
            "the product J d needs operations whose backward pass can be differentiated, and one "
            "of this network's cannot; fused attention is one: run the forward pass inside "
            f"torch.nn.attention.sdpa_kernel(SDPBackend.MATH). Torch says: {error}"
        ) from error


@contextmanager
def cut(features: Sequence[Tensor]) -> Iterator[None]:
    """Inside, gradients by the features stop there.

    Of two levels of a pyramid, one made from the other, each then gets what reaches it directly;
    the way from one to the other belongs to the trunk.
    """
    numbers: dict[Any, set[int]] = {}
    for z in features if len(features) > 1 else ():
        if z.grad_fn is not None:
            numbers.setdefault(z.grad_fn, set()).add(z.output_nr)
    handles = [node.register_prehook(partial(_without, which)) for node, which in numbers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without(which: set[int], gradients: Gradient) -> tuple[Tensor | None, ...]:
    return tuple(None if k in which else g for k, g in enumerate(gradients))


def weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Σ weights_i L_i over tasks and leading dimensions; weights are ones by default."""
    return losses.sum() if weights is None else (losses * weights.to(losses.dtype)).sum()


def added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may be None."""
    return other if one is None else one if other is None else one + other


def shaped_like(
    vector: Tensor,
    targets: Sequence[Tensor],
    leading: torch.Size,
    scale: float | Tensor | None,
) -> list[Tensor | None]:
    """A direction [..., n], times `scale`, cut into pieces of the targets' shapes."""
    if scale is not None:
        vector = vector * scale
    pieces = torch.split(vector, [numbers(t) // leading.numel() for t in targets], dim=-1)
    return [_shaped(piece, t) for piece, t in zip(pieces, targets, strict=True)]


def _shaped(piece: Tensor, target: Tensor) -> Tensor:
    piece = piece.to(target.device)
    if target.is_complex():
        return torch.view_as_complex(piece.reshape(*target.shape, 2).clone()).to(target.dtype)
    return piece.reshape(target.shape).to(target.dtype)


def finite(row: Gradient) -> bool:
    """Whether no gradient has an entry that is NaN or infinite."""
    present = [g for g in row if g is not None]
    if all(g.is_cpu for g in present):
        return _finite_here(present)
    # Elsewhere one norm costs less than many sums. It is NaN or infinite if an entry is; should
    # finite entries overflow it, they are tested after all.
    sparse = [g for g in present if g.layout != torch.strided]
    dense = [g for g in present if g.layout == torch.strided]
    if not all(map(all_finite, sparse)):
        return False
    if not dense or math.isfinite(nn.utils.get_total_norm(dense).item()):
        return True
    return all(bool(g.isfinite().all()) for g in dense)


def _finite_here(present: Sequence[Tensor]) -> bool:
    """`finite` on the CPU: small gradients as one tensor, as a call costs more than its numbers.

    If their types are mixed it has the widest, in which no finite number becomes infinite.
    """
    small: list[Tensor] = []
    large: list[Tensor] = []
    for g in present:
        (small if g.numel() <= SMALL and g.layout == torch.strided else large).append(g)
    if len(small) < 2:
        return all(map(all_finite, present))
    return all_finite(flattened(small)) and all(map(all_finite, large))


def chosen_targets(
    place: Place, shared: Sequence[Tensor], last_layer: Sequence[Tensor]
) -> list[Tensor]:
    """The balanced leaves that `place` looks at.

    Raises:
        ValueError: there are none, or one of them is not balanced.
    """
    match place:
        case "parameters":
            return list(shared)
        case "last_layer":
            chosen = list(last_layer)
        case _ if callable(place):
            chosen = list(place(tuple(shared)))
        case _:
            raise ValueError(f"at={place!r} is no place a gradient can be taken")
    if not chosen:
        raise ValueError(
            f"at={place!r}: the last shared layer of this model is not known; name it with "
            "at=lambda shared: model.layer.parameters(), or use a MultiTaskNetwork"
        )
    there = {id(leaf) for leaf in shared}
    foreign = [p for p in chosen if id(p) not in there]
    if foreign:
        raise ValueError(
            f"at={place!r} chose a parameter of shape {tuple(foreign[0].shape)} that is not "
            "balanced: fewer than two tasks have reached it, or it is frozen"
        )
    return chosen


def spans_of(
    place: Place, targets: Callable[[Place], list[Tensor]], shared: Sequence[Tensor]
) -> list[Tensor]:
    """The balanced leaves of a place, none where a chosen place has none."""
    if callable(place) and not list(place(tuple(shared))):
        return []
    return targets(place)


def spans_among(
    targets: Sequence[Tensor], shared: Sequence[Tensor], leading: torch.Size
) -> list[slice]:
    """Where `targets` stand among the columns of the Jacobian of all `shared` leaves."""
    sizes = [numbers(p) // leading.numel() for p in shared]
    ends = accumulate(sizes)
    columns = {
        id(p): slice(end - size, end) for p, size, end in zip(shared, sizes, ends, strict=True)
    }
    return [columns[id(target)] for target in targets]
