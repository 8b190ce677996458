"""Schedules, the optimizers they step, and stopping: laws, oracles and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from evenhand import MGDA, Balancer, MultiTaskNetwork
from evenhand.data import Problem, Split, Stream
from evenhand.network import frozen
from evenhand.schedules import (
    BLOCKS,
    Clock,
    Phase,
    Schedule,
    Stateless,
    alternate_epochs,
    alternate_steps,
    as_schedule,
    in_groups,
    in_step,
    jointly,
    mixed_seed,
    nested,
    one_by_one,
)
from evenhand.schedules.adaptive import alternate_adaptively
from evenhand.training.loop import Training
from evenhand.training.optimizers import Factory, Optimizers, Scheduled, diminishing
from evenhand.training.records import Record, RecordFile
from evenhand.training.stopping import EarlyStopping, Plateau, loss_of, metric_of, relative, total
from samplers import REGRESSION, mixed, same, snapshot, two_scales

ABC = ("a", "b", "c")
MOMENTUM = partial(SGD, lr=0.05, momentum=0.9)
DECAYED = partial(AdamW, lr=0.01, weight_decay=0.1)


def phases(schedule: Schedule, epoch: int = 0, step: int = 0, tasks: Sequence[str] = ABC) -> Any:
    return schedule(Clock(epoch=epoch, step=step, seed=5), tuple(tasks))


# What schedules say ----------------------------------------------------------------------------


def test_alternate_steps_takes_a_fresh_batch_for_the_heads() -> None:
    assert phases(alternate_steps(), epoch=7) == (
        Phase(ABC, ("shared",), batch=0),
        Phase(ABC, ("own",), batch=1),
    )


def test_alternate_epochs_counts_epochs_of_either_kind() -> None:
    moves = [phases(alternate_epochs(2, 3), epoch)[0].trains for epoch in range(7)]
    assert moves == [("shared",)] * 2 + [("own",)] * 3 + [("shared",)] * 2
    assert [phases(alternate_epochs(2, 3), epoch)[0].lasts for epoch in (0, 1, 2, 4)] == [
        2,
        2,
        3,
        3,
    ]


def test_one_by_one_gives_every_task_a_turn_on_one_batch() -> None:
    assert phases(one_by_one()) == [Phase((task,), group=k) for k, task in enumerate(ABC)]


def test_a_random_order_varies_and_leaves_each_task_its_slot() -> None:
    drawn = [phases(one_by_one("random"), step=step) for step in range(40)]
    orders = {tuple(phase.tasks[0] for phase in turn) for turn in drawn}
    assert len(orders) == 6
    groups = {(phase.tasks[0], phase.group) for turn in drawn for phase in turn}
    assert groups == {("a", 0), ("b", 1), ("c", 2)}


@given(m=st.integers(1, 9), size=st.integers(1, 10), step=st.integers(0, 5))
def test_groups_part_the_tasks(m: int, size: int, step: int) -> None:
    names = [f"t{k}" for k in range(m)]
    schedule = in_groups(size, redraw="step")
    drawn = phases(schedule, step=step, tasks=names)
    assert sorted(task for phase in drawn for task in phase.tasks) == names
    assert tuple(len(phase.tasks) for phase in drawn) == schedule.groups(m)
    assert [phase.group for phase in drawn] == list(range(len(drawn)))
    assert all(list(phase.tasks) == sorted(phase.tasks) for phase in drawn)
    assert {(phase.trains, phase.batch) for phase in drawn} == {(BLOCKS, 0)}


@pytest.mark.parametrize(
    ("redraw", "by_step", "by_epoch"), [("never", 1, 1), ("epoch", 1, 3), ("step", 3, 1)]
)
def test_groups_are_redrawn_when_asked(redraw: Any, by_step: int, by_epoch: int) -> None:
    schedule = in_groups(2, redraw)
    # A pair of three tasks leaves one alone, so there are three ways to draw.
    alone_by_step = {phases(schedule, 0, step)[1].tasks for step in range(30)}
    alone_by_epoch = {phases(schedule, epoch, 0)[1].tasks for epoch in range(30)}
    assert (len(alone_by_step), len(alone_by_epoch)) == (by_step, by_epoch)


def test_chance_comes_from_the_clock_alone() -> None:
    state = torch.get_rng_state()
    for schedule in (one_by_one("random"), in_groups(2, "step")):
        assert phases(schedule, step=3) == phases(schedule, step=3)
    assert torch.equal(state, torch.get_rng_state())
    groups = {tuple(in_groups(2)(Clock(seed=seed), ABC)) for seed in range(20)}
    assert len(groups) > 1


# Nesting ---------------------------------------------------------------------------------------


def test_groups_in_shared_phases_only() -> None:
    schedule = nested(alternate_epochs(1, 2), in_groups(2), within=("shared",))
    groups = [phase.tasks for phase in phases(in_groups(2))]
    shared = [Phase(group, ("shared",), group=k, lasts=1) for k, group in enumerate(groups)]
    assert phases(schedule, epoch=0) == shared
    assert phases(schedule, epoch=1) == [Phase(ABC, ("own",), lasts=2)]


def test_task_steps_in_alternate_steps_share_its_two_batches() -> None:
    turns = phases(nested(alternate_steps(), one_by_one()))
    assert [(p.tasks, p.trains, p.batch, p.group) for p in turns] == [
        *[((task,), ("shared",), 0, k) for k, task in enumerate(ABC)],
        *[((task,), ("own",), 1, k) for k, task in enumerate(ABC)],
    ]


def test_alternate_steps_in_task_steps_finish_a_task_before_the_next() -> None:
    turns = phases(nested(one_by_one(), alternate_steps()))
    assert [(p.tasks, p.trains, p.batch, p.group) for p in turns] == [
        ((task,), moves, batch, k)
        for k, task in enumerate(ABC)
        for batch, moves in enumerate((("shared",), ("own",)))
    ]


def test_task_steps_in_groups_have_a_slot_each() -> None:
    schedule = nested(in_groups(2), one_by_one())
    turns = phases(schedule, tasks=("a", "b", "c", "d", "e"))
    assert [phase.group for phase in turns] == [0, 1, 2, 3, 4]
    assert schedule.groups(5) == (1,) * 5
    assert nested(in_groups(4), in_groups(3)).groups(6) == (3, 1, 2)


def test_alternating_inside_the_alternation_of_epochs_keeps_what_both_move() -> None:
    schedule = nested(alternate_epochs(1, 1), alternate_steps())
    assert [(p.trains, p.batch) for p in phases(schedule, epoch=0)] == [(("shared",), 0)]
    assert [(p.trains, p.batch) for p in phases(schedule, epoch=1)] == [(("own",), 0)]
    told = (
        "nothing trains in epoch 0 of nested(alternate_epochs(shared=1, own=0), "
        "alternate_epochs(shared=0, own=1))"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        phases(nested(alternate_epochs(1, 0), alternate_epochs(0, 1)))


def test_nested_jointly_changes_nothing() -> None:
    for schedule in (alternate_steps(), alternate_epochs(1, 2), one_by_one(), in_groups(2)):
        for epoch in range(3):
            expected = list(phases(schedule, epoch))
            assert phases(nested(jointly(), schedule), epoch) == expected
            assert phases(nested(schedule, jointly()), epoch) == expected


class Watchful(Stateless):
    """A schedule that remembers how many records it has seen."""

    def __init__(self) -> None:
        super().__init__(lambda clock, tasks: (Phase(tasks),), "watchful")
        self.seen = 0

    def observe(self, record: Record) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_nesting_passes_records_and_state_on() -> None:
    inner, outer = Watchful(), Watchful()
    schedule = nested(outer, nested(jointly(), inner))
    schedule.observe(Record(0, 0))
    assert (inner.seen, outer.seen) == (1, 1)
    other = Watchful()
    nested(Watchful(), nested(jointly(), other)).load_state_dict(schedule.state_dict())
    assert other.seen == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: alternate_epochs(0, 0), "one of them > 0"),
        (lambda: alternate_epochs(-1, 2), "counts are >= 0"),
        (lambda: in_groups(0), "size=0"),
        (lambda: in_groups(2, "often"), "redraw='often'"),
        (lambda: one_by_one("sorted"), "order='sorted'"),
        (lambda: nested(jointly(), jointly(), within=("trunk",)), "within="),
        (lambda: nested(jointly(), jointly(), within=()), "within="),
        (lambda: Phase(()), "at least one task"),
        (lambda: Phase(ABC, ("head",)), "trains="),
        (lambda: jointly().load_state_dict({"x": 1}), "keeps no state"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_describe_themselves() -> None:
    described = repr(nested(alternate_epochs(1, 2), in_groups(2), within=("shared",)))
    assert described == (
        "nested(alternate_epochs(shared=1, own=2), in_groups(2, redraw='never'), "
        "within=('shared',))"
    )


# Adaptive alternation --------------------------------------------------------------------------


def fed(schedule: Schedule, told: Sequence[tuple[float, float]], **rates: float) -> str:
    """The blocks of the epochs, one letter each; `told` is (monitored, work) after each."""
    schedule.observe(Record(0, 0, monitored=1.0))
    blocks = []
    for monitored, work in told:
        (phase,) = phases(schedule)
        blocks.append(phase.trains[0][0])
        entry = Record(1, 1, trains=phase.trains, monitored=monitored, flops=work)
        schedule.observe(replace(entry, rates={"shared": 0.1, "own": 0.1} | rates))
    return "".join(blocks)


def test_a_phase_goes_on_while_it_brings_more_than_the_average() -> None:
    falls = [0.9, 0.89, 0.7, 0.69, 0.6, 0.4, 0.39, 0.38]
    # Shared −10 %, −1 %: two epochs is all that doubling allows. Own −21 %, −1 %, as well.
    # Shared −13 %, −33 %, −2.5 %: below the average of the past, 8.5 %.
    assert fed(alternate_adaptively(), [(value, 1.0) for value in falls]) == "ssoossso"


def test_what_costs_little_may_bring_little() -> None:
    """Half a per cent an epoch is worth staying for where an epoch is almost free."""
    falls = (0.96, 0.95, 0.945, 0.94)
    for cost, blocks in ((1.0, "ssoo"), (100.0, "ssos")):
        told = list(zip(falls, (100.0, 100.0, cost, cost), strict=True))
        assert fed(alternate_adaptively(), told) == blocks


def test_a_reduced_rate_does_not_look_like_progress_that_dried_up() -> None:
    """The fall of 1.1 % is poor beside the 10.6 % of the past, but not at a tenth of its rate."""
    for rate, block in ((0.1, "shared"), (0.01, "own")):
        schedule = alternate_adaptively()
        assert fed(schedule, [(0.9, 1.0), (0.8, 1.0), (0.7, 1.0)]) == "sso"
        state = schedule.state_dict()
        state["past"]["own"]["length"] = 4  # doubling does not end the phase
        schedule.load_state_dict(state)
        rates = {"shared": rate, "own": rate}
        schedule.observe(Record(4, 4, ("own",), monitored=0.6923, flops=1.0, rates=rates))
        assert phases(schedule)[0].trains == (block,)


def test_phases_grow_by_doubling_and_end() -> None:
    told, monitored = [], 1.0
    for k in range(1, 60):
        monitored *= 1 - 0.001 * k  # ever better, so nothing but the limits ends a phase
        told.append((monitored, 1.0))
    runs = [len(list(group)) for _, group in groupby(fed(alternate_adaptively(longest=8), told))]
    assert runs[:7] == [2, 2, 4, 4, 8, 8, 8]


def test_no_progress_means_the_highest_frequency() -> None:
    blocks = fed(alternate_adaptively(), [(1.0 + 0.01 * k, 1.0) for k in range(1, 10)])
    assert blocks == "sosososos"
    spoilt = fed(alternate_adaptively(), [(math.inf, 1.0), (math.nan, 1.0), (0.5, 0.0), (0.4, 1.0)])
    assert len(spoilt) == 4


def test_adaptive_alternation_needs_counted_work() -> None:
    schedule = alternate_adaptively()
    with pytest.raises(ValueError, match="count_flops=True"):
        schedule.observe(Record(1, 1, trains=("shared",), rates={"shared": 0.1, "own": 0.1}))
    for wrong in ({"longest": 0}, {"memory": 1.0}, {"memory": -0.1}):
        with pytest.raises(ValueError, match=r"must be|at least"):
            alternate_adaptively(**wrong)


def test_phases_that_may_go_on_let_features_be_kept() -> None:
    assert phases(alternate_adaptively())[0].lasts == 2
    assert phases(alternate_adaptively(longest=1))[0].lasts == 1


# Laws of training ------------------------------------------------------------------------------


def trained(
    schedule: Schedule,
    shared: Factory | Scheduled = MOMENTUM,
    *,
    problem: Problem | None = None,
    groups: int | None = None,
    epochs: int = 4,
    optimizers: type[Optimizers] = Optimizers,
    **options: Any,
) -> Training:
    """A training that has run, with the groups of the schedule unless `groups` says else."""
    problem = problem or two_scales()
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    count = len(schedule.groups(len(problem.tasks))) if groups is None else groups
    made = optimizers(network.blocks(), shared, groups=count)
    training = Training(problem, network, made, schedule=schedule, epochs=epochs, **options)
    for _ in training.run():
        last = snapshot(network.state_dict())  # before the best epoch's weights are put back
    network.load_state_dict(last)
    return training


def weights(training: Training) -> dict[str, Tensor]:
    return dict(training.network.state_dict())


def turns(clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
    """`alternate_epochs(1, 1)`, as a user writes it."""
    return (Phase(tasks, trains=(BLOCKS[clock.epoch % 2],)),)


def test_a_plain_function_is_a_schedule() -> None:
    ours = trained(alternate_epochs(1, 1), feature_memory=0)
    assert same(weights(trained(turns, groups=1)), weights(ours))
    inner = nested(turns, in_groups(2), within=("shared",))
    wanted = nested(alternate_epochs(1, 1), in_groups(2), within=("shared",))
    assert [replace(phase, lasts=1) for phase in phases(inner)] == phases(wanted)


def test_a_plain_function_may_draw_so_no_stack_takes_it() -> None:
    assert in_step(alternate_epochs(1, 1))
    assert not in_step(as_schedule(turns))


def test_a_schedule_that_nobody_would_ask_is_refused() -> None:
    class Learning:
        def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
            return (Phase(tasks),)

        def observe(self, record: Record) -> None: ...

    with pytest.raises(TypeError, match="has observe, which would not be asked: derive"):
        as_schedule(Learning())
    with pytest.raises(TypeError, match="must be a function"):
        as_schedule("sat-sg")


def test_a_schedule_with_a_state_needs_no_more_than_it_has() -> None:
    class Patient(Schedule):
        seen = 0

        def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
            return (Phase(tasks, trains=BLOCKS[: 1 + self.seen % 2]),)

        def observe(self, record: Record) -> None:
            self.seen += 1

    schedule = Patient()
    assert trained(schedule).epoch == 4
    assert schedule.seen == 5  # the untrained network's record, too
    assert schedule.groups(3) == (3,)
    with pytest.raises(ValueError, match="keeps no state"):
        schedule.load_state_dict({"seen": 1})


def test_under_plain_sgd_ius_is_io() -> None:
    plain = partial(SGD, lr=0.02)
    ius, io = (trained(one_by_one(), plain, groups=groups) for groups in (1, 2))
    assert same(weights(ius), weights(io))


@pytest.mark.parametrize("factory", [MOMENTUM, partial(Adam, lr=0.01)])
def test_moments_tell_ius_from_io(factory: Factory) -> None:
    ius, io = (trained(one_by_one(), factory, groups=groups) for groups in (1, 2))
    assert not same(weights(ius), weights(io))


def test_io_is_one_optimizer_per_task_over_all_parameters() -> None:
    """The released code's form: for Adam without decay, frozen heads do not move anyway."""
    problem, factory = two_scales(), partial(Adam, lr=0.01)
    ours = trained(one_by_one(), factory, problem=problem, epochs=2)
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    each = {task: factory(network.parameters()) for task in problem.tasks}
    stream = Stream(problem.train, problem.batch_size, mixed_seed(0, *b"data"))
    for number in range(2 * len(stream)):
        inputs, targets = stream.batch(number)
        for task, optimizer in each.items():
            network.zero_grad(set_to_none=True)
            problem.losses(network(inputs), targets)[task].backward()
            optimizer.step()
    assert same(weights(ours), dict(network.state_dict()))


