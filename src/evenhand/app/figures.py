"""Figures of a comparison: one colour, dash and marker per recipe, the same in all of them.

Colours are Okabe and Ito's, told apart by colour-blind readers (jfly.uni-koeln.de/color). Beyond
their number recipes are drawn in grey, the least skilled first. Figures are SVG whose ink is the
page's text colour, so that they read on light and dark; PNG and PDF where a file asks for it.
"""

from __future__ import annotations

import io
import math
import re
import statistics
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from evenhand.app.findings import MANY, Findings, Run, arrow
from evenhand.comparison.request import BASELINE, REFERENCE
from evenhand.files import write_atomically
from evenhand.training.records import Record

INK = "#5a5a5b"
"""Text, axes and marks of no recipe: read on white and black, and replaced by the page's own."""
GREY = "#a0a0a1"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8c6d00")
Dashes = str | tuple[int, tuple[int, ...]]
DASHES: tuple[Dashes, ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (8, 2)),
    (0, (2, 1)),
)
MARKERS = "osD^vPX"

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a task's name may have a $ in it
}
PANEL = (3.3, 2.5)
"""Width and height of one panel, in inches."""


@contextmanager
def style(name: str = "evenhand") -> Iterator[None]:
    """The house's look; `name` keeps the ids of figures in one page apart."""
    with mpl.style.context({**STYLE, "svg.hashsalt": name}):
        yield


@dataclass(frozen=True)
class Look:
    """How a recipe is drawn."""

    color: str = GREY
    dashes: Dashes = "-"
    marker: str = "."


def looks(findings: Findings) -> dict[str, Look]:
    """A look of its own for the reference, the baseline and the most skilled; grey for others."""
    rows = findings.comparison.rows
    skill = {line.name: line.skill.mean for line in findings.assessment.lines}
    order = sorted(
        rows,
        key=lambda row: (
            row.recipe not in (REFERENCE, BASELINE),
            -skill[row.recipe] if math.isfinite(skill[row.recipe]) else math.inf,
        ),
    )
    named = {row.recipe for row in order[: len(PALETTE)]}
    own = map(Look, PALETTE, DASHES, MARKERS)
    return {row.recipe: next(own) if row.recipe in named else Look() for row in rows}


# Curves ---------------------------------------------------------------------------------------


Field = Callable[[Record], Mapping[str, float]]


@dataclass(frozen=True)
class Series:
    """Mean, lowest and highest of several seeds, over the epochs that all of them reached."""

    epochs: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, runs: Iterable[Run], field: Field, key: str) -> Series:
        """Entry `key` of a field; where a frozen trunk gave none, there is a gap."""
        several = [dict(_values(run.records, field, key)) for run in runs]
        several = [values for values in several if any(map(math.isfinite, values.values()))]
        epochs = sorted(set.intersection(*map(set, several))) if several else []
        columns = [[values[epoch] for values in several] for epoch in epochs]
        return cls(
            epochs,
            [statistics.mean(column) for column in columns],
            [min(column) for column in columns],
            [max(column) for column in columns],
        )

    def without_gaps(self) -> Series:
        """The epochs that have a value alone."""
        kept = [k for k, value in enumerate(self.mean) if math.isfinite(value)]
        mean, low, high = ([c[k] for k in kept] for c in (self.mean, self.low, self.high))
        return Series([self.epochs[k] for k in kept], mean, low, high)


def _values(records: Iterable[Record], field: Field, key: str) -> Iterator[tuple[int, float]]:
    for record in records:
        values = field(record)
        if key in values:
            yield record.epoch, values[key]
        elif record.epoch > 0 and "shared" not in record.trains:
            yield record.epoch, math.nan


def draw(ax: Axes, series: Series, look: Look) -> None:
    """The mean as a line, and a band from the lowest to the highest."""
    width = 0.9 if look.color == GREY else None
    if not any(math.isfinite(a) and math.isfinite(b) for a, b in pairwise(series.mean)):
        series = series.without_gaps()  # frozen every other epoch: there is nothing else to join
    ax.plot(series.epochs, series.mean, color=look.color, ls=look.dashes, lw=width)
    if series.low != series.high:
        ax.fill_between(series.epochs, series.low, series.high, color=look.color, alpha=0.18, lw=0)


