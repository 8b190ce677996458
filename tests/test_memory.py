"""What memory a step takes, by the allocator's own events: at its peak, and when it is over.

Activations are a hundred times larger than parameters here, so 2 % tells one that is kept.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torchmetrics import MeanSquaredError

from evenhand import (
    MGDA,
    Balance,
    Balancer,
    GradDrop,
    MultiTaskNetwork,
    Phase,
    Uncertainty,
)
from evenhand.data import Problem, Split, Task
from evenhand.training import epoch_statistics
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import oscillation
from evenhand.training.steps import Steps

TASKS = ("a", "b", "c")
SAMPLES, WIDTH, DEPTH = 2048, 32, 6
ACTIVATION = SAMPLES * WIDTH * 4
"""Bytes of one layer's output."""

METHODS: dict[str, Callable[[], Balancer]] = {
    "sum": Balancer,
    "mgda": lambda: Balancer(aggregator=MGDA()),
    "batched": lambda: Balancer(aggregator=MGDA(), jacobian="batched"),
    "mgda-ub": lambda: Balancer(aggregator=MGDA(at="representation")),
    "uncertainty": lambda: Balancer(Uncertainty(), tasks=TASKS),
    "graddrop": lambda: Balancer(aggregator=GradDrop()),
}
ROUTES = ("none", "features", "outputs", "module")
CASES = [(m, r) for m in METHODS for r in ROUTES if (m, r) != ("mgda-ub", "none")]


def measured(action: Callable[[], Any]) -> tuple[int, int]:
    """Bytes at the peak and at the end, beyond those at the beginning.

    What the action returns is held until then, and no longer: what a test that fails still held
    would be freed in the next one, and be counted there.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        held = action()
    assert told.profiler is not None
    now = peak = 0
    for event in told.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    del held
    return peak, now


class Step:
    """A forward and a backward pass, after which the user holds the losses and the scalar."""

    def __init__(self, method: str, route: str) -> None:
        torch.manual_seed(0)
        layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
        heads = {
            t: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)) for t in TASKS
        }
        self.network = MultiTaskNetwork(nn.Sequential(*layers), heads)
        self.balancer = METHODS[method]()
        self.route = route
        if route == "module":
            self.balancer.catch(self.network.trunk)
        self.x, self.y = torch.randn(SAMPLES, WIDTH), torch.randn(SAMPLES, 1)

    def losses(self) -> tuple[dict[str, Tensor], Any]:
        outputs = self.network(self.x)
        told = {
            "none": None,
            "features": outputs.features,
            "outputs": outputs,
            "module": self.network.trunk,
        }
        return {t: (outputs[t] - self.y).square().mean() for t in TASKS}, told[self.route]

    def backward(self) -> Any:
        losses, told = self.losses()
        self.balancer.backward(losses, features=told)
        return losses

    def loss(self) -> Any:
        losses, told = self.losses()
        scalar = self.balancer.loss(losses, features=told)
        del told
        scalar.backward()
        return losses, scalar

    def plainly(self) -> Any:
        losses, _ = self.losses()
        sum(losses.values()).backward()
        return losses

    @property
    def gradients(self) -> int:
        """Bytes of all parameters' gradients."""
        return sum(p.grad.nbytes for p in self.network.parameters() if p.grad is not None)


def test_what_is_measured_is_what_autograd_keeps() -> None:
    """Two activations for each layer in the trunk, and what heads and losses save."""
    step = Step("sum", "none")
    peak, after = measured(step.plainly)
    kept = (2 * DEPTH + 2 * len(TASKS)) * ACTIVATION
    # Tanh saves its output, which the next layer shares: a little less than all that was made.
    assert 0.4 * kept < peak < 1.1 * kept
    assert 0 <= after - step.gradients < 0.02 * ACTIVATION


@pytest.mark.parametrize(("method", "route"), CASES)
def test_the_scalars_peak_is_that_of_backward(method: str, route: str) -> None:
    by_backward, _ = measured(Step(method, route).backward)
    by_loss, _ = measured(Step(method, route).loss)
    assert by_loss < 1.02 * by_backward


@pytest.mark.parametrize("method", ["mgda", "mgda-ub"])
def test_a_term_outside_that_shares_the_graph_costs_memory_and_nothing_else(method: str) -> None:
    """The graph is then kept until the backward pass has ended, and is gone afterwards."""
    step = Step(method, "features")

    def with_term() -> Any:
        losses, z = step.losses()
        scalar = step.balancer.loss(losses, features=z) + 0.1 * z.square().mean()
        scalar.backward()
        return losses, scalar

    by_backward, _ = measured(Step(method, "features").backward)
    peak, after = measured(with_term)
    assert peak > 1.02 * by_backward
    assert after - step.gradients < 0.02 * ACTIVATION


