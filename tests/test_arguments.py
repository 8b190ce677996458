"""Wrong values of every public argument, made from the signatures: each answer names it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import evenhand as eh
from evenhand import data
from evenhand.comparison.compare import compare
from evenhand.comparison.executors.ray import Ray
from evenhand.comparison.executors.slurm import Slurm
from evenhand.comparison.request import Settings
from evenhand.recipes import Composition, Recipe, grid, recipe
from evenhand.schedules import Stateless
from evenhand.sharing.base import HardSharing
from evenhand.sharing.stitched import Stitched
from evenhand.sharing.tied import Tied
from evenhand.sharing.ties import SquaredDistance, TraceNorm
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers, Scheduled, diminishing
from evenhand.training.stopping import EarlyStopping, Plateau, loss_of, metric_of
from samplers import mixed


def columns() -> dict[str, eh.MultiTaskNetwork]:
    return {t: eh.MultiTaskNetwork(nn.Linear(2, 2), {t: nn.Linear(2, 1)}) for t in ("a", "b")}


NEEDED: dict[str, dict[str, Any]] = {
    "MultiTaskNetwork": {"trunk": nn.Linear(2, 2), "heads": {"a": nn.Linear(2, 1)}},
    "TiedNetwork": {"columns": columns(), "tie": SquaredDistance()},
    "CrossStitchNetwork": {"columns": columns()},
    "Phase": {"tasks": ("a",)},
    "alternate_epochs": {"shared": 1, "own": 1},
    "in_groups": {"size": 2},
    "nested": {"outer": eh.jointly(), "inner": eh.jointly()},
    "PerBlock": {"make": eh.MGDA, "blocks": {"a": [torch.zeros(1, requires_grad=True)]}},
    "CRMOGM": {"base": eh.MGDA()},
    "Every": {"base": eh.MGDA(), "steps": 2},
    "Normalized": {"base": eh.MGDA()},
    "Tension": {"base": eh.MGDA()},
    "compare": {"asked": "quadrants"},
    "diagnose": {
        "model": nn.Linear(1, 1),
        "losses": lambda model, batch: {"a": model(batch).mean()},
        "batches": [],
    },
}
"""What a call must have besides the argument that is wrong."""
MADE_BY_US = {
    *("Balance", "Blocks", "NonFiniteError", "Outcome", "Outputs", "Solved", "TaskGradients"),
    "Diagnosis",
    *("Traits", "Running", "frozen", "Aggregator", "Method", "StatefulAggregator"),
    *("StatefulWeighting", "Weighting", "Wrapper", "Learned"),
}
"""What users get, or derive from; and a context manager, whose body is what is wrong."""


def _wrong(annotation: str) -> list[Any]:
    """Values that no reading of an annotation allows."""
    first = annotation.partition("[")[0]
    if "int" in annotation and first == "int":
        return ["x", 2.5, math.nan, True, [1]]
    if first == "float":
        return ["x", math.nan, [1], object()]
    if first == "bool":
        return ["x", 2, None]
    if first == "str" or "Literal" in annotation:
        return [3.5, object()]
    return [object()] if "float" in annotation else [3.5, object()]


def _arguments() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    public = {name: getattr(eh, name) for name in eh.__all__ if name not in MADE_BY_US}
    for name, made in public.items():
        if not callable(made) or inspect.isabstract(made):
            continue
        for key, parameter in inspect.signature(made).parameters.items():
            positional = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if positional:
                yield name, key, made


@pytest.mark.parametrize(("name", "key", "made"), list(_arguments()))
def test_a_wrong_argument_is_named(name, key, made) -> None:
    annotation = str(inspect.signature(made).parameters[key].annotation)
    for value in _wrong(annotation):
        with pytest.raises((TypeError, ValueError), match=key):
            made(**{**NEEDED.get(name, {}), key: value})


# The same of what the library has in its rooms -------------------------------------------------

SGD = partial(torch.optim.SGD, lr=0.1)


def _rooms() -> dict[Callable[..., Any], dict[str, Any]]:
    """What is made there, and what a call must have besides the argument that is wrong."""
    problem = mixed()
    network = problem.network(tuple(problem.tasks))
    parts = {name: getattr(problem, name) for name in ("train", "validation", "test")}
    task = next(iter(problem.tasks.values()))
    words = {"name": "x", "summary": "", "citation": ""}
    return {
        data.Problem: {**words, **parts, "tasks": problem.tasks, "network": problem.network},
        data.Task: {
            **{"loss": task.loss, "metric": task.metric, "metric_name": "x"},
            "higher_is_better": False,
        },
        data.Split: {"inputs": torch.zeros(4, 2), "targets": {"a": torch.zeros(4, 1)}},
        data.Stream: {"source": problem.train, "batch_size": 2, "seed": 0},
        data.Labelling: {},
        data.problem: {"name": "quadrants"},
        Recipe: {**words, "compose": dict},
        Recipe.of: {"name": "x"},
        Composition: {"tasks": ("a",)},
        recipe: {"name": "sg"},
        grid: {},
        Settings: {"source": "quadrants"},
        Settings.suggested: {"source": "quadrants"},
        compare: {"asked": "quadrants", "recipes": ("sg",), "out": Path("/proc/nowhere")},
        Optimizers: {"blocks": network.blocks(), "shared": SGD},
        Scheduled: {"optimizer": SGD, "rate": partial(torch.optim.lr_scheduler.StepLR)},
        diminishing: {},
        EarlyStopping: {},
        Plateau: {"patience": 3},
        loss_of: {"task": "a"},
        metric_of: {"task": "a"},
        Stateless: {"phases": lambda clock, tasks: (), "description": "x"},
        HardSharing: {},
        Tied: {},
        Stitched: {},
        SquaredDistance: {},
        TraceNorm: {},
        Ray: {},
        Slurm: {},
    }


ANYTHING = {
    *(("Composition", part) for part in ("weighting", "aggregator", "schedule", "network")),
    ("Problem", "pool"),
}
"""Classes that are known to type checkers alone, lest torch be loaded or files import in a ring."""


def _arguments_of_rooms() -> Iterator[tuple[Callable[..., Any], str, dict[str, Any]]]:
    for made, needed in _rooms().items():
        for key, parameter in inspect.signature(made).parameters.items():
            one = parameter.kind is not parameter.VAR_KEYWORD
            if one and (getattr(made, "__name__", ""), key) not in ANYTHING:
                yield made, key, needed


@pytest.mark.parametrize(
    ("made", "key", "needed"),
    [pytest.param(*one, id=f"{one[0].__qualname__}-{one[1]}") for one in _arguments_of_rooms()],
)
def test_a_wrong_argument_in_a_room_is_named(made, key, needed) -> None:
    annotation = str(inspect.signature(made).parameters[key].annotation)
    for value in _wrong(annotation):
        with pytest.raises((TypeError, ValueError), match=key):
            made(**{**needed, key: value})


@pytest.mark.parametrize(
    ("made", "changes", "told"),
    [
        (data.Problem, {"batch_size": 0}, "batch_size=0: must be at least 1"),
        (data.Problem, {"epochs": 0}, "epochs=0: must be at least 1"),
        (data.Problem, {"tasks": {}}, "tasks= names none"),
        (data.Split, {"inputs": torch.zeros(())}, "inputs= is a single number"),
        (data.Split, {"targets": {"a": torch.zeros(())}}, "targets of 'a' are a single number"),
        (HardSharing, {"width": 0}, "width=0: must be above 0"),
        (Ray, {"cpus": -1}, "cpus=-1: must be 0 or more"),
        (Slurm, {"timeout_min": 0}, "timeout_min=0: must be at least 1 minute"),
    ],
)
def test_a_number_out_of_range_in_a_room_is_named(made, changes, told) -> None:
    with pytest.raises(ValueError, match=told):
        made(**{**_rooms()[made], **changes})


# Training that would silently do nothing --------------------------------------------------------


def _training(**changes: Any) -> Training:
    problem = mixed()
    tasks = tuple(problem.tasks)
    torch.manual_seed(0)
    network = changes.pop("network", None) or problem.network(tasks)
    balancer = changes.pop("balancer", None) or eh.Balancer(tasks=tasks)
    optimizers = changes.pop("optimizers", None) or Optimizers(
        network.blocks(), partial(torch.optim.SGD, lr=0.1), learned=balancer.parameters()
    )
    return Training(problem, network, optimizers, balancer, epochs=1, **changes)


def _sgd(network: eh.MultiTaskNetwork, **options: Any) -> Optimizers:
    return Optimizers(network.blocks(), partial(torch.optim.SGD, lr=0.1), **options)


def test_learned_weights_without_an_optimizer_are_refused() -> None:
    tasks = tuple(mixed().tasks)
    network = mixed().network(tasks)
    run = _training(
        network=network,
        optimizers=_sgd(network),
        balancer=eh.Balancer(eh.GradNorm(), tasks=tasks),
    )
    with pytest.raises(ValueError, match=r"learned weights of GradNorm: .*learned=balancer"):
        next(run.run())


def test_optimizers_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="of another network"):
        next(_training(optimizers=_sgd(mixed().network(tuple(mixed().tasks)))).run())


def test_a_parameter_without_an_optimizer_is_refused_unless_it_rests() -> None:
    network = mixed().network(tuple(mixed().tasks))
    optimizers = _sgd(network)
    network.trunk.register_parameter("extra", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match=r"no optimizer has trunk\.extra"):
        next(_training(network=network, optimizers=optimizers).run())
    network.trunk.extra.requires_grad_(False)
    next(_training(network=network, optimizers=optimizers).run())


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        (lambda tasks: eh.Phase(tasks, trains=("own",)), "trains the shared parameters"),
        (
            lambda tasks: eh.Phase(tasks, trains=("shared",)),
            "trains the own parameters of class, rare, bent: let",
        ),
        (lambda tasks: eh.Phase(tasks[:1]), "has a loss of rare, bent: name"),
    ],
)
def test_what_no_phase_trains_is_refused(phase, told) -> None:
    from evenhand.schedules import Stateless

    schedule = Stateless(lambda clock, tasks: (phase(tasks),), "made here")
    with pytest.raises(ValueError, match=told):
        next(_training(schedule=schedule).run())


def test_slots_and_counts_are_counts() -> None:
    network = mixed().network(tuple(mixed().tasks))
    for slots in (0, -1, 1.0, True):
        with pytest.raises((TypeError, ValueError), match="groups="):
            _sgd(network, groups=slots)
    for changes in ({"epochs": 2.5}, {"seed": -1}, {"observe_every": 0.5}, {"tasks": "left"}):
        (name,) = changes
        with pytest.raises((TypeError, ValueError), match=name):
            Training(**{**vars_of(_training()), **changes})
    with pytest.raises(ValueError, match=r"tasks='clas': no task .* did you mean 'class'"):
        Training(**{**vars_of(_training()), "tasks": ("clas",)})
    with pytest.raises(ValueError, match="checkpoint_every=0"):
        next(_training().run(checkpoint_every=0))
    for make in (EarlyStopping, Plateau):
        with pytest.raises(TypeError, match=r"patience=2\.5"):
            make(2.5)


def vars_of(training: Training) -> dict[str, Any]:
    names = ("problem", "network", "optimizers", "balancer")
    return {name: getattr(training, name) for name in names}


def test_a_trunk_is_a_module() -> None:
    with pytest.raises(TypeError, match="trunk="):
        eh.MultiTaskNetwork(lambda x: x, {"a": nn.Linear(1, 1)})


# What is told to a balancer's methods -----------------------------------------------------------

CALLS = (
    "backward",
    "loss",
    "accumulate",
    "gradients",
    "updated",
    "select",
    "bind",
    "attach",
    "catch",
)


def _calls() -> Iterator[tuple[str, str]]:
    for name in CALLS:
        for key in list(inspect.signature(getattr(eh.Balancer, name)).parameters)[1:]:
            yield name, key


def _losses() -> dict[str, torch.Tensor]:
    trunk = nn.Linear(2, 2)
    z = trunk(torch.ones(3, 2))
    return {"a": z.square().mean(), "b": z.mean()}


@pytest.mark.parametrize(("name", "key"), list(_calls()))
def test_a_wrong_argument_of_a_method_is_named(name, key) -> None:
    values = [object(), "x", torch.ones(2, 3) if key != "features" else 3.5]
    for value in values:
        balancer = eh.Balancer(aggregator=eh.MGDA(), tasks=("a", "b"))
        needed = {} if key == "losses" or name in ("select", "bind", "attach", "catch") else None
        needed = {"losses": _losses()} if needed is None else needed
        needed |= {"module": nn.Linear(1, 1)} if (name, key) == ("catch", "replay") else {}
        method = getattr(balancer, name)
        with pytest.raises((TypeError, ValueError), match=key):
            method(**{**needed, key: value})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"plus": torch.ones(3)}, r"plus= has shape \(3,\): take its sum or mean"),
        ({"scale": 0}, "scale=0: must be positive"),
        ({"scale": torch.tensor(0.0)}, "scale=0: must be positive"),
        ({"scale": math.inf}, "scale=inf: must be positive and finite"),
        ({"counts": {"a": 2.5, "b": 1}}, "counts= of 'a' is 2.5: .* whole number"),
        ({"counts": {"a": -1, "b": 1}}, "counts= of 'a' is -1"),
        ({"counts": {"a": 1, "B": 1}}, "counts='B': no task has this name; there is a, b"),
        ({"counts": {"a": 1, "b": True}}, "counts= of 'b' is True"),
        ({"own": {"c": []}, "shared": []}, "own='c': no task has this name"),
    ],
)
def test_what_a_balancer_is_told_of_a_step_is_looked_at(given, told) -> None:
    balancer = eh.Balancer(aggregator=eh.MGDA(), tasks=("a", "b"))
    with pytest.raises((TypeError, ValueError), match=told):
        balancer.backward(_losses(), **given)


@pytest.mark.parametrize(
    "asked",
    [
        lambda problem, tasks: problem.network(tuple(problem.tasks))(torch.ones(2, 2), tasks=tasks),
        lambda problem, tasks: problem.losses({}, {}, tasks),
        lambda problem, tasks: problem.label_counts(tasks),
        lambda problem, tasks: problem.check_labels(tasks),
        lambda problem, tasks: problem.check_finite(tasks),
    ],
)
def test_a_task_that_there_is_not_is_told_with_the_nearest(asked) -> None:
    with pytest.raises(ValueError, match=r"tasks='clas': no .* did you mean 'class'"):
        asked(mixed(), ["clas"])
    with pytest.raises(TypeError, match="tasks='class': must be several"):
        asked(mixed(), "class")
    with pytest.raises(ValueError, match="must be different names"):
        eh.Phase(("class", "class"))


def test_a_text_is_no_list_of_tasks() -> None:
    for make in (lambda: eh.Balancer(tasks="abc"), lambda: eh.Balancer().bind("abc")):
        with pytest.raises(TypeError, match="tasks='abc': must be several"):
            make()
    with pytest.raises(ValueError, match="losses='d': no task"):
        eh.Balancer(tasks=("a", "b")).updated({"a": torch.ones(()), "d": torch.ones(())})