def over_epochs(ax: Axes, title: str, quantity: str) -> None:
    """Name a panel whose axis is the epochs."""
    ax.set(title=title, xlabel="epoch", ylabel=quantity)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.margins(x=0.01)


def scale(ax: Axes, lines: Iterable[Series]) -> None:
    """A logarithmic axis where the means are positive and span more than a decade."""
    values = [x for line in lines for x in line.mean if math.isfinite(x)]
    if not values or min(values) <= 0 or max(values) <= 10 * min(values):
        return
    logarithmic(ax, math.log10(max(values) / min(values)))
    ax.set_ylim(min(values) / 1.5, max(values) * 1.5)


def logarithmic(ax: Axes, decades: float) -> None:
    """A logarithmic axis of about so many decades, its labels plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _rests(run: Run) -> list[tuple[int, int]]:
    """(first epoch, length) of the stretches in which the trunk was frozen."""
    stretches: list[tuple[int, int]] = []
    for record in run.records:
        if record.epoch == 0 or "shared" in record.trains:
            continue
        start = record.epoch - 1
        if stretches and sum(stretches[-1]) == start:
            start = stretches.pop()[0]
        stretches.append((start, record.epoch - start))
    return stretches


# Panels ---------------------------------------------------------------------------------------


def panels(
    count: int, columns: int = 3, size: tuple[float, float] = PANEL
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, read line by line."""
    columns = min(columns, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * lines + 0.5), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def legend(figure: Figure, handles: Mapping[str, Line2D]) -> None:
    """The names of the handles, beneath the panels."""
    width = figure.get_figwidth() * 72 - 20
    longest = max(map(len, handles))
    rows = math.ceil(len(handles) / max(1, int(width / (longest * 5.5 + 45))))
    columns = math.ceil(len(handles) / rows)  # rows of equal length
    figure.legend(
        handles.values(),
        [f" {name}" if name.startswith("_") else name for name in handles],  # else it is left out
        loc="outside lower center",
        ncols=columns,
        handlelength=2.6,
    )


def lines(figure: Figure, findings: Findings, names: Sequence[str]) -> None:
    """A legend of recipes as lines; those in grey share an entry."""
    look = looks(findings)
    handles = {
        name: Line2D([], [], color=look[name].color, ls=look[name].dashes)
        for name in names
        if look[name].color != GREY
    }
    if len(handles) < len(names):
        handles["others"] = Line2D([], [], color=GREY)
    legend(figure, handles)


def losses(findings: Findings) -> Figure:
    """Validation loss of each task over epochs, a line per recipe; of many tasks the worst."""
    look = looks(findings)
    tasks = list(findings.worst)
    figure, axes = panels(len(tasks))
    for task, ax in zip(tasks, axes, strict=True):
        drawn = []
        for name, runs in grey_first(findings):
            mine = [run for run in runs if task in run.result.tasks]
            series = Series.of(mine, attrgetter("validation"), task)
            draw(ax, series, look[name])
            drawn.append(series)
        scale(ax, drawn)
        over_epochs(ax, task, "validation loss")
        _strips(ax, findings)
    lines(figure, findings, list(findings.runs))
    return figure


def over_tasks(findings: Findings) -> Figure | None:
    """Of many tasks: how the differences from single-task are distributed, a line per recipe."""
    found = findings.assessment
    single = found.line(REFERENCE)
    joint = [line for line in found.lines if line.name in findings.runs and line.name != REFERENCE]
    if single is None or not joint or len(findings.problem.tasks) <= MANY or not found.judged:
        return None
    look = looks(findings)
    figure, (ax,) = panels(1, size=(6.6, 3.2))
    for line in joint:
        tasks = [task for task in found.judged if task in line.tasks and task in single.tasks]
        gains = sorted(line.tasks[task].mean - single.tasks[task].mean for task in tasks)
        share = [100 * (k + 1) / len(gains) for k in range(len(gains))]
        kind = look[line.name]
        ax.plot(gains, share, color=kind.color, ls=kind.dashes, drawstyle="steps-post")
    ax.axvline(0, color=INK, lw=0.9)
    ax.set(
        xlabel=f"skill minus that of {REFERENCE}, points",
        ylabel="% of judged tasks at or below",
        ylim=(0, 100),
    )
    lines(figure, findings, [line.name for line in joint])
    return figure


