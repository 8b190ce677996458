"""Figures 2 to 5: the data, loss bands over seeds, and the rates that the plateaus leave."""

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
    with figures.style():
        if name == "quadrants":
            figures.save(data(), folder / "figure2-data.png")
        losses = bands(runs, "validation", "validation loss, Σ of both tasks")
        figures.save(losses, folder / f"{name}-loss.png")
        figures.save(bands(runs, "rate", "learning rate"), folder / f"{name}-rate.png")


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


def bands(runs: Runs, quantity: str, label: str) -> Figure:
    """Per rate a panel, per method a line (mean over seeds) and a band (least to most)."""
    rates = sorted({cell["rate"] for cell, _ in runs}, reverse=True)
    figure = Figure(figsize=(3.7 * len(rates), 3.2), layout="constrained")
    axes = figure.subplots(1, len(rates), squeeze=False)[0]
    for ax, rate in zip(axes, rates, strict=True):
        for method in METHODS:
            curves = [v[quantity] for c, v in runs if (c["rate"], c["method"]) == (rate, method)]
            if curves:
                _band(ax, curves, method)
        ax.set(title=f"starting rate {rate:g}", xlabel="epoch", yscale="log")
    axes[0].set_ylabel(label)
    drawn = {line.get_label(): line for ax in axes for line in ax.get_lines()}
    known = {method: drawn[method] for method in METHODS if method in drawn}
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=4 if len(rates) > 1 else 2
    )
    return figure


def _band(ax: Axes, curves: Sequence[Sequence[float]], method: str) -> None:
    length = min(map(len, curves))
    columns = list(zip(*(curve[:length] for curve in curves), strict=True))
    epochs = range(length)
    color, dashes = LOOKS[method]
    means = [statistics.mean(c) for c in columns]
    ax.plot(epochs, means, color=color, ls=dashes, lw=1.2, label=method)
    least, most = [min(c) for c in columns], [max(c) for c in columns]
    ax.fill_between(epochs, least, most, color=color, alpha=0.2, lw=0)
