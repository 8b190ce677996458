"""MultiMNIST, left and right digit: the methods' table and the accuracy plane."""

from __future__ import annotations

from dataclasses import replace

from ledger import Ledger
from matplotlib.figure import Figure
from staged import Study, complete

from evenhand.app import figures

NAME = "MultiMNIST"
STUDY = Study(
    source="multimnist",
    rows={
        "single-task": "Single task",
        "sg": "Uniform",
        "grid": "Grid search",
        "uncertainty": "Uncertainty",
        "gradnorm": "GradNorm",
        "mgda": "MGDA",
        "mgda-ub": "MGDA-UB",
    },
    rates=(1e-2, 5e-2),
    seeds=3,
    epochs=6,
    batch=256,
)
LONG = "MultiMNIST, 100 epochs"
LONG_STUDY = replace(STUDY, epochs=100, patience=100, decay=0.85)
"""The paper's length and its decay of the rate, for a GPU: `papers/gpu.py sener`."""
NOTE = (
    "3 seeds, better of 2 rates, at most 6 epochs without the paper's decay of the rate (100 "
    "epochs there), batches of 256; torch's dropout instead of the released one."
)


def reproduce(ledger: Ledger, paper: str, workers: int) -> None:
    """The missing runs, the rows, the figure."""
    rows = complete(ledger, NAME, STUDY, workers)
    for name, quantities in rows.items():
        told = (f"{q} {v[0]:.4f} ± {v[1] or 0:.4f}" for q, v in quantities.items() if v[2] > 1)
        print(f"  {name:14}" + "  ".join(told))
    renamed = {
        row: {f"{q} accuracy" if q in ("left", "right") else q: v for q, v in quantities.items()}
        for row, quantities in rows.items()
    }
    ledger.write(NAME, renamed, paper, NOTE)
    with figures.style():
        figure = plane(rows)
        (ledger.folder / "figures").mkdir(parents=True, exist_ok=True)
        figures.save(figure, ledger.folder / "figures" / "accuracy-plane.png")


def plane(rows: dict[str, dict[str, list[float | None]]]) -> Figure:
    """Accuracy of the right digit against that of the left one; bars are ± one deviation."""
    figure = Figure(figsize=(5.8, 3.6), layout="constrained")
    ax = figure.subplots()
    for (name, row), color, marker in zip(
        rows.items(), figures.PALETTE, figures.MARKERS, strict=False
    ):
        (x, dx, _), (y, dy, _) = row["left"], row["right"]
        bars = {"xerr": dx, "yerr": dy, "lw": 0.8}
        # A grid that has chosen equal weights lies under the point of the plain sum.
        size, fill = (10, "none") if name == "Grid search" else (7, "full")
        look = {"fmt": marker, "color": color, "ms": size, "fillstyle": fill, "label": name}
        ax.errorbar(x, y, **look, **bars)
    ax.locator_params(nbins=5)
    ax.set(xlabel="accuracy, left digit ↑", ylabel="accuracy, right digit ↑", title="better ↗")
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", labelspacing=0.8)
    return figure
