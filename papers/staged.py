"""Recipes compared on one problem with as few runs as an honest choice of rates allows.

First seed 0 at every rate; each recipe's rate is chosen by the lowest monitored validation quantity
(mean over tasks of L_i / L_i(0)); then the other seeds at that rate alone. The test set is read
with the weights of each run's best epoch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from best import Trained
from ledger import Ledger, key, summary
from running import on_device, records

from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings, load_problem
from evenhand.data import Problem
from evenhand.recipes import recipe
from evenhand.training.loop import Training, evaluate
from evenhand.training.records import Record

Rows = dict[str, dict[str, list[float | None]]]


@dataclass(frozen=True)
class Study:
    """What is compared, and how long it is trained.

    Attributes:
        rows: what the paper calls each recipe.
        patience: epochs without improvement after which a run stops.
        samples: how many of the training samples are used; all by default.
        untrained: whether the network before training may be the best one.
        decay: what the rate is multiplied by after every tenth epoch.
    """

    source: str
    rows: Mapping[str, str]
    rates: tuple[float, ...]
    seeds: int
    epochs: int
    batch: int
    optimizer: str = "sgd"
    patience: int = 10
    samples: int | None = None
    observe_every: int = 0
    untrained: bool = False
    decay: float = 1.0

    def cell(self, name: str, label: str, rate: float, seed: int) -> dict[str, Any]:
        """One run, told by itself."""
        return {
            **{"recipe": name, "label": label, "rate": rate, "seed": seed, "source": self.source},
            **{"epochs": self.epochs, "batch": self.batch, "optimizer": self.optimizer},
            **{"patience": self.patience, "samples": self.samples, "observe": self.observe_every},
            **({"untrained": True} if self.untrained else {}),
            **({"decay": self.decay} if self.decay != 1 else {}),
        }


def run(cell: dict[str, Any]) -> dict[str, Any]:
    """Train one network; its metrics at the best epoch, and its curves."""
    problem = replace(on_device(load_problem(cell["source"])), batch_size=cell["batch"])
    if cell["samples"] is not None:
        problem = with_few(problem, cell["samples"])
    settings = Settings(
        cell["source"],
        epochs=cell["epochs"],
        patience=cell["patience"],
        optimizer=cell["optimizer"],
        observe_every=cell["observe"],
    )
    job = Job(cell["recipe"], cell["label"], cell["seed"], cell["rate"])
    trainer = training(job, problem, settings)
    if not cell.get("untrained"):
        trainer.stopping = Trained(settings.patience)
    try:
        made = records(trainer, cell, partial(_decayed, trainer, cell))
    except NonFiniteError as error:
        return {"diverged": str(error).partition(";")[0], "monitored": None, "test": {}}
    best = next(record for record in reversed(made) if record.best)
    _, test = evaluate(trainer.network, problem, problem.test, trainer.tasks)
    return {
        "monitored": best.monitored,
        "best epoch": best.epoch,
        "validation": dict(best.metrics),
        "test": test,
        "curves": {t: [_rounded(r.metrics[t]) for r in made] for t in trainer.tasks},
        "path": [_rounded(r.path or 0.0) for r in made[1:]] if cell["observe"] else [],
        "seconds per epoch": statistics.median(r.seconds for r in made[1:]),
    }


def _decayed(trainer: Training, cell: dict[str, Any], record: Record) -> None:
    """Multiply the rates after every tenth epoch, where the cell says by what."""
    if "decay" in cell and record.epoch % 10 == 0:
        trainer.optimizers.scale_rates(cell["decay"], 0.0)


def with_few(problem: Problem, samples: int) -> Problem:
    """The problem with its first training samples alone."""
    train = problem.train
    targets = {task: target[:samples] for task, target in train.targets.items()}
    return replace(problem, train=type(train)(train.inputs[:samples], targets))


def complete(ledger: Ledger, experiment: str, study: Study, workers: int) -> Rows:
    """Make the missing runs of both stages; {row: {task: [mean, std, n]}} on the test set."""
    tasks = tuple(load_problem(study.source).tasks)
    networks = [(name, label) for name in study.rows for label in recipe(name).compose(tasks)]
    first = [study.cell(name, label, rate, 0) for rate in study.rates for name, label in networks]
    found = ledger.complete(experiment, first, run, workers)
    chosen = {
        (name, label): min(
            study.rates,
            key=lambda rate: _monitored(found[key(study.cell(name, label, rate, 0))]),
        )
        for name, label in networks
    }
    rest = [
        study.cell(name, label, chosen[name, label], seed)
        for seed in range(study.seeds)
        for name, label in networks
    ]
    found = ledger.complete(experiment, rest, run, workers)
    return {
        told: _row([c for c in rest if c["recipe"] == name], found)
        for name, told in study.rows.items()
    }


def _row(
    cells: Sequence[dict[str, Any]], found: Mapping[str, dict[str, Any]]
) -> dict[str, list[float | None]]:
    """The tasks' test metrics over seeds; of networks for the same tasks, the better one."""
    by_tasks: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = {}
    for cell in cells:
        values = found[key(cell)] | {"rate": cell["rate"]}
        by_tasks.setdefault(tuple(values["test"]), {}).setdefault(cell["label"], []).append(values)
    row: dict[str, list[float | None]] = {}
    for tasks, labels in by_tasks.items():
        best = min(labels.values(), key=lambda runs: statistics.mean(map(_monitored, runs)))
        for task in tasks:
            row[task] = summary(values["test"][task] for values in best)
        row[f"rate ({', '.join(tasks)})"] = [best[0]["rate"], None, 1]
    return row


def _monitored(values: Mapping[str, Any]) -> float:
    return float("inf") if values["monitored"] is None else float(values["monitored"])


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
