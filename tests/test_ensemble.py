"""A stack of networks, trained as one, is the single runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import evenhand as eh
from evenhand.ensemble.network import Stack
from evenhand.ensemble.optimizers import StackedSGD

RATES = (0.3, 0.1, 0.03, 0.1)
TASKS = ("a", "b")


def _network(seed: int) -> eh.MultiTaskNetwork:
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid())
    return eh.MultiTaskNetwork(trunk, {t: nn.Linear(4, 1) for t in TASKS}).double()


def _batches(seed: int, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, 5, 3, generator=generator, dtype=torch.float64)


def _losses(outputs: eh.Outputs, x: Tensor) -> dict[str, Tensor]:
    """Per member, if there are members: the mean over samples alone."""
    a = (outputs["a"] - x.prod(-1, keepdim=True)).square().mean(dim=(-2, -1))
    b = 7 * (outputs["b"] - x.amax(-1, keepdim=True)).square().mean(dim=(-2, -1))
    return {"a": a, "b": b}


def _single(make, seed: int, rate: float, steps: int) -> dict[str, Tensor]:
    network = _network(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    balancer = eh.Balancer(**make(), model=network, tasks=TASKS)
    for x in _batches(seed, steps):
        outputs = network(x)
        optimizer.zero_grad()
        balancer.backward(_losses(outputs, x), features=outputs.features)
        optimizer.step()
    return network.state_dict()


SLOTS = {
    "sum": dict,
    "mgda": lambda: {"aggregator": eh.MGDA()},
    "mgda-ub": lambda: {"weighting": eh.MGDA(at="representation")},
    "central+tension": lambda: {"aggregator": eh.Tension(eh.CentralDirection(), period=3)},
    "min-norm+tension": lambda: {"aggregator": eh.Tension(eh.MGDA(), period=3)},
}


@pytest.mark.parametrize("name", SLOTS)
def test_a_stack_is_its_members(name: str) -> None:
    steps, make = 9, SLOTS[name]
    stack = Stack([_network(seed) for seed in range(len(RATES))])
    optimizer = StackedSGD(stack.parameters(), RATES, momentum=0.9)
    balancer = eh.Balancer(**make(), tasks=TASKS, model=stack, leading=(len(RATES),))
    batches = torch.stack([_batches(seed, steps) for seed in range(len(RATES))], dim=1)
    for x in batches:
        outputs = stack(x)
        optimizer.zero_grad()
        balancer.backward(_losses(outputs, x), features=outputs)
        optimizer.step()
    for seed, rate in enumerate(RATES):
        single = _single(make, seed, rate, steps)
        for key, value in stack.member(seed).items():
            torch.testing.assert_close(value, single[key], rtol=1e-9, atol=1e-11)


def test_members_can_leave() -> None:
    stack = Stack([_network(seed) for seed in range(3)])
    optimizer = StackedSGD(stack.parameters(), [0.1, 0.2, 0.3], momentum=0.9)
    stack(torch.ones(3, 2, 3, dtype=torch.float64))["a"].sum().backward()
    optimizer.step()
    before = stack.member(2)
    alive = stack(torch.ones(3, 2, 3, dtype=torch.float64))["a"]
    stack.select(torch.tensor([2]))
    optimizer.select(torch.tensor([2]))
    assert len(stack) == 1
    assert all(torch.equal(before[name], value) for name, value in stack.member(0).items())
    optimizer.zero_grad()
    stack(torch.ones(1, 2, 3, dtype=torch.float64))["a"].sum().backward()
    optimizer.step()
    assert alive.requires_grad
    (group,) = optimizer.param_groups
    assert group["rates"].tolist() == pytest.approx([0.3])


def test_what_cannot_be_stacked_says_so() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Stack([])
    batch_norm = eh.MultiTaskNetwork(nn.BatchNorm1d(2), {"a": nn.Linear(2, 1)})
    with pytest.raises(ValueError, match="buffers"):
        Stack([batch_norm])
    wide = eh.MultiTaskNetwork(nn.Linear(2, 5), {"a": nn.Linear(5, 1)})
    narrow = eh.MultiTaskNetwork(nn.Linear(2, 4), {"a": nn.Linear(4, 1)})
    with pytest.raises(ValueError, match="same parameters"):
        Stack([wide, narrow])
    with pytest.raises(ValueError, match="of shape \\(3,\\)"):
        eh.Balancer(leading=(3,)).backward({"a": torch.zeros(2, requires_grad=True)})
