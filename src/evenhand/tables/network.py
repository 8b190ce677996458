"""The network for a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from evenhand.network import MultiTaskNetwork
from evenhand.tables.shape import Shape

MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


def network(
    shape: Shape, inputs: int, outputs: Mapping[str, int], tasks: Sequence[str], width: float = 1.0
) -> MultiTaskNetwork:
    """A network from `inputs` numbers to those of each of `tasks`.

    Args:
        shape: with its widths, see `Shape.sized`.
        inputs: how many columns the prepared inputs have.
        outputs: how many numbers a task has, by name.
        tasks: those that get a head.
        width: every hidden layer is so many times as wide, and one unit at least.

    Raises:
        ValueError: the shape has no widths yet.
    """
    if shape.width is None or shape.head is None:
        raise ValueError(f"{shape}: its widths are not known yet")
    wide = max(1, round(width * shape.width))
    head = max(1, round(width * shape.head)) if shape.head else 0
    layers: list[nn.Module] = []
    for k in range(shape.depth):
        layers += _layer(shape, inputs if k == 0 else wide, wide)
    heads: dict[str, nn.Module] = {}
    for task in tasks:
        if head:
            hidden = _layer(shape, wide, head)
            heads[task] = nn.Sequential(*hidden, nn.Linear(head, outputs[task]))
        else:
            heads[task] = nn.Linear(wide, outputs[task])
    return MultiTaskNetwork(nn.Sequential(*layers), heads)


def _layer(shape: Shape, inputs: int, outputs: int) -> list[nn.Module]:
    made: list[nn.Module] = [nn.Linear(inputs, outputs), MODULES[shape.activation]()]
    return [*made, nn.Dropout(shape.dropout)] if shape.dropout else made
