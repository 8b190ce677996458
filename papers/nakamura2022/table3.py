"""Table 3 by the paper's rule: five rates, stopped after 10 epochs without improvement.

    python papers/nakamura2022/table3.py                          makes the missing runs
    python papers/nakamura2022/table3.py --only Min-norm Central  those of two rows
    python papers/nakamura2022/table3.py --reading fresh          pictures paired anew, bilinear
    python papers/nakamura2022/table3.py --reading placed         and redrawn where they stand
    python papers/nakamura2022/table3.py --reading near           the same by the nearest neighbour
    python papers/nakamura2022/table3.py --sum-up                 result.json and the figure alone

First seed 0 at every rate; the rate with the best validation is a row's; then the other seeds at
that rate. With EVENHAND_RUNS set to a folder, runs that are killed go on where they were.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import redraw
from and_xor import PAPER
from ledger import EXPECTED, Ledger, key, summary
from matplotlib.figure import Figure

from evenhand.app import figures

HERE = Path(__file__).parent
RATES = (1e-2, 1e-1, 5e-2, 5e-3, 1e-3)
"""In the order in which they are run."""
SEEDS = 5
METRICS = {"upper": "accuracy", "lower": "MSE"}
Cell = Mapping[str, Any]
Done = Mapping[str, Mapping[str, Any]]
Rows = dict[str, dict[str, list[float | None]]]
Printed = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Reading:
    """How the source is read where it leaves something open.

    Attributes:
        experiment: its name in runs.jsonl and result.json.
        note: what result.json says of it.
        settings: other ones than `redraw.SETTINGS`.
    """

    experiment: str
    note: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def cells(self, row: str, rates: Sequence[float], seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Runs of a row."""
        return [redraw.cell(row, rate, seed, **self.settings) for rate in rates for seed in seeds]

    def chosen(self, row: str, rates: Sequence[float], done: Done) -> float | None:
        """The rate with the best validation of those that are run; None where none is."""
        cells = [cell for cell in self.cells(row, rates, [0]) if key(cell) in done]
        known = {cell["rate"]: done[key(cell)]["monitored"] for cell in cells}
        finite = {rate: value for rate, value in known.items() if value is not None}
        return min(finite, key=lambda rate: finite[rate]) if finite else None

    def complete(
        self,
        ledger: Ledger,
        names: Sequence[str],
        rates: Sequence[float],
        seeds: int,
        workers: int,
    ) -> None:
        """The missing runs of both stages."""
        first = [cell for rate in rates for row in names for cell in self.cells(row, [rate], [0])]
        done = ledger.complete(self.experiment, first, redraw.run, workers)
        best = {row: self.chosen(row, rates, done) for row in names}
        rest = [
            cell
            for seed in range(1, seeds)
            for row, rate in best.items()
            if rate is not None
            for cell in self.cells(row, [rate], [seed])
        ]
        ledger.complete(self.experiment, rest, redraw.run, workers)

    def runs(self, row: str, done: Done) -> list[Mapping[str, Any]]:
        """What is run of a row at its rate, of the paper's ten seeds."""
        rate = self.chosen(row, RATES, done)
        cells = [] if rate is None else self.cells(row, [rate], range(10))
        return [done[key(cell)] for cell in cells if key(cell) in done]

    def rows(self, done: Done) -> Rows:
        """Test metrics over seeds of each row at its rate, and how many rates that was of."""
        found: Rows = {}
        for row, (tasks, _) in redraw.AGGREGATORS.items():
            if not (runs := self.runs(row, done)):
                continue
            quantities = found.setdefault("Single task" if len(tasks) == 1 else row, {})
            for task in tasks:
                quantities[METRICS[task]] = summary(run["test"][task] for run in runs)
            told = ", ".join(METRICS[task] for task in tasks)
            tried = sum(key(cell) in done for cell in self.cells(row, RATES, [0]))
            quantities[f"rate ({told})"] = [self.chosen(row, RATES, done), None, tried]
            quantities[f"epochs ({told})"] = summary(float(run["epochs"]) for run in runs)
            if cut := sum(run.get("cut", False) for run in runs):
                quantities[f"runs that the clock cut ({told})"] = [cut, None, len(runs)]
        return found

    def models(self, done: Done) -> list[tuple[str, float, float]]:
        """(row, accuracy, MSE) of every trained model of a row for both tasks, at its rate."""
        return [
            (row, run["test"]["upper"], run["test"]["lower"])
            for row, (tasks, _) in redraw.AGGREGATORS.items()
            if len(tasks) == 2
            for run in self.runs(row, done)
        ]


