"""A constant as a network: what metrics get of it."""

from __future__ import annotations

import torch
from torchmetrics import MeanSquaredError

from evenhand.comparison.constant import constant_network


def test_metrics_can_look_at_a_constant_as_at_any_output() -> None:
    """Some take a view of it, which a tensor that only seems to have all its rows refuses."""
    picture = torch.arange(6.0).reshape(2, 3)
    outputs = constant_network({"redraw": picture})(torch.zeros(4, 5))
    metric = MeanSquaredError()
    metric.update(outputs["redraw"], torch.zeros(4, 2, 3))
    assert float(metric.compute()) == torch.arange(6.0).square().mean()
