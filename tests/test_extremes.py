"""Gradients whose squares no half or single precision holds: right, or said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import evenhand as eh
from cases import CASES
from evenhand.linalg.extremes import lengths, products

SIZES = {
    torch.float16: (300.0, 1.5e4, 1e-4),
    torch.bfloat16: (1e25, 1e-25, 1e37, 1e-37),
    torch.float32: (1e25, 1e-25, 1e37, 1e-37),
}
CLOSE = {torch.float16: 0.03, torch.bfloat16: 0.1, torch.float32: 1e-3}
"""A few units of what a weight of this precision can say."""
SAID = {
    ("fairgrad", torch.float16, 1e-4): "is not finite",
    ("fairgrad", torch.bfloat16, 1e-37): "is not finite",
    ("fairgrad", torch.float32, 1e-37): "is not finite",
    ("fairgrad", torch.bfloat16, 1e37): "too small for bfloat16",
    ("fairgrad", torch.float32, 1e37): "too small for float32",
}
"""Weights that the precision of the losses cannot hold: w ∝ ‖g‖^(−4/3) or so."""


def _rows(m: int) -> Tensor:
    generator = torch.Generator().manual_seed(m)
    return torch.randn(m, 6, generator=generator, dtype=torch.float64)


def _second_step(case, rows: Tensor, tasks: tuple[str, ...]) -> Tensor:
    """The update of the second step, [n], of losses whose gradients are these rows."""
    made = case.make(tasks)
    if made.at == "last_layer":
        made.at = "parameters"
    learned = made.traits.learned
    slots = {"weighting": made} if learned else {"aggregator": made}
    balancer = eh.Balancer(tasks=tasks, **slots)
    theta = nn.Parameter(torch.zeros(rows.shape[1], dtype=rows.dtype))
    for step in range(2):
        theta.grad = None
        losses, *samples = (
            {t: (rows[k] * theta).sum() + 1 + k / 2 for k, t in enumerate(tasks)} for _ in range(3)
        )
        clock = eh.Clock(epoch=1, step=1 + step)
        balancer.backward(losses, samples=samples, clock=clock)
        balancer.updated(losses, clock)
    return theta.grad.double()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_update_is_that_of_double_precision(case) -> None:
    m = 3 if 3 in case.tasks else case.tasks[-1]
    tasks = tuple("abcdefgh"[:m])
    for dtype, sizes in SIZES.items():
        for size in sizes:
            rows = (_rows(m) * size / 2).clamp(-2 * size, 2 * size).to(dtype)
            told = SAID.get((case.name, dtype, size))
            if told is not None:
                with pytest.raises((ValueError, eh.NonFiniteError), match=told):
                    _second_step(case, rows, tasks)
                continue
            expected = _second_step(case, rows.double(), tasks)
            off = (_second_step(case, rows, tasks) - expected).abs().amax()
            assert off <= CLOSE[dtype] * expected.abs().amax(), (dtype, size)


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1.0, 1e25, 1e37])
def test_products_and_lengths_of_any_size(size) -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, -2.0]]) * size
    exact = rows.double()
    expected = torch.tensor([[25.0, 0, -5], [0, 0, 0], [-5, 0, 5]]).double() * size**2
    torch.testing.assert_close(products(rows, rows), expected, rtol=1e-4, atol=0)
    found = lengths(rows).double().squeeze(-1)
    torch.testing.assert_close(found, exact.norm(dim=-1), rtol=1e-4, atol=0)
    assert float(found[0]) == pytest.approx(5 * size, rel=1e-4)
