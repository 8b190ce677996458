"""Gradients whose squares overflow or underflow single precision: weights as in double."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import evenhand as eh
from evenhand import Balancer
from evenhand.weighting import Weighting

METHODS = (
    *(eh.MGDA, eh.CentralDirection, eh.CAGrad, eh.NashMTL, eh.FairGrad, eh.UPGrad, eh.DualProj),
    *(eh.PCGrad, eh.GradVac, eh.IMTLG, eh.AlignedMTL, eh.ConFIG),
)


def weights(make: Callable[[], Weighting], size: float, dtype: torch.dtype) -> Tensor:
    """Those of three tasks of this size, the first one of twice that."""
    torch.manual_seed(0)
    trunk = nn.Linear(3, 4).to(dtype)
    heads = [nn.Linear(4, 1).to(dtype) for _ in range(3)]
    z = trunk(torch.randn(5, 3).to(dtype)).tanh()
    losses = {
        str(k): (head(z) - k).square().mean() * size * (1 + (k == 0))
        for k, head in enumerate(heads)
    }
    found = Balancer(aggregator=make()).backward(losses).trunk_weights
    assert found is not None
    assert trunk.weight.grad is not None
    assert trunk.weight.grad.isfinite().all()
    return found.double()


@pytest.mark.parametrize("size", [1e-24, 1e-15, 1e22])
@pytest.mark.parametrize("make", METHODS)
def test_the_size_of_gradients_costs_no_digits(make: Callable[[], Weighting], size: float) -> None:
    single, double = (weights(make, size, dtype) for dtype in (torch.float32, torch.float64))
    assert (single - double).abs().max() < 1e-5 * double.abs().max()
