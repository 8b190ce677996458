"""What it gains to train runs as one: time of a step of E single networks over one of their stack.

    python benchmarks/stack.py [--rounds 5] [--members 3 9 30]

Process CPU time on one thread, single runs and stack in turns, medians over the rounds. The numbers
are those in the docstring of `evenhand.ensemble.training`, whose `drawback` draws the line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import evenhand as eh
from evenhand import data
from evenhand.ensemble.network import Stack
from evenhand.ensemble.optimizers import StackedSGD
from evenhand.training.flops import Meter

Network = Callable[[Sequence[str]], eh.MultiTaskNetwork]
Losses = Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]


def small(width: int, tasks: Sequence[str]) -> eh.MultiTaskNetwork:
    """2-w-w, and a linear head for each task."""
    trunk = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return eh.MultiTaskNetwork(trunk, {task: nn.Linear(width, 1) for task in tasks})


def convolving(channels: int, tasks: Sequence[str]) -> eh.MultiTaskNetwork:
    """Two convolutions over 16 × 2, and a linear head for each task."""
    trunk = nn.Sequential(
        nn.Conv1d(2, channels, 3),
        nn.ReLU(),
        nn.Conv1d(channels, channels, 3),
        nn.ReLU(),
        nn.Flatten(),
    )
    return eh.MultiTaskNetwork(trunk, {task: nn.Linear(12 * channels, 1) for task in tasks})


def squares(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: functional.mse_loss(outputs[task], targets[task]) for task in outputs}


def step(
    network: eh.MultiTaskNetwork,
    optimizer: torch.optim.Optimizer,
    balancer: eh.Balancer,
    losses: Losses,
    inputs: Tensor,
    targets: dict[str, Tensor],
) -> None:
    """One training step."""
    outputs = network(inputs)
    optimizer.zero_grad()
    balancer.backward(losses(dict(outputs), targets), features=outputs)
    optimizer.step()


def seconds(action: Callable[[], None], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - start) / times


def measure(
    name: str,
    make: Network,
    losses: Losses,
    inputs: Tensor,
    targets: dict[str, Tensor],
    members: int,
    rounds: int,
) -> None:
    """Print one line."""
    tasks = tuple(targets)
    network = make(tasks)
    with Meter() as meter, torch.no_grad():
        network(inputs)
    alone = partial(
        step,
        network,
        torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9),
        eh.Balancer(aggregator=eh.MGDA(), tasks=tasks, model=network),
        losses,
        inputs,
        targets,
    )
    stack = Stack([make(tasks) for _ in range(members)])
    together = partial(
        step,
        stack,
        StackedSGD(stack.parameters(), [1e-3] * members, 0.9),
        eh.Balancer(aggregator=eh.MGDA(), tasks=tasks, model=stack, leading=(members,)),
        torch.func.vmap(losses),
        inputs.expand(members, *inputs.shape).contiguous(),
        {task: t.expand(members, *t.shape).contiguous() for task, t in targets.items()},
    )
    gains = []
    for _ in range(rounds + 1):  # the first one warms up
        single = seconds(alone, 20)
        gains.append(members * single / seconds(together, 10))
    gain = statistics.median(gains[1:])
    told = f"{meter.total / 1e6:8.3f} million operations  {members:3d} members"
    print(f"{name:16s} {told}  gain {gain:5.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, nargs="+", default=[3, 9, 30])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = data.problem("digits")
    cases: list[tuple[str, Network, Losses, Tensor, dict[str, Tensor]]] = []
    for width, batch in ((2, 4), (64, 64), (128, 64), (128, 256), (256, 256), (512, 256)):
        targets = {task: torch.randn(batch, 1) for task in ("a", "b")}
        inputs = torch.randn(batch, 2)
        cases.append((f"w {width}, b {batch}", partial(small, width), squares, inputs, targets))
    for channels, batch in ((4, 32), (8, 64), (32, 64)):
        targets = {task: torch.randn(batch, 1) for task in ("a", "b")}
        inputs = torch.randn(batch, 2, 16)
        name = f"conv {channels}, b {batch}"
        cases.append((name, partial(convolving, channels), squares, inputs, targets))

    def losses(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        return {task: digits.tasks[task].loss(outputs[task], targets[task]) for task in outputs}

    inputs, targets = digits.train.take(torch.arange(64))  # type: ignore[union-attr]
    cases.insert(2, ("digits, b 64", digits.network, losses, inputs, dict(targets)))
    for case in cases:
        for members in asked.members:
            measure(*case, members, asked.rounds)


if __name__ == "__main__":
    main()
