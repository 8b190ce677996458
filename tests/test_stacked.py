"""Runs that are trained as one are the single runs: their records, their ends, their results."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import evenhand as eh
from evenhand import sources
from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.compare import compare, finished
from evenhand.comparison.folder import MANIFEST, RESULT, STACKED
from evenhand.comparison.job import Job, Result
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings, forget, load_problem
from evenhand.data import Problem, Source, Split, Task
from evenhand.ensemble.network import Stack, Stacked
from evenhand.ensemble.optimizers import StackedAdam, StackedSGD, stacked
from evenhand.ensemble.training import StackedTraining, drawback, obstacle
from evenhand.network import MultiTaskNetwork
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers, Scheduled
from evenhand.training.records import Record, RecordFile
from evenhand.training.stopping import Plateau
from samplers import same

SETTINGS = Settings("points", seeds=(0, 1, 2), rates=(0.003, 0.01), epochs=3, observe_every=2)


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    """Learned weights too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Bias:
    """Of outputs whose shape is that of the targets, or of logits of three classes."""

    def __init__(self) -> None:
        self.sum, self.seen = 0.0, 0

    def update(self, preds, target):
        self.sum += float(preds.mean(-1).sum() if preds.ndim > 1 else preds.sum())
        self.seen += len(target)

    def compute(self):
        return torch.tensor(self.sum / self.seen)


HEADS: Mapping[str, Callable[[], nn.Module]] = {
    "side": lambda: nn.Linear(5, 3),
    "height": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)),
    "reach": lambda: nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)),  # which needs vmap
}


def _network(tasks: Sequence[str]) -> MultiTaskNetwork:
    trunk = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU())
    return MultiTaskNetwork(trunk, {task: HEADS[task]() for task in tasks}).double()


