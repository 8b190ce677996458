"""Networks of six kinds with a batch for each: what `step.py` and `against.py` measure on.

Nothing of the library is used but `MultiTaskNetwork`, so older versions of it will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import MultiTaskNetwork


@dataclass(frozen=True)
class Case:
    """A network, and a batch for it. `make` gives equal networks at every call."""

    about: str
    make: Callable[[], MultiTaskNetwork]
    inputs: Tensor
    targets: Mapping[str, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]

    def network(self, fused: bool = False) -> MultiTaskNetwork:
        torch.manual_seed(0)
        network = self.make().train()
        if fused:
            heads = {task: network.head(task) for task in network.tasks}
            network = MultiTaskNetwork(network.trunk, heads, fused=True)
        return network

    def losses(self, outputs: Mapping[str, Any]) -> dict[str, Tensor]:
        return {task: self.loss(outputs[task], y) for task, y in self.targets.items()}


def perceptron(*widths: int) -> nn.Sequential:
    layers = [(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(widths)]
    return nn.Sequential(*(layer for pair in layers for layer in pair))


def classes(m: int, batch: int, count: int = 10) -> dict[str, Tensor]:
    return {f"t{i}": torch.randint(count, (batch,)) for i in range(m)}


def binary(m: int, batch: int) -> dict[str, Tensor]:
    return {f"t{i}": torch.randint(2, (batch, 1)).float() for i in range(m)}


def two_heads(batch: int = 256, width: int = 512) -> Case:
    def make() -> MultiTaskNetwork:
        heads = {
            t: nn.Sequential(*perceptron(width, width, width), nn.Linear(width, 10)) for t in y
        }
        return MultiTaskNetwork(perceptron(64, width, width, width), heads)

    y = classes(2, batch)
    about = f"MLP 3×{width}, 2 heads {width}-{width}, batch {batch}"
    return Case(about, make, torch.rand(batch, 64), y, functional.cross_entropy)


def lenet(batch: int = 256) -> Case:
    def make() -> MultiTaskNetwork:
        pool = partial(nn.MaxPool2d, 2)
        first = (nn.Conv2d(1, 10, 5), pool(), nn.ReLU())
        second = (nn.Conv2d(10, 20, 5), pool(), nn.ReLU())
        trunk = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(320, 50), nn.ReLU())
        heads = {t: nn.Sequential(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10)) for t in y}
        return MultiTaskNetwork(trunk, heads)

    y = classes(2, batch)
    about = f"LeNet on 28×28, 2 heads, batch {batch}"
    return Case(about, make, torch.rand(batch, 1, 28, 28), y, functional.cross_entropy)


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al., CVPR 2016, Figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.way = nn.Sequential(
            *(wide(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(wide(outputs, outputs), nn.BatchNorm2d(outputs)),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            point = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(point, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.way(x) + self.shortcut(x))


def resnet(batch: int = 32, m: int = 40, width: int = 64) -> Case:
    def make() -> MultiTaskNetwork:
        stem = nn.Sequential(
            *(nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            nn.MaxPool2d(3, 2, 1),
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = [
            block
            for k, (i, o) in enumerate(pairwise(widths))
            for block in (Residual(i, o, 1 + (k > 0)), Residual(o, o, 1))
        ]
        trunk = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return MultiTaskNetwork(trunk, {t: nn.Linear(8 * width, 1) for t in y})

    y = binary(m, batch)
    about = f"ResNet-18 on 64×64, {m} linear heads, batch {batch}"
    return Case(
        about, make, torch.rand(batch, 3, 64, 64), y, functional.binary_cross_entropy_with_logits
    )


def many_heads(batch: int = 256, m: int = 100, width: int = 256) -> Case:
    def make() -> MultiTaskNetwork:
        heads = {t: nn.Linear(width, 1) for t in y}
        return MultiTaskNetwork(perceptron(64, width, width, width), heads)

    y = binary(m, batch)
    about = f"MLP 3×{width}, {m} linear heads, batch {batch}"
    return Case(about, make, torch.rand(batch, 64), y, functional.binary_cross_entropy_with_logits)


class Pooled(nn.Module):
    """The mean over a sequence [b, length, width]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def transformer(batch: int = 32, m: int = 8, width: int = 128, layers: int = 2) -> Case:
    def make() -> MultiTaskNetwork:
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        trunk = nn.Sequential(nn.Embedding(100, width), encoder, Pooled())
        return MultiTaskNetwork(trunk, {t: nn.Linear(width, 10) for t in y})

    y = classes(m, batch)
    about = f"transformer, {layers} layers of {width}, 32 tokens, {m} heads, batch {batch}"
    return Case(about, make, torch.randint(100, (batch, 32)), y, functional.cross_entropy)


def small(batch: int = 32, width: int = 64) -> Case:
    def make() -> MultiTaskNetwork:
        heads = {t: nn.Linear(width, 1) for t in y}
        return MultiTaskNetwork(perceptron(20, width, width), heads)

    y = binary(3, batch)
    about = f"MLP 2×{width}, 3 linear heads, batch {batch}"
    return Case(about, make, torch.rand(batch, 20), y, functional.binary_cross_entropy_with_logits)


CASES: Mapping[str, Callable[[], Case]] = {
    "a": two_heads,
    "b": lenet,
    "c": resnet,
    "d": many_heads,
    "e": transformer,
    "f": small,
}
QUICK: Mapping[str, Callable[[], Case]] = {
    "a": partial(two_heads, 8, 16),
    "b": partial(lenet, 8),
    "c": partial(resnet, 4, 3, 4),
    "d": partial(many_heads, 8, 10, 16),
    "e": partial(transformer, 4, 3, 16, 1),
    "f": partial(small, 4, 8),
}
