"""What a step of MGDA takes beside one of MGDA-UB, with 3 tasks and with 40.

The paper times scene understanding (3 tasks) and CelebA (40 attributes) on a GPU. Here both
numbers of tasks have CelebA's network, the released ResNet-18 on 64×64 with a linear unit per
attribute, on noise and one thread. Both take their step in turns within every round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from evenhand import MGDA, Balancer
from evenhand.data import celeba


def run(cell: dict[str, Any]) -> dict[str, Any]:
    """CPU milliseconds of a step of either, every round."""
    torch.manual_seed(0)
    steps = {at: step(at, cell["tasks"], cell["batch"]) for at in ("parameters", "representation")}
    for take in steps.values():
        take()
    times: dict[str, list[float]] = {at: [] for at in steps}
    for _ in range(cell["rounds"]):
        for at, take in steps.items():
            start = time.process_time()
            take()
            times[at].append(1e3 * (time.process_time() - start))
    return times


def step(at: Any, tasks: int, batch: int) -> Callable[[], None]:
    """A step of MGDA whose gradients are taken at a place."""
    network = celeba.network([f"t{k}" for k in range(tasks)], celeba.resnet18)
    balancer = Balancer(aggregator=MGDA(at=at), model=network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    inputs = torch.randn(batch, 3, celeba.SIDE, celeba.SIDE)
    labels = torch.randint(2, (tasks, batch)).float()

    def take() -> None:
        optimizer.zero_grad()
        outputs = network(inputs)
        losses = {
            task: functional.binary_cross_entropy_with_logits(outputs[task], label)
            for task, label in zip(network.tasks, labels, strict=True)
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
