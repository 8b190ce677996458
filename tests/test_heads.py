"""Tasks and heads that are not one to one: several losses on a head, a loss over several heads.

What a training comes to is computed by `torch.autograd.grad` and a few lines of SGD.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from evenhand import MGDA, Balancer, MultiTaskNetwork, alternate_epochs, alternate_steps
from evenhand.comparison.constant import constants
from evenhand.data import Problem, Split, Task
from evenhand.ensemble.training import StackedTraining, obstacle
from evenhand.network import frozen
from evenhand.schedules import Phase, Schedule, jointly, one_by_one
from evenhand.training.loop import Training, evaluate
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import Record

RATE, MOMENTUM = 0.05, 0.9
DTYPE = torch.float64


@pytest.fixture(autouse=True)
def _double_precision() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    yield
    torch.set_default_dtype(before)


# The problem ----------------------------------------------------------------------------------


class MeanLoss:
    """A metric that is the loss itself."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.sum, self.seen = loss, 0.0, 0

    def update(self, preds: Any, target: Tensor) -> None:
        self.sum += float(self.loss(preds, target)) * len(target)
        self.seen += len(target)

    def compute(self) -> Tensor:
        return torch.tensor(self.sum / self.seen)


def area(mask: Tensor, target: Tensor) -> Tensor:
    return (mask - target).square().mean()


def edge(mask: Tensor, target: Tensor) -> Tensor:
    """Of neighbouring columns' differences."""
    return (mask[:, 1:] - mask[:, :-1] - target[:, 1:] + target[:, :-1]).square().mean()


def overlap(outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
    return (outputs["mask"] * outputs["box"] - target).square().mean()


def likelihood(outputs: Mapping[str, Tensor], target: Tensor) -> Tensor:
    """Of a normal distribution, up to a constant."""
    z = (target - outputs["mean"]) / outputs["log_scale"].exp()
    return (0.5 * z.square() + outputs["log_scale"]).mean()


class Normal(nn.Module):
    """A mean, and the logarithm of a standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return {"mean": self.mean(z), "log_scale": self.log_scale(z)}


MAKES = {"mask": lambda: nn.Linear(4, 3), "box": lambda: nn.Linear(4, 3), "pose": Normal}


def task(loss: Any, **changes: Any) -> Task:
    return Task(loss, partial(MeanLoss, loss), "loss", higher_is_better=False, **changes)


TASKS = {
    "area": task(area, heads="mask"),
    "edge": task(edge, heads="mask"),
    "overlap": task(overlap, heads=("mask", "box")),
    "pose": task(likelihood, unit=1.0),
}
COLUMNS = {"area": 3, "edge": 3, "overlap": 3, "pose": 1}


def split(samples: int, seed: int, tasks: Sequence[str]) -> Split:
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=chance)
    y = {t: torch.randn(samples, COLUMNS[t], generator=chance) for t in TASKS}
    return Split(x, {t: y[t] + x[:, :1] for t in tasks})


def problem(*tasks: str, samples: int = 12, **changes: Any) -> Problem:
    names = tasks or tuple(TASKS)
    chosen = {t: TASKS[t] for t in names}

    def network(some: Sequence[str]) -> MultiTaskNetwork:
        trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        return MultiTaskNetwork(trunk, {h: MAKES[h]() for h in made.heads(some)})

    settings = {"batch_size": samples, "optimizer": "sgd"} | changes
    made = Problem(
        "shapes",
        "",
        "",
        chosen,
        network,
        split(samples, 0, names),
        split(8, 1, names),
        split(8, 2, names),
        **settings,
    )
    return made


def training(data: Problem, balancer: Balancer | None = None, seed: int = 0, **more: Any):
    torch.manual_seed(seed)
    network = data.network(tuple(data.tasks))
    make = partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM)
    settings = {"epochs": 2, "seed": seed} | more
    return Training(
        data, network, Optimizers(network.blocks(), make), balancer or Balancer(), **settings
    )


# By hand --------------------------------------------------------------------------------------


def losses_of(network: MultiTaskNetwork, x: Tensor, y: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every task's loss, without `Problem`."""
    z = network.trunk(x)
    out = {head: network.head(head)(z) for head in network.tasks}
    read = {
        "area": lambda: area(out["mask"], y["area"]),
        "edge": lambda: edge(out["mask"], y["edge"]),
        "overlap": lambda: overlap({"mask": out["mask"], "box": out["box"]}, y["overlap"]),
        "pose": lambda: likelihood(out["pose"], y["pose"]),
    }
    return {name: read[name]() for name in y}


Rows = dict[str, list[Tensor | None]]


def rows_of(losses: Mapping[str, Tensor], leaves: Sequence[Tensor]) -> Rows:
    return {
        name: list(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True))
        for name, loss in losses.items()
    }


