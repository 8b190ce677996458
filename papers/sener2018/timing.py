"""What a step of MGDA takes beside one of MGDA-UB, with 3 tasks and with 40.

The paper times scene understanding (3 tasks) and CelebA (40 attributes) on a GPU with ResNet
trunks; here it is a ResNet-18 on pictures of 64×64 with as many linear heads, batches of 16, one
thread. Both take their step in turns within every round; a ratio is of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from evenhand import MGDA, Balancer, MultiTaskNetwork

BATCH, SIDE = 16, 64


class Residual(nn.Module):
    """Two 3×3 convolutions with batch normalisation, and a way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.round = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.way(x) + self.round(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 without its last layer: [n, 3, h, w] -> [n, 512]."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)]
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Residual(inputs, outputs, stride), Residual(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def run(cell: dict[str, Any]) -> dict[str, Any]:
    """CPU milliseconds of a step of either, every round."""
    torch.manual_seed(0)
    tasks = cell["tasks"]
    steps = {at: step(at, tasks) for at in ("parameters", "representation")}
    for take in steps.values():
        take()
    times: dict[str, list[float]] = {at: [] for at in steps}
    for _ in range(cell["rounds"]):
        for at, take in steps.items():
            start = time.process_time()
            take()
            times[at].append(1e3 * (time.process_time() - start))
    return times


def step(at: Any, tasks: int) -> Callable[[], None]:
    """A step of MGDA whose gradients are taken at a place."""
    network = MultiTaskNetwork(resnet18(), {f"t{k}": nn.Linear(512, 2) for k in range(tasks)})
    balancer = Balancer(aggregator=MGDA(at=at), model=network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    inputs = torch.randn(BATCH, 3, SIDE, SIDE)
    classes = torch.randint(2, (tasks, BATCH))

    def take() -> None:
        optimizer.zero_grad()
        outputs = network(inputs)
        losses = {
            task: functional.cross_entropy(outputs[task], target)
            for task, target in zip(network.tasks, classes, strict=True)
        }
        balancer.backward(losses, features=outputs)
        optimizer.step()

    return take


def rows(found: dict[int, dict[str, list[float]]]) -> dict[str, dict[str, list[float | None]]]:
    """{tasks: {milliseconds and their ratio: [median, spread, rounds]}}."""
    table = {}
    for tasks, times in found.items():
        exact, bound = times["parameters"], times["representation"]
        ratios = [a / b for a, b in zip(exact, bound, strict=True)]
        table[f"{tasks} tasks"] = {
            "MGDA, ms": _middle(exact),
            "MGDA-UB, ms": _middle(bound),
            "MGDA / MGDA-UB": _middle(ratios),
        }
    return table


def _middle(values: list[float]) -> list[float | None]:
    return [statistics.median(values), statistics.stdev(values), len(values)]