def test_a_group_of_all_tasks_is_the_joint_step() -> None:
    for redraw in ("never", "step"):
        grouped = trained(in_groups(3, redraw), DECAYED, problem=mixed())
        assert same(weights(grouped), weights(trained(jointly(), DECAYED, problem=mixed())))


def test_groups_of_one_are_task_steps_in_the_order_drawn() -> None:
    order = [phase.tasks for phase in in_groups(1)(Clock(), ("small", "large"))]
    turns = Stateless(
        lambda clock, tasks: [Phase(t, group=k) for k, t in enumerate(order)],
        "",
        (1,).__mul__,
    )
    assert same(weights(trained(in_groups(1))), weights(trained(turns)))


@pytest.mark.parametrize(
    ("schedule", "block"), [((1, 0), "shared"), ((0, 1), "own"), ((3, 3), "shared")]
)
def test_one_kind_of_epoch_is_plain_training_of_its_block(
    schedule: tuple[int, int], block: str
) -> None:
    problem = two_scales()
    ours = trained(alternate_epochs(*schedule), problem=problem, epochs=3)
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    shared = network.trunk.parameters()
    optimizer = MOMENTUM(shared if block == "shared" else network.heads.parameters())
    stream = Stream(problem.train, problem.batch_size, mixed_seed(0, *b"data"))
    for number in range(3 * len(stream)):
        inputs, targets = stream.batch(number)
        optimizer.zero_grad()
        torch.stack(list(problem.losses(network(inputs), targets).values())).sum().backward()
        optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(weights(ours)[name], value, msg=name)


