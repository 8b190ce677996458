"""The one door out of the process: two ranks, each with half a batch, do what one does with all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from evenhand import MGDA, Balancer, Equal, MultiTaskNetwork
from evenhand.autodiff.gradients import Reducer

RANKS = 2


class Meeting:
    """Where the threads that play ranks exchange tensors."""

    def __init__(self) -> None:
        self._brought: list[Tensor | None] = [None] * RANKS
        self._barrier = Barrier(RANKS, timeout=20)

    def sum(self, rank: int, value: Tensor) -> Tensor:
        self._brought[rank] = value
        self._barrier.wait()
        total = sum(v for v in self._brought if v is not None)
        self._barrier.wait()
        assert isinstance(total, Tensor)
        return total


class RankReducer(Reducer):
    alone = False

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self._rank, self._meeting = rank, meeting

    def mean(self, value: Tensor) -> Tensor:
        return self._meeting.sum(self._rank, value) / RANKS

    def gramian_of_features(self, gramian: Tensor) -> Tensor:
        # A loss is the mean of the ranks' losses, so a rank's ∂L/∂Z is 1/RANKS of its own.
        return self._meeting.sum(self._rank, gramian) / RANKS**2


def _network() -> MultiTaskNetwork:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    return MultiTaskNetwork(trunk, {"a": nn.Linear(5, 1), "b": nn.Linear(5, 1)}).double()


def _step(
    balancer: Balancer, network: MultiTaskNetwork, x: Tensor, y: Tensor
) -> tuple[list[Tensor], Tensor]:
    """All gradients, and the tasks' weights in the trunk."""
    outputs = network(x)
    losses = {
        "a": (outputs["a"][:, 0] - y).square().mean(),
        "b": (outputs["b"][:, 0] + x[:, 0]).square().mean(),
    }
    balancer.attach(network)
    balance = balancer.backward(losses, features=outputs.features)
    assert balance.trunk_weights is not None
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return gradients, balance.trunk_weights


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, generator=generator, dtype=torch.float64)


METHODS = {
    "parameters": {"aggregator": MGDA},
    "representation": {"aggregator": lambda: MGDA(at="representation")},
    "last layer": {"weighting": lambda: MGDA(at="last_layer")},
}


@pytest.mark.parametrize("name", METHODS)
def test_each_half_by_itself_has_other_weights(name) -> None:
    """Else ranks that do not speak to each other would pass the next test."""
    x, y = _data()
    (slot,) = METHODS[name]
    found = []
    for part in (slice(None), slice(4), slice(4, None)):
        _, weights = _step(Balancer(**{slot: METHODS[name][slot]()}), _network(), x[part], y[part])
        found.append(float(weights[0]))
    assert all(0.02 < weight < 0.98 for weight in found)
    assert max(abs(found[0] - half) for half in found[1:]) > 0.02


@pytest.mark.parametrize(
    "slots",
    [{}, {"weighting": Equal}, *METHODS.values()],
)
def test_two_ranks_agree_with_one(slots) -> None:
    x, y = _data()
    alone, weights = _step(Balancer(**{n: make() for n, make in slots.items()}), _network(), x, y)
    meeting = Meeting()
    balancers = [Balancer(**{n: make() for n, make in slots.items()}) for _ in range(RANKS)]
    for rank, balancer in enumerate(balancers):
        balancer.reducer = RankReducer(rank, meeting)
    with ThreadPoolExecutor(RANKS) as pool:
        networks = [_network() for _ in range(RANKS)]
        halves = list(pool.map(_step, balancers, networks, x.chunk(RANKS), y.chunk(RANKS)))
    for gradients, found in halves:
        torch.testing.assert_close(found, weights, rtol=1e-10, atol=1e-12)
        for together, single in zip(gradients, alone, strict=True):
            torch.testing.assert_close(together, single, rtol=1e-10, atol=1e-12)
