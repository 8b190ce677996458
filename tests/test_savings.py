"""What alternate training saves, counted: graph nodes, saved tensors, operations, features."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from evenhand import MGDA, Balancer, MultiTaskNetwork
from evenhand.data import Problem, Split, Stream
from evenhand.network import frozen
from evenhand.schedules import (
    Phase,
    Schedule,
    alternate_epochs,
    alternate_steps,
    jointly,
    nested,
    one_by_one,
)
from evenhand.training.feature_cache import FeatureMemory
from evenhand.training.flops import Meter
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import Record, oscillation
from samplers import mixed, same, snapshot, two_scales

SHARED, OWN = Phase(("a", "b"), trains=("shared",)), Phase(("a", "b"), trains=("own",))
BOTH = Phase(("a", "b"))


def network() -> MultiTaskNetwork:
    trunk = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    heads = {t: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)) for t in "ab"}
    return MultiTaskNetwork(trunk, heads)


def loss(outputs: dict[str, Tensor]) -> Tensor:
    return outputs["a"].square().mean() + outputs["b"].square().mean()


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """The bytes of distinct tensors that autograd keeps for the backward pass, by address."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def leaves_of(root: Tensor) -> set[Tensor]:
    """The tensors whose gradient a backward pass from `root` would compute."""
    stack, found = [root.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None:
            found |= {node.variable} if hasattr(node, "variable") else set()
            stack.extend(child for child, _ in node.next_functions)
    return found


# Graphs ----------------------------------------------------------------------------------------


def test_an_own_phase_builds_no_trunk_graph() -> None:
    net, x = network(), torch.randn(10, 6)
    with frozen(net, OWN), saved_bytes() as kept:
        outputs = net(x)
    assert outputs.features.grad_fn is None
    assert leaves_of(loss(outputs)) == set(net.heads.parameters())
    with frozen(net, OWN), saved_bytes() as heads_alone:
        outputs = {t: net.head(t)(outputs.features) for t in net.tasks}
    assert sorted(kept.values()) == sorted(heads_alone.values())


def test_a_shared_phase_differentiates_by_no_head() -> None:
    net, x = network(), torch.randn(10, 6)
    with frozen(net, SHARED):
        outputs = net(x)
    assert leaves_of(loss(outputs)) == set(net.trunk.parameters())


def counted(phase: Phase, batch: int = 10) -> int:
    """Operations of the forward and backward pass of a phase, through the balancer."""
    net, x = network(), torch.randn(batch, 6)
    balancer = Balancer(tasks=net.tasks, model=net)
    with Meter() as meter:
        with frozen(net, phase):
            outputs = net(x)
        losses = {t: outputs[t].square().mean() for t in phase.tasks}
        balancer.backward(losses, features=outputs.features, phase=phase)
    return meter.total


def test_each_phase_costs_what_it_moves() -> None:
    """A layer [i → o] takes 2·batch·i·o operations forward, by its input and by its weights."""
    first, trunk = 2 * 10 * 6 * 32, 2 * 10 * (6 * 32 + 32 * 16)
    heads, hidden = 2 * 2 * 10 * (16 * 8 + 8), 2 * 2 * 10 * 8
    inner = trunk - first  # by the input of the network nothing is differentiated
    assert counted(BOTH) == 3 * heads + 2 * trunk + inner
    assert counted(SHARED) == 2 * heads + 2 * trunk + inner
    assert counted(OWN) == trunk + 2 * heads + hidden


def test_the_meter_pauses() -> None:
    with Meter() as meter:
        with meter.paused():
            torch.ones(2, 2) @ torch.ones(2, 2)
        torch.ones(2, 3) @ torch.ones(3, 5)
    assert meter.total == 60


# Training --------------------------------------------------------------------------------------

DECAYED = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


def prepared(schedule: Schedule, problem: Problem | None = None, **options: Any) -> Training:
    problem = problem or two_scales()
    torch.manual_seed(0)
    net = problem.network(tuple(problem.tasks))
    optimizers = Optimizers(net.blocks(), DECAYED)
    return Training(problem, net, optimizers, schedule=schedule, **{"epochs": 6, **options})


def run(training: Training) -> list[Record]:
    return [replace(record, seconds=0.0) for record in training.run()]


def test_work_is_counted() -> None:
    """An epoch's work, from the work of its phases; own phases that read features cost heads."""
    alternating = run(prepared(alternate_epochs(1, 3), count_flops=True))
    joint = run(prepared(jointly(), count_flops=True))
    # Trunk 4 → 8 → 6, two heads 6 → 1, 48 samples in 3 batches.
    trunk, inner, heads = 2 * 48 * (4 * 8 + 8 * 6), 2 * 48 * 8 * 6, 2 * 48 * 2 * 6
    trial = trunk / 3 / 2  # half a batch, to see whether the trunk varies
    own = 2 * heads
    assert [r.flops for r in joint] == [None] + [2 * trunk + inner + 3 * heads] * 6
    shared = 2 * trunk + inner + 2 * heads
    assert [r.flops for r in alternating] == [
        *[None, shared, trunk + trial + own, own, own],
        *[shared, trunk + trial + own],
    ]
    assert [r.reused for r in alternating] == [0, 0, 48, 48, 48, 0, 48]
    unread = run(prepared(alternate_epochs(1, 3), count_flops=True, feature_memory=0))
    assert [r.flops for r in unread[1:5]] == [shared] + [trunk + own] * 3
    assert all(r.flops is None for r in run(prepared(jointly())))


def test_looking_on_costs_no_work() -> None:
    looks = {"aggregator": MGDA(at="representation")}
    blind, seeing = (
        run(
            prepared(
                alternate_steps(), count_flops=True, observe_every=n, balancer=Balancer(**looks)
            )
        )
        for n in (0, 1)
    )
    assert [r.flops for r in blind] == [r.flops for r in seeing]


@pytest.mark.parametrize("make", [two_scales, mixed])
@pytest.mark.parametrize(
    "schedule",
    [alternate_epochs(1, 3), nested(alternate_epochs(1, 3), one_by_one())],
    ids=repr,
)
def test_features_from_memory_are_the_trunks(
    schedule: Schedule, make: Callable[[], Problem]
) -> None:
    """The fast path equals its plain twin up to rounding, with BatchNorm and dropout at rest."""
    plain, fast = prepared(schedule, make(), feature_memory=0), prepared(schedule, make())
    for slow_record, record in zip(run(plain), run(fast), strict=True):
        assert record.losses == pytest.approx(slow_record.losses, rel=1e-5)
        assert record.validation == pytest.approx(slow_record.validation, rel=1e-5)
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(fast.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def passes(training: Training) -> list[int]:
    """How many samples went through the trunk in training mode or at rest, epoch by epoch."""
    seen = [0]
    training.network.trunk.register_forward_hook(
        lambda module, args, output: seen.append(seen.pop() + len(output))
    )
    found = []
    for _ in training.run():
        found.append(seen.pop() - 24)  # the validation set passes once
        seen.append(0)
    return found


def test_the_trunk_is_passed_once_in_an_own_phase() -> None:
    trial = 8
    found = passes(prepared(alternate_epochs(1, 3)))
    assert found == [0, 48, 48 + trial, 0, 0, 48, 48 + trial]
    assert passes(prepared(alternate_epochs(1, 1)))[1:] == [48] * 6
    assert passes(prepared(alternate_steps(), epochs=2))[1:] == [2 * 32, 1 * 32]


def test_features_are_computed_anew_after_any_change_of_the_trunk() -> None:
    training = prepared(alternate_epochs(0, 6))
    steps = training.run()
    assert [next(steps).reused for _ in range(3)] == [0, 48, 48]
    with torch.no_grad():
        training.network.trunk[0].weight.zero_()
        training.network.trunk[0].bias.zero_()
        training.network.trunk[2].weight.zero_()
        training.network.trunk[2].bias.fill_(2.0)
    expected = training.network.trunk(torch.zeros(1, 4))
    seen = []
    training.network.head("small").register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    next(steps)
    assert all(torch.equal(z, expected.expand_as(z)) for z in seen)
    assert seen


def test_the_memory_is_given_back_when_the_trunk_moves() -> None:
    def kept() -> int:
        return sum(type(o) is Tensor and o.shape == (48, 6) for o in gc.get_objects())

    training = prepared(alternate_epochs(1, 2))
    seen = []
    for _ in training.run():
        gc.collect()
        seen.append(kept())
    assert seen == [0, 0, 1, 1, 0, 1, 1]


def test_it_is_said_once_what_features_in_memory_save(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "evenhand.training.feature_cache"):
        run(prepared(alternate_epochs(1, 2)))
    assert [r.getMessage() for r in caplog.records] == [
        "features of the frozen trunk are kept (0.00115 of at most 1074 MB): one pass through the "
        "trunk instead of 2 in a phase of 2 epochs"
    ]


class Noisy(nn.Module):
    """Draws at random whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Centred(nn.Module):
    """Mixes the samples of a batch whatever the mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


def memory(*last: nn.Module, data: Any = None, **options: Any) -> FeatureMemory:
    trunk = nn.Sequential(nn.Linear(4, 8), *last)
    net = MultiTaskNetwork(trunk, {"a": nn.Linear(8, 1), "b": nn.Linear(8, 1)}).train()
    stream = Stream(two_scales().train if data is None else data, 16, 0)
    return FeatureMemory(net, stream, **options)


LASTING = Phase(("a", "b"), trains=("own",), lasts=2)


def test_why_features_are_not_kept_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    features = memory(Noisy())
    with caplog.at_level(logging.INFO, "evenhand.training.feature_cache"):
        features.fill(LASTING)
        features.fill(LASTING)
    (record,) = caplog.records
    said = "features of the frozen trunk are not kept: "
    assert record.getMessage() == said + features.obstacle


@pytest.mark.parametrize(
    ("last", "obstacle"),
    [
        ([nn.BatchNorm1d(8, track_running_stats=False)], "1 has no running statistics"),
        ([Noisy()], "draws at random or mixes"),
        ([Centred()], "draws at random or mixes"),
        ([Pooled()], "no row of features for each sample"),
        ([nn.BatchNorm1d(8)], ""),
        ([nn.Dropout(0.5)], ""),
    ],
)
def test_a_trunk_that_can_vary_is_asked_every_time(last: list[nn.Module], obstacle: str) -> None:
    features = memory(*last)
    state = torch.get_rng_state()
    assert features.wanted(LASTING)
    features.fill(LASTING)
    assert (obstacle in features.obstacle) if obstacle else not features.obstacle
    assert features.filled == features.wanted(LASTING) == (not obstacle)
    assert torch.equal(state, torch.get_rng_state())


def test_a_trunk_left_in_training_mode_is_asked_every_time() -> None:
    """Frozen by the user, so its mode is the user's too."""
    features = memory(nn.Dropout(0.5))
    features.network.trunk.requires_grad_(False)
    features.fill(LASTING)
    assert "in training mode" in features.obstacle


def test_the_budget_is_the_users() -> None:
    size = 48 * 8 * 4
    for budget, kept in ((size, True), (size - 1, False)):
        features = memory(budget=budget)
        features.fill(LASTING)
        assert features.filled == kept
    assert "they take 0.00154 MB, and feature_memory is 0.00153 MB" in features.obstacle
    assert not memory(budget=0).wanted(LASTING)
    with pytest.raises(ValueError, match="feature_memory=-1"):
        memory(budget=-1)


def test_only_phases_that_last_are_served() -> None:
    features = memory()
    assert features.wanted(LASTING)
    assert not features.wanted(replace(LASTING, lasts=1))
    assert not features.wanted(replace(LASTING, trains=("shared",)))
    assert not features.wanted(replace(LASTING, trains=("shared", "own")))
    assert not memory(mode="train").wanted(LASTING)
    with pytest.raises(ValueError, match="fill it first"):
        features.batch(0)


def test_a_forward_pass_of_the_users_own_is_respected() -> None:
    class Other(MultiTaskNetwork):
        def forward(self, x: Any, tasks: Sequence[str] | None = None) -> Any:
            return super().forward(2 * x, tasks)

    net = Other(nn.Linear(4, 8), {"a": nn.Linear(8, 1)})
    features = FeatureMemory(net, Stream(two_scales().train, 16, 0))
    assert "Other has a forward pass of its own" in features.obstacle


def test_features_may_be_a_pyramid() -> None:
    class Pyramid(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"low": x, "high": (x.square(), [x.abs()])}

    features = memory(Pyramid())
    features.fill(LASTING)
    source = features.stream.source
    inputs, targets = features.stream.batch(5)
    found, labels = features.batch(5)
    expected = features.network.trunk(inputs)
    torch.testing.assert_close(found, expected)
    assert isinstance(source, Split)
    assert same(labels, targets)


# Data loaders ----------------------------------------------------------------------------------


class Rows(Dataset):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, k: int) -> Any:
        return self.split.inputs[k], {t: y[k] for t, y in self.split.targets.items()}


def loaded(base: Problem, **options: Any) -> Problem:
    loader = DataLoader(Rows(base.train), batch_size=16, shuffle=True, **options)
    return replace(base, train=loader)


def test_a_loaders_features_are_kept_when_the_user_says_so() -> None:
    silent = run(prepared(alternate_epochs(1, 3), loaded(two_scales())))
    assert [r.reused for r in silent] == [0] * 7
    stable = prepared(alternate_epochs(1, 3), loaded(two_scales()), stable_loader=True)
    assert [r.reused for r in run(stable)] == [0, 0, 48, 48, 48, 0, 48]


def test_a_loaders_batches_keep_features_and_targets_together() -> None:
    base = two_scales()
    features = memory(data=loaded(base, drop_last=True).train, stable_loader=True)
    features.fill(LASTING)
    seen = set()
    for number in range(3):
        found, targets = features.batch(number)
        for z, target in zip(found, targets["small"], strict=True):
            (k,) = (base.train.targets["small"] == target).nonzero()[0].tolist()
            torch.testing.assert_close(z, features.network.trunk(base.train.inputs[k]))
            seen.add(k)
    assert len(seen) == 48  # an epoch in the order of the loader's sampler


@pytest.mark.parametrize("stable", [False, True])
def test_a_loader_resumes_bit_for_bit(stable: bool, tmp_path: Path) -> None:
    """SAT-SG, ATE-SG: also where an epoch began in the step before it."""
    for name, schedule in (("ate", alternate_epochs(1, 4)), ("sat", alternate_steps())):

        def made(schedule: Schedule = schedule) -> Training:
            return prepared(schedule, loaded(two_scales()), stable_loader=stable, count_flops=True)

        whole, folder = made(), tmp_path / name
        folder.mkdir()
        expected = run(whole)
        killed = made().run(folder, checkpoint_every=1)
        for _ in range(4):
            next(killed)
        killed.close()
        resumed = made()
        assert [replace(r, seconds=0.0) for r in resumed.run(folder)] == expected
        assert same(resumed.state_dict(), whole.state_dict())


# Diagnostics -----------------------------------------------------------------------------------


def test_the_path_is_the_sum_of_all_sub_steps() -> None:
    training = prepared(one_by_one(), observe_every=1, epochs=1)
    trunk = list(training.network.trunk.parameters())
    lengths: list[float] = []
    step = training.optimizers.step

    def watched(phase: Phase) -> None:
        before = [p.detach().clone() for p in trunk]
        step(phase)
        squares = [(p.detach() - q).square().sum() for p, q in zip(trunk, before, strict=True)]
        lengths.append(float(sum(squares)) ** 0.5)

    training.optimizers.step = watched
    first, record = training.run()
    assert first.path is None
    assert len(lengths) == 6
    assert record.path == pytest.approx(sum(lengths))


def test_the_path_is_scaled_up_from_the_steps_observed() -> None:
    sparse = run(prepared(jointly(), observe_every=2, epochs=30))
    dense = run(prepared(jointly(), observe_every=1, epochs=30))
    paths = [sum(r.path for r in records[1:]) for records in (sparse, dense)]
    assert paths[0] == pytest.approx(paths[1], rel=0.2)
    own = run(prepared(alternate_epochs(0, 1), observe_every=1))
    assert [r.path for r in own[1:]] == [0.0] * 6


def test_changes_say_what_each_phase_did_to_each_loss() -> None:
    training = prepared(alternate_steps(), observe_every=1, epochs=1)
    problem, net, seen = training.problem, training.network, []
    step, batches = training.optimizers.step, iter([0, 1, 2, 3])

    def watched(phase: Phase) -> None:
        inputs, targets = training.stream.batch(next(batches))
        before = problem.losses(net(inputs), targets)
        step(phase)
        after = problem.losses(net(inputs), targets)
        seen.append((phase.trains[0], {t: (after[t] - before[t]).item() for t in after}))

    training.optimizers.step = watched
    record = list(training.run())[1]
    for moves in ("shared", "own"):
        for task in problem.tasks:
            changes = [change[task] for kind, change in seen if kind == moves]
            expected = sum(changes) / len(changes)
            assert record.changes[f"{moves}|{task}"] == pytest.approx(expected, abs=1e-5)
    assert len(record.changes) == 4


def test_a_task_step_does_nothing_to_the_heads_of_others() -> None:
    """With the trunk at rest, one task's step leaves the other's loss as it was."""
    schedule = nested(alternate_epochs(0, 1), one_by_one())
    changes = run(prepared(schedule, observe_every=1, epochs=1))[1].changes
    assert changes["own of small|large"] == changes["own of large|small"] == 0
    assert changes["own of small|small"] != 0


def test_looking_on_changes_nothing() -> None:
    """Watched or not, with BatchNorm and dropout, the same weights come out bit for bit."""
    blind, seeing = (prepared(alternate_steps(), mixed(), observe_every=n) for n in (0, 1))
    run(blind)
    run(seeing)
    assert same(snapshot(blind.network.state_dict()), snapshot(seeing.network.state_dict()))


def test_oscillation_is_what_a_loss_swings_beyond_its_net_change() -> None:
    assert oscillation([9.0, 4.0, 2.0, 1.0]) == oscillation([1.0, 5.0]) == oscillation([]) == 0
    assert oscillation([1.5, 0.5, 1.5, 0.5]) == pytest.approx(1.0)
    noisy = [1.0, 1.2, 0.8, 1.1, 0.7]
    assert oscillation([30 * v for v in noisy]) == pytest.approx(oscillation(noisy))
    assert oscillation([0.0, 0.0, 0.0]) == 0


def test_records_hold_oscillation_and_the_memory_of_moments() -> None:
    training = prepared(alternate_epochs(1, 1), epochs=2)
    records = run(training)
    assert records[1].oscillation.keys() == records[1].losses.keys()
    assert records[0].state_bytes == 0
    blocks = [
        sum(p.numel() for p in part.parameters())
        for part in (training.network.trunk, training.network.heads)
    ]
    assert records[1].state_bytes == 8 * blocks[0] + 4 * 4
    assert records[2].state_bytes == 8 * sum(blocks) + 4 * 8
    for record in records:
        assert Record.from_json(record.to_json()) == record
