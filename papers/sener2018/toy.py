"""The min-norm point of two gradients, in its three cases; and the way to a Pareto front."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from evenhand.app import figures
from evenhand.data import toy
from evenhand.linalg import min_norm

CASES = {
    "at g₁: g₁·g₂ ≥ g₁·g₁": ((1.0, 0.3), (2.0, 1.0)),
    "between": ((0.4, 1.6), (2.0, -0.3)),
    "at g₂: g₁·g₂ ≥ g₂·g₂": ((1.9, 1.0), (1.0, 0.1)),
}


def min_norm_points() -> Figure:
    """Each case of the closed form for two tasks: hull, min-norm point, weights."""
    figure = Figure(figsize=(9.0, 3.0), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for ax, (title, pair) in zip(axes, CASES.items(), strict=True):
        gradients = torch.tensor(pair, dtype=torch.float64)
        weights = min_norm(gradients @ gradients.T).weights
        point = weights @ gradients
        for k, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
            ax.annotate("", gradient.tolist(), (0, 0), arrowprops=arrow(figures.PALETTE[k]))
            x, y = gradient.tolist()
            above = -0.24 if weight == 1 else 0.06  # of the hull, which begins at the point
            ax.text(x + 0.06, y + above, f"g{'₁₂'[k]}", color=figures.PALETTE[k])
        ax.plot(*gradients.T, color=figures.GREY, lw=2)
        ax.annotate("", point.tolist(), (0, 0), arrowprops=arrow(figures.PALETTE[3]))
        ax.plot(*point.tolist(), "o", color=figures.PALETTE[3], ms=6)
        told = f"w = ({weights[0]:.2f}, {weights[1]:.2f})"
        ax.set(title=f"{title}\n{told}", xlim=(-0.3, 2.4), ylim=(-0.6, 1.9), aspect="equal")
        ax.set_xlabel("∂/∂θ₁")
    axes[0].set_ylabel("∂/∂θ₂")
    return figure


def arrow(color: str) -> dict[str, object]:
    return {"arrowstyle": "-|>", "color": color, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}


def pareto_front(steps: int) -> Figure:
    """Losses along the ways of the plain sum and of MGDA on the toy landscape, and the front."""
    paths = toy.paths(["sg", "mgda"], lambda a, b: toy.trajectory(a, b, steps=steps, lr=35 / steps))
    front = toy.losses(toy.pareto_set())
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, (name, path) in zip(axes, paths.items(), strict=True):
        ax.plot(*front.T, color=figures.INK, lw=3, label="Pareto front")
        for k, way in enumerate(path.losses.unbind(1)):
            ax.plot(*way.T, color=figures.PALETTE[k], lw=1.2)
            ax.plot(*way[0].tolist(), "o", color=figures.PALETTE[k], ms=4)
            ax.plot(*way[-1].tolist(), "*", color=figures.PALETTE[k], ms=10, zorder=3)
        ax.set(title={"sg": "plain sum", "mgda": "MGDA"}[name], xlabel="L₁")
    axes[0].set_ylabel("L₂")
    axes[0].legend()
    return figure


def draw(folder: Path, steps: int) -> None:
    """Both figures."""
    folder.mkdir(parents=True, exist_ok=True)
    with figures.style():
        figures.save(min_norm_points(), folder / "min-norm.png")
        figures.save(pareto_front(steps), folder / "pareto-front.png")
