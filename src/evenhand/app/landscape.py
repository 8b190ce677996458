"""Where each method goes on the toy landscape of two conflicting losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evenhand.app import figures
from evenhand.app.figures import INK, PALETTE
from evenhand.app.progress import Say
from evenhand.data import toy
from evenhand.data.toy import Paths

COLUMNS = 6
EDGE = (-11.5, 11.5)
"""What of either parameter is drawn."""


def walk(names: Sequence[str], say: Say, steps: int = 3_500) -> dict[str, Paths]:
    """The paths of the recipes that can be drawn; why others cannot is said.

    A tenth of the papers' 35,000 steps at ten times their rate: the same picture.

    Raises:
        ValueError: none of them can be drawn.
    """
    run = partial(toy.trajectory, lr=35.0 / steps, steps=steps, every=max(1, steps // 140))
    found: dict[str, Paths] = {}
    for number, name in enumerate(names, start=1):
        try:
            found |= toy.paths([name], run)
            say(f"[{number}/{len(names)}] {name}")
        except ValueError as error:
            say(f"[{number}/{len(names)}] {name} is left out: {error}")
    if not found:
        raise ValueError("none of these recipes can be drawn on the landscape")
    return found


def draw(paths: Mapping[str, Paths]) -> Figure:
    """A panel per method, a colour per start; behind them the height of the mean of both losses."""
    figure, axes = figures.panels(len(paths), columns=COLUMNS, size=(1.9, 2.0))
    ticks = torch.linspace(*EDGE, 160, dtype=torch.float64)
    x, y = torch.meshgrid(ticks, ticks, indexing="xy")
    height = toy.losses(torch.stack((x, y), -1)).mean(-1)
    front = toy.pareto_set()
    for (name, path), ax in zip(paths.items(), axes, strict=True):
        ax.contour(
            x, y, height, levels=14, colors=INK, alpha=0.35, linewidths=0.5, linestyles="solid"
        )
        ax.plot(front[:, 0], front[:, 1], color=INK, lw=2.5, alpha=0.8)
        for way, color in zip(path.theta.unbind(1), cycle(PALETTE), strict=False):
            ax.plot(way[:, 0], way[:, 1], color=color, lw=1.3)
            ax.plot(*way[0].tolist(), "o", color=color, ms=3.5, mew=0)
            ax.plot(*way[-1].tolist(), "*", color=color, ms=9, mec="white", mew=0.6, zorder=3)
        ax.set(title=name, xlim=EDGE, ylim=EDGE, xticks=[-10, 0, 10], yticks=[-10, 0, 10])
        ax.grid(False)
        ax.tick_params(labelleft=False, labelbottom=False)
    for ax in axes[::COLUMNS]:
        ax.set_ylabel("θ₂")
        ax.tick_params(labelleft=True)
    for ax in axes[-COLUMNS:]:
        ax.set_xlabel("θ₁")
        ax.tick_params(labelbottom=True)
    figures.legend(
        figure,
        {
            "start": Line2D([], [], ls="", marker="o", color=INK, ms=4, mew=0),
            "end": Line2D([], [], ls="", marker="*", color=INK, ms=9, mew=0),
            "Pareto set": Line2D([], [], color=INK, lw=2.5),
        },
    )
    return figure
