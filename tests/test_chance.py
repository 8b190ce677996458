"""Whose chance is whose: what a run's seed decides, and what it must not leave alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import evenhand as eh
from evenhand import Balancer, Clock, MultiTaskNetwork
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings
from evenhand.data import Problem, Split, Task
from evenhand.ensemble.training import StackedTraining
from evenhand.training.loop import Training
from evenhand.training.records import Record
from samplers import inputs, losses_of, small_network

SAMPLES = 24


class Nothing:
    def update(self, preds: Tensor, target: Tensor) -> None: ...

    def compute(self) -> Tensor:
        return torch.zeros(())


def network(tasks: Sequence[str]) -> MultiTaskNetwork:
    return MultiTaskNetwork(nn.Linear(1, 4), {task: nn.Linear(4, 1) for task in tasks})


def numbered() -> Problem:
    """Sample k is k."""
    x = torch.arange(float(SAMPLES)).unsqueeze(1)
    split = Split(x, {"a": x / SAMPLES, "b": -x / SAMPLES})
    tasks = dict.fromkeys("ab", Task(functional.mse_loss, Nothing, "none", False))
    return Problem("numbered", "", "", tasks, network, split, split, split, batch_size=4, epochs=2)


def run_of(recipe: str, seed: int = 0, problem: Problem | None = None, **settings) -> Training:
    settings = {"rates": (1e-4,), "observe_every": 0, "stack": "never", **settings}
    asked = Settings("numbered", **settings)
    return training(Job(recipe, "", seed, 1e-4), problem or numbered(), asked)


def seen(run: Training) -> list[list[int]]:
    """The samples of every training batch of an epoch that the trunk is shown, in order."""
    batches: list[list[int]] = []

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        batches.append(args[0].flatten().int().tolist())

    handle = run.network.trunk.register_forward_pre_hook(note)
    run.train_epoch()
    handle.remove()
    return batches


# Seeds ----------------------------------------------------------------------------------------


def test_three_seeds_give_three_orders_and_one_seed_one() -> None:
    orders = [seen(run_of("sg", seed)) for seed in (0, 1, 2, 0)]
    assert all(sorted(chain(*order)) == list(range(SAMPLES)) for order in orders)
    assert orders[0] == orders[3]
    assert len({str(order) for order in orders}) == 3


def test_three_seeds_give_three_networks() -> None:
    firsts = [run_of("sg", seed).network.trunk.weight.detach() for seed in (0, 1, 2, 0)]
    assert torch.equal(firsts[0], firsts[3])
    assert len({str(first.tolist()) for first in firsts}) == 3


def masks(seed: int) -> list[list[bool]]:
    """What dropout keeps of ones, in the batches of two epochs."""

    def dropping(tasks: Sequence[str]) -> MultiTaskNetwork:
        trunk = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 4))
        return MultiTaskNetwork(trunk, {task: nn.Linear(4, 1) for task in tasks})

    ones = Split(torch.ones(8, 16), {task: torch.zeros(8, 1) for task in "ab"})
    problem = replace(numbered(), network=dropping, train=ones, validation=ones, test=ones)
    run = run_of("sg", seed, problem)
    found: list[list[bool]] = []
    run.network.trunk[0].register_forward_hook(
        lambda module, args, output: found.append((output > 0).flatten().tolist())
    )
    run.train_epoch()
    run.train_epoch()
    return found


def test_dropout_is_another_in_every_seed_epoch_and_batch() -> None:
    several = [masks(seed) for seed in (0, 1, 2)]
    assert masks(0) == several[0]
    assert [len(found) for found in several] == [4, 4, 4]
    assert len({str(mask) for found in several for mask in found}) == 12


@pytest.mark.parametrize("recipe", ["modo", "sdmgrad", "sat-sg"])
def test_further_batches_of_an_epoch_are_further_samples(recipe: str) -> None:
    """Three batches a step (two with alternating steps): an epoch sees every sample once."""
    batches = seen(run_of(recipe))
    assert len(batches) == SAMPLES // 4
    assert sorted(chain(*batches)) == list(range(SAMPLES))


def test_replacement_is_drawn_afresh_in_every_batch() -> None:
    """Of 24 samples, 24 draws without repetition have the chance 24!/24²⁴ < 1e-9."""
    drawn = [*chain(*seen(run_of("ate-sg-replacement")))]
    assert len(drawn) == SAMPLES
    assert len(set(drawn)) < SAMPLES


# Clocks ---------------------------------------------------------------------------------------


class Noting(eh.Weighting):
    """Writes the clock of every call down."""

    traits = eh.Traits(needs="nothing")

    def __init__(self) -> None:
        super().__init__()
        self.clocks: list[tuple[int, int, int]] = []

    def weigh(self, g: eh.TaskGradients) -> Tensor:
        self.clocks.append((g.clock.epoch, g.clock.step, g.clock.seed))
        return torch.ones_like(g.losses)


def test_a_run_tells_epoch_step_and_seed() -> None:
    """Six batches make an epoch; with two phases of a batch each they make three steps."""
    for recipe, steps in (("sg", 6), ("sat-sg", 3)):
        run = run_of(recipe, seed=5)
        method = Noting()
        run = replace(run, balancer=Balancer(method, tasks=run.tasks))
        records = list(run.run())
        assert [record.step for record in records] == [0, steps, 2 * steps]
        times = sorted(set(method.clocks))
        assert times == [(step // steps, step, 5) for step in range(2 * steps)]
        assert len(method.clocks) == 12


def test_a_loop_of_ones_own_is_counted_by_its_calls() -> None:
    """Three calls are steps 0, 1, 2; one that is told its clock goes on from there."""
    net, method = small_network(), Noting()
    balancer = Balancer(method, model=net)
    for clock in (None, None, None, Clock(2, 40), None):
        outputs = net(inputs())
        balancer.backward(losses_of(outputs), features=outputs.features, clock=clock)
    assert [(epoch, step) for epoch, step, _ in method.clocks] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (2, 40),
        (0, 41),
    ]


def test_random_weights_are_others_in_every_step() -> None:
    net = small_network()
    balancer, drawn = Balancer(eh.RLW(), model=net), []
    for _ in range(3):
        outputs = net(inputs())
        drawn.append(balancer.backward(losses_of(outputs), features=outputs.features).weights)
    assert not any(torch.equal(drawn[i], drawn[j]) for i in range(3) for j in range(i))


# Overflow -------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", ["weighting", "aggregator"])
def test_on_overflow_every_gradient_is_infinite(slot: str) -> None:
    """Trunk and heads: a scaler that sees half of them must skip the step too."""
    net = small_network()
    balancer = Balancer(**{slot: eh.Equal()}, model=net)
    losses = losses_of(outputs := net(inputs()))
    losses["b"] = losses["b"] + (0 * outputs["b"].sum()).sqrt()  # 0, and its gradient NaN
    balance = balancer.backward(losses, features=outputs, scale=2.0)
    assert not balance.applied
    named = dict(net.named_parameters())
    assert {name.split(".")[0] for name in named} == {"trunk", "heads"}
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isinf().all()), name


# Stacks ---------------------------------------------------------------------------------------


def members(recipe: str, seeds: Sequence[int], **settings) -> list[Training]:
    problem = numbered()
    return [run_of(recipe, seed, problem, **settings) for seed in seeds]


@pytest.mark.parametrize("recipe", ["rlw", "pcgrad"])
def test_a_member_has_the_chance_of_its_own_seed_at_any_place(recipe: str) -> None:
    """Seeds in no order: every member's weights are those of its run alone."""
    seeds = (7, 0, 3)
    stack = StackedTraining(members(recipe, seeds))
    assert stack._stepper.seeds == seeds
    found: dict[int, list[Record]] = {k: [] for k in range(3)}
    for k, event in stack.run():
        if isinstance(event, Record):
            found[k].append(event)
    told = []
    for k, seed in enumerate(seeds):
        alone = list(run_of(recipe, seed).run())
        for record, expected in zip(found[k], alone, strict=True):
            assert record.weights == pytest.approx(expected.weights, rel=1e-4)
            assert record.losses == pytest.approx(expected.losses, rel=1e-4)
        told.append(str(alone[1].weights))
    assert recipe != "rlw" or len(set(told)) == 3


def test_a_stack_takes_gradients_as_its_members_do() -> None:
    for jacobian in ("looped", "batched", 2):
        stack = StackedTraining(members("mgda", (0, 1), jacobian=jacobian))
        assert stack._stepper._together.balancer.chunking.wanted == jacobian
