"""Figures of an examination: harm on each rung, cosines in training and by layer, look-ahead."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evenhand.app import figures
from evenhand.app.figures import INK, MARKERS, PALETTE
from evenhand.comparison.inference import Estimate
from evenhand.doctor.agreement import Agreement
from evenhand.doctor.examine import Examination

MOST = len(PALETTE)
"""Tasks or pairs that are drawn by name."""


def harm(found: Examination) -> Figure | None:
    """What each rung left of the harm to each task, with intervals; shaded: too small to matter."""
    if found.ladder is None:
        return None
    rungs, tasks = list(found.ladder.rungs.values()), found.tasks[:MOST]
    figure, (ax,) = figures.panels(1, columns=1, size=(6.4, 1.1 + 0.42 * len(rungs)))
    for k, task in enumerate(tasks):
        where = [r + 0.5 * (k + 0.5) / len(tasks) - 0.25 for r in range(len(rungs))]
        _points(ax, [rung.harm[task] for rung in rungs], where, k, task, sideways=True)
    margin = found.ladder.thresholds.margin
    ax.axvspan(-margin, margin, color=INK, alpha=0.12, lw=0)
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_yticks(range(len(rungs)), [rung.name for rung in rungs])
    ax.set_ylim(len(rungs) - 0.5, -0.5)
    ax.set_xlabel("points of the constant's loss by which apart is better")
    ax.legend(fontsize=8)
    return figure


def cosines(found: Examination) -> Figure | None:
    """Cosines of each pair in training: on one batch, and between batches with intervals."""
    if found.diagnosis is None:
        return None
    looks = found.diagnosis.looks
    pairs = list(looks[0].whole.same_batch)[:MOST]
    figure, (ax,) = figures.panels(1, columns=1, size=(6.4, 2.8))
    places = range(len(looks))
    for k, pair in enumerate(pairs):
        shift = 0.4 * (k + 0.5) / len(pairs) - 0.2
        told = _told([look.whole for look in looks], pair)
        _points(ax, [e for _, e in told], [at + shift for at, _ in told], k, " and ".join(pair))
        naive = [look.whole.same_batch[pair] for look in looks]
        ax.plot([at + shift for at in places], naive, "x", color=PALETTE[k], ms=5, alpha=0.7)
    ax.axhline(0, color=INK, lw=0.8)
    ax.set_xticks(places, [f"{look.step} steps" for look in looks])
    ax.set(ylim=(-1.08, 1.08), ylabel="cosine")
    ax.legend(fontsize=8)
    return figure


def layers(found: Examination) -> Figure | None:
    """The corrected cosine of each pair by layer, in the last look."""
    if found.diagnosis is None:
        return None
    by_layer = found.diagnosis.looks[-1].layers
    pairs = list(found.diagnosis.looks[0].whole.same_batch)[:MOST]
    if not any(agreement.cosines for agreement in by_layer.values()):
        return None
    figure, (ax,) = figures.panels(1, columns=1, size=(6.4, 0.9 + 0.32 * len(by_layer)))
    for k, pair in enumerate(pairs):
        told = _told(by_layer.values(), pair)
        where = [at + 0.5 * (k + 0.5) / len(pairs) - 0.25 for at, _ in told]
        _points(ax, [e for _, e in told], where, k, " and ".join(pair), sideways=True)
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_yticks(range(len(by_layer)), list(by_layer))
    ax.set(xlim=(-1.08, 1.08), xlabel="cosine")
    ax.invert_yaxis()
    ax.legend(fontsize=8)
    return figure


def _told(several: Iterable[Agreement], pair: tuple[str, str]) -> list[tuple[int, Estimate]]:
    """The cosines of a pair and their places, where there is a signal."""
    return [(at, one.cosines[pair]) for at, one in enumerate(several) if pair in one.cosines]


def ahead(found: Examination) -> Figure | None:
    """By how many per cent a step of a task (row) lowers the loss of another (column)."""
    if found.diagnosis is None or len(found.tasks) > 2 * MOST:
        return None
    fall, tasks = found.diagnosis.looks[-1].ahead.fall, list(found.tasks)
    matrix = np.array([[fall[a, b].mean for b in tasks] for a in tasks])
    size = max(2.6, 0.7 * len(tasks) + 1.4)
    figure, (ax,) = figures.panels(1, columns=1, size=(size + 0.8, size))
    largest = float(np.nanmax(np.abs(matrix), initial=1e-9))
    colours = mpl.colors.ListedColormap(0.6 * mpl.colormaps["PuOr"](range(256)) + 0.4)
    ax.imshow(matrix, cmap=colours, vmin=-largest, vmax=largest)
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            text = f"{fall[a, b].mean:.2g}\n±{_half(fall[a, b]):.1g}"
            ax.text(j, i, text, ha="center", va="center", color="black", fontsize=7.5)
    ax.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right")
    ax.set_yticks(range(len(tasks)), tasks)
    ax.set(ylabel="a step of", xlabel="lowers the loss of")
    ax.grid(visible=False)
    return figure


def _half(estimate: Estimate) -> float:
    return estimate.half_width()


def _points(
    ax: Axes,
    estimates: Sequence[Estimate],
    where: Sequence[float],
    number: int,
    name: str,
    sideways: bool = False,
) -> None:
    kept = [(e, at) for e, at in zip(estimates, where, strict=True) if math.isfinite(e.mean)]
    known = [(e, at) for e, at in kept if math.isfinite(e.scale)]
    values, places = [e.mean for e, _ in known], [at for _, at in known]
    spread = [_half(e) for e, _ in known]
    x, y = (values, places) if sideways else (places, values)
    ax.errorbar(
        x,
        y,
        xerr=spread if sideways else None,
        yerr=None if sideways else spread,
        fmt=MARKERS[number],
        color=PALETTE[number],
        ms=4.5,
        lw=1.4,
        ls="none",
        label=name,
    )
