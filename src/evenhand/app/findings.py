"""What a finished comparison says: its runs with their records, the table, and what to be wary of.

The terminal and the report show the same cells.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from evenhand.aggregation import Aggregator
from evenhand.comparison.compare import Comparison
from evenhand.comparison.job import Result
from evenhand.comparison.request import BASELINE, REFERENCE
from evenhand.comparison.statistics import Row
from evenhand.data.problem import Problem, Task
from evenhand.training.records import Record


@dataclass(frozen=True)
class Run:
    """One chosen run and what it recorded."""

    result: Result
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Findings:
    """A comparison with the records of the runs that stand for each recipe."""

    comparison: Comparison
    problem: Problem
    runs: Mapping[str, tuple[Run, ...]]

    @classmethod
    def of(cls, comparison: Comparison, problem: Problem) -> Findings:
        """Read the records."""
        runs = {
            row.recipe: tuple(Run(r, tuple(comparison.records(r))) for r in row.chosen)
            for row in comparison.rows
        }
        return cls(comparison, problem, runs)

    @property
    def epochs(self) -> int:
        """The most epochs that a run could train."""
        return self.comparison.settings.epochs or self.problem.epochs

    def trunk_weights(self, recipe_name: str, record: Record) -> Mapping[str, float]:
        """The tasks' weights in the trunk; empty if it rested, or if weights do not tell all."""
        told = "shared" in record.moves and recipe_name not in self._off_span
        return record.weights if told else {}

    def total_weight(self, recipe_name: str) -> float:
        """Σ of the task weights in the trunk, the mean over runs and the epochs that tell."""
        totals = [
            math.fsum(weights.values())
            for run in self.runs[recipe_name]
            for record in run.records
            if (weights := self.trunk_weights(recipe_name, record))
        ]
        return statistics.mean(totals) if totals else math.nan

    @cached_property
    def _off_span(self) -> set[str]:
        """The recipes whose trunk direction is no combination of the tasks' gradients."""
        return {
            name
            for name in self.comparison.recipes
            for parts in self.comparison.settings.recipe(name)
            .compose(tuple(self.problem.tasks))
            .values()
            if isinstance(parts.aggregator, Aggregator)
        }


# The table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What stands in a place of the table, and whether it is the column's best."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column: two lines of title, what they mean, and a cell per recipe."""

    title: str
    subtitle: str
    meaning: str
    cells: tuple[Cell, ...]


RATE = "learning rate chosen by validation, of several networks in the order of the tasks"


def columns(findings: Findings) -> list[Column]:
    """The table, a column at a time; the first names the recipes."""
    rows = findings.comparison.rows
    names = tuple(Cell(row.recipe) for row in rows)
    return [
        Column("recipe", "", "", names),
        *(_metric(task, entry, rows) for task, entry in findings.problem.tasks.items()),
        _numbers(
            "Δm",
            "% ↑",
            f"mean relative gain over {REFERENCE} networks on the test set",
            [row.delta for row in rows],
            _signed,
            best=max,
        ),
        _numbers(
            "rank",
            "mean ↓",
            "mean over the tasks of the recipe's rank, 1 is best",
            [(row.rank,) for row in rows],
            lambda x: f"{x:.1f}",
            best=min,
        ),
        _numbers(
            "time",
            f"× {BASELINE}",
            f"training time per epoch relative to {BASELINE}",
            [(row.relative_time,) for row in rows],
            lambda x: f"{x:.2f}",
        ),
        _numbers(
            "Σw",
            "trunk",
            "sum of the task weights in the trunk, mean over training; none where a method leaves "
            "the span of the gradients",
            [(findings.total_weight(row.recipe),) for row in rows],
            lambda x: f"{x:.3g}",
        ),
        Column("rate", "chosen", RATE, tuple(Cell(_rates(row)) for row in rows)),
    ]


def arrow(task: Task) -> str:
    """Which way is better."""
    return "↑" if task.higher_is_better else "↓"


def _metric(name: str, task: Task, rows: Sequence[Row]) -> Column:
    values = [row.test.get(name, ()) for row in rows]
    decimals = _decimals([abs(statistics.mean(v)) for v in values if v])
    return _numbers(
        name,
        f"{task.metric_name} {arrow(task)}",
        f"{task.metric_name} of {name} on the test set",
        values,
        lambda x: f"{x:.{decimals}f}",
        best=max if task.higher_is_better else min,
    )


def _decimals(values: Sequence[float]) -> int:
    """Such that the largest of these shows three digits and the smallest two, but at most six."""
    sizes = [math.floor(math.log10(value)) for value in values if value > 0]
    return min(6, max(0, 2 - max(sizes), 1 - min(sizes))) if sizes else 3