def shares(rows: Rows, first: str, second: str, at: Sequence[int]) -> dict[str, float]:
    """MGDA's weights of two tasks in closed form, for the gradients at some of the leaves."""
    a, b = (
        torch.cat([g.flatten() for k in at if (g := rows[name][k]) is not None])
        for name in (first, second)
    )
    w = float((b @ b - a @ b) / (a - b).square().sum())
    w = min(max(w, 0.0), 1.0)
    return {first: w, second: 1 - w}


class ByHand:
    """SGD with momentum on a copy of a network, by the gradients of `torch.autograd.grad`."""

    def __init__(self, network: MultiTaskNetwork, data: Problem) -> None:
        self.network = copy.deepcopy(network)
        self.leaves = list(self.network.parameters())
        self.names = [name for name, _ in self.network.named_parameters()]
        self.moments: dict[int, Tensor] = {}
        self.x, self.y = data.train.inputs, data.train.targets

    def at(self, *prefixes: str) -> list[int]:
        return [k for k, name in enumerate(self.names) if name.startswith(prefixes)]

    def rows(self) -> Rows:
        return rows_of(losses_of(self.network, self.x, self.y), self.leaves)

    @torch.no_grad()
    def step(self, rows: Rows, weights: Mapping[str, float], at: Sequence[int]) -> None:
        for k in at:
            terms = [w * rows[t][k] for t, w in weights.items() if rows[t][k] is not None]
            if not terms:
                continue
            gradient = sum(terms[1:], terms[0])
            before = self.moments.get(k)
            self.moments[k] = gradient if before is None else MOMENTUM * before + gradient
            self.leaves[k] -= RATE * self.moments[k]

    def agrees(self, network: MultiTaskNetwork) -> None:
        for name, mine, theirs in zip(self.names, self.leaves, network.parameters(), strict=True):
            torch.testing.assert_close(theirs, mine, rtol=1e-10, atol=1e-12, msg=name)


MASK, BOX, POSE, TRUNK = "heads.0.", "heads.1.", "heads.2.", "trunk."


# Training -------------------------------------------------------------------------------------


ALTERNATE = partial(alternate_epochs, 1, 1)  # here an epoch is a step


@pytest.mark.parametrize("schedule", [jointly, ALTERNATE, one_by_one])
def test_the_sum_trains_every_head_by_all_its_losses(schedule: Any) -> None:
    data = problem()
    run = training(data, schedule=schedule())
    hand = ByHand(run.network, data)
    every = list(range(len(hand.leaves)))
    for k in range(4):
        run.train_epoch()
        if schedule is jointly:
            hand.step(hand.rows(), dict.fromkeys(TASKS, 1.0), every)
        elif schedule is ALTERNATE:
            at = hand.at("heads." if k % 2 else TRUNK)
            hand.step(hand.rows(), dict.fromkeys(TASKS, 1.0), at)
        else:
            for name in TASKS:
                hand.step(hand.rows(), {name: 1.0}, every)
    hand.agrees(run.network)


