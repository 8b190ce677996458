"""A small problem for benchmarks/executors.py, which workers elsewhere import by its name."""

from __future__ import annotations

import torch
from torch import nn
from torchmetrics import MeanSquaredError

from evenhand import MultiTaskNetwork
from evenhand.data import Problem, Split, Task


def problem(split: int) -> Problem:
    """Two functions of eight numbers."""
    chance = torch.Generator().manual_seed(split)
    parts = []
    for size in (128, 64, 64):
        x = torch.randn(size, 8, generator=chance)
        parts.append(Split(x, {"sum": x.sum(1), "bent": x[:, 0] * x[:, 1]}))
    task = Task(
        lambda output, target: nn.functional.mse_loss(output[:, 0], target),
        MeanOfOutput,
        "MSE",
        higher_is_better=False,
        perfect=0.0,
    )

    def network(tasks):
        trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        return MultiTaskNetwork(trunk, {name: nn.Linear(16, 1) for name in tasks})

    tasks = {"sum": task, "bent": task}
    return Problem("lines", "", "", tasks, network, *parts, batch_size=64, rates=(0.01,))


class MeanOfOutput(MeanSquaredError):
    """MSE of outputs that are columns."""

    def update(self, preds, target):
        super().update(preds[:, 0].contiguous(), target)
