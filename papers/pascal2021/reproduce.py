"""Pascal et al. (2021): independent task steps and random grouping, on pairs of MNIST digits.

    python papers/pascal2021/reproduce.py --quick     seconds, on whatever EVENHAND_DATA has
    python papers/pascal2021/reproduce.py --full      as much as the README says; needs MNIST

Three tables: at the rates that the paper has for CelebA, at rates that validation chose, and the
sum trained for as much work as independent steps take. CelebA, Cityscapes and NYUv2, the paper's
data, are run by `official.py`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import staged
from ledger import Ledger, key, summary
from matplotlib.figure import Figure

from evenhand.app import figures
from evenhand.comparison.request import load_problem

HERE = Path(__file__).parent
PAPER = "Pascal, Michiardi, Bost, Huet & Zuluaga, arXiv 2109.11678"
NAME = "MultiMNIST, eight tasks"
CHOSEN = f"{NAME}, rates by validation"
LONGER = f"{NAME}, as much work"
RATES = {
    **{"sus": 1e-3, "ius": 1e-4, "io": 1e-4, "ius-groups": 5e-4, "io-groups": 5e-4},
    **{"uniform": 1e-3, "gradnorm": 1e-3, "pcgrad": 1e-3, "mgda-ub": 1e-3},
}
"""The paper's rates for CelebA: SUS 1e-3, independent steps 1e-4, grouped 5e-4; the baselines'
are not in our copy and take that of SUS."""
STUDY = staged.Study(
    source="multimnist-many",
    rows={name: name for name in RATES},
    rates=(),
    seeds=3,
    epochs=8,
    batch=256,
    optimizer="adam",
    samples=10_000,
    observe_every=4,
)
CHOICE = replace(
    STUDY,
    rows={name: name for name in ("sus", "ius", "io", "io-groups")},
    rates=(1e-4, 5e-4, 1e-3, 2e-3),
)
LONG = replace(CHOICE, epochs=8 * STUDY.epochs)
QUICK = replace(STUDY, seeds=1, epochs=1, samples=300)
NOTE = (
    "Our tasks, not the paper's data: the first 10,000 pairs, Adam, batches of 256, 8 epochs, 3 "
    "seeds, the paper's rates for CelebA."
)
CHOSEN_NOTE = "Likewise, four recipes, each at the best of four rates by validation with seed 0."
LONGER_NOTE = (
    "The sum alone, at the rate chosen for it, for at most 64 epochs (as many passes through the "
    "trunk as the steps for eight tasks make in 8), stopped after 10 without improvement."
)
ACCURACIES = ("left", "right", "left-parity", "right-parity", "larger", "equal")
Runs = Mapping[str, list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="one epoch on 300 pairs")
    size.add_argument("--full", action="store_true", help="as much as the README says")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time [1]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results [here]")
    asked = parser.parse_args()
    ledger, study = Ledger(asked.out), QUICK if asked.quick else STUDY
    runs = reproduce(ledger, study, RATES, NAME, NOTE, asked.workers)
    with figures.style():
        (asked.out / "figures").mkdir(parents=True, exist_ok=True)
        figures.save(paths(runs), asked.out / "figures" / "paths.png")
    if not asked.quick:
        rows = staged.complete(ledger, NAME, CHOICE, asked.workers)
        chosen = f"rate ({', '.join(load_problem(CHOICE.source).tasks)})"
        rates = {name: quantities[chosen][0] for name, quantities in rows.items()}
        reproduce(ledger, CHOICE, rates, CHOSEN, CHOSEN_NOTE, asked.workers)
        reproduce(ledger, LONG, {"sus": rates["sus"]}, LONGER, LONGER_NOTE, asked.workers)


def reproduce(
    ledger: Ledger,
    study: staged.Study,
    rates: Mapping[str, float],
    experiment: str,
    note: str,
    workers: int,
) -> Runs:
    """Every recipe at its rate: the missing runs, and a table under the name `experiment`."""
    cells = [
        study.cell(name, "", rate, seed)
        for seed in range(study.seeds)
        for name, rate in rates.items()
    ]
    found = ledger.complete(NAME, cells, staged.run, workers)
    runs = {name: [found[key(cell)] for cell in cells if cell["recipe"] == name] for name in rates}
    rows = {name: {"rate": [rates[name], None, 1], **row(runs[name])} for name in runs}
    cost = math.fsum(ledger.cpu_seconds(NAME, **cell) for cell in cells)
    ledger.write(experiment, rows, PAPER, note, cost)
    print(experiment)
    for name, quantities in rows.items():
        print(f"  {name:12}" + "  ".join(f"{q} {v[0]:.4g}" for q, v in quantities.items()))
    return runs


def row(runs: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Test metrics of the tasks, the length of the shared parameters' path, time per epoch."""
    accuracies = [statistics.fmean(values["test"][task] for task in ACCURACIES) for values in runs]
    found = {"mean accuracy": summary(accuracies)}
    found |= {task: summary(values["test"][task] for values in runs) for task in runs[0]["test"]}
    found["path"] = summary(sum(values["path"]) for values in runs)
    found["seconds per epoch"] = summary(values["seconds per epoch"] for values in runs)
    return found


def paths(runs: Runs) -> Figure:
    """How far the shared parameters have gone, and how two unlike tasks fare meanwhile."""
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    dashings = figures.DASHES + figures.DASHES[2:] + figures.DASHES[:2]  # no look comes twice
    colors = (*figures.PALETTE, figures.INK, figures.GREY)
    looks = dict(zip(runs, zip(colors, dashings, strict=False), strict=False))
    for name, several in runs.items():
        color, dashes = looks[name]
        travelled = [list(accumulate(values["path"], initial=0.0)) for values in several]
        curves = [travelled, *([v["curves"][t] for v in several] for t in ("left", "lower"))]
        for ax, curve in zip(axes, curves, strict=True):
            mean = [statistics.fmean(column) for column in zip(*curve, strict=False)]
            ax.plot(mean, color=color, ls=dashes, lw=1.3, label=name)
    labels = (
        "path of shared parameters, L2",
        "accuracy, left digit",
        "MSE, right digit redrawn",
    )
    for ax, label in zip(axes, labels, strict=True):
        ax.set(xlabel="epoch", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=9)
    return figure


if __name__ == "__main__":
    main()
