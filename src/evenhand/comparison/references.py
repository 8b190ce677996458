"""Reference rows: what a result means is seen beside what else the same data give.

A reference is no way of balancing, and is never declared the winner. Some are computed (the best
constant, a linear model, boosted trees); others are trained like a recipe, with the network or the
fixed weights changed. Which of them a comparison has is one word: none, cheap or all; the best
constant, the zero of the scale of skill, is there in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from evenhand.comparison.constant import constant_network, constants
from evenhand.comparison.job import Job
from evenhand.comparison.request import BASELINE, REFERENCE, ROWS, Settings
from evenhand.data.problem import Problem, Split
from evenhand.recipes import Composition, recipe, single_task
from evenhand.schedules import mixed_seed
from evenhand.sharing.base import HardSharing, size, width_for
from evenhand.text import NAME, plain
from evenhand.training.loop import evaluate
from evenhand.weighting import Fixed

CONSTANT, LINEAR, TREES, NARROW, WIDE, OWN_EPOCHS, TUNED = ROWS

LEAST = 5
"""The fewest configurations of tuned weights."""
SPAN = 10.0
"""Tuned weights lie between 1 / SPAN and SPAN times the constant's inverse loss."""


@dataclass(frozen=True)
class Asked:
    """What is asked of one split."""

    recipes: Sequence[str]
    problem: Problem
    settings: Settings
    split: int

    def each(self, name: str, labels: Sequence[str] = ("",)) -> list[Job]:
        """A job for each seed, rate and label."""
        return [
            Job(name, label, seed, rate, self.split)
            for seed in self.settings.seeds
            for rate in self.settings.rates
            for label in labels
        ]

    def once(self, name: str) -> list[Job]:
        """One job, which has no rate."""
        return [Job(name, "", self.settings.seeds[0], 0.0, self.split)]


@dataclass(frozen=True)
class Reference:
    """A reference row.

    Attributes:
        name: of its folder and in exports.
        title: in tables.
        summary: one line.
        levels: the words that ask for it.
        jobs: what is to be run in one split; nothing where it does not apply.
        composed: how one of its jobs is trained; None for what is computed.
    """

    name: str
    title: str
    summary: str
    levels: frozenset[str]
    jobs: Callable[[Asked], list[Job]]
    composed: Callable[[Job, Problem], Composition] | None = None


def reference_jobs(recipes: Sequence[str], problem: Problem, settings: Settings) -> list[Job]:
    """What the reference rows of all splits take, splits outermost."""
    wanted = [r for r in REFERENCES.values() if settings.references in r.levels]
    return [
        job
        for split in range(settings.splits)
        for reference in wanted
        for job in reference.jobs(Asked(recipes, problem, settings, split))
    ]


def reference_names(settings: Settings) -> tuple[str, ...]:
    """The references that a comparison may have."""
    return tuple(r.name for r in REFERENCES.values() if settings.references in r.levels)


def title(name: str) -> str:
    """What tables call a row: a reference's title, a recipe's name, and what sg is."""
    if name == BASELINE:
        return f"{BASELINE} (plain sum)"
    return REFERENCES[name].title if name in REFERENCES else plain(name, NAME)


# Which there are ------------------------------------------------------------------------------


def _flat(asked: Asked, name: str) -> list[Job]:
    flat = isinstance(asked.problem.train, Split) and asked.problem.train.inputs.dim() == 2
    return asked.once(name) if flat else []


def _narrow(asked: Asked) -> list[Job]:
    tasks = tuple(asked.problem.tasks)
    possible = asked.problem.scaled is not None and REFERENCE in asked.recipes and len(tasks) > 1
    return asked.each(NARROW, tasks) if possible else []


def _wide(asked: Asked) -> list[Job]:
    possible = asked.problem.scaled is not None and REFERENCE in asked.recipes
    return asked.each(WIDE) if possible and len(asked.problem.tasks) > 1 else []


