"""Which networks are trained for a request, and which of them as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from evenhand.balancer import Balancer
from evenhand.comparison.job import Job, Unit
from evenhand.comparison.references import REFERENCES
from evenhand.comparison.request import OPTIMIZERS, Settings, optimizer, require_few
from evenhand.data.problem import Problem
from evenhand.ensemble.training import drawback, obstacle
from evenhand.recipes import Composition
from evenhand.schedules import as_schedule
from evenhand.sharing.base import parameters
from evenhand.text import LINE, plain
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers
from evenhand.training.stopping import EarlyStopping, Plateau


def jobs(recipes: Sequence[str], problem: Problem, settings: Settings) -> list[Job]:
    """Every network to train, splits outermost, so that an early stop leaves whole splits.

    Raises:
        ValueError: a recipe is unknown, asked for twice, or cannot serve the problem's tasks.
    """
    if not recipes or len(set(recipes)) != len(recipes):
        told = plain(", ".join(recipes), LINE)
        raise ValueError(f"recipes={told}: must be one or more different names")
    labels = [
        (name, label)
        for name in recipes
        for label in settings.recipe(name).compose(tuple(problem.tasks))
    ]
    require_few(len(settings.seeds), settings.splits, len(settings.rates), len(labels))
    return [
        Job(name, label, seed, rate, split)
        for split in range(settings.splits)
        for seed in settings.seeds
        for rate in settings.rates
        for name, label in labels
    ]


def units(todo: Sequence[Job], settings: Settings) -> list[Unit]:
    """The jobs, in order, those of a recipe as one where that is asked for or pays.

    The choice depends on `todo` and `settings` alone: on no timing, and not on what is finished.

    Raises:
        ValueError: stacks are asked for, and a recipe's runs cannot be one.
    """
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in todo:
        groups[job.group].append(job)
    reasons: dict[tuple[str, int], str] = {}  # of one split's runs, the same for all splits
    for group in groups.values():
        key = group[0].network, len(group)
        if key not in reasons:
            reasons[key] = _why_single(group, settings)
    found: list[Unit] = []
    for job in todo:
        group = groups[job.group]
        if why := reasons[job.network, len(group)]:
            found.append(Unit((job,), why))
        elif job is group[0]:
            found.append(Unit(tuple(group)))
    return found


def _why_single(group: Sequence[Job], settings: Settings) -> str:
    """Why the runs of a group are trained one by one, or "" if they are one."""
    reference = REFERENCES.get(group[0].recipe)
    if reference is not None:
        return "a reference"
    if settings.stack == "never":
        return "not asked for"
    problem = settings.problem(group[0].split)
    two = [training(job, problem, settings) for job in group[:2]]
    if settings.stack == "auto" and (why := drawback(two[0], len(group))):
        return why
    why = obstacle(two)
    if why and settings.stack == "always":
        raise ValueError(f"stack=always: the runs of {group[0].network} cannot be one: {why}")
    return why


def composed(job: Job, problem: Problem, settings: Settings) -> Composition:
    """What `job` trains, made afresh.

    Raises:
        ValueError: it is a reference that is computed.
    """
    reference = REFERENCES.get(job.recipe)
    if reference is None:
        return settings.recipe(job.recipe).compose(tuple(problem.tasks))[job.label]
    if reference.composed is None:
        raise ValueError(f"{job.recipe} is computed, not trained")
    return reference.composed(job, problem)


def training(
    job: Job, problem: Problem, settings: Settings, parts: Composition | None = None
) -> Training:
    """The training that `job` stands for; with other `parts` than its recipe's, if given."""
    parts = parts or composed(job, problem, settings)
    torch.manual_seed(job.run_seed)
    network = parts.network.network(problem, parts.tasks)
    balancer = Balancer(
        parts.weighting, parts.aggregator, tasks=parts.tasks, jacobian=settings.jacobian
    )
    optimizers = Optimizers(
        network.blocks(),
        partial(optimizer(settings.optimizer), lr=job.rate),
        partial(optimizer(settings.optimizer), lr=job.rate * parts.own_rate),
        weights=partial(OPTIMIZERS["adam"], lr=settings.weights_rate),
        learned=balancer.parameters(),
        groups=len(as_schedule(parts.schedule).groups(len(parts.tasks)))
        if parts.own_moments
        else 1,
    )
    return Training(
        problem,
        network,
        optimizers,
        balancer,
        parts.schedule,
        tasks=parts.tasks,
        epochs=settings.epochs or problem.epochs,
        seed=job.run_seed,
        stopping=EarlyStopping(settings.patience),
        plateau=Plateau(parts.plateau, factor=parts.factor) if parts.plateau else None,
        replacement=parts.replacement,
        observe_every=settings.observe_every,
        count_flops=True,
    )


@dataclass(frozen=True)
class Size:
    """How large a recipe's networks are.

    Attributes:
        networks: how many are trained for each split, seed and rate.
        parameters: of the network for all tasks, or of the networks that complete each other.
        state_bytes: what the optimizers of one network will keep, the most of any.
        training_bytes: parameters, gradients and that state of one network, the most of any. What
            a forward pass leaves for the backward one, and what a method keeps, is not counted.
    """

    networks: int
    parameters: int
    state_bytes: int
    training_bytes: int


def sizes(recipes: Sequence[str], problem: Problem, settings: Settings) -> dict[str, Size]:
    """The size of each recipe's networks, known before anything is trained.

    Raises:
        ValueError: a recipe is unknown, or cannot serve the problem's tasks.
    """
    return {name: _size(name, problem, settings) for name in recipes}


def _size(name: str, problem: Problem, settings: Settings) -> Size:
    labels = settings.recipe(name).compose(tuple(problem.tasks))
    counts: dict[tuple[str, ...], int] = {}  # networks of the same tasks are alternatives
    state = training_bytes = 0
    with torch.random.fork_rng(devices=[]):
        for label in labels:
            run = training(Job(name, label, 0, 1e-3), problem, settings)
            kept = sum(run.optimizers.planned_state_bytes().values())
            held = 2 * sum(p.nbytes for p in run.network.parameters())
            counts[run.tasks] = max(counts.get(run.tasks, 0), parameters(run.network))
            state, training_bytes = max(state, kept), max(training_bytes, held + kept)
    return Size(len(labels), sum(counts.values()), state, training_bytes)