def test_a_head_with_two_losses_is_balanced_like_the_trunk() -> None:
    data = problem("area", "edge")
    run = training(data, Balancer(aggregator=MGDA()))
    hand = ByHand(run.network, data)
    every = list(range(len(hand.leaves)))
    for _ in range(3):
        run.train_epoch()
        rows = hand.rows()
        weights = shares(rows, "area", "edge", every)
        assert 0 < weights["area"] < 1
        hand.step(rows, weights, every)
    hand.agrees(run.network)


def test_it_trains_with_the_heads() -> None:
    """In the heads' phases it moves, by weights of its own Gramian, and the trunk is frozen."""
    data = problem("area", "edge")
    run = training(data, Balancer(aggregator=MGDA()), schedule=ALTERNATE())
    hand = ByHand(run.network, data)
    for k in range(6):
        run.train_epoch()
        at = hand.at(MASK if k % 2 else TRUNK)
        rows = hand.rows()
        weights = shares(rows, "area", "edge", at)
        assert 0 < weights["area"] < 1
        hand.step(rows, weights, at)
    hand.agrees(run.network)


def test_a_loss_over_two_heads_shares_them() -> None:
    """Of "area" on one head and "overlap" on two: the first is balanced, the second overlap's."""
    data = problem("area", "overlap")
    run = training(data, Balancer(aggregator=MGDA()))
    hand = ByHand(run.network, data)
    for _ in range(3):
        run.train_epoch()
        rows = hand.rows()
        both = hand.at(TRUNK, MASK)
        weights = shares(rows, "area", "overlap", both)
        hand.step(rows, weights, both)
        hand.step(rows, {"overlap": 1.0}, hand.at(BOX))
    hand.agrees(run.network)


def test_a_task_that_shares_nothing_in_a_phase_does_not_stop_the_others() -> None:
    data = problem("area", "edge", "pose")
    run = training(data, Balancer(aggregator=MGDA()), schedule=ALTERNATE())
    run.train_epoch()
    before = copy.deepcopy(run.network)
    run.train_epoch()
    head = run.network.head("mask")
    assert isinstance(head, nn.Linear)
    assert not torch.equal(head.weight, before.head("mask").weight)


def test_a_phase_of_one_task_moves_the_heads_it_reads_and_no_other() -> None:
    data = problem()

    class Only(Schedule):
        """The heads of one task."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, clock: Any, tasks: tuple[str, ...]) -> Sequence[Phase]:
            return [Phase((self.name,), trains=("own",))]

    reads = {"area": {MASK}, "edge": {MASK}, "overlap": {MASK, BOX}, "pose": {POSE}}
    for name, heads in reads.items():
        schedule = Only(name)
        run = training(data, schedule=schedule)
        before = {n: p.detach().clone() for n, p in run.network.named_parameters()}
        run.train_epoch()
        moved = {n for n, p in run.network.named_parameters() if not torch.equal(p, before[n])}
        assert moved == {n for n in before if n.startswith(tuple(heads))}, name


def test_a_phase_whose_task_has_no_label_is_passed_over() -> None:
    """Though another task has one, and reads the same head."""
    data = problem("area", "edge")
    y = dict(data.train.targets)
    data = replace(data, train=Split(data.train.inputs, y | {"edge": y["edge"] * math.nan}))
    run = training(data, schedule=one_by_one())
    hand = ByHand(run.network, data)
    run.train_epoch()
    hand.step(hand.rows(), {"area": 1.0}, list(range(len(hand.leaves))))
    hand.agrees(run.network)


# What is told of it ---------------------------------------------------------------------------


def test_evaluation_reads_what_the_losses_read() -> None:
    data = problem()
    torch.manual_seed(0)
    network = data.network(tuple(TASKS))
    losses, metrics = evaluate(network, data, data.test, tuple(TASKS), batch_size=3)
    with torch.no_grad():
        wanted = losses_of(network, data.test.inputs, data.test.targets)
    for name in TASKS:
        assert losses[name] == pytest.approx(float(wanted[name]), rel=1e-12), name
        assert metrics[name] == pytest.approx(float(wanted[name]), rel=1e-12), name


def test_statistics_are_of_tasks_at_the_trunk() -> None:
    data = problem()
    run = training(data, observe_every=1)
    hand = ByHand(run.network, data)
    record = Record(0, 0, **run.train_epoch().means())
    at = hand.at(TRUNK)
    flat = {t: torch.cat([row[k].flatten() for k in at]) for t, row in hand.rows().items()}
    assert set(record.losses) == set(record.norms) == set(TASKS)
    for name, g in flat.items():
        assert record.norms[name] == pytest.approx(float(g.norm()), rel=1e-9)
    one, other = flat["area"], flat["overlap"]
    cosine = float(one @ other / one.norm() / other.norm())
    assert record.cosines["area|overlap"] == pytest.approx(cosine, rel=1e-9)
    assert {key.split("|")[1] for key in record.changes} == set(TASKS)


def test_a_head_that_several_tasks_read_is_evaluated_once() -> None:
    """Work is what a step written out takes, by torch's own counter."""
    data = problem()
    run = training(data, count_flops=True)
    network = copy.deepcopy(run.network)
    with FlopCounterMode(display=False) as counter:
        sum(losses_of(network, data.train.inputs, data.train.targets).values()).backward()
    assert run.train_epoch().flops == counter.get_total_flops()