@pytest.mark.parametrize(("method", "route"), CASES)
def test_nothing_outlives_the_scalars_backward(method: str, route: str) -> None:
    """Though the user holds scalar and losses: gradients remain, and no part of an activation."""
    step = Step(method, route)
    _, after = measured(step.loss)
    assert after - step.gradients < 0.02 * ACTIVATION


@pytest.mark.parametrize(("method", "route"), CASES)
def test_nothing_outlives_a_backward(method: str, route: str) -> None:
    step = Step(method, route)
    _, after = measured(step.backward)
    assert after - step.gradients < 0.02 * ACTIVATION


# An epoch --------------------------------------------------------------------------------------


def _epoch(steps: int) -> int:
    """Blocks of memory that the last three quarters of an epoch's steps leave allocated."""
    taken, blocks = 0, []

    class Counting(Steps):
        def take(self, statistics: EpochStatistics) -> None:
            nonlocal taken
            super().take(statistics)
            taken += 1
            if taken in (steps // 4, steps):
                gc.collect()
                blocks.append(sys.getallocatedblocks())

    x = torch.randn(steps * 2, 3, generator=torch.Generator().manual_seed(0))
    parts = [Split(x, {t: x[:, k : k + 1] for k, t in enumerate(TASKS)}) for _ in range(3)]
    task = Task(functional.mse_loss, MeanSquaredError, "MSE", False)
    heads = partial(nn.Linear, 4, 1)
    problem = Problem(
        "p",
        "",
        "",
        dict.fromkeys(TASKS, task),
        lambda tasks: MultiTaskNetwork(nn.Linear(3, 4), {t: heads() for t in tasks}),
        *parts,
        epochs=1,
        batch_size=2,
    )
    network, balancer = problem.network(TASKS), Balancer(aggregator=MGDA(), tasks=TASKS)
    sgd = partial(torch.optim.SGD, lr=0.01)
    optimizers = Optimizers(network.blocks(), sgd, learned=balancer.parameters())
    run = Training(problem, network, optimizers, balancer, epochs=1)
    run.steps = Counting(run.steps.stepper, run.phases, TASKS, 0, observe_every=1)
    list(run.run())
    first, last = blocks
    return last - first


def test_an_epochs_memory_does_not_grow_with_its_steps(monkeypatch) -> None:
    monkeypatch.setattr(epoch_statistics, "RECENT", 16)
    assert _epoch(256) < 1500  # of 192 steps
    monkeypatch.setattr(epoch_statistics, "RECENT", 10_000)
    assert _epoch(256) > 3000  # so that the number above says something


@pytest.mark.parametrize("members", [0, 2])
def test_what_is_added_up_is_what_all_values_tell(members, monkeypatch) -> None:
    """Against the formulas, on series that a task may miss."""
    generator = torch.Generator().manual_seed(0)
    series: dict[str, list[Tensor]] = {"a": [], "b": []}
    monkeypatch.setattr(epoch_statistics, "RECENT", 4)
    statistics, lengths = EpochStatistics(), []
    for step in range(11):
        tasks = ("a", "b") if step % 3 else ("b",)
        shape = (members, len(tasks)) if members else (len(tasks),)
        losses = torch.randn(shape, generator=generator, dtype=torch.float64)
        lengths.append(losses.abs().sum(-1))
        statistics.step(watched=True)
        statistics.add(Balance(tasks, losses), Phase(tasks))
        statistics.watch("shared", {t: losses[..., k] for k, t in enumerate(tasks)}, lengths[-1])
        for k, task in enumerate(tasks):
            series[task].append(losses[..., k])
    for k, found in enumerate(statistics.members(members) if members else [statistics]):
        told = found.means()
        for task, values in series.items():
            mine = [float(v[k] if members else v) for v in values]
            assert told["losses"][task] == pytest.approx(sum(mine) / len(mine), rel=1e-12)
            assert told["oscillation"][task] == pytest.approx(oscillation(mine), rel=1e-12)
            assert told["changes"][f"shared|{task}"] == told["losses"][task]
        walked = sum(float(v[k] if members else v) for v in lengths)
        assert told["path"] == pytest.approx(walked, rel=1e-12)
