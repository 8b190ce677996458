"""Defects that are known and not mended yet, each by the smallest program that shows it.

A test here that begins to pass fails the suite (xfail is strict): it then moves to its place.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from evenhand import MGDA, Balancer, MultiTaskNetwork, Uncertainty


@pytest.mark.xfail(
    strict=True, reason="where heads meet in the graph, passes that look who uses which run hooks"
)
def test_the_hooks_of_leaves_run_once_where_heads_are_fused() -> None:
    heads = {"h0": nn.Linear(4, 1), "h1": nn.Linear(4, 1)}
    network = MultiTaskNetwork(nn.Linear(3, 4), heads, fused=True)
    calls: list[Tensor] = []
    network.trunk.weight.register_hook(calls.append)
    outputs = network(torch.randn(5, 3))
    losses = {"a": outputs["h0"].square().mean(), "b": (outputs["h1"] - 1).square().mean()}
    Balancer(aggregator=MGDA(), model=network).backward(losses)
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:the gradient of 'c' is exactly zero")
@pytest.mark.xfail(
    strict=True, reason="a task that reaches nothing balanced has a row of zeros in the Gramian"
)
def test_a_task_that_shares_nothing_does_not_stop_those_that_do() -> None:
    """The weights of a and b are MGDA's of the two: those of c, which has a network of its own,
    are nobody's business.
    """
    torch.manual_seed(0)
    trunk, own = nn.Linear(3, 4), nn.Linear(3, 1)
    heads = [nn.Linear(4, 1), nn.Linear(4, 1)]
    x = torch.randn(5, 3)
    z = trunk(x)
    losses = {"a": heads[0](z).square().mean(), "b": (heads[1](z) - 1).square().mean()}
    leaves = list(trunk.parameters())
    a, b = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves, retain_graph=True)])
        for loss in losses.values()
    )
    share = ((b @ b - a @ b) / (a - b).square().sum()).clamp(0, 1)
    losses["c"] = own(x).square().mean()
    Balancer(aggregator=MGDA()).backward(losses)
    found = torch.cat([p.grad.flatten() for p in leaves])
    torch.testing.assert_close(found, share * a + (1 - share) * b)


@pytest.mark.xfail(
    strict=True, raises=ValueError, reason="the extra state is a dict, and safetensors hold tensors"
)
def test_a_model_with_a_balancer_in_it_can_be_saved_as_safetensors(tmp_path: Path) -> None:
    """As the Hugging Face Trainer saves its model."""
    model = nn.ModuleDict({"balancer": Balancer(Uncertainty(), tasks=("a", "b"))})
    save_file(model.state_dict(), tmp_path / "model.safetensors")