RULE = (
    "Stopped after 10 epochs in which the mean of the relative validation errors did not improve, "
    "at most 100; batches of 64, our decoder. A row has the number of its seeds beside it; its "
    "rate is the best with seed 0 of as many of the five as that number says."
)
READINGS = {
    "fixed": Reading("MultiMNIST, the paper's rule", RULE),
    "placed": Reading(
        "MultiMNIST, the paper's rule, fresh pairs, digits redrawn in place",
        "Training pictures paired anew in every epoch, made smaller bilinearly; the digit is "
        f"redrawn where it stands on the input, and as small. {RULE}",
        {"fresh": True, "resize": "bilinear", "placed": True},
    ),
    "fresh": Reading(
        "MultiMNIST, the paper's rule, fresh pairs",
        f"Training pictures paired anew in every epoch, made smaller bilinearly. {RULE}",
        {"fresh": True, "resize": "bilinear"},
    ),
    "near": Reading(
        "MultiMNIST, the paper's rule, fresh pairs, nearest neighbour, digits redrawn in place",
        "Training pictures paired anew in every epoch, made smaller by the nearest neighbour; the "
        f"digit is redrawn where it stands on the input, and as small. {RULE}",
        {"fresh": True, "placed": True},
    ),
}


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


def reach(found: Rows, runs: Sequence[tuple[str, Mapping[str, Any]]], printed: Printed) -> None:
    """Put what any epoch of any run of a row comes to on the validation set into the rows.

    That is the best value of each metric, and how far the epoch that is nearest to both printed
    numbers is from the farther one, in its ±. No rule to stop and no choice of a rate does better.
    Then the most that a metric comes to where the other is inside its printed ±, if it ever is.
    """
    for row, values in runs:
        curves = {METRICS[task]: curve[1:] for task, curve in values["curves"].items()}
        name = row if len(curves) == 2 else "Single task"
        for metric, curve in curves.items():
            better = max if metric == "accuracy" else min
            told = f"{metric}, best validation at any epoch of any run"
            before = found[name].get(told, [curve[0]])
            found[name][told] = [better(before[0], *curve), None, 1]
        if len(curves) == 2:
            mine = printed[row.replace(" (exact)", "")]
            apart = min(
                max(abs(x - mine[m][0]) / mine[m][1] for m, x in zip(curves, pair, strict=True))
                for pair in zip(*curves.values(), strict=True)
            )
            told = "farther printed number at the nearest epoch of any run, in its ±"
            before = found[name].get(told, [apart])
            found[name][told] = [min(before[0], apart), None, 1]
            for of, other in (("accuracy", "MSE"), ("MSE", "accuracy")):
                mean, spread = mine[other]
                pairs = zip(curves[of], curves[other], strict=True)
                if there := [x for x, y in pairs if abs(y - mean) <= spread]:
                    told = f"{of} at most, in epochs of any run with the printed {other}"
                    before = found[name].get(told, [there[0]])
                    found[name][told] = [max(before[0], *there), None, 1]


def ended(runs: Sequence[Mapping[str, Any]]) -> str:
    """How many runs ended by what."""
    ends = Counter(map(_end, runs))
    told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items(), reverse=True))
    return f"Of {len(runs)} runs ended {told}."


def _end(run: Mapping[str, Any]) -> str:
    if "diverged" in run:
        return "by diverging"
    if run["epochs"] == run["best epoch"] + redraw.SETTINGS["patience"]:
        return "by the rule"
    return f"by the clock after {run['epochs']} epochs" if run.get("cut") else "at the cap"


def sum_up(name: str, ledger: Ledger) -> None:
    """The rows of what is run in a reading, and Figure 9."""
    reading, file = READINGS[name], f"figure9-{name}.png"
    done = ledger.found_or_cut(reading.experiment, redraw.SETTINGS["epochs"])
    found = reading.rows(done)
    printed = json.loads((HERE / EXPECTED).read_text())["experiments"]
    runs = [(json.loads(told)["row"], values) for told, values in done.items()]
    reach(found, runs, printed[READINGS["fixed"].experiment]["rows"])
    for row, quantities in found.items():
        told = (f"{q} {v[0]:.4f} ± {v[1] or 0:.4f} ({v[2]})" for q, v in quantities.items())
        print(f"  {row:26}" + "  ".join(told))
    note = f"{reading.note} {ended(list(done.values()))}"
    ledger.write(reading.experiment, found, PAPER, note)
    if models := reading.models(done):
        single = {q: v[0] for q, v in found.get("Single task", {}).items() if v[0] is not None}
        folder = ledger.folder / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        with figures.style():
            figures.save(plane(models, single), folder / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reading", choices=list(READINGS), default="fixed", help="of the source")
    parser.add_argument("--only", nargs="+", choices=list(redraw.AGGREGATORS), help="some rows")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="some rates")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"runs at the best rate [{SEEDS}]")
    parser.add_argument(
        "--sum-up", action="store_true", help="only the runs that are there already"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes at a time [1]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results [here]")
    asked = parser.parse_args()
    ledger, reading = Ledger(asked.out), READINGS[asked.reading]
    if not asked.sum_up:
        names = asked.only or list(redraw.AGGREGATORS)
        reading.complete(ledger, names, asked.rates, asked.seeds, asked.workers)
    sum_up(asked.reading, ledger)


if __name__ == "__main__":
    main()
