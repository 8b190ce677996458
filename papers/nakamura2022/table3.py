"""Table 3 by the paper's rule: five rates, stopped after 10 epochs without improvement.

    python papers/nakamura2022/table3.py                          makes the missing runs
    python papers/nakamura2022/table3.py --only Min-norm Central  those of two rows
    python papers/nakamura2022/table3.py --sum-up                 result.json and the figure alone

First seed 0 at every rate; the rate with the best validation is a row's; then the other seeds at
that rate. With EVENHAND_RUNS set to a folder, runs that are killed go on where they were.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import redraw
from and_xor import PAPER
from ledger import Ledger, key, summary
from matplotlib.figure import Figure

from evenhand.app import figures

HERE = Path(__file__).parent
NAME = "MultiMNIST, the paper's rule"
RATES = (1e-2, 1e-1, 5e-2, 5e-3, 1e-3)
"""In the order in which they are run."""
SEEDS = 5
METRICS = {"upper": "accuracy", "lower": "MSE"}
Done = Mapping[str, Mapping[str, Any]]
Rows = dict[str, dict[str, list[float | None]]]


def first(row: str) -> list[dict[str, Any]]:
    """Seed 0 at every rate."""
    return [redraw.cell(row, rate, 0) for rate in RATES]


def others(row: str, rate: float) -> list[dict[str, Any]]:
    """The other seeds of the paper's ten at the rate that was chosen."""
    return [redraw.cell(row, rate, seed) for seed in range(1, 10)]


def chosen(row: str, done: Done) -> float | None:
    """A row's rate: the best of the five, of those that are run."""
    return best(first(row), done)


def complete(
    ledger: Ledger,
    names: Sequence[str],
    rates: Sequence[float],
    seeds: int,
    workers: int,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """The missing runs of both stages; `settings` are other ones than the usual."""
    other = settings or {}
    start = [redraw.cell(row, rate, 0, **other) for rate in rates for row in names]
    done = ledger.complete(NAME, start, redraw.run, workers)
    rest = []
    for seed in range(1, seeds):
        for row in names:
            rate = best([c for c in start if c["row"] == row], done)
            if rate is not None:
                rest.append(redraw.cell(row, rate, seed, **other))
    ledger.complete(NAME, rest, redraw.run, workers)


def best(cells: Sequence[Mapping[str, Any]], done: Done) -> float | None:
    """The rate with the best validation of the cells that are run; None where none is."""
    known = {c["rate"]: done[key(c)]["monitored"] for c in cells if key(c) in done}
    finite = {rate: value for rate, value in known.items() if value is not None}
    return min(finite, key=lambda rate: finite[rate]) if finite else None


def rows(done: Done) -> Rows:
    """Test metrics over seeds of each row at its rate, and how many rates it was chosen from."""
    found: Rows = {}
    for row in redraw.AGGREGATORS:
        rate = chosen(row, done)
        if rate is None:
            continue
        cells = [redraw.cell(row, rate, 0), *others(row, rate)]
        runs = [done[key(c)] for c in cells if key(c) in done]
        tried = sum(key(c) in done for c in first(row))
        name = "Single task" if row.startswith("Single") else row
        quantities = found.setdefault(name, {})
        tasks = redraw.AGGREGATORS[row][0]
        for task in tasks:
            quantities[METRICS[task]] = summary(run["test"][task] for run in runs)
        told = ", ".join(METRICS[task] for task in tasks)
        quantities[f"rate ({told})"] = [rate, None, tried]
        quantities[f"epochs ({told})"] = summary(float(run["epochs"]) for run in runs)
    return found


def points(done: Done) -> list[tuple[str, float, float]]:
    """(row, accuracy, MSE) of every trained model of a row for both tasks, at its rate."""
    found = []
    for row, (tasks, _) in redraw.AGGREGATORS.items():
        rate = chosen(row, done)
        if rate is None or len(tasks) < 2:
            continue
        for cell in [redraw.cell(row, rate, 0), *others(row, rate)]:
            if key(cell) in done:
                test = done[key(cell)]["test"]
                found.append((row, test["upper"], test["lower"]))
    return found


def plane(models: Sequence[tuple[str, float, float]], single: Mapping[str, float]) -> Figure:
    """Figure 9: a point per trained model; single tasks are the dotted lines; MSE downwards."""
    figure = Figure(figsize=(6.8, 3.9), layout="constrained")
    ax = figure.subplots()
    names = list(dict.fromkeys(row for row, *_ in models))
    for name, color, marker in zip(names, figures.PALETTE, figures.MARKERS, strict=False):
        x, y = zip(*((a, b) for row, a, b in models if row == name), strict=True)
        ax.plot(x, y, marker, color=color, ms=5, label=name, alpha=0.8)
    baseline = {"color": figures.INK, "lw": 0.9, "ls": ":"}
    if "accuracy" in single:
        ax.axvline(single["accuracy"], **baseline, label="single task, mean")
    if "MSE" in single:
        ax.axhline(single["MSE"], **baseline)
    ax.invert_yaxis()
    ax.set(xlabel="accuracy, upper-left digit", ylabel="MSE, lower-right digit (downwards)")
    ax.set_title("better ↗")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", labelspacing=0.8)
    return figure


def sum_up(ledger: Ledger) -> None:
    """The rows of what is run, and Figure 9."""
    done = ledger.found(NAME)
    found = rows(done)
    for row, quantities in found.items():
        told = (f"{q} {v[0]:.4f} ± {v[1] or 0:.4f} ({v[2]})" for q, v in quantities.items())
        print(f"  {row:26}" + "  ".join(told))
    ledger.write(NAME, found, PAPER, NOTE)
    models = points(done)
    if models:
        single = {q: v[0] for q, v in found.get("Single task", {}).items() if v[0] is not None}
        folder = ledger.folder / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        with figures.style():
            figures.save(plane(models, single), folder / "figure9-rule.png")


NOTE = (
    "Stopped after 10 epochs in which the mean of the relative validation errors did not improve, "
    "at most 100; batches of 64, our decoder. A row has the number of its seeds beside it; its "
    "rate is the best with seed 0 of as many of the five as that number says."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(redraw.AGGREGATORS), help="some rows")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="some rates")
    parser.add_argument(
        "--sum-up", action="store_true", help="only the runs that are there already"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes at a time [1]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results [here]")
    asked = parser.parse_args()
    ledger = Ledger(asked.out)
    if not asked.sum_up:
        names = asked.only or list(redraw.AGGREGATORS)
        complete(ledger, names, asked.rates, SEEDS, asked.workers)
    sum_up(ledger)


if __name__ == "__main__":
    main()