@pytest.mark.parametrize("kind", ["memory", "loader"])
def test_features_of_a_resting_trunk_serve_all_readers(kind: str) -> None:
    data = problem(samples=24, batch_size=8)
    if kind == "loader":
        rows = [data.train.take(torch.tensor(k)) for k in range(24)]
        data = replace(data, train=DataLoader(rows, batch_size=8))
    records = {}
    for memory in (0, 1 << 20):
        run = training(
            data,
            Balancer(),
            schedule=alternate_epochs(1, 2),
            epochs=3,
            feature_memory=memory,
            stable_loader=True,
        )
        records[memory] = list(run.run())
        records[memory, "weights"] = [p.detach().clone() for p in run.network.parameters()]
    assert [r.reused for r in records[1 << 20]] == [0, 0, 24, 24]
    for one, other in zip(records[0], records[1 << 20], strict=True):
        assert one.validation == pytest.approx(other.validation, rel=1e-9)


# Missing labels -------------------------------------------------------------------------------


def test_samples_without_a_label_are_left_out_of_every_tensor() -> None:
    data = problem()
    targets = {t: y.clone() for t, y in data.train.targets.items()}
    targets["pose"][3:] = math.nan
    targets["overlap"][:8] = math.nan
    torch.manual_seed(0)
    network = data.network(tuple(TASKS))
    found = data.losses(network(data.train.inputs), targets)
    some, others = slice(0, 3), slice(8, None)
    x = data.train.inputs
    pose = losses_of(network, x[some], {"pose": targets["pose"][some]})["pose"]
    both = losses_of(network, x[others], {"overlap": targets["overlap"][others]})["overlap"]
    torch.testing.assert_close(found["pose"], pose)
    torch.testing.assert_close(found["overlap"], both)
    targets["pose"][:] = math.nan
    assert set(data.losses(network(x), targets)) == {"area", "edge", "overlap"}
    assert set(data.losses(network(x, tasks=["mask"]), targets)) == {"area", "edge"}
    assert set(data.losses(network(x), targets, ("edge",))) == {"edge"}


def test_what_has_no_row_for_each_sample_cannot_be_left_out() -> None:
    target = torch.tensor([[1.0], [math.nan]])
    labels = TASKS["pose"].labels
    with pytest.raises(ValueError, match=r"shape \[3\].*each of the 2 samples"):
        labels.taken({"mean": torch.zeros(3)}, target)
    with pytest.raises(TypeError, match="holds a str"):
        labels.taken({"mean": torch.zeros(2), "kind": "normal"}, target)
    kept, _ = labels.taken({"mean": torch.arange(2.0), "more": [None, torch.ones(2, 5)]}, target)
    assert kept["mean"].tolist() == [0.0]
    assert kept["more"][0] is None
    assert kept["more"][1].shape == (1, 5)