def _split(samples: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    targets = {
        "side": (x[:, 0] > 0).long() + (x[:, 1] > 0).long(),
        "height": x[:, :1] - x[:, 1:2] * x[:, 2:],
        "reach": (x.square().sum(-1) > 2).double(),
    }
    return Split(x, targets)


def _square(output, target):
    return 9 * functional.mse_loss(output, target)


POINTS = Problem(
    name="points",
    summary="points in space",
    citation="made for the test",
    tasks={
        "side": Task(functional.cross_entropy, Bias, "bias", False),
        "height": Task(_square, Bias, "bias", False),
        "reach": Task(functional.binary_cross_entropy_with_logits, Bias, "bias", False),
    },
    network=_network,
    train=_split(40, 0),  # the last batch of an epoch is a small one
    validation=_split(20, 1),
    test=_split(20, 2),
    batch_size=16,
    epochs=3,
)


def _jobs(recipe: str, settings: Settings = SETTINGS) -> list[Job]:
    label = next(iter(eh.recipes.recipe(recipe).compose(tuple(POINTS.tasks))))
    return [Job(recipe, label, seed, rate) for seed in settings.seeds for rate in settings.rates]


def _members(recipe: str, settings: Settings = SETTINGS, problem: Problem = POINTS):
    return [training(job, problem, settings) for job in _jobs(recipe, settings)]


def _alone(member: Training) -> list[Record | str]:
    """What a single run gives, and how it ends."""
    events: list[Record | str] = []
    try:
        events.extend(member.run())
    except NonFiniteError as error:
        return [*events, f"diverged: {str(error).partition(';')[0]}"]
    return [*events, "finished"]


def _together(stack: StackedTraining, *args: Any, **kwargs: Any) -> list[list[Record | str]]:
    events: list[list[Record | str]] = [[] for _ in stack.members]
    for k, event in stack.run(*args, **kwargs):
        events[k].append(event)
    return events


def _comparable(event: Record | str) -> dict[str, Any]:
    """All but the time."""
    values = {"end": event} if isinstance(event, str) else asdict(replace(event, seconds=0))
    return {
        f"{name} {key}": value
        for name, entry in values.items()
        for key, value in (entry if isinstance(entry, dict) else {"": entry}).items()
    }


def _assert_equal(one: Sequence[Record | str], other: Sequence[Record | str], to: float) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        found, expected = _comparable(left), _comparable(right)
        assert list(found) == list(expected)
        numbers = {key for key, value in expected.items() if isinstance(value, float)}
        assert {k: found[k] for k in numbers} == pytest.approx(
            {k: expected[k] for k in numbers}, rel=to, abs=1e-3 * to, nan_ok=True
        )
        assert all(found[key] == expected[key] for key in expected.keys() - numbers)


# Equal to single runs -------------------------------------------------------------------------

RECIPES = (
    "single-task", "sg", "mgda", "mgda-ub", "mgda-online", "central", "central+tension",
    "uncertainty", "gradnorm", "rlw", "pcgrad", "graddrop", "famo", "dwa", "db-mtl", "modo",
    "sat-sg", "ate-sg", "ate-sg-replacement", "ate-sg+tension", "ius", "io",
    "soft(weight=0.03)", "soft-trace(weight=0.03)", "cross-stitch",
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_records_are_those_of_single_runs(recipe) -> None:
    optimizer = "adam" if recipe in ("mgda", "uncertainty", "io") else "sgd"
    settings = replace(SETTINGS, optimizer=optimizer)
    together = _together(StackedTraining(_members(recipe, settings)))
    for member, events in zip(_members(recipe, settings), together, strict=True):
        _assert_equal(events, _alone(member), to=1e-10 if recipe != "io" else 1e-9)


def test_in_single_precision_a_first_epoch_agrees_to_its_rounding() -> None:
    def single(split: Split) -> Split:
        targets = {t: y.float() if y.is_floating_point() else y for t, y in split.targets.items()}
        return Split(split.inputs.float(), targets)

    problem = replace(
        POINTS,
        network=lambda tasks: _network(tasks).float(),
        train=single(POINTS.train),
        validation=single(POINTS.validation),
    )
    settings = replace(SETTINGS, epochs=1)
    together = _together(StackedTraining(_members("mgda", settings, problem)))
    for member, events in zip(_members("mgda", settings, problem), together, strict=True):
        _assert_equal(events, _alone(member), to=1e-3)


@pytest.mark.filterwarnings("ignore:the gradient of .* is exactly zero")
def test_members_end_each_in_its_own_time() -> None:
    settings = replace(SETTINGS, rates=(1e-3, 0.03, 0.1, 1e60), epochs=12, patience=2)
    members = _members("mgda", settings)
    stack = StackedTraining(members)
    together = _together(stack)
    singles = _members("mgda", settings)
    alone = [_alone(member) for member in singles]
    for events, expected in zip(together, alone, strict=True):
        assert events[-1] == expected[-1]
        if expected[-1] == "finished":
            _assert_equal(events, expected, to=1e-9)
    assert len({len(events) for events in alone}) > 2
    ends = [events[-1] for events in alone]
    assert "finished" in ends
    assert any(str(end).startswith("diverged: the ") for end in ends)
    for member, single, end in zip(members, singles, ends, strict=True):
        if end == "finished":
            for name, value in member.network.state_dict().items():
                expected = single.network.state_dict()[name]
                torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_if_all_diverge_all_are_told() -> None:
    settings = replace(SETTINGS, rates=(1e80, 1e90), epochs=5)
    together = _together(StackedTraining(_members("sg", settings)))
    alone = [_alone(member) for member in _members("sg", settings)]
    assert [events[-1] for events in together] == [events[-1] for events in alone]
    assert all(str(events[-1]).startswith("diverged") for events in alone)


def test_a_step_of_several_phases_survives_a_member_that_fails() -> None:
    settings = replace(SETTINGS, rates=(0.003, 1e40), epochs=3)
    together = _together(StackedTraining(_members("sat-sg", settings)))
    for member, events in zip(_members("sat-sg", settings), together, strict=True):
        expected = _alone(member)
        assert events[-1] == expected[-1]
        if expected[-1] == "finished":
            _assert_equal(events, expected, to=1e-10)


# Bit for bit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["central+tension", "gradnorm", "famo", "io"])
def test_a_stack_that_was_killed_resumes_bit_for_bit(recipe, tmp_path) -> None:
    settings = replace(SETTINGS, rates=(1e-3, 0.3, 1e13), epochs=9, patience=2, optimizer="adam")
    files = {k: RecordFile(tmp_path / f"{k}.jsonl") for k in range(9)}
    saved = tmp_path / "stack"
    killed = StackedTraining(_members(recipe, settings))
    for k, event in killed.run(saved, files, checkpoint_every=2):
        if isinstance(event, Record) and event.epoch == 5 and k == killed.alive[0]:
            break
    assert saved.exists()
    resumed, whole = (StackedTraining(_members(recipe, settings)) for _ in range(2))
    found = _together(resumed, saved, files, checkpoint_every=2)
    expected = _together(whole)
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert list(map(_comparable, one)) == list(map(_comparable, other))
        assert list(files[k]) == [event for event in one if isinstance(event, Record)]
    assert resumed.ended == whole.ended
    for k, end in whole.ended.items():
        weights = [dict(stack.members[k].network.state_dict()) for stack in (resumed, whole)]
        assert end != "finished" or same(*weights)


# What cannot be stacked -----------------------------------------------------------------------


def _with(problem: Problem = POINTS, **changes: Any) -> list[Training]:
    two = [training(job, problem, SETTINGS) for job in _jobs("sg")[:2]]
    return [replace(member, **changes) for member in two]


def _built(trunk: Callable[[], nn.Module], **heads: nn.Module) -> Problem:
    def network(tasks: Sequence[str]) -> MultiTaskNetwork:
        first, *others = tasks
        made = {first: HEADS[first](), **{task: HEADS[task]() for task in others}}
        return MultiTaskNetwork(trunk(), made).double()

    return replace(POINTS, network=network)


def _unlabelled() -> Problem:
    targets = {**POINTS.train.targets, "side": POINTS.train.targets["side"].clone()}
    targets["side"][3] = -1
    tasks = {**POINTS.tasks, "side": replace(POINTS.tasks["side"], missing=-1)}
    return replace(POINTS, tasks=tasks, train=Split(POINTS.train.inputs, targets))


def _loaded() -> Problem:
    x, y = POINTS.train.inputs, POINTS.train.targets["height"]
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    return replace(POINTS, train=loader)


def _tied(tasks: Sequence[str]) -> MultiTaskNetwork:
    middle = nn.Linear(5, 5)
    trunk = nn.Sequential(nn.Linear(3, 5), middle)
    return MultiTaskNetwork(
        trunk, {task: nn.Sequential(middle, HEADS[task]()) for task in tasks}
    ).double()


class Noisy(nn.Module):
    """Draws at random, in a way that nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = random.Random(0)

    def forward(self, x):
        return x + self.chance.random()


def _stepped(**settings: Any) -> list[Training]:
    members = _with()
    for member in members:
        factory = partial(settings.pop("kind", torch.optim.SGD), lr=0.1, **settings)
        member.optimizers = Optimizers(member.network.blocks(), factory)
    return members


def _scheduled() -> list[Training]:
    members = _with()
    halving = Scheduled(
        partial(torch.optim.SGD, lr=0.1), partial(torch.optim.lr_scheduler.StepLR, step_size=3)
    )
    for member in members:
        member.optimizers = Optimizers(member.network.blocks(), halving)
    return members


def _begun() -> list[Training]:
    members = _with()
    next(members[1].run())
    return members


def _through(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 5), *layers)


OBSTACLES: Mapping[str, tuple[Callable[[], list[Training]], str]] = {
    "no run": (list, "at least one run"),
    "batch norm": (lambda: _with(_built(_through(nn.BatchNorm1d(5)))), "buffers"),
    "dropout": (lambda: _with(_built(_through(nn.Dropout(0.5)))), "vmap cannot evaluate"),
    "noise": (lambda: _with(_built(_through(Noisy()))), "another in a stack"),
    "ties": (lambda: _with(replace(POINTS, network=_tied)), "share parameters"),
    "penalty": (
        lambda: _with(replace(POINTS, penalty=lambda network: next(network.parameters()).sum())),
        "penalty",
    ),
    "labels": (lambda: _with(_unlabelled()), "labels are missing"),
    "loader": (lambda: _with(_loaded()), "not held in memory"),
    "groups": (lambda: _members("ius-groups"), "depend on the seed"),
    "nested": (
        lambda: _with(schedule=eh.nested(eh.alternate_epochs(1, 1), eh.in_groups(2))),
        "depend on the seed",
    ),
    "adaptive": (lambda: _members("ate-adaptive"), "how training goes"),
    "plateau": (lambda: _with(plateau=Plateau(patience=1)), "plateau"),
    "scheduled": (_scheduled, "follow a schedule"),
    "nesterov": (lambda: _stepped(momentum=0.9, nesterov=True), "StackedSGD has no nesterov"),
    "rmsprop": (lambda: _stepped(kind=torch.optim.RMSprop), "RMSprop has no stacked form"),
    "begun": (_begun, "begun already"),
    "recipes": (lambda: _with() + _members("mgda"), "differ in more"),
}


@pytest.mark.parametrize(
    "other", [partial(torch.optim.SGD, momentum=0.5), torch.optim.Adam], ids=["momentum", "kind"]
)
def test_optimizers_that_differ_in_more_than_their_rates_are_no_stack(other) -> None:
    members = _with()
    factories = [partial(torch.optim.SGD, momentum=0.9), *[other] * (len(members) - 1)]
    for member, factory in zip(members, factories, strict=True):
        member.optimizers = Optimizers(member.network.blocks(), partial(factory, lr=0.1))
    assert "the members' optimizers differ in more than their rates" in obstacle(members)


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_stacked_says_why(name) -> None:
    make, why = OBSTACLES[name]
    assert why in obstacle(make())
    with pytest.raises(ValueError, match="cannot be trained as one"):
        StackedTraining(make())


def test_what_can_be_stacked_has_no_obstacle_and_is_left_as_it_was() -> None:
    members = _members("mgda")
    before = [dict(member.network.state_dict()) for member in members]
    stream = torch.get_rng_state()
    assert not obstacle(members)
    assert not drawback(members[0], len(members))
    assert same([dict(member.network.state_dict()) for member in members], before)
    assert torch.equal(torch.get_rng_state(), stream)


def test_large_networks_and_few_runs_do_not_pay() -> None:
    torch.set_default_dtype(torch.float32)
    settings = Settings("quadrants")
    large = training(Job("sg", "", 0, 0.1), load_problem("quadrants"), settings)
    assert "million operations" in drawback(large, 9)
    assert "here are 2" in drawback(_members("sg")[0], 2)
    digits = training(Job("sg", "", 0, 0.1), load_problem("digits"), Settings("digits"))
    assert not drawback(digits, 9)


# The parts ------------------------------------------------------------------------------------


class Plain(nn.Sequential):
    """Not quite an `nn.Sequential`: goes through vmap."""


@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_are_known_agree_with_vmap(bias) -> None:
    def layers() -> list[nn.Module]:
        shape = (nn.Linear(4, 3, bias=bias), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Tanh()))
        return [*shape, nn.Linear(6, 2, bias=bias)]

    members = [layers() for _ in range(3)]
    x = torch.randn(3, 5, 2, 4, dtype=torch.float64)
    fast = Stacked([nn.Sequential(*each).double() for each in members])
    twin = Stacked([Plain(*each).double() for each in members])
    torch.testing.assert_close(fast(x), twin(x), rtol=1e-13, atol=1e-13)
    for k, each in enumerate(members):
        torch.testing.assert_close(fast(x)[k], nn.Sequential(*each)(x[k]), rtol=1e-13, atol=1e-13)


def test_a_hook_is_not_passed_over() -> None:
    layer = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    x = torch.randn(1, 5, 4)
    torch.testing.assert_close(Stacked([nn.Sequential(layer)])(x)[0], layer(x[0]))


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (partial(torch.optim.SGD), StackedSGD),
        (partial(torch.optim.SGD, momentum=0.9), StackedSGD),
        (partial(torch.optim.Adam, betas=(0.8, 0.99), eps=1e-6), StackedAdam),
    ],
)
def test_stacked_optimizers_are_torchs_member_by_member(made, kind) -> None:
    rates = (0.1, 0.03, 1.0)
    start = torch.randn(3, 4, 2, dtype=torch.float64)
    together = start.clone().requires_grad_()
    factory = stacked([partial(made, lr=rate) for rate in rates])
    stack = factory([{"params": [together]}])
    assert isinstance(stack, kind)
    apart = [start[k].clone().requires_grad_() for k in range(3)]
    singles = [made([p], lr=rate) for p, rate in zip(apart, rates, strict=True)]
    for step in range(5):
        gradient = torch.randn(3, 4, 2, dtype=torch.float64)
        together.grad = None if step == 2 else gradient
        stack.step()
        for k, (parameter, single) in enumerate(zip(apart, singles, strict=True)):
            parameter.grad = None if step == 2 else gradient[k].clone()
            single.step()
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-13, atol=1e-13)
    with pytest.raises(ValueError, match="no closure"):
        stack.step(lambda: 0.0)


def test_rates_that_differ_in_kind_are_refused() -> None:
    parameters = [{"params": [torch.zeros(2, 3, requires_grad=True)]}]
    different = [partial(torch.optim.SGD, lr=1.0, momentum=m) for m in (0.9, 0.5)]
    with pytest.raises(ValueError, match="more than their rates"):
        stacked(different)(parameters)
    with pytest.raises(ValueError, match="must be positive"):
        StackedSGD(parameters, [0.1, 0.0])


def test_a_stack_knows_its_last_shared_layer() -> None:
    members = [_network(("side", "reach")) for _ in range(2)]
    stack = Stack(members)
    weight, bias = stack.blocks().last_layer
    assert weight.shape == (2, 5, 6)
    assert torch.equal(bias[1], members[1].trunk[2].bias)


# compare --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _points_source() -> Iterator[None]:
    module = ModuleType("points_problem")
    module.load = lambda seed: POINTS  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "points_problem", module)
        source = Source("points", "points_problem", "points in space", "made for the test")
        patch.setattr(sources, "SOURCES", (*sources.SOURCES, source))
        yield
    forget()


NAMES = ("single-task", "sg", "mgda", "ius-groups")
TIMELESS = {"seconds": 0, "processor": 0}


def _compared(
    out: Path, names: Sequence[str] = NAMES, **changes: Any
) -> list[tuple[Job, Record | Result]]:
    heard: list[tuple[Job, Record | Result]] = []
    settings = replace(SETTINGS, **{"rates": (0.01, 1e80), **changes})
    compare(settings, names, out, listener=lambda *event: heard.append(event), resume=True)
    return heard


@pytest.mark.filterwarnings("ignore:the gradient of .* is exactly zero")
def test_compare_sees_no_difference(tmp_path) -> None:
    heard = {mode: _compared(tmp_path / mode, stack=mode) for mode in ("auto", "never")}
    one, other = (finished(tmp_path / mode) for mode in heard)
    for left, right in zip(one.results, other.results, strict=True):
        assert left.job == right.job
        assert (left.status, left.epoch, left.tasks) == (right.status, right.epoch, right.tasks)
        assert left.monitored == pytest.approx(right.monitored, rel=1e-10)
        assert left.validation == pytest.approx(right.validation, rel=1e-8)
        assert left.test == pytest.approx(right.test, rel=1e-8)
        _assert_equal(one.records(left), other.records(right), to=1e-10)
    assert any(r.status.startswith("diverged") for r in one.results)
    assert all(row.relative_time > 0 for row in one.rows)
    for job in {job for job, _ in heard["auto"]}:
        kinds = [[type(event) for j, event in heard[m] if j == job] for m in heard]
        assert kinds[0] == kinds[1]
    manifest = json.loads((tmp_path / "auto" / MANIFEST).read_text())
    assert manifest["trained"]["mgda"] == "6 runs as one"
    assert "depend on the seed" in manifest["trained"]["ius-groups"]
    assert not list((tmp_path / "auto").rglob(STACKED))


def test_a_result_that_is_lost_is_made_again_and_the_others_stand(tmp_path) -> None:
    _compared(tmp_path)
    files = sorted((tmp_path / "mgda").rglob("*.json*"))
    lost = tmp_path / "mgda" / "split0" / "seed1-lr0.01"
    before = json.loads((lost / RESULT).read_text())
    kept = {file: file.stat().st_mtime_ns for file in files if lost not in file.parents}
    shutil.rmtree(lost)
    heard = _compared(tmp_path)
    after = json.loads((lost / RESULT).read_text())
    assert {**before, **TIMELESS} == {**after, **TIMELESS}
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    trained = {job.folder for job, event in heard if isinstance(event, Record)}
    assert trained == {"mgda/split0/seed1-lr0.01"}


@pytest.mark.parametrize("taken", [None, "mgda/split0/seed0-lr0.3"])
def test_a_comparison_that_was_stopped_goes_on(taken, tmp_path) -> None:
    """Also where somebody has taken away the result of a run that had finished before."""
    settings = {"rates": (1e-3, 0.3), "patience": 3, "epochs": 13}
    _compared(tmp_path / "whole", ["mgda"], **settings)

    class StopHere(Exception):
        pass

    def stop(job: Job, event: Record | Result) -> None:
        if isinstance(event, Record) and event.epoch == 12:
            raise StopHere

    with pytest.raises(StopHere):
        compare(replace(SETTINGS, **settings), ["mgda"], tmp_path / "stopped", listener=stop)
    assert (tmp_path / "stopped" / "mgda/split0/seed0-lr0.3" / RESULT).exists()
    assert (tmp_path / "stopped" / "mgda" / "split0" / STACKED).exists()
    if taken is not None:
        shutil.rmtree(tmp_path / "stopped" / taken)
    _compared(tmp_path / "stopped", ["mgda"], **settings)
    one, other = (finished(tmp_path / name) for name in ("whole", "stopped"))
    for left, right in zip(one.results, other.results, strict=True):
        assert replace(left, **TIMELESS) == replace(right, **TIMELESS)
        pairs = zip(one.records(left), other.records(right), strict=True)
        assert all(replace(a, seconds=0) == replace(b, seconds=0) for a, b in pairs)


def test_stacks_can_be_demanded_and_forbidden(tmp_path) -> None:
    with pytest.raises(ValueError, match="stack=always: the runs of ius-groups cannot be one: its"):
        _compared(tmp_path / "always", stack="always")
    assert not (tmp_path / "always").exists()
    with pytest.raises(ValueError, match="stack='maybe': must be one of auto, never, always"):
        replace(SETTINGS, stack="maybe")
    two = replace(SETTINGS, seeds=(0,), stack="always")
    compare(two, ["sg"], tmp_path / "two")
    assert json.loads((tmp_path / "two" / MANIFEST).read_text())["trained"]["sg"] == "2 runs as one"


def test_a_comparison_from_before_there_were_stacks_has_none(tmp_path) -> None:
    _compared(tmp_path, ["sg"], stack="never")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["settings"]["stack"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    _compared(tmp_path, ["sg"], stack="never")
    with pytest.raises(ValueError, match="stack was never, now auto"):
        _compared(tmp_path, ["sg"], stack="auto")
