"""The verdict as a picture: how far every row, and every task, is from single-task, and how sure.

A mark is a mean difference of skill, its line the interval that the table prints. What an interval
separates from zero is in colour, as in the table; the shaded stripe is what does not matter. The
plain sum has a thick line as well: the interval of the declared comparison, which stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evenhand.app import figures
from evenhand.app.findings import Findings
from evenhand.comparison.assessment import Difference
from evenhand.comparison.references import title
from evenhand.comparison.request import BASELINE, REFERENCE

MOST = 24
"""The most rows that are drawn, those with most skill; and the most tasks, the worst."""
SHOWN = {1: "#009E73", 0: figures.INK, -1: "#D55E00"}
"""The colour of a difference that is shown to be above zero, is not shown, or is below."""

Mark = tuple[str, Difference]


def differences(findings: Findings) -> Figure | None:
    """Every row against single-task, and the plain sum against it in every judged task."""
    rows, tasks = of_rows(findings), of_tasks(findings)
    if not rows:
        return None
    shown = [rows, tasks] if len(tasks) > 1 else [rows]
    most = max(map(len, shown))
    figure, axes = figures.panels(len(shown), columns=2, size=(4.4, 0.25 * most + 0.7))
    for ax, marks in zip(axes, shown, strict=True):
        _draw(ax, marks, most, findings.assessment.margin)
    axes[0].set_title("every row")
    _declared(axes[0], findings, [name for name, _ in rows])
    if len(shown) > 1:
        axes[1].set_title(f"{title(BASELINE)}, task by task")
    return figure


def of_rows(findings: Findings) -> list[Mark]:
    """The rows that are compared with single-task, in the table's order; of many the best."""
    found = [
        (line.title, line.versus)
        for line in findings.assessment.lines
        if line.versus is not None and line.versus.points.values
    ]
    best = sorted(found, key=lambda mark: -mark[1].mean)[:MOST]
    return [mark for mark in found if mark in best]


def of_tasks(findings: Findings) -> list[Mark]:
    """The judged tasks in their order; of many the worst ones."""
    by_task = findings.assessment.by_task
    return [(task, by_task[task]) for task in findings.worst if task in by_task]


def _declared(ax: Axes, findings: Findings, names: Sequence[str]) -> None:
    headline = findings.assessment.headline
    if headline is None or headline.interval is None or title(BASELINE) not in names:
        return
    place = names.index(title(BASELINE))
    kind = _colour(headline)
    ax.plot([headline.interval.low, headline.interval.high], [place, place], color=kind, lw=4.5)
    ax.plot([headline.mean], [place], "o", color=kind, ms=7)


def _colour(difference: Difference) -> str:
    return SHOWN[difference.shown if difference.chances is not None else 0]


def _draw(ax: Axes, marks: Sequence[Mark], most: int, margin: float) -> None:
    ax.axvspan(-margin, margin, color=figures.INK, alpha=0.12, lw=0)
    ax.axvline(0, color=figures.INK, lw=0.9)
    for place, (_, difference) in enumerate(marks):
        kind = _colour(difference)
        interval = difference.interval
        if interval is not None:
            ax.plot([interval.low, interval.high], [place, place], color=kind, lw=1.8)
        else:  # splits that are no draws of anything: each is shown
            values = list(difference.points.values.values())
            ax.plot(values, [place] * len(values), "|", color=kind, ms=8)
        ax.plot([difference.mean], [place], "o", color=kind, ms=5)
    ax.set_yticks(range(len(marks)), [name for name, _ in marks])
    ax.set(ylim=(most - 0.4, -0.6), xlabel=f"skill minus that of {REFERENCE}, points")
    ax.grid(visible=False, axis="y")
