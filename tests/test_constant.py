"""A constant as a network: what metrics get of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MeanSquaredError

from evenhand import MultiTaskNetwork
from evenhand.comparison.constant import constant_network, lowest_losses
from evenhand.data.problem import Problem, Split, Task


def test_metrics_can_look_at_a_constant_as_at_any_output() -> None:
    """Some take a view of it, which a tensor that only seems to have all its rows refuses."""
    picture = torch.arange(6.0).reshape(2, 3)
    outputs = constant_network({"redraw": picture})(torch.zeros(4, 5))
    metric = MeanSquaredError()
    metric.update(outputs["redraw"], torch.zeros(4, 2, 3))
    assert float(metric.compute()) == torch.arange(6.0).square().mean()


def test_the_best_constant_of_a_loss_with_kinks_is_a_number() -> None:
    """torch's line search divides by zero on these targets; the lowest loss is at their median."""
    targets = torch.tensor([[0.25], [-1.25], [0.5], [0.5]])
    part = Split(torch.zeros(4, 1), {"a": targets})
    problem = Problem(
        "kinks",
        "an absolute loss",
        "drawn here",
        {"a": Task(functional.l1_loss, MeanAbsoluteError, "MAE", higher_is_better=False)},
        lambda tasks: MultiTaskNetwork(nn.Linear(1, 1), {"a": nn.Linear(1, 1)}),
        *(part, part, part),
    )
    found = lowest_losses(problem)["a"]
    assert (found - targets).abs().mean() < (targets - targets.mean()).abs().mean()
