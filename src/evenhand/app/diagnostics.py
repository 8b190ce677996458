"""How training went, beyond its losses: the way of the trunk, oscillation, memory, phases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, SymLogNorm
from matplotlib.figure import Figure

from evenhand.app import figures
from evenhand.app.figures import Series
from evenhand.app.findings import Findings, Run
from evenhand.comparison.request import BASELINE
from evenhand.training.records import Record

MOST = 6
"""Recipes whose phases are drawn."""
LEAST, LARGEST = 1e-4, 0.1
"""The changes of a loss between which the colours tell most."""


WITHOUT_NAMES = 6.4
"""Inches of such a matrix."""
LEAST_SHOWN = 0.1
"""Cosines no larger than this stay pale."""
NAMED = 14
"""More tasks than these are rows and columns of a matrix without names or numbers."""


def conflicts(findings: Findings) -> Figure | None:
    """Mean cosine of each pair of tasks' gradients, and the share of steps below zero.

    Of the plain sum, or of the first recipe in which gradients of several tasks were observed; the
    mean over epochs, splits and seeds.
    """
    name = observed(findings)
    tasks = list(findings.problem.tasks)
    if name is None or len(tasks) < 2:
        return None
    records = [record for run in findings.runs[name] for record in run.records]
    size = max(3.4, 0.34 * len(tasks) + 2.0) if len(tasks) <= NAMED else WITHOUT_NAMES
    figure, axes = figures.panels(2, columns=2, size=(size, size))
    kinds = (
        ("mean cosine", [r.cosines for r in records], _pale("PuOr"), -1.0),
        ("share of steps below zero", [r.conflicts for r in records], _pale("Oranges"), 0.0),
    )
    for ax, (title, seen, colours, low) in zip(axes, kinds, strict=True):
        matrix = _pair_means(tasks, seen)
        largest = max(LEAST_SHOWN, float(np.nanmax(np.abs(matrix), initial=0.0)))
        image = ax.imshow(matrix, cmap=colours, vmin=low * largest, vmax=largest)
        ax.set_title(title)
        ax.grid(visible=False)
        if len(tasks) > NAMED:
            figure.colorbar(image, ax=ax, shrink=0.8)
            ax.set(xlabel="task", ylabel="task")
            continue
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                ax.text(
                    column,
                    row,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    color="black",
                    fontsize=7.5,
                )
        ax.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right")
        ax.set_yticks(range(len(tasks)), tasks)
    return figure


def observed(findings: Findings) -> str | None:
    """The recipe whose gradients the matrix of conflicts is of."""
    names = [BASELINE, *(name for name in findings.runs if name != BASELINE)]
    for name in names:
        runs = findings.runs.get(name, ())
        if any(record.cosines for run in runs for record in run.records):
            return name
    return None


def _pair_means(
    tasks: Sequence[str], seen: Sequence[Mapping[str, float]]
) -> npt.NDArray[np.float64]:
    """The mean of each pair's values, symmetric; NaN on the diagonal and where nothing was seen."""
    sums: dict[str, list[float]] = {}
    for values in seen:
        for pair, value in values.items():
            total = sums.setdefault(pair, [0.0, 0.0])
            total[0] += value
            total[1] += 1
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    for j, b in enumerate(tasks):
        for i, a in enumerate(tasks[:j]):
            if f"{a}|{b}" in sums:
                summed, number = sums[f"{a}|{b}"]
                matrix[i, j] = matrix[j, i] = summed / number
    return matrix


def dynamics(findings: Findings) -> Figure | None:
    """Path of the shared parameters, oscillation of the training losses, optimizer memory."""
    joint = [
        (name, runs)
        for name, runs in figures.grey_first(findings)
        if all(len(run.result.tasks) == len(findings.problem.tasks) for run in runs)
    ]
    if not any(record.path for _, runs in joint for run in runs for record in run.records):
        return None
    figure, (way, swing, memory) = figures.panels(3)
    look = figures.looks(findings)
    for name, runs in joint:
        travelled = _seeds([_travelled(run.records) for run in runs])
        figures.draw(way, travelled, look[name])
        figures.draw(swing, Series.of(runs, _oscillation, "mean"), look[name])
    figures.over_epochs(way, "shared parameters", "length of their path")
    figures.over_epochs(swing, "training loss, mean over tasks", "oscillation")
    _memory(memory, {name: runs[0].records[-1].state_bytes for name, runs in joint}, findings)
    figures.lines(figure, findings, [name for name, _ in joint])
    return figure


def _oscillation(record: Record) -> Mapping[str, float]:
    values = record.oscillation.values()
    return {"mean": math.fsum(values) / len(values)} if values else {}


def _travelled(records: Sequence[Record]) -> list[float]:
    return list(accumulate(record.path or 0.0 for record in records))


def _seeds(several: Sequence[Sequence[float]]) -> Series:
    """Mean, lowest and highest over seeds of curves that start at epoch 0."""
    columns = list(zip(*several, strict=False))
    return Series(
        list(range(len(columns))),
        [math.fsum(column) / len(column) for column in columns],
        [min(column) for column in columns],
        [max(column) for column in columns],
    )


def _memory(ax: Axes, held: Mapping[str, int], findings: Findings) -> None:
    look = figures.looks(findings)
    largest = sorted(held.items(), key=lambda item: item[1])[-8:]
    names = [name for name, _ in largest]
    ax.barh(names, [size / 1024 for _, size in largest], color=[look[n].color for n in names])
    ax.set(title="optimizer state", xlabel="KiB")
    ax.grid(visible=False, axis="y")
    ax.set_axisbelow(True)


def phases(findings: Findings) -> Figure | None:
    """What a step of each kind of phase does to each task's loss, where phases differ."""
    movers = {name: _movers(runs) for name, runs in findings.runs.items()}
    names = [name for name, found in movers.items() if len(found) > 1][:MOST]
    if not names:
        return None
    tasks = list(findings.worst)
    figure, axes = figures.panels(len(names), columns=2, size=(4.6, 1.9))
    for name, ax in zip(names, axes, strict=True):
        table = [[_change(findings.runs[name], m, task) for task in tasks] for m in movers[name]]
        scale = SymLogNorm(LEAST, vmin=-LARGEST, vmax=LARGEST)
        ax.imshow(table, cmap=_pale("PuOr_r"), norm=scale, aspect="auto")
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                ax.text(column, row, f"{value:+.1g}", ha="center", va="center", color="black")
        ax.set_xticks(range(len(tasks)), tasks)
        ax.set_yticks(range(len(table)), [m.removeprefix("shared+own of ") for m in movers[name]])
        ax.set_title(name)
        ax.grid(visible=False)
    return figure


def _pale(name: str) -> ListedColormap:
    """A map of colours on which black is read, whatever the page's colour."""
    return ListedColormap(0.6 * mpl.colormaps[name](range(256)) + 0.4)


def _change(runs: Sequence[Run], mover: str, task: str) -> float:
    """The mean over epochs and seeds of what a step did to the task's loss."""
    key = f"{mover}|{task}"
    seen = [r.changes[key] for run in runs for r in run.records if key in r.changes]
    return math.fsum(seen) / len(seen) if seen else math.nan


def _movers(runs: Sequence[Run]) -> list[str]:
    """What moved in phases of different kinds, such as "shared" and "own", in their order."""
    found = (key.rpartition("|")[0] for run in runs for r in run.records for key in r.changes)
    return list(dict.fromkeys(found))
