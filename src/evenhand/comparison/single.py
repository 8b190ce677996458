"""One recipe, trained and kept: at every rate, of which validation chooses one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evenhand.asking import option
from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.compare import finished, prepare
from evenhand.comparison.job import Job, Listener, Result
from evenhand.comparison.plan import jobs, training
from evenhand.comparison.request import Settings
from evenhand.comparison.running import run_jobs
from evenhand.comparison.weights import BEST, PREPARED
from evenhand.files import read_bytes, write_atomically
from evenhand.network import MultiTaskNetwork
from evenhand.recipes import Recipe
from evenhand.training.records import Record

ONE = "one network"
"""What the manifest says of a folder in which a network is kept."""


def single(settings: Settings) -> Settings:
    """The same for one network: one split, one seed, and no reference but the constant."""
    return replace(settings, splits=1, seeds=settings.seeds[:1], references="none")


def prepare_one(settings: Settings, recipe: str, out: Path, resume: bool = False) -> list[Job]:
    """The runs to make for one network, and their folder.

    Raises:
        ValueError: the recipe makes a network for each task; or as `compare.prepare` does.
    """
    problem = settings.problem()
    made = settings.recipe(recipe).compose(tuple(problem.tasks))
    if any(set(parts.tasks) != set(problem.tasks) for parts in made.values()):
        raise ValueError(
            f"{recipe} makes {len(made)} networks, one for each task: name a recipe that makes one "
            "for all (sg, mgda, …), or predict fewer columns"
        )
    return prepare(settings, [recipe], out, resume, {"kept": ONE})


def train_one(
    todo: Sequence[Job], settings: Settings, out: Path, listener: Listener, workers: int = 1
) -> tuple[Result, Result]:
    """Train what `prepare_one` has prepared; the run that validation chose, and the constant.

    The chosen network's weights are in `out`, and with a table, its preparation.

    Raises:
        ValueError: no run was finished with a finite loss.
    """
    run_jobs(todo, settings, out, listener, workers)
    made = finished(out, settings.given)
    chosen = made.rows[0].chosen
    if not chosen:
        smaller = f"try smaller ones ({option('rates')})"
        raise ValueError(f"{made.recipes[0]} diverged at every rate: {smaller}")
    folder = out / chosen[0].job.folder
    for name in (BEST, PREPARED):
        if (folder / name).exists():
            write_atomically(out / name, read_bytes(folder / name))
    return chosen[0], made.references[0].chosen[0]


# In memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A network that validation chose.

    Attributes:
        job: how it was trained: recipe, label, seed and rate.
        tasks: on which it was trained.
        network: with the weights of its best epoch, in eval mode.
        records: one per epoch, the first of the untrained network.
        monitored: what validation chose by, of the best epoch.
    """

    job: Job
    tasks: tuple[str, ...]
    network: MultiTaskNetwork
    records: tuple[Record, ...]
    monitored: float


def train_in_memory(settings: Settings, recipe: str | Recipe) -> tuple[Trained, ...]:
    """Train a recipe on one split with one seed, and keep nothing on disk.

    Every network of the recipe is trained at every rate. Of those with the same tasks validation
    chooses one, as in a comparison; those with different tasks complete each other.

    Raises:
        ValueError: the recipe is unknown or cannot serve the problem's tasks; or a network that is
            needed diverged at every rate; or as `Training.run` does.
    """
    settings, (name,) = single(settings).taking([recipe])
    problem = settings.problem()
    best: dict[tuple[str, ...], Trained | None] = {}
    for job in jobs([name], problem, settings):
        with torch.random.fork_rng(devices=[]):  # the weights are drawn from the global stream
            run = training(job, problem, settings)
        chosen = best.setdefault(run.tasks, None)
        try:
            records = tuple(run.run())
        except NonFiniteError:
            continue
        monitored = min((r.monitored for r in records if r.best), default=math.inf)
        if math.isfinite(monitored) and (chosen is None or monitored < chosen.monitored):
            best[run.tasks] = Trained(job, run.tasks, run.network.eval(), records, monitored)
    if lacking := [tasks for tasks, trained in best.items() if trained is None]:
        raise ValueError(
            f"{name} diverged at every rate ({', '.join(f'{r:g}' for r in settings.rates)}) on "
            f"{', '.join(lacking[0])}: try smaller ones"
        )
    return tuple(trained for trained in best.values() if trained is not None)
