"""The reference rows that are computed instead of trained like a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evenhand.comparison.constant import constant_network, constants, evaluated
from evenhand.comparison.facts import facts
from evenhand.comparison.job import Job, Result
from evenhand.comparison.plan import training
from evenhand.comparison.references import CONSTANT, LINEAR, OWN_EPOCHS, TREES
from evenhand.comparison.request import Settings
from evenhand.comparison.resampling import resampled, rows_resampled, said
from evenhand.comparison.shallow import Models, linear_models, predictions, tree_models
from evenhand.comparison.weights import State, keep_by_task
from evenhand.data.problem import Problem, Split
from evenhand.files import write_atomically
from evenhand.network import MultiTaskNetwork
from evenhand.sharing.base import parameters
from evenhand.training.checkpoint import copied

FACTS = "facts.json"
"""Beside the constant's result: the split, counted."""


def _constant(job: Job, problem: Problem, settings: Settings, folder: Path) -> Result:
    write_atomically(folder / FACTS, facts(problem).to_json())
    network = constant_network(constants(problem))
    return _scored(job, problem.with_own_heads(), settings, network, tuple(problem.tasks))


def _scored(
    job: Job,
    problem: Problem,
    settings: Settings,
    network: MultiTaskNetwork,
    tasks: Sequence[str],
) -> Result:
    """A result with the validation and test metrics of `network`."""
    drawn = rows_resampled(problem, settings)
    return Result(
        job,
        tuple(tasks),
        "finished",
        monitored=0.0,
        validation=evaluated(network, problem, problem.validation, tasks),
        test=evaluated(network, problem, problem.test, tasks),
        resampled=resampled(network, problem, tasks, job.split) if drawn else {},
    )


def _own_epochs(job: Job, problem: Problem, settings: Settings, folder: Path) -> Result:
    """The plain sum; every task is tested with the weights of its own best epoch."""
    run = training(job, problem, settings)
    best = dict.fromkeys(run.tasks, math.inf)
    kept: dict[str, tuple[int, State]] = {}
    validation: dict[str, float] = {}
    test: dict[str, float] = {}
    drawn: dict[str, tuple[float, ...]] = {}
    first: Mapping[str, float] = {}
    epoch = 0
    work: list[float | None] = []
    for record in run.run():
        if record.epoch:
            work.append(record.flops)
        first = first or record.validation
        better = [task for task in run.tasks if record.validation[task] < best[task]]
        if not better:
            continue
        epoch = record.epoch
        best |= {task: record.validation[task] for task in better}
        kept |= dict.fromkeys(better, (epoch, copied(run.network.state_dict())))
        validation |= {task: record.metrics[task] for task in better}
        test |= evaluated(run.network, problem, problem.test, better)
        if rows_resampled(problem, settings):
            drawn |= resampled(run.network, problem, better, job.split)
    if len(test) < len(run.tasks):
        return Result(job, run.tasks, "diverged: some task has no epoch with a finite loss")
    keep_by_task(run, job, folder, kept)
    shares = [best[task] / first[task] for task in run.tasks if first[task] > 0]
    return Result(
        job,
        run.tasks,
        "finished",
        epoch,
        math.fsum(shares) / max(1, len(shares)),
        validation,
        test,
        resampled=drawn,
        parameters=parameters(run.network),
        flops=None if None in work else math.fsum(known for known in work if known is not None),
    )


def _shallow(models: Models) -> Run:
    """For each task the model that validates best; a task that no model fits is left out."""

    def run(job: Job, problem: Problem, settings: Settings, folder: Path) -> Result:
        sides = (problem.train, problem.validation, problem.test)
        if not all(isinstance(side, Split) for side in sides):
            return Result(job, (), "left out: the data are not held in memory")
        found = predictions(problem, models, job.seed)
        if not found:
            return Result(job, (), "left out: no target is a number, a class or a yes or no")
        network, spoken = said(problem, found)
        return _scored(job, spoken, settings, network, tuple(found))

    return run


Run = Callable[[Job, Problem, Settings, Path], Result]

RUNS: Mapping[str, Run] = {
    CONSTANT: _constant,
    LINEAR: _shallow(linear_models),
    TREES: _shallow(tree_models),
    OWN_EPOCHS: _own_epochs,
}
"""By name; what is not here is trained as it is composed."""
