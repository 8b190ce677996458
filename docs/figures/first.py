"""Draw the README's picture from benchmarks/results/landscape.json: `python docs/figures/first.py`.

Two losses in conflict on the toy landscape, five starts, two ways of descending: the plain sum of
the losses and the central direction. Grey ink on nothing, so that it reads on light and dark.
"""

import json
from itertools import cycle
from pathlib import Path

import torch
from matplotlib.axes import Axes

from evenhand.app import figures
from evenhand.app.figures import INK, PALETTE
from evenhand.data import toy

HERE = Path(__file__).parent
RESULT = HERE.parents[1] / "benchmarks" / "results" / "landscape.json"
PANELS = {
    "sg": "the plain sum: task 2 takes nearly all",
    "central": "balanced (CentralDirection): both are served",
}
EDGE = (-11, 11)


def panel(ax: Axes, name: str) -> None:
    """The ways of one recipe, from dots to stars."""
    theta = torch.tensor(json.loads(RESULT.read_text())["paths"][name], dtype=torch.float64)
    ticks = torch.linspace(*EDGE, 160, dtype=torch.float64)
    x, y = torch.meshgrid(ticks, ticks, indexing="xy")
    height = toy.losses(torch.stack((x, y), -1)).mean(-1)
    ax.contour(x, y, height, levels=14, colors=INK, alpha=0.25, linewidths=0.5)
    front = toy.pareto_set()
    ax.plot(front[:, 0], front[:, 1], color=INK, lw=4, alpha=0.75, solid_capstyle="round")
    for way, color in zip(theta.unbind(1), cycle(PALETTE), strict=False):
        ax.plot(way[:, 0], way[:, 1], color=color, lw=1.8)
        ax.plot(*way[0].tolist(), "o", color=color, ms=5, mew=0)
        ax.plot(*way[-1].tolist(), "*", color=color, ms=14, mec="white", mew=0.8, zorder=3)
    for task, where in ((2, -7.0), (1, 7.0)):
        ax.annotate(
            f"best for\ntask {task}", (where, -9.2), ha="center", va="top", annotation_clip=False
        )
    ax.set(xlim=EDGE, ylim=(-12.5, 10.5), xticks=[], yticks=[])
    ax.set_title(PANELS[name], loc="center", fontsize=11)
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


with figures.style():
    figure, axes = figures.panels(2, columns=2, size=(3.9, 3.4))
    for ax, name in zip(axes, PANELS, strict=True):
        panel(ax, name)
    figures.save(figure, HERE / "first.png")
