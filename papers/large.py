"""Recipes on the papers' own data sets, which are to be fetched by hand and want a GPU.

Each run keeps its records and a checkpoint in $EVENHAND_RUNS (by default in `runs` beside the
script), so a killed one goes on. The test set is read with the weights of the best validated epoch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from best import Trained
from ledger import Ledger, key, summary

from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings
from evenhand.data import Problem
from evenhand.recipes import Recipe, recipe
from evenhand.training.loop import Training, evaluate
from evenhand.training.records import Record

Rows = dict[str, dict[str, list[float | None]]]


@dataclass(frozen=True)
class Setup:
    """A paper's experiment on a data set.

    Attributes:
        experiment: its name in result.json.
        load: a data set's loader.
        rates: what the paper calls each recipe, and its learning rate.
        note: what differs from the paper.
        adapt: changes the problem.
        rescored: the problems of which each network is scored besides its own.
        own: recipes that the library has not.
        untrained: whether the network before training may be the best one.
    """

    experiment: str
    load: Callable[..., Problem]
    rates: Mapping[str, tuple[str, float]]
    epochs: int
    batch: int
    note: str
    optimizer: str = "adam"
    adapt: Callable[[Problem], Problem] | None = None
    rescored: tuple[Callable[[Problem], Problem], ...] = ()
    own: tuple[Recipe, ...] = ()
    untrained: bool = False

    def recipe(self, name: str) -> Recipe:
        """The setup's own recipe of that name, or the library's."""
        return {entry.name: entry for entry in self.own}.get(name) or recipe(name)

    def cells(self, asked: argparse.Namespace) -> list[dict[str, Any]]:
        """All runs, seeds outermost."""
        problem = self.problem(asked.readers, "cpu", asked.batch or self.batch)
        names = [asked.only] if asked.only else list(self.rates)
        return [
            {
                **{"recipe": name, "label": label, "rate": self.rates[name][1], "seed": seed},
                **{"epochs": asked.epochs or self.epochs, "batch": asked.batch or self.batch},
            }
            for seed in range(asked.seeds)
            for name in names
            for label in self.recipe(name).compose(tuple(problem.tasks))
        ]

    def problem(self, readers: int, device: str, batch: int) -> Problem:
        """The problem, its batches and networks on `device`."""
        made = self.load(batch=batch, workers=readers, device=device)
        problem = self.adapt(made) if self.adapt else made
        return replace(problem, network=lambda tasks: problem.network(tasks).to(device))


@dataclass(frozen=True)
class Run:
    """Makes one run of a setup; an object, so that it can be sent to another process."""

    setup: Setup
    readers: int
    device: str
    folder: Path

    def __call__(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Train one network; its scores on the test set, and its curves."""
        problem = self.setup.problem(self.readers, self.device, cell["batch"])
        settings = Settings(
            problem.name, epochs=cell["epochs"], optimizer=self.setup.optimizer, observe_every=100
        )
        job = Job(cell["recipe"], cell["label"], cell["seed"], cell["rate"])
        parts = self.setup.recipe(cell["recipe"]).compose(tuple(problem.tasks))[cell["label"]]
        trainer = training(job, problem, settings, parts)
        if not self.setup.untrained:
            trainer.stopping = Trained(settings.patience)
        folder = self.folder / problem.name / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        records = list(trainer.run(folder, checkpoint_every=1))
        return self._told(trainer, problem, records)

    def _told(
        self, trainer: Training, problem: Problem, records: Sequence[Record]
    ) -> dict[str, Any]:
        best = next(record for record in reversed(records) if record.best)
        test: dict[str, dict[str, float]] = {}
        for scored in (problem, *(again(problem) for again in self.setup.rescored)):
            _, found = evaluate(trainer.network, scored, scored.test, trainer.tasks)
            for task, value in found.items():
                test.setdefault(scored.tasks[task].metric_name, {})[task] = value
        return {
            "monitored": best.monitored,
            "best epoch": best.epoch,
            "test": test,
            "validation": [{t: round(v, 6) for t, v in r.metrics.items()} for r in records],
            "path": [r.path for r in records[1:]],
            "seconds per epoch": statistics.median(r.seconds for r in records[1:]),
        }


def options(description: str, setups: Mapping[str, Setup], here: Path) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", choices=sorted(setups), help="which data set")
    recipes = sorted({name for setup in setups.values() for name in setup.rates})
    parser.add_argument("--only", choices=recipes, help="one recipe")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe [3]")
    parser.add_argument("--epochs", type=int, help="fewer than the paper's")
    parser.add_argument("--batch", type=int, help="other than the paper's")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, … [cpu]")
    parser.add_argument("--readers", type=int, default=0, help="processes that read files [0]")
    parser.add_argument("--out", type=Path, default=here, help="folder of the results [here]")
    asked = parser.parse_args()
    if asked.only and asked.only not in setups[asked.data].rates:
        parser.error(f"{asked.only} is not run on {asked.data}")
    return asked


def reproduce(setup: Setup, asked: argparse.Namespace, paper: str) -> None:
    """The missing runs, one after the other, and the table."""
    ledger = Ledger(asked.out)
    runs = Path(os.environ.get("EVENHAND_RUNS", asked.out / "runs"))
    try:
        cells = setup.cells(asked)
    except ValueError as error:  # the files are not there
        sys.exit(str(error))
    run = Run(setup, asked.readers, asked.device, runs)
    found = ledger.complete(setup.experiment, cells, run)
    rows: Rows = {}
    for name in dict.fromkeys(cell["recipe"] for cell in cells):
        own = [cell for cell in cells if cell["recipe"] == name]
        seeds = {cell["seed"] for cell in own}
        joined = [_joined([found[key(c)] for c in own if c["seed"] == seed]) for seed in seeds]
        rows[setup.rates[name][0]] = {q: summary(j[q] for j in joined) for q in joined[0]}
    ledger.write(setup.experiment, rows, paper, setup.note)
    for row, quantities in rows.items():
        print(f"  {row:14}" + "  ".join(f"{q} {v[0]:.4g}" for q, v in quantities.items()))


def _joined(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over tasks of each metric; networks for single tasks complete each other."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for metric, tasks in run["test"].items():
            values.setdefault(metric, []).extend(tasks.values())
    return {metric: statistics.fmean(several) for metric, several in values.items()}
