"""What a step of MGDA takes beside one of MGDA-UB, with 3 tasks and with 40.

The paper times scene understanding (3 tasks) and CelebA (40 attributes) on a GPU. Here both
numbers of tasks have CelebA's network, the released ResNet-18 on 64×64 with a linear unit per
attribute, on noise and one thread. Both take their step in turns within every round.

With linear heads the ratio for 3 tasks is above the paper's, whose three tasks have dense decoders.
How much of that is the heads' work is measured, too: `dense` gives the same trunk a decoder of some
width for each task, and takes the time of the heads alone, forward and backward, beside that of
either step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import MGDA, Balancer, MultiTaskNetwork
from evenhand.data import celeba

Quantities = dict[str, list[float | None]]
PLACES = "parameters", "representation"
"""Where MGDA and MGDA-UB take their gradients."""


def run(cell: dict[str, Any]) -> dict[str, Any]:
    """CPU milliseconds of a step of either, every round; on a GPU those on the wall."""
    torch.manual_seed(0)
    device = cell.get("device", "cpu")
    with torch.device(device):
        if width := cell.get("width"):
            steps = dense(cell["tasks"], cell["batch"], width)
        else:
            steps = linear(cell["tasks"], cell["batch"])
    return timed(steps, cell["rounds"], wall if device.startswith("cuda") else time.process_time)


def wall() -> float:
    """The time on the wall in seconds, when the GPU has done all that it was told to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(
    steps: Mapping[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of each, which take turns, after a first time that does not count."""
    for take in steps.values():
        take()
    times: dict[str, list[float]] = {at: [] for at in steps}
    for _ in range(rounds):
        for at, take in steps.items():
            start = clock()
            take()
            times[at].append(1e3 * (clock() - start))
    return times


def linear(tasks: int, batch: int) -> dict[str, Callable[[], None]]:
    """Steps of MGDA and MGDA-UB with a linear unit for each task."""
    names = [f"t{k}" for k in range(tasks)]
    labels = torch.randint(2, (tasks, batch)).float()
    return {at: step(at, celeba.network(names, celeba.resnet18), labels) for at in PLACES}


def dense(tasks: int, batch: int, width: int) -> dict[str, Callable[[], None]]:
    """The same with decoders of `width` channels to 64×64, and what the decoders take alone."""
    labels = torch.randint(2, (tasks, batch, celeba.SIDE, celeba.SIDE)).float()
    network = dense_network(tasks, width)
    steps = {at: step(at, dense_network(tasks, width), labels) for at in PLACES}
    features = torch.randn(batch, 512, 8, 8, requires_grad=True)

    def heads() -> None:
        for task, label in zip(network.tasks, labels, strict=True):
            _loss(network.head(task)(features), label).backward()

    return {**steps, "heads": heads}


def dense_network(tasks: int, width: int) -> MultiTaskNetwork:
    """The ResNet-18 without its pooling, and a decoder of two convolutions for each task."""
    trunk = celeba.resnet18()[0][:-2]
    heads = {
        f"t{k}": nn.Sequential(
            *(nn.Conv2d(512, width, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=8)),
            *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 1)),
            nn.Flatten(1, 2),
        )
        for k in range(tasks)
    }
    return MultiTaskNetwork(trunk, heads)


def step(at: Any, network: MultiTaskNetwork, labels: Tensor) -> Callable[[], None]:
    """A step of MGDA whose gradients are taken at a place; labels [tasks, b, ...]."""
    balancer = Balancer(aggregator=MGDA(at=at), model=network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    inputs = torch.randn(labels.shape[1], 3, celeba.SIDE, celeba.SIDE)

    def take() -> None:
        optimizer.zero_grad()
        outputs = network(inputs)
        losses = {
            task: _loss(outputs[task], label)
            for task, label in zip(network.tasks, labels, strict=True)
        }
        balancer.backward(losses, features=outputs)
        optimizer.step()

    return take


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, labels)


def shares(found: Mapping[int, Mapping[str, list[float]]]) -> dict[str, Quantities]:
    """{decoder: {ratio, the heads' share of MGDA-UB's step: [median, spread, rounds]}}."""
    table = {}
    for width, times in found.items():
        exact, bound, heads = (times[key] for key in (*PLACES, "heads"))
        table[f"3 tasks, decoders of {width} channels"] = {
            "MGDA / MGDA-UB": _middle([a / b for a, b in zip(exact, bound, strict=True)]),
            "heads / MGDA-UB": _middle([h / b for h, b in zip(heads, bound, strict=True)]),
        }
    return table


def rows(found: Mapping[int, Mapping[str, list[float]]]) -> dict[str, Quantities]:
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
