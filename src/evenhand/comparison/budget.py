"""What a comparison will take, measured on its own networks; and one that fits into a budget.

A unit of work (the runs of a recipe's network in a split, one by one or trained as one) is trained
for an epoch on a few batches of the real data, and timed. What it takes in all is that times the
number of batches, epochs and splits. It is an estimate: the machine may be busier later.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.job import Job, Unit
from evenhand.comparison.plan import jobs, training, units
from evenhand.comparison.reference_runs import RUNS
from evenhand.comparison.references import CONSTANT, REFERENCES, reference_jobs
from evenhand.comparison.request import BASELINE, REFERENCE, Settings
from evenhand.data.problem import Problem, Split
from evenhand.ensemble.training import StackedTraining
from evenhand.training.loop import Training
from evenhand.training.records import Record

MEASURED = 4
"""Epochs that are timed: alternating recipes have two kinds."""
NETWORKS = 10
"""Of a recipe that are timed; of a grid's hundreds, the others are taken to be like them."""
MEMBERS = 48
"""Of a unit that are timed; a thousand trained as one take in proportion."""
BATCHES = 8
"""Of the data that are trained on for measuring."""
START = 5.0
"""Seconds that it takes to start workers and to write the report."""
MOST, FEWEST = 20, 3
"""Splits: the most that a budget is spent on, and the fewest that say anything."""
EPOCHS = 10
"""A budget never asks for fewer."""


@dataclass(frozen=True)
class Cost:
    """What a comparison will take.

    Attributes:
        runs: how many networks are trained, references too.
        each: seconds of processor time in one split, by recipe or reference.
        splits: how many there are.
        workers: processes that share the work.
        epochs: the most of a run.
    """

    runs: int
    each: Mapping[str, float]
    splits: int
    workers: int
    epochs: int = 0

    @property
    def seconds(self) -> float:
        """Of wall time."""
        return START + self.splits * math.fsum(self.each.values()) / self.workers


def cost(recipes: Sequence[str], settings: Settings, workers: int) -> Cost:
    """Measure what a comparison will take.

    Raises:
        ValueError: as `compare` does.
    """
    problem = settings.problem()
    todo = [job for job in jobs(recipes, problem, settings) if job.split == 0]
    planned = units(todo, settings)
    each: dict[str, float] = defaultdict(float)
    known: dict[tuple[str, int], float] = {}
    measured: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for unit in planned:
        first = unit.jobs[0]
        key = first.network, len(unit.jobs)
        alike = [known[one] for one in measured[first.recipe] if one[1] == key[1]]
        if key not in known and len(alike) == NETWORKS:
            known[key] = math.fsum(alike) / NETWORKS
        elif key not in known:
            known[key] = _seconds(unit, problem, settings)
            measured[first.recipe].append(key)
        each[first.recipe] += known[key]
    beside = [job for job in reference_jobs(recipes, problem, settings) if job.split == 0]
    for job in beside:
        computed = REFERENCES[job.recipe].composed is None
        key = job.recipe, 1 if computed else 2
        if key not in known:
            known[key] = (
                _computed(job, problem, settings)
                if computed
                else _seconds(Unit((job,), "a reference"), problem, settings)
            )
        each[job.recipe] += known[key]
    runs = settings.splits * (len(todo) + len(beside))
    epochs = settings.epochs or problem.epochs
    return Cost(runs, dict(each), settings.splits, workers, epochs)


def _seconds(unit: Unit, problem: Problem, settings: Settings) -> float:
    """Of training a unit's runs to their last epoch."""
    train, few, share = problem.train, problem, 1.0
    size = BATCHES * problem.batch_size
    if isinstance(train, Split) and len(train) > size:
        few = replace(problem, train=Split(*train.take(torch.arange(size))))
        share = len(train) / size
    runs = [training(job, few, settings) for job in unit.jobs[:MEMBERS]]
    share *= len(unit.jobs) / len(runs)
    epochs = settings.epochs or problem.epochs
    return _epoch(unit, runs) * share * epochs