class Watching(Optimizers):
    """Notes which entries of a network's state change in each phase, forward pass included."""

    network: nn.Module
    seen: list[tuple[Phase, frozenset[str]]]

    def zero_grad(self) -> None:
        self.before = snapshot(self.network.state_dict())
        super().zero_grad()

    def step(self, phase: Phase) -> None:
        super().step(phase)
        after = self.network.state_dict()
        changed = {name for name in after if not same(after[name], self.before[name])}
        self.seen.append((phase, frozenset(changed)))


def watched(schedule: Schedule, factory: Factory, **options: Any) -> Watching:
    """The phases of a training on heads and trunk with BatchNorm and dropout."""
    problem = mixed()
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    for k, task in enumerate(network.tasks):
        network.heads[k] = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.1), network.head(task))
    optimizers = Watching(network.blocks(), factory, groups=len(schedule.groups(3)))
    optimizers.network, optimizers.seen = network, []
    training = Training(problem, network, optimizers, schedule=schedule, epochs=4, **options)
    assert len(list(training.run())) == 5
    return optimizers


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("factory", [MOMENTUM, partial(Adam, lr=0.01), DECAYED])
@pytest.mark.parametrize(
    "schedule",
    [
        alternate_steps(),
        alternate_epochs(1, 1),
        one_by_one("random"),
        nested(alternate_steps(), in_groups(2, "step")),
    ],
    ids=repr,
)
def test_what_rests_rests(schedule: Schedule, factory: Factory, mode: Any) -> None:
    """No momentum, decay or statistics: a frozen trunk, frozen heads, other tasks' heads."""
    optimizers = watched(schedule, factory, frozen=mode)
    tasks = optimizers.network.tasks
    for phase, changed in optimizers.seen:
        speaking = {f"heads.{tasks.index(task)}" for task in phase.tasks}
        allowed = speaking if "own" in phase.trains else set()
        allowed |= {"trunk"} if "shared" in phase.trains else set()
        parts = {name[:7] if name.startswith("heads") else "trunk" for name in changed}
        assert parts <= allowed
        assert parts  # and something does move
    assert {move for phase, _ in optimizers.seen for move in phase.trains} == set(BLOCKS)


