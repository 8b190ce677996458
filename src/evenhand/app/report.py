"""One HTML file that needs nothing else: the table, the figures, how it was made."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from evenhand.app import diagnostics, exports, figures, intervals
from evenhand.app.config import command
from evenhand.app.findings import MANY, Cell, Column, Findings, columns, notes, task_table
from evenhand.app.table import labels, subject
from evenhand.comparison.compare import Comparison
from evenhand.comparison.folder import read_manifest
from evenhand.comparison.references import REFERENCES
from evenhand.comparison.request import REFERENCE
from evenhand.comparison.verdict import joined
from evenhand.files import write_atomically
from evenhand.text import plain

REPORT = "report.html"
FOLDED = ("Gradients", "Task weights", "Dynamics", "Phases")
"""Figures that are opened by who wants them."""


@dataclass(frozen=True)
class Plate:
    """A figure in the page; one that is folded is opened by who wants it."""

    title: str
    caption: str
    svg: str
    folded: bool = False


def write(findings: Findings, delta: bool = False) -> Path:
    """Make the report in the comparison's folder, tables as CSV and JSON beside it; its path."""
    path = findings.comparison.out / REPORT
    write_atomically(path, render(findings, delta))
    exports.write(findings)
    return path


def render(findings: Findings, delta: bool = False) -> str:
    """The page; with Δm on request."""
    comparison = findings.comparison
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evenhand.app", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
    )
    return environment.get_template("report.html.j2").render(
        problem=findings.problem,
        settings=comparison.settings,
        epochs=findings.epochs,
        subject=subject(findings),
        verdict=findings.verdict,
        labels=labels(findings),
        columns=columns(findings, delta),
        tasks=task_table(findings, tuple(findings.problem.tasks)),
        many=len(findings.problem.tasks) > MANY,
        references=[REFERENCES[row.recipe] for row in comparison.references],
        wall=wall_clock(findings),
        exports=exports.FILES,
        notes=notes(findings),
        plates=list(plates(findings)),
        search=search(comparison),
        recipes=[comparison.settings.recipe(name) for name in comparison.recipes],
        command=command(comparison.settings, comparison.recipes, comparison.out),
        manifest=read_manifest(comparison.out),
    )


def _printable(value: Any) -> Any:
    """What stands in the page: text without control characters, which no page may hold."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def plates(findings: Findings) -> Iterator[Plate]:
    """The figures, those left out of which there is nothing to show."""
    seeds = "Lines are means over splits and seeds; bands reach from the lowest to the highest."
    greyed = [name for name, look in figures.looks(findings).items() if look.color == figures.GREY]
    grey = f" In grey, because others have more skill: {joined(greyed)}." if greyed else ""
    named = len(findings.problem.tasks) > MANY
    worst = f" Of {len(findings.problem.tasks)} tasks, the worst ones." if named else ""
    frozen = figures.frozen(findings)
    which = joined(list(frozen))
    strips = f" The strip at the foot marks epochs in which the trunk was frozen ({which})."
    single = bool(findings.runs.get(REFERENCE))
    alone = "Dotted lines: the networks trained on a single task. " if single else ""
    pairs = math.comb(len(findings.problem.tasks), 2)
    shown = (
        f" Of {pairs} pairs of tasks, those whose gradients disagree most."
        if pairs > figures.PAIRS
        else ""
    )
    made = (
        (
            "Differences",
            f"How far every row is from {REFERENCE}, and the plain sum in every judged task: the "
            "mean and the interval of the table, in colour where it does not reach zero. Thick: "
            "the declared comparison by itself, as in the sentences. Shaded: no difference that "
            f"matters.{worst}",
            intervals.differences,
        ),
        (
            "Over the tasks",
            f"How much skill each recipe has beyond {REFERENCE}, task by task: the share of the "
            "judged tasks at or below each difference, the mean over splits. Left of zero the "
            "task is better by itself. Single tasks are noisier than their mean.",
            figures.over_tasks,
        ),
        (
            "Losses",
            f"Each task's mean loss on the validation set, at the rate chosen. {seeds}{grey}{worst}"
            + (strips if frozen else ""),
            figures.losses,
        ),
        (
            "Conflicts",
            "The cosine between the gradients of each pair of tasks by the shared parameters, as "
            f"observed in training with {diagnostics.observed(findings)}: its mean, and the share "
            "of the observed steps at which it was below zero, over epochs, splits and seeds. "
            "A negative cosine on one batch may be noise.",
            diagnostics.conflicts,
        ),
        (
            "Trade-offs",
            "Test metrics of two tasks against each other: a small mark per split and seed, a "
            f"large one for their mean. {alone}The arrow shows where both are better.{shown}{grey}",
            figures.trade_offs,
        ),
        (
            "Gradients",
            "Cosines between the tasks' gradients by the shared parameters, and the norms of these "
            f"gradients, where they were observed in training; below zero, two tasks disagree. "
            f"{seeds}{shown}{grey}{worst}",
            figures.gradients,
        ),
        (
            "Task weights",
            "What multiplied each task's gradient in the trunk, for the recipes in which it "
            f"varies; shaded: the trunk was frozen. {seeds}{worst}",
            figures.weights,
        ),
        (
            "Dynamics",
            "The length of the way that the shared parameters went, how much the training losses "
            "swing from step to step beyond their net change, and the memory of the optimizers' "
            f"state at the end. {seeds}",
            diagnostics.dynamics,
        ),
        (
            "Phases",
            "What a step did to each task's loss (column) on its own batch, by what it moved or "
            "which tasks were active (row), the mean over epochs and seeds. It fell where the "
            "field is violet, and rose where it is orange.",
            diagnostics.phases,
        ),
    )
    for title, caption, draw in made:
        name = title.lower().replace(" ", "-")
        with figures.style(name):
            figure = draw(findings)
        if figure is not None:
            yield Plate(title, caption, figures.svg(figure, name), title in FOLDED)


def search(comparison: Comparison) -> list[Column]:
    """How the rates did on validation: a row per recipe and network, a column per rate.

    In brackets: in how many splits a rate was chosen.
    """
    asked = [r for r in comparison.results if r.job.recipe in comparison.recipes]
    networks = list(dict.fromkeys((r.job.recipe, r.job.label) for r in asked))
    several = comparison.settings.splits > 1
    chosen: dict[tuple[str, str, float], set[int]] = defaultdict(set)
    for row in comparison.rows:
        for r in row.chosen:
            chosen[r.job.recipe, r.job.label, r.job.rate].add(r.job.split)
    names = tuple(Cell(f"{name} ({label})" if label else name) for name, label in networks)
    found = [Column("recipe", "", "", names)]
    for rate in comparison.settings.rates:
        cells = []
        for name, label in networks:
            values = [
                r.monitored
                for r in asked
                if (r.job.recipe, r.job.label, r.job.rate) == (name, label, rate)
            ]
            mean = statistics.mean(values)
            text = f"{mean:.4g}" if math.isfinite(mean) else "diverged"
            times = len(chosen[name, label, rate])
            cells.append(Cell(f"{text} ({times})" if several and times else text, int(times > 0)))
        found.append(Column(f"{rate:g}", "", "", tuple(cells)))
    return found


def wall_clock(findings: Findings) -> list[str]:
    """Seconds per epoch of each recipe's chosen runs, lowest to highest: information, no result."""
    found = []
    for name, runs in findings.runs.items():
        seconds = [run.result.seconds for run in runs if math.isfinite(run.result.seconds)]
        if seconds:
            found.append(f"{name} {min(seconds):.3g}–{max(seconds):.3g} s")
    return found