def grey_first(findings: Findings) -> list[tuple[str, tuple[Run, ...]]]:
    """The recipes that have runs, those in grey beneath the others."""
    look = looks(findings)
    present = [(name, runs) for name, runs in findings.runs.items() if runs]
    return sorted(present, key=lambda item: look[item[0]].color != GREY)


def frozen(findings: Findings) -> dict[str, list[tuple[int, int]]]:
    """The recipes with a colour whose trunk rested, and when (in the first of their runs)."""
    look = looks(findings)
    stretches = {
        name: _rests(runs[0])
        for name, runs in findings.runs.items()
        if runs and look[name].color != GREY
    }
    return {name: when for name, when in stretches.items() if when}


def _strips(ax: Axes, findings: Findings, height: float = 0.02) -> None:
    """At the foot of a panel, when the trunk of an alternating recipe rested."""
    look = looks(findings)
    for level, (name, stretches) in enumerate(frozen(findings).items()):
        ax.broken_barh(
            stretches,
            (level * height, height * 0.8),
            transform=ax.get_xaxis_transform(),
            color=look[name].color,
            alpha=0.55,
            lw=0,
        )


def trade_offs(findings: Findings) -> Figure | None:
    """Test metric of one task against another's: seeds small, their mean large."""
    look = looks(findings)
    tasks = findings.problem.tasks
    pairs = _pairs(findings)
    if not pairs:
        return None
    figure, axes = panels(len(pairs))
    rows = {row.recipe: row for row in findings.comparison.rows}
    for (i, j), ax in zip(pairs, axes, strict=True):
        for name, _ in grey_first(findings):
            x, y = rows[name].test.get(i, ()), rows[name].test.get(j, ())
            if not x or not y:
                continue
            kind = look[name]
            ax.plot(x, y, kind.marker, color=kind.color, ms=3.5, alpha=0.55, mew=0)
            ax.plot(
                statistics.mean(x), statistics.mean(y), kind.marker, color=kind.color, ms=8, mew=0
            )
            if name == REFERENCE:
                ax.axvline(statistics.mean(x), color=kind.color, lw=0.9, ls=":")
                ax.axhline(statistics.mean(y), color=kind.color, lw=0.9, ls=":")
        ax.set(
            xlabel=f"{i}: {tasks[i].metric_name} {arrow(tasks[i])}",
            ylabel=f"{j}: {tasks[j].metric_name} {arrow(tasks[j])}",
        )
        corner = "↙↖↘↗"[2 * tasks[i].higher_is_better + tasks[j].higher_is_better]
        ax.set_title(f"better {corner}", loc="right", fontsize=9)
        ax.margins(0.12)
    handles = {
        name: Line2D([], [], ls="", marker=look[name].marker, color=look[name].color, ms=7, mew=0)
        for name in findings.runs
        if look[name].color != GREY
    }
    if len(handles) < len(findings.runs):
        handles["others"] = Line2D([], [], ls="", marker=".", color=GREY, ms=8)
    legend(figure, handles)
    return figure


PAIRS = 6
"""How many pairs of tasks a figure shows."""


def _pairs(findings: Findings, most: int = PAIRS) -> list[tuple[str, str]]:
    """Pairs of tasks; of many, those whose gradients disagree most."""
    seen: dict[str, list[float]] = defaultdict(list)
    for runs in findings.runs.values():
        for run in runs:
            for record in run.records:
                for pair, cosine in record.cosines.items():
                    seen[pair].append(cosine)
    pairs = list(combinations(findings.problem.tasks, 2))
    if len(pairs) <= most:
        return pairs
    mean = {pair: statistics.mean(values) for pair, values in seen.items()}
    conflict = sorted(pairs, key=lambda pair: mean.get("|".join(pair), math.inf))[:most]
    return [pair for pair in pairs if pair in conflict]