def _numbers(
    title: str,
    subtitle: str,
    meaning: str,
    values: Sequence[tuple[float, ...]],
    show: Callable[[float], str],
    best: Callable[[Sequence[float]], float] | None = None,
) -> Column:
    """Mean ± standard deviation in each cell, a dash where there is nothing."""
    means = [statistics.mean(v) if v else math.nan for v in values]
    known = [mean for mean in means if math.isfinite(mean)]
    winner = best(known) if best and len(known) > 1 else None
    cells = []
    for mean, several in zip(means, values, strict=True):
        spread = f" ± {show(statistics.stdev(several)).lstrip('+')}" if len(several) > 1 else ""
        text = show(mean) + spread if math.isfinite(mean) else "–"
        cells.append(Cell(text, winner is not None and mean == winner))
    return Column(title, subtitle, meaning, tuple(cells))


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-0.0", "+0.0").replace("-", "−")


def _rates(row: Row) -> str:
    """The rate, or one per network where they differ; the label of one chosen among many."""
    if len(set(row.rates.values())) > 1:
        return ", ".join(f"{rate:g}" for rate in row.rates.values())
    for label, rate in row.rates.items():
        return f"{rate:g} ({label})" if label and len(row.rates) == 1 else f"{rate:g}"
    return "–"


# What to be wary of ---------------------------------------------------------------------------


def notes(findings: Findings) -> list[str]:
    """What qualifies the table, a sentence each."""
    return [
        *_diverged(findings.comparison),
        *_starved(findings),
        *_grid_edges(findings.comparison),
        *_still_improving(findings),
        *_missing(findings.comparison),
    ]


def _diverged(comparison: Comparison) -> list[str]:
    found = []
    jobs = len(comparison.settings.seeds) * len(comparison.settings.rates)
    for row in comparison.rows:
        if not row.diverged:
            continue
        labels = len({r.job.label for r in (*row.chosen, *row.diverged)})
        rates = ", ".join(f"{rate:g}" for rate in sorted({r.job.rate for r in row.diverged}))
        last = "" if row.rates else "; some seed diverged at every rate, try smaller ones"
        found.append(
            f"{row.recipe}: {len(row.diverged)} of {jobs * labels} runs diverged "
            f"(at rate {rates}: {row.diverged[0].status.removeprefix('diverged: ')}){last}."
        )
    return found


STARVED = 0.95
"""A task has learned next to nothing if its validation loss stays above this share of its start."""


def _starved(findings: Findings) -> list[str]:
    """The tasks whose loss is about where it began, by recipe; one sentence for all."""
    found: dict[str, list[str]] = {}
    for name, runs in findings.runs.items():
        for task in findings.problem.tasks:
            shares = [_left(run, task) for run in runs if task in run.result.tasks]
            if shares and statistics.mean(shares) > STARVED:
                found.setdefault(task, []).append(name)
    return [
        f"Starved: {task}, whose validation loss stays above {STARVED:.0%} of where it began, with "
        f"{joined(names)}."
        for task, names in found.items()
    ]


def _left(run: Run, task: str) -> float:
    """What is left of a task's validation loss at the epoch that was chosen, as a share."""
    by_epoch = {record.epoch: record.validation[task] for record in run.records}
    start = by_epoch[0]
    return by_epoch[run.result.epoch] / start if start > 0 else math.nan


def _grid_edges(comparison: Comparison) -> list[str]:
    rates = comparison.settings.rates
    if len(rates) == 1:
        return [
            f"Only one learning rate ({rates[0]:g}) was tried. Methods have different natural "
            "step sizes, so this compares them at one rate, not at their best."
        ]
    found = []
    for which, edge in (("smallest", min(rates)), ("largest", max(rates))):
        names = [row.recipe for row in comparison.rows if edge in row.rates.values()]
        if names:
            found.append(
                f"The {which} rate ({edge:g}) was chosen for {joined(names)}: the best one may "
                "lie beyond the grid."
            )
    return found


def _still_improving(findings: Findings) -> list[str]:
    names = [
        name
        for name, runs in findings.runs.items()
        if sum(run.result.epoch == findings.epochs for run in runs) * 2 > len(runs)
    ]
    if not names:
        return []
    return [
        f"Still improving at the last epoch ({findings.epochs}): {joined(names)}. "
        "More epochs may change the table."
    ]


def _missing(comparison: Comparison) -> list[str]:
    found = []
    if REFERENCE not in comparison.recipes:
        found.append(f"Without {REFERENCE} among the recipes there is no Δm.")
    if BASELINE not in comparison.recipes:
        found.append(f"Without {BASELINE} among the recipes there is no relative time.")
    if len(comparison.settings.seeds) == 1:
        found.append("One seed says nothing about the spread.")
    return found


def joined(names: Sequence[str], most: int = 8) -> str:
    """a, b and c; of many, the first and how many more."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join(", ".join(names).rsplit(", ", 1))