@pytest.mark.parametrize("batches", [3, 4])
def test_an_epoch_is_its_batches_whoever_draws_them(batches: int) -> None:
    """SAT-SG draws two batches a step, and each batch is drawn once, epoch borders or not."""
    base = two_scales()
    problem = replace(base, batch_size=math.ceil(len(base.train) / batches))
    drawn: list[int] = []

    class Counting(Stream):
        def batch(self, number: int) -> Any:
            drawn.append(number)
            return super().batch(number)

    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    training = Training(
        problem,
        network,
        Optimizers(network.blocks(), MOMENTUM),
        schedule=alternate_steps(),
        epochs=4,
    )
    training.steps.stepper.stream = Counting(problem.train, problem.batch_size, 0)
    records = list(training.run())
    assert [r.epoch for r in records] == [0, 1, 2, 3, 4]
    assert [r.step for r in records] == [math.ceil(k * batches / 2) for k in range(5)]
    assert drawn == list(range(4 * batches))


def test_a_batch_that_several_phases_see_is_loaded_once() -> None:
    base = two_scales()
    loads: list[int] = []

    class Loader:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Any:
            for k, batch in enumerate(base.train.in_order(16)):
                loads.append(k)
                yield batch

    trained(one_by_one(), problem=replace(base, train=Loader()), epochs=2)
    assert loads == [0, 1, 2, 0, 1, 2]


