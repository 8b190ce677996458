"""Figure 6: angles of the task gradients to the common direction, and norms, over training.

Five methods, XOR targets times 10, rate 5e-2, the one initialisation, one order of the data. The
paper draws angles and norms in one panel with two axes; here norms have a row of their own. The
rate and the order of its panels' runs are not told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import and_xor
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evenhand.app import figures

METHODS = ("Uniform", "Central", "Min-norm", "Central + tension", "Min-norm + tension")
SCALE, RATE, ORDER = 10, 5e-2, 0
LOOKS = {  # the later ones are thinner, for one may hide another
    "AND": {"color": figures.PALETTE[3], "lw": 1.6},
    "XOR": {"color": figures.PALETTE[0], "lw": 0.8},
    "direction": {"color": figures.PALETTE[1], "lw": 0.8, "ls": "--"},
}
Trace = Sequence[Mapping[str, list[float]]]


def draw(folder: Path, epochs: int) -> dict[str, dict[str, list[float | None]]]:
    """Ten panels, a point per step; `epochs` is the most that a method is followed.

    Returns:
        For each method the share of steps in which a task's angle to the direction is obtuse.
    """
    shares = {}
    with figures.style():
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        axes = figure.subplots(2, len(METHODS), sharey="row")
        for column, name in zip(axes.T, METHODS, strict=True):
            end, trace = followed(name, epochs)
            _panels(column, trace, and_xor.BOTH)
            shares[name] = obtuse(trace, and_xor.BOTH)
            told = f"epoch {end}" if end >= 0 else f"not in {epochs} epochs"
            column[0].set_title(f"{name}\nconverged: {told}")
            column[0].set_ylim(0, 180)
            column[0].set_yticks([0, 45, 90, 135, 180])
            column[1].set_xlabel("epoch")
            figures.logarithmic(column[1], decades=3)
        axes[0, 0].set_ylabel("angle to the direction (°)")
        axes[1, 0].set_ylabel("norm")
        figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        folder.mkdir(parents=True, exist_ok=True)
        figures.save(figure, folder / "figure6.png")
    return shares


def followed(name: str, epochs: int) -> tuple[int, Trace]:
    """The epoch in which a method converged (−1: never), and what it did in every step."""
    (row,) = (row for row in and_xor.ROWS if row.name == name)
    end, trace = and_xor.train(row, [ORDER], [SCALE], [RATE], epochs, True, trace=True)
    return int(end[0]), trace


def _panels(column: Sequence[Axes], trace: Trace, tasks: Sequence[str]) -> None:
    times = [step / 2 for step in range(len(trace))]
    order = sorted(range(len(tasks)), key=lambda k: tasks[k])  # AND below, XOR above
    for k in order:
        task = tasks[k].upper()
        column[0].plot(times, [step["angles"][k] for step in trace], label=task, **LOOKS[task])
        column[1].plot(times, [step["norms"][k] for step in trace], label=task, **LOOKS[task])
    lengths = [step["direction"][0] for step in trace]
    column[1].plot(times, lengths, label="common direction", **LOOKS["direction"])
    column[0].axhline(90, color=figures.GREY, lw=0.8, ls=":")


def obtuse(trace: Trace, tasks: Sequence[str]) -> dict[str, list[float | None]]:
    """The share in % of the steps in which a task's angle to the direction is above 90.1°.

    The tenth of a degree leaves out what a feasible direction misses 90° by in single precision.
    """
    return {
        f"{task.upper()} obtuse, % of steps": [
            100 * sum(step["angles"][k] > 90.1 for step in trace) / len(trace),
            None,
            len(trace),
        ]
        for k, task in enumerate(tasks)
    }