def test_entries_are_left_out_of_one_tensor_alone() -> None:
    labels = task(overlap, gaps="entry").labels
    with pytest.raises(ValueError, match="one tensor of outputs"):
        labels.taken({"mask": torch.zeros(2, 1)}, torch.zeros(2, 1))


# Stacks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [jointly, alternate_steps, ALTERNATE])
@pytest.mark.parametrize("aggregator", [None, MGDA()], ids=["sum", "mgda"])
def test_a_stack_gives_the_records_of_single_runs(schedule: Any, aggregator: Any) -> None:
    tasks = ("area", "edge") if aggregator else ()

    def runs() -> list[Training]:
        data = problem(*tasks, batch_size=4)
        return [
            training(data, Balancer(aggregator=aggregator), seed, schedule=schedule())
            for seed in range(3)
        ]

    shared = problem(*tasks, batch_size=4)
    members = [replace(run, problem=shared) for run in runs()]
    assert obstacle(members) == ""
    together: dict[int, list[Record]] = {k: [] for k in range(3)}
    for k, event in StackedTraining(members).run():
        if isinstance(event, Record):
            together[k].append(event)
    for k, run in enumerate(runs()):
        for one, other in zip(run.run(), together[k], strict=True):
            assert one.validation == pytest.approx(other.validation, rel=1e-8)
            assert one.losses == pytest.approx(other.losses, rel=1e-8)
            assert one.weights == pytest.approx(other.weights, rel=1e-6)


# Constants ------------------------------------------------------------------------------------


def test_the_best_constants_of_outputs_of_several_tensors() -> None:
    """Mean and standard deviation of a normal; of two tasks on one head, each its own."""
    data = problem()
    found = constants(data)
    y = data.train.targets["pose"]
    assert float(found["pose"]["mean"]) == pytest.approx(float(y.mean()), abs=1e-3)
    scale = float(found["pose"]["log_scale"].exp())
    assert scale == pytest.approx(float(y.std(correction=0)), rel=1e-3)
    torch.testing.assert_close(
        found["area"], data.train.targets["area"].mean(0), rtol=1e-3, atol=1e-3
    )
    steps = data.train.targets["edge"].diff(dim=1).mean(0)
    torch.testing.assert_close(found["edge"].diff().to(steps), steps, rtol=1e-3, atol=1e-3)
    assert set(found["overlap"]) == {"mask", "box"}


# Mistakes -------------------------------------------------------------------------------------


def test_a_network_without_a_head_that_is_read_is_told() -> None:
    data = problem()
    network = MultiTaskNetwork(nn.Linear(3, 4), {"mask": nn.Linear(4, 3), "pose": Normal()})
    optimizers = Optimizers(network.blocks(), partial(torch.optim.SGD, lr=RATE))
    with pytest.raises(ValueError, match=r"'overlap' reads the head 'box'.*mask, pose"):
        Training(data, network, optimizers)


@pytest.mark.parametrize("heads", ["", (), ("mask", "mask")])
def test_heads_are_one_or_several_different_names(heads: Any) -> None:
    with pytest.raises(ValueError, match="heads="):
        task(area, heads=heads)


def test_a_phase_that_names_no_head_is_refused() -> None:
    """A loop of one's own that hands the tasks' phase to `frozen` would train no head."""
    data = problem()
    network = data.network(tuple(TASKS))
    phase = Phase(("area",), trains=("own",))
    unknown = pytest.raises(ValueError, match=r"no head is called 'area'.*mask, box, pose")
    with unknown, frozen(network, phase):
        pass