def test_drawing_with_replacement_is_algorithm_3_2() -> None:
    drawn = trained(alternate_epochs(1, 1), replacement=True)
    assert drawn.stream.replacement
    assert not same(weights(drawn), weights(trained(alternate_epochs(1, 1))))


def test_a_method_sees_the_group_that_speaks() -> None:
    seen: list[tuple[str, ...]] = []

    class Spy(MGDA):
        def weigh(self, g: Any) -> Tensor:
            seen.append(g.tasks)
            return super().weigh(g)

    schedule = nested(alternate_epochs(1, 1), in_groups(2), within=("shared",))
    options = {"balancer": Balancer(aggregator=Spy()), "epochs": 2}
    trained(schedule, problem=mixed(), **options)
    pair, alone = (phase.tasks for phase in in_groups(2)(Clock(), tuple(mixed().tasks)))
    labelled = {tuple(t for t in group if t != "rare") for group in (pair, alone)}
    assert set(seen) <= {pair, alone} | labelled
    assert pair in seen


# Resuming within a phase -----------------------------------------------------------------------


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "alternate steps": alternate_steps,
    "alternate epochs": lambda: alternate_epochs(2, 5),
    "task steps": lambda: one_by_one("random"),
    "groups": lambda: in_groups(2, redraw="epoch"),
    "adaptive": lambda: alternate_adaptively(longest=3),
    "nested": lambda: nested(alternate_epochs(2, 3), in_groups(2, "step"), within=("shared",)),
}


