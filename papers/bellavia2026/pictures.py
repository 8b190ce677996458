"""Figures 2 to 7: the data, losses over seeds, and the rates that the plateaus leave."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alternation import METHODS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evenhand.app import figures
from evenhand.data.quadrants import load
from evenhand.training import records

Runs = Sequence[tuple[dict[str, Any], dict[str, Any]]]
LOOKS = dict(zip(METHODS, zip(figures.PALETTE, figures.DASHES, strict=False), strict=False))
SKIPPED = 20
"""Epochs at the start that the measure of oscillation leaves out: all methods fall there."""


def oscillation(losses: Sequence[float]) -> float:
    """How much a loss swings from epoch to epoch beyond its net change (`records.oscillation`)."""
    return records.oscillation(losses[SKIPPED:] if len(losses) > 2 * SKIPPED else losses)


def on_the_way(losses: Sequence[float], above: float, below: float) -> float | None:
    """Oscillation from the first value under `above` to the first under `below`, if there is one.

    A loss swings the more the lower it is: methods of unlike speed are fairly compared like this.
    """
    start, end = (next((k for k, x in enumerate(losses) if x < y), None) for y in (above, below))
    return None if start is None or end is None else records.oscillation(losses[start : end + 1])


def draw(name: str, runs: Runs, folder: Path) -> None:
    """All figures of one experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    file = name.replace(", ", "-").replace(",", "").replace(" ", "-")
    with figures.style():
        if name == "quadrants":
            figures.save(data(), folder / "figure2-data.png")
        for rate in sorted({cell["rate"] for cell, _ in runs}):
            figures.save(losses(runs, rate), folder / f"{file}-loss-{rate:g}.png")
        figures.save(rates(runs), folder / f"{file}-rate.png")


def data() -> Figure:
    """Figure 2: the test points by their quadrant, and which of them lie inside the circle."""
    test = load().test
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, task in zip(axes, test.targets, strict=True):
        for label in test.targets[task].unique().tolist():
            x, y = test.inputs[test.targets[task] == label][:600].unbind(1)
            ax.plot(x, y, ".", ms=2.5, color=figures.PALETTE[label], label=str(label))
        ax.set(title=task, xlabel="x, standardised", aspect="equal")
    axes[0].set_ylabel("y, standardised")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", title="class", markerscale=4)
    return figure


def losses(runs: Runs, rate: float) -> Figure:
    """Figures 3, 4, 6, 7: training and validation loss of ATE-SG beside SG, a column for each E.

    Lines are medians over seeds, bands go from the least to the most.
    """
    lengths = [method for method, length in METHODS.items() if length]
    figure = Figure(figsize=(9.9, 5.0), layout="constrained")
    axes = figure.subplots(2, len(lengths), sharex=True, sharey="row")
    for line, quantity in zip(axes, ("training", "validation"), strict=True):
        for ax, method in zip(line, lengths, strict=True):
            for drawn in ("SG", method):
                mine = [v for c, v in runs if (c["rate"], c["method"]) == (rate, drawn)]
                if mine:
                    start, every = int(quantity == "training"), mine[0].get("every", 1)
                    _band(ax, [v[quantity] for v in mine], drawn, start, every)
            figures.logarithmic(ax, decades=1.5)
        line[0].set_ylabel(f"{quantity} loss")
    for ax, method in zip(axes[0], lengths, strict=True):
        seeds = {c["seed"] for c, _ in runs if (c["rate"], c["method"]) == (rate, method)}
        ax.set_title(f"{method}: {len(seeds)} seed{'s' * (len(seeds) != 1)}")
    for ax in axes[1]:
        ax.set_xlabel("epoch")
    known = {line.get_label(): line for ax in axes[0] for line in ax.get_lines()}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known))
    figure.suptitle(f"Σ of both tasks' losses, starting rate {rate:g}", x=0.01, ha="left")
    return figure


def rates(runs: Runs) -> Figure:
    """Figure 5: the learning rate over the epochs, a line for each seed."""
    starts = sorted({cell["rate"] for cell, _ in runs}, reverse=True)
    figure = Figure(figsize=(10.4, 0.8 + 1.7 * len(starts)), layout="constrained")
    axes = figure.subplots(len(starts), len(METHODS), squeeze=False, sharex=True, sharey="row")
    for line, start in zip(axes, starts, strict=True):
        for ax, method in zip(line, METHODS, strict=True):
            for cell, values in runs:
                if (cell["rate"], cell["method"]) == (start, method):
                    every = values.get("every", 1)
                    epochs = range(1, every * len(values["rate"]) + 1, every)
                    ax.plot(epochs, values["rate"], color=LOOKS[method][0], lw=0.8, alpha=0.7)
        line[0].set_ylabel(f"rate, from {start:g}")
        line[0].set_ylim(0, 1.1 * start)
    for ax, method in zip(axes[0], METHODS, strict=True):
        ax.set_title(method)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    return figure


def _band(ax: Axes, curves: Sequence[Sequence[float]], method: str, start: int, every: int) -> None:
    """Median and extremes of `curves`, of epoch `start` and each `every` on, while all go on."""
    length = min(map(len, curves))
    columns = list(zip(*(curve[:length] for curve in curves), strict=True))
    epochs = range(start, start + every * length, every)
    color, _ = LOOKS[method]
    medians = [statistics.median(c) for c in columns]
    ax.plot(epochs, medians, color=color, lw=1.0, label=method)
    least, most = [min(c) for c in columns], [max(c) for c in columns]
    ax.fill_between(epochs, least, most, color=color, alpha=0.25, lw=0)
