"""One network, trained and kept: a recipe at every rate, of which validation chooses one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evenhand.comparison.compare import finished, prepare
from evenhand.comparison.job import Job, Listener, Result
from evenhand.comparison.pool import run_jobs
from evenhand.comparison.request import Settings
from evenhand.comparison.weights import BEST, PREPARED

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
        raise ValueError(f"{made.recipes[0]} diverged at every rate: try smaller ones (--lr)")
    folder = out / chosen[0].job.folder
    for name in (BEST, PREPARED):
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)
    return chosen[0], made.references[0].chosen[0]