@pytest.mark.parametrize("killed_after", [1, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_resuming_within_a_phase_is_bit_for_bit(
    name: str, killed_after: int, tmp_path: Path
) -> None:
    """Per-task moments, schedules of rates, features in memory, odd numbers of batches."""

    def made() -> Training:
        problem = mixed()
        torch.manual_seed(0)
        network = problem.network(tuple(problem.tasks))
        schedule = SCHEDULES[name]()
        falling = Scheduled(DECAYED, diminishing(over=5), every="step")
        optimizers = Optimizers(network.blocks(), falling, groups=len(schedule.groups(3)))
        return Training(
            problem,
            network,
            optimizers,
            schedule=schedule,
            epochs=7,
            plateau=Plateau(patience=1, min_delta=0.05),
            observe_every=2,
            count_flops=True,
        )

    whole = made()
    expected = [replace(record, seconds=0.0) for record in whole.run()]
    killed = made().run(tmp_path, checkpoint_every=1)
    for _ in range(killed_after + 1):
        next(killed)
    killed.close()
    resumed = made()
    found = [replace(record, seconds=0.0) for record in resumed.run(tmp_path)]
    assert found == expected
    if name == "alternate epochs" and killed_after == 4:  # features that had to be made again
        assert found[4].reused == found[5].reused == len(resumed.problem.train)
    assert same(resumed.state_dict(), whole.state_dict())
    assert [r.epoch for r in RecordFile(tmp_path / "records.jsonl")] == list(range(8))


# Optimizers and rates --------------------------------------------------------------------------


def small() -> MultiTaskNetwork:
    return MultiTaskNetwork(nn.Linear(3, 5), {"a": nn.Linear(5, 2), "b": nn.Linear(5, 1)})


def with_grads(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)


def test_every_block_and_head_has_a_rate_of_its_own() -> None:
    network = small()
    own = {"a": partial(SGD, lr=0.2), "b": partial(Adam, lr=0.03)}
    optimizers = Optimizers(network.blocks(), partial(SGD, lr=0.1), own)
    assert optimizers.rates() == {"shared": 0.1, "own.a": 0.2, "own.b": 0.03}
    before = snapshot(network.state_dict())
    with_grads(network)
    optimizers.step(Phase(("a",), trains=("own",)))
    moved = {n for n, value in network.state_dict().items() if not same(value, before[n])}
    assert moved == {"heads.0.weight", "heads.0.bias"}
    torch.testing.assert_close(network.head("a").bias, before["heads.0.bias"] - 0.2)


def test_heads_share_an_optimizer_and_its_group() -> None:
    network = small()
    optimizers = Optimizers(network.blocks(), MOMENTUM, partial(SGD, lr=0.3))
    assert optimizers.rates() == {"shared": 0.05, "own": 0.3}
    (group,) = optimizers.named()["own"].param_groups
    assert set(group["params"]) == set(network.heads.parameters())


def test_each_head_needs_its_optimizer() -> None:
    with pytest.raises(ValueError, match="optimizers for a, but the heads are a, b"):
        Optimizers(small().blocks(), MOMENTUM, {"a": MOMENTUM})


def test_a_slot_needs_its_optimizer() -> None:
    optimizers = Optimizers(small().blocks(), MOMENTUM, groups=2)
    with pytest.raises(ValueError, match="group 2, and the shared parameters have 2"):
        optimizers.step(Phase(("a",), group=2))
    mixing = Optimizers(small().blocks(), MOMENTUM, groups=1)
    mixing.step(Phase(("a",), group=2))


def test_a_schedule_counts_epochs_or_its_own_steps() -> None:
    halving = partial(lr_scheduler.StepLR, step_size=2, gamma=0.5)
    network = small()
    optimizers = Optimizers(
        network.blocks(),
        Scheduled(partial(SGD, lr=1.0), halving),
        Scheduled(partial(SGD, lr=1.0), halving, every="step"),
    )
    for _ in range(4):  # four epochs of five steps, in all of which the trunk is frozen
        for _ in range(5):
            with_grads(network)
            optimizers.step(Phase(("a", "b"), trains=("own",)))
        optimizers.end_epoch()
    assert optimizers.rates() == {"shared": 0.5**2, "own": 0.5**10}


def test_a_plateau_multiplies_what_the_schedule_says() -> None:
    network = small()
    cosine = partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch))
    optimizers = Optimizers(
        network.blocks(), Scheduled(partial(SGD, lr=1.0), cosine), partial(SGD, lr=1.0)
    )
    optimizers.end_epoch()
    optimizers.scale_rates(0.5, floor=0.2)
    assert optimizers.rates() == {"shared": 0.25, "own": 0.5}
    optimizers.end_epoch()
    assert optimizers.rates() == pytest.approx({"shared": 0.2, "own": 0.5})  # the floor
    optimizers.scale_rates(0.5, floor=0.0)
    assert optimizers.rates() == pytest.approx({"shared": 1 / 12, "own": 0.25})


