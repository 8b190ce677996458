"""Values to check by hand: what methods make of two small gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import evenhand

EXAMPLES: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "at right angles": ((2.0, 0.0), (0.0, 1.0)),
    "in conflict": ((2.0, 0.0), (-1.0, 1.0)),
    "of one direction": ((3.0, 0.0), (1.0, 0.0)),
}


LOSSES = (1.0, 2.0)


@dataclass(frozen=True)
class Value:
    """What a method makes of two gradients at its first call."""

    weights: list[float] | None
    direction: list[float]


class _Point(nn.Module):
    """A trunk that gives its one parameter, θ = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: None) -> torch.Tensor:
        return self.theta.clone()


class _Linear(nn.Module):
    """A head that is a loss, linear in θ."""

    def __init__(self, at_zero: float, gradient: tuple[float, float]) -> None:
        super().__init__()
        self.at_zero = at_zero
        self.gradient = torch.tensor(gradient, dtype=torch.float64)

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        return self.at_zero + (self.gradient * theta).sum()


def value(slots: Mapping[str, Any], rows: tuple[tuple[float, float], ...]) -> Value:
    """By a balancer, on losses that are linear in θ, so that their gradients are `rows`."""
    heads = {task: _Linear(*loss) for task, *loss in zip("ab", LOSSES, rows, strict=True)}
    network = evenhand.MultiTaskNetwork(_Point(), heads)
    (theta,) = network.parameters()
    balancer = evenhand.Balancer(**slots, tasks=("a", "b"), model=network)
    further = max((method.traits.batches for method in balancer.methods), default=1) - 1
    outputs, samples = network(None), [network(None) for _ in range(further)]
    clock = evenhand.Clock()
    balance = balancer.backward(outputs, features=outputs.features, samples=samples, clock=clock)
    weights = balance.trunk_weights
    return Value(None if weights is None else weights.tolist(), theta.grad.tolist())


def table(slot: str, make: Callable[[], Any]) -> str:
    """The values of each example, a fresh method for each."""
    rows = [
        "What a fresh `Balancer` makes of two gradients at its first call, with losses 1 and 2 and "
        "the method's defaults:\n",
        "| gradients | {formula}`g_1` | {formula}`g_2` | weights | direction v | {formula}`g_1·v` "
        "| {formula}`g_2·v` |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, gradients in EXAMPLES.items():
        found = value({slot: make()}, gradients)
        gains = [sum(a * b for a, b in zip(g, found.direction, strict=True)) for g in gradients]
        vectors = [*gradients, found.weights, found.direction]
        cells = [kind, *map(_vector, vectors), *map(_number, gains)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _number(value: float) -> str:
    text = f"{value:.4g}" if abs(value) > 5e-7 else "0"
    return text.replace("-", "−")


def _vector(values: Sequence[float] | None) -> str:
    return "–" if values is None else f"({', '.join(map(_number, values))})"