def configurations(asked: Asked) -> int:
    """How many weights are tried: as many networks as all balancing recipes are given."""
    tasks = tuple(asked.problem.tasks)
    networks = sum(
        len(asked.settings.recipe(name).compose(tasks))
        for name in asked.recipes
        if name not in (REFERENCE, BASELINE)
    )
    return max(LEAST, networks * len(asked.settings.rates))


def _tuned(asked: Asked) -> list[Job]:
    found = []
    for number in range(configurations(asked)):
        generator = torch.Generator().manual_seed(mixed_seed(asked.split, number, *b"rate"))
        low, high = min(asked.settings.rates), max(asked.settings.rates)
        if low == high:
            low, high = low / 3, high * 3
        place = torch.rand((), generator=generator).item()
        rate = float(f"{low * (high / low) ** place:.3g}")
        label = f"weights{number}"
        found += [Job(TUNED, label, seed, rate, asked.split) for seed in asked.settings.seeds]
    return found


# How they are trained -------------------------------------------------------------------------


def _narrow_composed(job: Job, problem: Problem) -> Composition:
    tasks = tuple(problem.tasks)
    width = width_for(problem, (job.label,), size(problem, tasks) // len(tasks))
    return replace(single_task(tasks)[job.label], network=HardSharing(width))


def _wide_composed(job: Job, problem: Problem) -> Composition:
    tasks = tuple(problem.tasks)
    width = width_for(problem, tasks, size(problem, tasks) * len(tasks))
    return replace(recipe(BASELINE).compose(tasks)[""], network=HardSharing(width))


def _plainly_composed(job: Job, problem: Problem) -> Composition:
    return recipe(BASELINE).compose(tuple(problem.tasks))[""]


def _tuned_composed(job: Job, problem: Problem) -> Composition:
    tasks = tuple(problem.tasks)
    number = int(job.label.removeprefix("weights"))
    generator = torch.Generator().manual_seed(mixed_seed(job.split, number, *b"weights"))
    places = 2 * torch.rand(len(tasks), generator=generator, dtype=torch.float64) - 1
    apart = problem.with_own_heads()
    constant, _ = evaluate(constant_network(constants(problem)), apart, problem.validation, tasks)
    raw = {
        task: SPAN**place / max(abs(constant[task]), 1e-12)
        for task, place in zip(tasks, places.tolist(), strict=True)
    }
    total = math.fsum(raw.values())
    weights = {task: len(tasks) * weight / total for task, weight in raw.items()}
    return Composition(tasks, weighting=Fixed(weights))


CHEAP, ALL = frozenset({"cheap", "all"}), frozenset({"all"})
REFERENCES: Mapping[str, Reference] = {
    entry.name: entry
    for entry in (
        Reference(
            CONSTANT,
            "constant",
            "the best constant answer by each task's metric, fitted to the training rows",
            CHEAP | {"none"},
            lambda asked: asked.once(CONSTANT),
        ),
        Reference(
            LINEAR,
            "linear model",
            "ridge or logistic regression, standardised, its strength chosen by validation",
            CHEAP,
            partial(_flat, name=LINEAR),
        ),
        Reference(
            TREES,
            "boosted trees",
            "scikit-learn's HistGradientBoosting, the number of trees chosen by validation",
            CHEAP,
            partial(_flat, name=TREES),
        ),
        Reference(
            NARROW,
            "single-task, equal size",
            "a network per task, so narrow that together they have the joint network's parameters",
            ALL,
            _narrow,
            _narrow_composed,
        ),
        Reference(
            WIDE,
            "sum, as large as all",
            "the plain sum, so wide that it has the parameters of a network per task",
            ALL,
            _wide,
            _wide_composed,
        ),
        Reference(
            OWN_EPOCHS,
            "sum, own epochs",
            "the plain sum, each task with the weights of its own best epoch",
            ALL,
            lambda asked: asked.each(OWN_EPOCHS),
            _plainly_composed,
        ),
        Reference(
            TUNED,
            "sum, tuned",
            "fixed weights and a rate drawn at random, as many as all balancing recipes may try",
            ALL,
            _tuned,
            _tuned_composed,
        ),
    )
}