def _epoch(unit: Unit, runs: Sequence[Training]) -> float:
    """Seconds of an epoch with its validation; the first, in which things are set up, is apart."""
    for run in runs:
        run.epochs = MEASURED + 1
    events: Iterator[Any] = StackedTraining(runs).run() if unit.stacked else runs[0].run()
    begun = time.perf_counter()
    ends: dict[int, float] = {}
    with contextlib.suppress(NonFiniteError):  # a run that breaks off has been timed until then
        for event in events:
            record = event[1] if unit.stacked else event
            if isinstance(record, Record):
                ends.setdefault(record.epoch, time.perf_counter())
    last = max(ends, default=0)
    if last < 2:
        return time.perf_counter() - begun
    return (ends[last] - ends[1]) / (last - 1)


def _computed(job: Job, problem: Problem, settings: Settings) -> float:
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        RUNS[job.recipe](job, problem, settings, Path(folder))
    return time.perf_counter() - start


# Into a budget ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A comparison that fits into a budget.

    Attributes:
        settings, recipes: of the comparison.
        seconds: that it is expected to take.
        given_up: what it leaves out, in words.
    """

    settings: Settings
    recipes: tuple[str, ...]
    seconds: float
    given_up: tuple[str, ...]


def fitted(
    budget: float,
    recipes: Sequence[str],
    settings: Settings,
    measured: Cost,
    held: Set[str] = frozenset(),
) -> Fitted:
    """As many splits as a budget allows; where it is too small, less of everything.

    Given up, in this order: splits beyond 3; the last recipes of the list, never the plain sum and
    single-task, which carry the headline; reference rows; epochs, down to 10.

    Args:
        budget: seconds of wall time.
        recipes: their names.
        settings: as they would be without a budget.
        measured: what `cost` says of these.
        held: what the user has said and is not touched: "splits", "recipes", "references",
            "epochs".

    Raises:
        ValueError: even the least takes longer.
    """
    kept = list(recipes)
    each = dict(measured.each)
    given: list[str] = []

    def seconds(splits: int) -> float:
        return Cost(0, each, splits, measured.workers).seconds

    def fits() -> bool:
        return seconds(least) <= budget

    least = settings.splits if "splits" in held else min(FEWEST, settings.splits)
    for name in reversed(recipes):
        if fits() or "recipes" in held:
            break
        if name not in (REFERENCE, BASELINE):
            kept.remove(name)
            each.pop(name)
    if dropped := [name for name in recipes if name not in kept]:
        given.append(", ".join(dropped))
    beside = [name for name in each if name in REFERENCES and name != CONSTANT]
    if not fits() and "references" not in held and beside:
        each = {name: cost for name, cost in each.items() if name not in beside}
        settings = replace(settings, references="none")
        given.append("the reference rows but the constant")
    epochs = settings.epochs or measured.epochs
    if not fits() and "epochs" not in held:
        work = seconds(least) - START
        share = max(0.0, budget - START) / work if work > 0 else 1.0
        fewer = max(min(EPOCHS, epochs), int(epochs * share))
        each = {name: cost * fewer / epochs for name, cost in each.items()}
        settings = replace(settings, epochs=fewer)
        given.append(f"{epochs - fewer} of {epochs} epochs")
    if not fits():
        raise ValueError(
            f"a budget of {duration(budget)} is too small: {least} splits of "
            f"{', '.join(kept)} take about {duration(seconds(least))}"
        )
    splits = settings.splits
    if "splits" not in held:
        one = seconds(1) - START
        affordable = int((budget - START) / one) if one > 0 else MOST
        most = settings.splits if settings.design == "time" else MOST
        splits = max(least, min(most, affordable))
        if splits < settings.splits:
            given.append(f"{settings.splits - splits} of {settings.splits} splits")
    return Fitted(replace(settings, splits=splits), tuple(kept), seconds(splits), tuple(given))


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 5400 else f"{seconds / 3600:.2g} h"