def gradients(findings: Findings) -> Figure | None:
    """Cosines between the tasks' gradients in the trunk and their norms, as observed."""
    look = looks(findings)
    pairs = ["|".join(pair) for pair in _pairs(findings)]
    tasks = list(findings.worst)
    joint = [(name, runs) for name, runs in grey_first(findings) if _observed(runs)]
    if not joint:
        return None
    figure, axes = panels(len(pairs) + len(tasks))
    for pair, ax in zip(pairs, axes[: len(pairs)], strict=True):
        for name, runs in joint:
            series = Series.of(runs, attrgetter("cosines"), pair)
            draw(ax, series, look[name])
        ax.axhline(0, color=INK, lw=0.9)
        over_epochs(ax, pair.replace("|", " and "), "cosine of gradients")
    for task, ax in zip(tasks, axes[len(pairs) :], strict=True):
        drawn = []
        for name, runs in joint:
            series = Series.of(runs, attrgetter("norms"), task)
            draw(ax, series, look[name])
            drawn.append(series)
        scale(ax, drawn)
        over_epochs(ax, task, "norm of gradient")
    lines(figure, findings, [name for name, _ in joint])
    return figure


def _observed(runs: Sequence[Run]) -> bool:
    return any(record.cosines for run in runs for record in run.records)


def weights(findings: Findings) -> Figure | None:
    """Weights of the tasks in the trunk over epochs, a panel per recipe in which they vary."""
    tasks = list(findings.worst)
    varying = [name for name in findings.runs if _vary(findings, name)]
    if not varying:
        return None
    figure, axes = panels(len(varying))
    kinds = [Look(PALETTE[k % len(PALETTE)], DASHES[k % len(DASHES)]) for k in range(len(tasks))]
    for name, ax in zip(varying, axes, strict=True):
        runs, field = findings.runs[name], partial(findings.trunk_weights, name)
        drawn = []
        for task, kind in zip(tasks, kinds, strict=True):
            series = Series.of(runs, field, task)
            draw(ax, series, kind)
            drawn.append(series)
        scale(ax, drawn)
        for start, length in _rests(runs[0]):
            ax.axvspan(start, start + length, color=INK, alpha=0.12, lw=0)
        over_epochs(ax, name, "weight in the trunk")
    handles = {
        t: Line2D([], [], color=k.color, ls=k.dashes) for t, k in zip(tasks, kinds, strict=True)
    }
    legend(figure, handles)
    return figure


def _vary(findings: Findings, name: str) -> bool:
    """Whether some task's weight is not the same all along."""
    values: dict[str, list[float]] = defaultdict(list)
    for run in findings.runs[name]:
        for record in run.records:
            for task, weight in findings.trunk_weights(name, record).items():
                values[task].append(weight)
    return any(max(v) - min(v) > 1e-6 * max(map(abs, v)) for v in values.values())


LEGIBLE = 80
"""Pixels for each inch of a figure, below which its labels cannot be read: it scrolls instead."""


# Out ------------------------------------------------------------------------------------------


def svg(figure: Figure, name: str) -> str:
    """The figure as an element to stand in a page, its ink the page's own."""
    with style(name), warnings.catch_warnings():
        # Long names leave the axes no room; the labels then overlap, and the figure stands.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    wide = figure.get_figwidth()
    width = f'style="max-width: {7 * wide:.0f}rem; --least: {LEGIBLE * wide:.0f}px"'
    text = text[text.index("<svg") :].replace("<svg", f"<svg {width}", 1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' d="[^"]*"', lambda path: _rounded(path[0]), text)
    return text.replace(INK, "currentColor")


def save(figure: Figure, file: Path) -> None:
    """The figure as a file on white, of the kind that its suffix says."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=file.suffix[1:], dpi=200, facecolor="white")
    write_atomically(file, drawn.getvalue())


def _rounded(path: str) -> str:
    """Coordinates to a hundredth of a point."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", path)
