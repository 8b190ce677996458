"""What a finished comparison says: its runs with their records, verdict, table, and cautions.

The terminal and the report show the same cells.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from evenhand.aggregation import Aggregator
from evenhand.comparison.assessment import Assessment, Difference, Line, assess
from evenhand.comparison.compare import Comparison
from evenhand.comparison.job import Result
from evenhand.comparison.references import CONSTANT, TUNED, title
from evenhand.comparison.request import BASELINE, REFERENCE
from evenhand.comparison.statistics import Row
from evenhand.comparison.verdict import Verdict, joined, signed, verdict
from evenhand.data.problem import Problem, Task
from evenhand.text import LINE, NAME, plain
from evenhand.training.records import Record

MANY = 12
"""More tasks than these have no column each: the table tells how they are distributed."""
WORST = 10
"""How many of many tasks are shown by name."""


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
        """Read the records. Names that fit no line and numbers that fit no axis are made to."""
        runs = {
            row.recipe: tuple(Run(r, tuple(comparison.records(r))) for r in row.chosen)
            for row in comparison.rows
        }
        names = {task: plain(task, NAME) for task in problem.tasks}
        if len(set(names.values())) < len(names):
            names = {task: f"{plain(task, NAME - 6)} ({k})" for k, task in enumerate(names, 1)}
        changed = {task: name for task, name in names.items() if task != name}
        said = ("rows", "results", "references", "facts")
        parts = {part: _shown(getattr(comparison, part), changed) for part in said}
        tasks = {names[task]: entry for task, entry in problem.tasks.items()}
        return cls(
            replace(comparison, **parts), replace(problem, tasks=tasks), _shown(runs, changed)
        )

    @cached_property
    def assessment(self) -> Assessment:
        """The rows on the scale of skill, with their certainty."""
        made = self.comparison
        return assess(made.rows, made.references, self.problem, made.settings, made.facts)

    @cached_property
    def verdict(self) -> Verdict:
        """The same in words; where losses lie far apart, the advice begins with that."""
        said = verdict(self.assessment)
        if _apart(self) is None:
            return said
        first = "standardise the targets, or divide each loss by the constant's"
        return replace(said, advice=f"{first}; {said.advice}" if said.advice else f"{first}.")

    @property
    def rows(self) -> dict[str, Row]:
        """Every row by name, the constant first."""
        beside = {row.recipe: row for row in self.comparison.references}
        own = {row.recipe: row for row in self.comparison.rows}
        first = {CONSTANT: beside[CONSTANT]} if CONSTANT in beside else {}
        return {**first, **own, **beside}

    @cached_property
    def worst(self) -> tuple[str, ...]:
        """The tasks that are shown by name: all, or the worst of many.

        Worst is where the plain sum is furthest behind single-task; without these two, where the
        best recipe's skill is lowest.
        """
        tasks = list(self.problem.tasks)
        if len(tasks) <= MANY:
            return tuple(tasks)
        behind = {task: d.mean for task, d in self.assessment.by_task.items()}
        highest = {
            task: max(
                (line.tasks[task].mean for line in self.assessment.lines if task in line.tasks),
                default=math.inf,
            )
            for task in tasks
        }
        place = behind or highest
        tasks.sort(key=lambda task: place.get(task, math.inf))
        return tuple(tasks[:WORST])

    def delta(self, name: str) -> tuple[float, ...]:
        """A row's Δm, per cent by split and seed; empty where it would mean nothing."""
        return self.rows[name].delta if self.assessment.delta_says else ()

    @property
    def epochs(self) -> int:
        """The most epochs that a run could train."""
        return self.comparison.settings.epochs or self.problem.epochs

    def trunk_weights(self, recipe_name: str, record: Record) -> Mapping[str, float]:
        """The tasks' weights in the trunk; empty if it rested, or if weights do not tell all."""
        told = "shared" in record.trains and recipe_name not in self._off_span
        return record.weights if told else {}

    def total_weight(self, recipe_name: str) -> float:
        """Σ of the task weights in the trunk, the mean over runs and the epochs that tell."""
        totals = [
            math.fsum(weights.values())
            for run in self.runs.get(recipe_name, ())
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


def _reason(result: Result) -> str:
    return plain(result.status.removeprefix("diverged: "), 2 * LINE)


LARGEST = 1e30
"""A larger number is no measurement; it is shown like one that is not known."""


def _shown(value: Any, names: Mapping[str, str]) -> Any:
    """The same with other names of tasks, in pairs of them too, and NaN for what is too large."""
    if isinstance(value, float):
        return value if abs(value) <= LARGEST else math.nan
    if isinstance(value, str):
        # The longest first: one name may be the beginning of another.
        wanted = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        return re.sub(wanted, lambda name: names[name[0]], value) if names else value
    if isinstance(value, Mapping):
        return {_shown(key, names): _shown(entry, names) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_shown(entry, names) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _shown(getattr(value, f.name), names) for f in fields(value)}
        return replace(value, **parts)
    return value


# The table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What stands in a place of the table.

    Attributes:
        text: the text.
        shown: 1 or −1 where a difference is shown to be above or below zero, else 0.
    """

    text: str
    shown: int = 0


@dataclass(frozen=True)
class Column:
    """A column: two lines of title, what they mean, and a cell per row."""

    title: str
    subtitle: str
    meaning: str
    cells: tuple[Cell, ...]


RATE = (
    "learning rate chosen by validation, of several networks in the order of the tasks, of several "
    "splits the commonest"
)


def columns(findings: Findings, delta: bool = False) -> list[Column]:
    """The table, a column at a time: the first names the rows, the tasks come after the summary.

    Args:
        findings: what there is to show.
        delta: also Δm, as the literature has it.
    """
    found = findings.assessment
    lines = found.lines
    rows = findings.rows
    tasks = findings.problem.tasks
    several = [_delta(findings)] if delta else []
    each = len(tasks) <= MANY
    return [
        Column("row", "", "", tuple(Cell(_name(line, findings)) for line in lines)),
        _texts(
            "skill",
            "mean* ↑",
            "mean over the judged tasks of 100 (constant − metric) / (constant − perfect)",
            [_number(line.skill.mean, "{:.1f}") for line in lines],
        ),
        Column(
            f"vs {REFERENCE}",
            _how(found),
            "difference of mean skill, split by split; these intervals hold at once",
            tuple(_versus(line) for line in lines),
        ),
        *([_chances(found)] if any(x.versus and x.versus.chances for x in lines) else []),
        *several,
        *(
            [_metric(name, task, lines, rows) for name, task in tasks.items()]
            if each
            else _distribution(found)
        ),
        _texts(
            "parameters",
            "in all",
            "of all networks that a row needs",
            [f"{line.parameters:,.0f}" if line.parameters else "–" for line in lines],
        ),
        *_time(lines),
        _texts(
            "Σw",
            "trunk",
            "sum of the task weights in the trunk, mean over training; none where a method leaves "
            "the span of the gradients",
            [_number(findings.total_weight(line.name), "{:.3g}") for line in lines],
        ),
        _texts("rate", "chosen", RATE, [_rates(rows[line.name]) for line in lines]),
    ]


def _name(line: Line, findings: Findings) -> str:
    """A row's title; of tuned weights, how many were tried in each split."""
    tried = {r.job.label for r in findings.comparison.results if r.job.recipe == line.name}
    return f"{line.title} ({len(tried)})" if line.name == TUNED else line.title


def task_table(findings: Findings, names: Sequence[str]) -> list[Column]:
    """The tasks of these names as rows, and every row of the table as a column of their skill."""
    found = findings.assessment
    lines = [line for line in found.lines if line.name != CONSTANT]
    columns = [
        Column("task", "", "", tuple(Cell(name) for name in names)),
        _texts(
            "metric",
            "of the constant",
            "the best constant's metric, which is skill 0",
            [_constant(name, findings) for name in names],
        ),
    ]
    if found.by_task:
        columns.append(
            Column(
                f"{BASELINE} vs {REFERENCE}",
                _how(found),
                "difference of skill; these intervals hold at once",
                tuple(_compared(found.by_task.get(name)) for name in names),
            )
        )
    for line in lines:
        cells = [
            _number(line.tasks[name].mean, "{:.1f}") if name in line.tasks else "–"
            for name in names
        ]
        columns.append(_texts(line.title, "skill ↑", f"skill of {line.title}", cells))
    return columns


def _constant(name: str, findings: Findings) -> str:
    task, value = findings.problem.tasks[name], findings.assessment.constant.get(name, math.nan)
    return f"{task.metric_name} {value:.3g}" if math.isfinite(value) else task.metric_name


def arrow(task: Task) -> str:
    """Which way is better."""
    return "↑" if task.higher_is_better else "↓"


def _how(found: Assessment) -> str:
    if found.design.kind == "origins":
        return "mean of origins"
    return "simultaneous 95 %" if found.design.kind != "rows" else "this split, 95 %"


def _texts(title: str, subtitle: str, meaning: str, texts: Sequence[str]) -> Column:
    return Column(title, subtitle, meaning, tuple(Cell(text) for text in texts))


def _number(value: float, form: str) -> str:
    if not math.isfinite(value):
        return "–"
    text = form.format(value)
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def _versus(line: Line) -> Cell:
    if line.name == REFERENCE:
        return Cell("reference")
    return _compared(line.versus)


def _compared(difference: Difference | None) -> Cell:
    """The difference and its interval; marked where it is shown, on several splits only."""
    if difference is None or not difference.points.values:
        return Cell("–")
    text = signed(difference.mean)
    if difference.interval is not None:
        low, high = signed(difference.interval.low), signed(difference.interval.high)
        text += f" ({low}..{high})"
    return Cell(text, difference.shown if difference.chances is not None else 0)


def _chances(found: Assessment) -> Column:
    cells = []
    for line in found.lines:
        chances = line.versus.chances if line.versus is not None else None
        three = () if chances is None else (chances.worse, chances.same, chances.better)
        cells.append("/".join(f"{100 * p:.0f}" for p in three) or "–")
    meaning = (
        f"probabilities that it is worse than {REFERENCE} by more than {found.margin:g}, within, "
        "and better by more (correlated Bayesian t-test)"
    )
    return _texts("worse/same/", "better, %", meaning, cells)


def _distribution(found: Assessment) -> list[Column]:
    """Of many tasks: how their skills are distributed over each row."""
    texts: dict[str, list[str]] = {"lowest": [], "quarter": [], "median": [], "highest": []}
    for line in found.lines:
        skills = sorted(line.tasks[t].mean for t in found.judged if t in line.tasks)
        marks = [math.nan] * 4
        if skills:
            quarter = skills[0]
            if len(skills) > 1:  # as numpy's quantile: never below the lowest
                quarter = statistics.quantiles(skills, n=4, method="inclusive")[0]
            marks = [skills[0], quarter, statistics.median(skills), skills[-1]]
        for name, value in zip(texts, marks, strict=True):
            texts[name].append(_number(value, "{:.1f}"))
    return [
        _texts(name, "of tasks", f"{name} skill over the judged tasks", cells)
        for name, cells in texts.items()
    ]


def _metric(name: str, task: Task, lines: Sequence[Line], rows: Mapping[str, Row]) -> Column:
    values = [rows[line.name].test.get(name, ()) for line in lines]
    means = [statistics.fmean(several) if several else math.nan for several in values]
    decimals = _decimals([abs(mean) for mean in means if math.isfinite(mean)])
    return _texts(
        name,
        f"{task.metric_name} {arrow(task)}",
        f"{task.metric_name} of {name} on the test part, mean over splits and seeds",
        [_number(mean, f"{{:.{decimals}f}}") for mean in means],
    )


def _decimals(values: Sequence[float]) -> int:
    """Such that the largest of these shows three digits and the smallest two, but at most six."""
    sizes = [math.floor(math.log10(value)) for value in values if value > 0]
    return min(6, max(0, 2 - max(sizes), 1 - min(sizes))) if sizes else 3


def _time(lines: Sequence[Line]) -> list[Column]:
    """Processor time relative to the plain sum, else in seconds; operations likewise."""
    base = next((line for line in lines if line.name == BASELINE), None)
    clock = base.processor if base is not None else math.nan
    relative = math.isfinite(clock) and clock > 0
    unit = f"× {BASELINE}" if relative else "s"
    times = [
        _number(line.processor / clock if relative else line.processor, "{:.2f}") for line in lines
    ]
    work = base.flops if base is not None else None
    operations = [
        _number(line.flops / work if work else line.flops, "{:.2f}" if work else "{:.2g}")
        if line.flops is not None
        else "–"
        for line in lines
    ]
    return [
        _texts(
            "operations",
            f"× {BASELINE}" if work else "in all",
            "floating-point operations of all training steps of the chosen runs",
            operations,
        ),
        _texts(
            "processor",
            unit,
            "processor time of training and validating the chosen runs, all their networks",
            times,
        ),
    ]


def _delta(findings: Findings) -> Column:
    values = [findings.delta(line.name) for line in findings.assessment.lines]
    texts = [signed(statistics.fmean(several)) if several else "–" for several in values]
    meaning = (
        f"mean relative gain over {REFERENCE} networks (Maninis et al. 2019); none unless "
        f"{REFERENCE} is shown to beat the constant on every task"
    )
    return _texts("Δm", "% ↑", meaning, texts)


SEVERAL = 4
"""More rates than these are told as a range."""


def _rates(row: Row) -> str:
    """The rate, or one per network where they differ; the label of one chosen among many."""
    known = {label: rate for label, rate in row.rates.items() if rate > 0}
    networks = {result.tasks for result in row.chosen}
    if len(set(known.values())) > 1:
        if len(known) > SEVERAL or len(known) > len(networks):
            return f"{min(known.values()):g}–{max(known.values()):g}"
        return ", ".join(f"{rate:g}" for rate in known.values())
    for label, rate in known.items():
        return f"{rate:g} ({label})" if label and len(known) == 1 else f"{rate:g}"
    return "–"


# What to be wary of ---------------------------------------------------------------------------


def notes(findings: Findings) -> list[str]:
    """What qualifies the table: one sentence for each kind of note."""
    return [
        *_diverged(findings.comparison),
        *_untrained(findings),
        *_scales(findings),
        *_few_labels(findings),
        *_few_units(findings),
        *_rare(findings),
        *_starved(findings),
        *_grid_edges(findings.comparison),
        *_still_improving(findings),
        *_missing(findings.comparison),
        *_left_out(findings.comparison),
    ]


def _untrained(findings: Findings) -> Iterator[str]:
    """Recipes whose best epoch is the first, before any training."""
    found = []
    for name, runs in findings.runs.items():
        untrained = [run for run in runs if run.result.epoch == 0]
        if untrained:
            found.append(f"{name} ({len(untrained)} of {len(runs)} runs)")
    if found:
        yield (
            f"No training beat no training: by validation the best epoch is 0 for {joined(found)}. "
            "Their scores are those of networks as they were drawn."
        )


APART = 100.0
"""Losses that differ by more than this factor before training are told."""


def _apart(findings: Findings) -> tuple[str, str, Mapping[str, float]] | None:
    """The tasks of the lowest and highest loss before training, where these lie far apart."""
    joint = [
        run
        for runs in findings.runs.values()
        for run in runs
        if len(run.result.tasks) == len(findings.problem.tasks) and run.records
    ]
    if not joint:
        return None
    start = {t: x for t, x in joint[0].records[0].validation.items() if x > 0}
    if len(start) < 2 or max(start.values()) <= APART * min(start.values()):
        return None
    return min(start, key=start.__getitem__), max(start, key=start.__getitem__), start


def _scales(findings: Findings) -> Iterator[str]:
    found = _apart(findings)
    if found is not None:
        low, high, start = found
        yield (
            f"Before training the losses differ by a factor of {start[high] / start[low]:,.0f} "
            f"({high} {start[high]:.3g}, {low} {start[low]:.3g}): standardise the targets, or "
            "divide each loss by the constant's, before balancing is blamed."
        )


FEW = 100
"""Fewer training labels are told."""
RARE = 20
"""Fewer test labels, and test rows of the rarest class, are told."""
FEW_UNITS = 10
"""Fewer groups are told."""


def _few_labels(findings: Findings) -> Iterator[str]:
    facts = findings.comparison.facts
    least = {
        task: min(f.training[task] for f in facts if task in f.training)
        for task in findings.problem.tasks
        if any(task in f.training for f in facts)
    }
    few = [f"{task} ({count})" for task, count in least.items() if count < FEW]
    if few:
        yield f"Fewer than {FEW} training labels: {joined(few)}."
    quantities = {
        task: min(f.test[task].count for f in facts if task in f.test)
        for task in findings.problem.tasks
        if any(task in f.test and f.test[task].rarest is None for f in facts)
    }
    few = [f"{task} ({count})" for task, count in quantities.items() if count < RARE]
    if few:
        yield f"Fewer than {RARE} test labels: {joined(few)}."


def _few_units(findings: Findings) -> Iterator[str]:
    """Groups so few that dividing them again and again says little more."""
    design = findings.assessment.design
    if design.kind != "origins" and design.units < FEW_UNITS:
        yield (
            f"Only {design.units:,.0f} independent units are divided into training, validation and "
            "test: what holds for these need not hold for others."
        )


def _rare(findings: Findings) -> Iterator[str]:
    found, constant = [], []
    for task in findings.problem.tasks:
        known = [f.test[task] for f in findings.comparison.facts if task in f.test]
        same = sum(target.values == 1 for target in known)
        if same:
            some = f" (in {same} of {len(known)} splits)" if same < len(known) else ""
            constant.append(f"{task}{some}")
            continue
        rare = [(t.rarest, t.count) for t in known if t.rarest is not None and t.rarest < RARE]
        if rare:
            few, count = min(rare)
            found.append(f"{task} ({few} of {count:,})")
    if constant:
        yield f"The test targets are all the same for {joined(constant)}: no metric says anything."
    if found:
        yield (
            f"The rarest class has fewer than {RARE} test rows for {joined(found)}: its metric "
            "moves with each of them."
        )


def _left_out(comparison: Comparison) -> Iterator[str]:
    """References that could not be had, and the tasks that they do not serve."""
    for row in comparison.references:
        for status in dict.fromkeys(r.status for r in row.diverged):
            yield f"{title(row.recipe)}: {plain(status, 2 * LINE)}."
    if (
        comparison.settings.references == "none"
        and len(comparison.rows) > 0
        and len(comparison.references) <= 1
    ):
        yield "No reference rows but the constant were asked for (--references cheap or all)."


def _diverged(comparison: Comparison) -> list[str]:
    found = []
    made = comparison.settings
    jobs = len(made.seeds) * len(made.rates) * made.splits
    for row in comparison.rows:
        if not row.diverged:
            continue
        labels = len({r.job.label for r in (*row.chosen, *row.diverged)})
        rates = ", ".join(f"{rate:g}" for rate in sorted({r.job.rate for r in row.diverged}))
        whole = len({result.job.split for result in row.chosen}) == made.splits
        last = "" if whole else "; some seed diverged at every rate, try smaller ones"
        found.append(
            f"{row.recipe}: {len(row.diverged)} of {jobs * labels} runs diverged "
            f"(at rate {rates}: {_reason(row.diverged[0])}){last}."
        )
    return found


STARVED = 0.95
"""A task has learned next to nothing if its validation loss stays above this share of its start."""


def _starved(findings: Findings) -> Iterator[str]:
    """Tasks whose loss is about where it began, while a network of their own does better.

    Who has no network of its own to compare with, or does no better there, is not starved: nothing
    is learned of it here.
    """
    single = findings.assessment.line(REFERENCE)
    found: dict[str, list[str]] = {}
    for name, runs in findings.runs.items():
        line = findings.assessment.line(name)
        if name == REFERENCE or single is None or line is None:
            continue
        for task in findings.assessment.judged:
            if task not in single.tasks or task not in line.tasks:
                continue
            behind = single.tasks[task].mean - line.tasks[task].mean
            shares = [_left(run, task) for run in runs if task in run.result.tasks]
            idle = bool(shares) and statistics.mean(shares) > STARVED
            if idle and behind > findings.assessment.margin:
                found.setdefault(name, []).append(f"{task} ({signed(-behind)})")
    if found:
        told = "; ".join(f"with {name} {joined(tasks, 4)}" for name, tasks in found.items())
        yield (
            f"Starved, with a validation loss above {100 * STARVED:.0f} % of where it began and "
            f"less skill than a network of its own: {told}."
        )


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
        found.append(f"Without {REFERENCE} among the recipes nothing says together or apart.")
    if BASELINE not in comparison.recipes:
        found.append(f"Without {BASELINE} among the recipes there is no plain sum to compare with.")
    return found
