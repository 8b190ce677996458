"""Table 3 with at most ten epochs: every row with three seeds at the best of three rates.

`table3.py` has the paper's rule; this is what was made in less time, exact min-norm and all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger import Ledger
from matplotlib.figure import Figure
from staged import Study, complete
from table3 import plane

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
    runs = [(line["cell"], line["values"]) for line in done]
    folder = ledger.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    training(runs, folder / "multimnist-training.png")
    single = {q: renamed["Single task"][q][0] or 0.0 for q in ("accuracy", "MSE")}
    with figures.style():
        figures.save(plane(models(runs, rows), single), folder / "figure9.png")


Runs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def models(runs: Runs, rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """(row, accuracy, MSE) of every model of a row for both tasks, at the row's rate."""
    return [
        (told, values["test"]["upper"], values["test"]["lower"])
        for name, told in STUDY.rows.items()
        for cell, values in runs
        if cell["recipe"] == name
        and len(values["test"]) == 2
        and cell["rate"] == rows[told]["rate (upper, lower)"][0]
    ]


def training(runs: Runs, file: Path) -> None:
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
        figures.save(figure, file)
