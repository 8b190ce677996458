"""Figure 6: angles of the task gradients to the common direction, and their norms, over training.

The paper's panels are not described beyond that; ours are three methods, XOR targets times 10,
rate 5e-2, the one initialisation, one order of the data.
"""

from __future__ import annotations

from pathlib import Path

import and_xor
from matplotlib.figure import Figure

from evenhand.app import figures

METHODS = ("Min-norm", "Central", "Central + tension")
QUANTITIES = {"angles": "angle to the direction (degrees)", "norms": "gradient norm"}
SCALE, RATE, ORDER = 10, 5e-2, 0


def draw(folder: Path, epochs: int) -> Path:
    """Six panels, a point per step; `epochs` is the most that a method is followed."""
    with figures.style():
        figure = Figure(figsize=(9.9, 5.0), layout="constrained")
        axes = figure.subplots(2, 3, sharex="col", sharey="row")
        for column, name in enumerate(METHODS):
            (row,) = (row for row in and_xor.ROWS if row.name == name)
            end, traces = and_xor.train(row, [ORDER], [SCALE], [RATE], epochs, True, trace=True)
            for ax, (key, label) in zip(axes[:, column], QUANTITIES.items(), strict=True):
                for k, task in enumerate(row.tasks):
                    values = [trace[key][k] for trace in traces]
                    times = [step / 2 for step in range(len(values))]
                    look = {"color": figures.PALETTE[k], "lw": (1.5, 0.7)[k]}  # one may hide one
                    ax.plot(times, values, label=task.upper(), **look)
                if column == 0:
                    ax.set_ylabel(label)
            reached = int(end[0])
            told = f"converged in epoch {reached}" if reached >= 0 else f"not in {epochs} epochs"
            axes[0, column].set_title(f"{name}: {told}")
            axes[0, column].axhline(90, color=figures.GREY, lw=0.8, ls="--")
            axes[1, column].set_xlabel("epoch")
        axes[1, 0].set_yscale("log")
        axes[0, 0].legend()
        figure.patch.set_facecolor("white")
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "figure6.png"
        figure.savefig(file, dpi=150)
    return file
