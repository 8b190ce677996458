"""Table 3: tell the upper-left digit, redraw the lower-right one. Figure 9: how training went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ledger import Ledger
from matplotlib.figure import Figure
from staged import Study, complete

from evenhand.app import figures

NAME = "MultiMNIST"
STUDY = Study(
    source="multimnist-redraw",
    rows={
        "single-task": "Single task",
        "uniform": "Uniform",
        "mgda": "Min-norm",
        "central": "Central",
        "min-norm+tension": "Min-norm + tension",
        "central+tension": "Central + tension",
    },
    rates=(1e-2, 5e-2, 1e-1),
    seeds=3,
    epochs=10,
    batch=64,
)
NOTE = "3 of 10 seeds, best of 3 of the 5 rates, at most 10 epochs, batches of 64, our decoder."


def reproduce(ledger: Ledger, paper: str, workers: int) -> None:
    """The missing runs, the rows of Table 3, and the figure."""
    rows = complete(ledger, NAME, STUDY, workers)
    for name, quantities in rows.items():
        told = (f"{q} {v[0]:.4f} ± {v[1] or 0:.4f}" for q, v in quantities.items() if v[2] > 1)
        print(f"  {name:20}" + "  ".join(told))
    renamed = {
        row: {{"upper": "accuracy", "lower": "MSE"}.get(q, q): v for q, v in quantities.items()}
        for row, quantities in rows.items()
    }
    ledger.write(NAME, renamed, paper, NOTE)
    done = [x for x in ledger.lines if x["experiment"] == NAME]
    draw([(line["cell"], line["values"]) for line in done], ledger.folder)


def draw(runs: list[tuple[dict[str, Any], dict[str, Any]]], folder: Path) -> None:
    """Validation metrics over epochs; per recipe the rate that stands in the table."""
    with figures.style():
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        axes = figure.subplots(1, 2)
        labels = {"upper": "accuracy, upper-left digit", "lower": "MSE, lower-right digit"}
        for ax, (task, label) in zip(axes, labels.items(), strict=True):
            looks = zip(figures.PALETTE, figures.DASHES, STUDY.rows.items(), strict=False)
            for color, dashes, (name, told) in looks:
                mine = [(c, v) for c, v in runs if c["recipe"] == name and task in v["test"]]
                seeds = [c["rate"] for c, _ in mine if c["seed"] == 1]
                curves = [v["curves"][task] for c, v in mine if c["rate"] in seeds]
                for k, curve in enumerate(curves):
                    label_once = told if k == 0 else None
                    ax.plot(curve, color=color, ls=dashes, lw=1.1, label=label_once)
            ax.set(xlabel="epoch", ylabel=label)
        ticks = [0.03, 0.04, 0.06, 0.1]
        axes[1].set(yscale="log", yticks=ticks, yticklabels=map(str, ticks))
        axes[1].minorticks_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        folder = folder / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        figures.save(figure, folder / "figure9.png")
