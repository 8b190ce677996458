"""What a loop of a user's own does in vain is said once, and what is meant is not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import evenhand as eh

TASKS = ("a", "b", "c")


def _world(detached: str = "") -> tuple[eh.MultiTaskNetwork, Callable[[], Mapping[str, Tensor]]]:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    network = eh.MultiTaskNetwork(trunk, {task: nn.Linear(4, 1) for task in TASKS})
    x = torch.randn(8, 3)

    def losses() -> dict[str, Tensor]:
        z = network.trunk(x)
        heads = dict(zip(TASKS, network.heads, strict=True))
        return {t: heads[t](z.detach() if t in detached else z).square().mean() for t in TASKS}

    return network, losses


def _told(steps: Callable[[], None]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.parametrize("way", ["steps", "clears", "accumulates", "copies"])
def test_learned_weights_that_nobody_uses_are_told_once(way, idle, inside) -> None:
    """By a loop that uses them (or not) in one of the ways there are."""
    network, losses = _world()
    balancer = eh.Balancer(eh.GradNorm(), tasks=TASKS, model=network)

    def loop() -> None:
        nonlocal balancer
        used = [*network.parameters(), *([] if idle else balancer.parameters())]
        optimizer = torch.optim.SGD(used, lr=0.01)
        for step in range(8):
            if inside:
                balancer.loss(losses()).backward()
            else:
                balancer.backward(losses())
            if way == "accumulates" and step % 4 < 3:
                continue
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            if way == "clears" and idle:
                balancer.zero_grad(set_to_none=False)
            if way == "copies" and idle and step == 1:
                balancer = copy.deepcopy(balancer)

    told = _told(loop)
    expected = idle and way != "clears"
    assert len(told) == expected, told
    if expected:
        assert "learned weights of GradNorm" in told[0]
        assert "balancer.parameters()" in told[0]


@pytest.mark.parametrize("model", [False, True])
@pytest.mark.parametrize("method", [eh.MGDA, eh.Equal, None])
@pytest.mark.parametrize("detached", ["", "b", "abc"])
def test_heads_on_detached_features_are_told_once(detached, method, model) -> None:
    network, losses = _world(detached)
    aggregator = None if method is None else method()
    balancer = eh.Balancer(aggregator=aggregator, tasks=TASKS, model=network if model else None)
    told = _told(lambda: [balancer.backward(losses()) for _ in range(3)] and None)
    if detached == "b":
        # Without a word on what is shared, a task may well have a tower of its own.
        assert [line.partition(" reach")[0] for line in told] == ["the losses of 'b'"] * model
    elif detached:
        nothing = any(line.startswith("no parameter is reached by several") for line in told)
        assert nothing == (method is not None)
        assert any("no task reaches 2 parameter(s)" in line for line in told) == model
    else:
        assert not told


def test_shared_parameters_of_another_network_are_told_once() -> None:
    (_, losses), (other, _) = _world(), _world()
    balancer = eh.Balancer(aggregator=eh.MGDA(), tasks=TASKS)
    shared = [*other.trunk.parameters()]
    (line,) = _told(lambda: [balancer.backward(losses(), shared=shared) for _ in range(3)] and None)
    assert "or shared= of another network" in line


def test_a_phase_may_freeze_the_trunk_and_a_tower_is_no_head() -> None:
    network, losses = _world()
    balancer = eh.Balancer(aggregator=eh.MGDA(), tasks=TASKS, model=network)
    own = eh.Phase(TASKS, trains=("own",))

    def frozen() -> None:
        balancer.backward(losses())
        for _ in range(2):
            with eh.frozen(network, own):
                balancer.backward(losses(), phase=own)

    assert not _told(frozen)


def test_one_method_serves_two_balancers_as_two_methods_would() -> None:
    method = eh.Tension(eh.MGDA())
    network, losses = _world()
    one, other = (eh.Balancer(aggregator=method, tasks=TASKS, model=network) for _ in range(2))
    alone = eh.Balancer(aggregator=eh.Tension(eh.MGDA()), tasks=TASKS, model=network)
    for step in range(3):
        network.zero_grad()
        found = one.backward(losses()).trunk_weights
        with torch.no_grad():
            factors = {t: v * (1 + step) for t, v in losses().items()}
        other.backward({t: v * (1 + factors[t]) for t, v in losses().items()})
        expected = alone.backward(losses()).trunk_weights
        assert torch.equal(found, expected)