def test_a_floor_raises_no_rate() -> None:
    optimizers = Optimizers(small().blocks(), partial(SGD, lr=0.01))
    optimizers.scale_rates(0.5, floor=0.1)
    assert optimizers.rates() == {"shared": 0.01, "own": 0.01}


def test_rates_resume() -> None:
    def made() -> Optimizers:
        return Optimizers(small().blocks(), Scheduled(MOMENTUM, diminishing(), every="epoch"))

    one, other = made(), made()
    one.end_epoch()
    one.scale_rates(0.5)
    other.load_state_dict(one.state_dict())
    for optimizers in (one, other):
        optimizers.end_epoch()
    assert one.rates() == other.rates() != made().rates()
    with pytest.raises(ValueError, match="the state is of optimizers"):
        Optimizers(small().blocks(), MOMENTUM, groups=2).load_state_dict(one.state_dict())


def test_schedules_that_watch_a_loss_are_refused() -> None:
    watching = Scheduled(MOMENTUM, lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(TypeError, match=r"stopping\.Plateau"):
        Optimizers(small().blocks(), watching)
    with pytest.raises(ValueError, match="every='week'"):
        Scheduled(MOMENTUM, diminishing(), every="week")


@pytest.mark.parametrize(
    "factory",
    [
        partial(SGD, lr=0.1),
        MOMENTUM,
        Adam,
        partial(AdamW, amsgrad=True),
        torch.optim.Adafactor,
        torch.optim.RMSprop,
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_memory_of_moments_is_known_before_training(factory: Any, groups: int) -> None:
    network = small()
    before = snapshot(network.state_dict())
    optimizers = Optimizers(network.blocks(), factory, groups=groups)
    planned = optimizers.planned_state_bytes()
    assert same(dict(network.state_dict()), before)
    for group in range(groups):
        with_grads(network)
        optimizers.step(Phase(("a", "b"), group=group))
    assert planned == optimizers.state_bytes()
    assert len([name for name in planned if name.startswith("shared")]) == groups


def test_adam_keeps_two_numbers_per_parameter_and_slot() -> None:
    planned = Optimizers(small().blocks(), Adam, groups=2).planned_state_bytes()
    trunk, heads = 3 * 5 + 5, 5 * 2 + 2 + 5 + 1
    counts = 4 * 2, 4 * 4  # a step count for each tensor
    assert planned == {
        "shared.0": 8 * trunk + counts[0],
        "shared.1": 8 * trunk + counts[0],
        "own": 8 * heads + counts[1],
    }


# Diminishing rates -----------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.51, 0.75, 1.0])
def test_diminishing_rates_meet_the_theorems_conditions(power: float) -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    rate = diminishing(power, over=10)(optimizer).lr_lambdas[0]
    assert rate(0) == 1
    # Σ k^-p grows like k^(1−p) without bound; Σ k^-2p is bounded by its integral.
    decades = [sum(rate(k) for k in range(10**n, 10 ** (n + 1))) for n in (2, 3, 4)]
    assert decades[0] <= decades[1] * 1.1 <= decades[2] * 1.21
    squares = sum(rate(k) ** 2 for k in range(100_000))
    assert squares < 1 + 10 / (2 * power - 1)


@pytest.mark.parametrize(("power", "over"), [(0.5, 1.0), (1.1, 1.0), (0.75, 0.0), (0.75, math.inf)])
def test_rates_outside_the_conditions_are_refused(power: float, over: float) -> None:
    with pytest.raises(ValueError, match="must"):
        diminishing(power, over)


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.by


def smooth() -> Problem:
    """min Σ_i mean (w·x + b_i − y_i)²: strongly convex, w shared, no solution fits every sample."""
    at = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=at, dtype=torch.float64)

    x = normal(64, 2)
    data = Split(x, {"a": 2 * x[:, 0] + 1 + normal(64), "b": x[:, 1] - 2 + normal(64)})

    def network(tasks: Sequence[str]) -> MultiTaskNetwork:
        return MultiTaskNetwork(nn.Linear(2, 1, bias=False), {t: Shift() for t in tasks}).double()

    tasks = {"a": REGRESSION, "b": REGRESSION}
    return Problem("smooth", "", "", tasks, network, data, data, data, batch_size=2)


def gradient_norms(schedule: Schedule, factory: Factory | Scheduled) -> list[float]:
    """‖∇ℓ‖ over the whole data set after every epoch."""
    problem = smooth()
    network = problem.network(tuple(problem.tasks))
    optimizers = Optimizers(network.blocks(), factory)
    training = Training(
        problem, network, optimizers, schedule=schedule, epochs=48, replacement=True
    )
    norms = []
    for _ in training.run():
        losses = problem.losses(network(problem.train.inputs), problem.train.targets)
        total_loss = torch.stack(list(losses.values())).sum()
        gradient = torch.autograd.grad(total_loss, list(network.parameters()))
        norms.append(float(torch.cat([g.flatten() for g in gradient]).norm()))
    return norms


@pytest.mark.parametrize("schedule", [alternate_steps(), alternate_epochs(2, 2)], ids=repr)
def test_with_diminishing_rates_the_gradient_goes_to_zero(schedule: Schedule) -> None:
    """Theorems 3.3 and 3.5; with a constant rate it stays where the noise of the batches is."""
    rate = partial(SGD, lr=0.1)
    falling = gradient_norms(schedule, Scheduled(rate, diminishing(1.0, over=10), every="step"))
    constant = gradient_norms(schedule, rate)
    early, late = sum(falling[5:15]) / 10, sum(falling[-10:]) / 10
    assert late < 0.6 * early
    assert late < 0.05 * falling[0]
    assert sum(constant[-10:]) / 10 > 4 * late


# Stopping --------------------------------------------------------------------------------------


def record(**validation: float) -> Record:
    return Record(0, 0, validation=validation, metrics={"a": 0.75})


def test_monitors_choose_what_is_watched() -> None:
    first, now = record(a=2.0, b=100.0), record(a=1.0, b=200.0)
    assert total(now, first) == 201
    assert relative(now, first) == (0.5 + 2) / 2
    assert loss_of("b")(now, first) == 200
    assert metric_of("a")(now, first) == -0.75
    assert metric_of("a", higher_is_better=False)(now, first) == 0.75
    with pytest.raises(ValueError, match="no validation loss of 'c'; there is one of a, b"):
        loss_of("c")(now, first)
    with pytest.raises(ValueError, match="no metric of 'b'"):
        metric_of("b")(now, first)


def test_stopping_counts_epochs_whatever_the_phase() -> None:
    """A rate of nothing improves nothing: the counter runs through shared and own epochs."""
    frozen = partial(SGD, lr=1e-12)
    stopping, plateau = EarlyStopping(patience=5, min_delta=1e-6), Plateau(2, 1e-6, factor=0.5)
    options = {"stopping": stopping, "plateau": plateau, "epochs": 99}
    run = trained(alternate_epochs(2, 2), frozen, monitor=loss_of("small"), **options)
    assert run.epoch == 5
    assert run.optimizers.rates()["own"] == pytest.approx(1e-12 * 0.5**2)


def test_the_weights_of_the_best_epoch_come_back() -> None:
    problem = two_scales()
    torch.manual_seed(0)
    network = problem.network(tuple(problem.tasks))
    optimizers = Optimizers(network.blocks(), partial(SGD, lr=0.2))
    training = Training(
        problem,
        network,
        optimizers,
        schedule=alternate_epochs(1, 2),
        epochs=8,
        monitor=metric_of("small", higher_is_better=False),
    )
    states, records = [], []
    for entry in training.run():
        states.append(snapshot(network.state_dict()))
        records.append(entry)
    best = min(range(9), key=lambda k: records[k].metrics["small"])
    assert best == [r.epoch for r in records if r.best][-1]
    assert same(dict(network.state_dict()), states[best])


def test_resting_is_for_loops_of_ones_own_too() -> None:
    """The same phases and context, written out: alternate steps by hand equal `Training`'s."""
    problem = mixed()
    ours = trained(alternate_steps(), DECAYED, problem=replace(problem, network=plain_network))
    torch.manual_seed(0)
    network = plain_network(tuple(problem.tasks))
    blocks, balancer = network.blocks(), Balancer(model=network, tasks=tuple(problem.tasks))
    optimizers = Optimizers(blocks, DECAYED)
    stream = Stream(problem.train, problem.batch_size, mixed_seed(0, *b"data"))
    for step in range(6):
        for phase in alternate_steps()(Clock(step=step), tuple(problem.tasks)):
            inputs, targets = stream.batch(2 * step + phase.batch)
            optimizers.zero_grad()
            with frozen(network, phase):
                outputs = network(inputs)
                losses = problem.losses(outputs, targets)
            balancer.backward(
                losses, features=outputs.features, plus=problem.penalty(network), phase=phase
            )
            optimizers.step(phase)
    assert same(weights(ours), dict(network.state_dict()))


def plain_network(tasks: Sequence[str]) -> MultiTaskNetwork:
    """BatchNorm, but nothing that draws at random."""
    trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6))
    return MultiTaskNetwork(trunk, {t: nn.Linear(6, 3 if t == "class" else 1) for t in tasks})
