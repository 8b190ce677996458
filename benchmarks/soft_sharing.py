"""Soft sharing against hard sharing, at equal numbers of parameters and at those of T networks.

    python benchmarks/soft_sharing.py                          # runs, and writes the results
    python benchmarks/soft_sharing.py --only diabetes --splits 3 --out /tmp/some.json

Two problems that ship with a dependency. `digits`, whose plain sum starves a task; and a table,
scikit-learn's `diabetes` (442 patients, Efron et al. 2004), of which three columns are targets: the
progression after a year, blood pressure, and the logarithm of triglycerides (`s5`).

At equal size: one network for each task that together have the parameters of the shared one, and
the shared one as it is. At full size: one network for each task, each as large as the shared one,
and a shared one that is so much wider that it has their parameters. In every split validation
chooses the rate of every row; of a tied network also the weight of the penalty, of two, so these
have twice as many tries. Every split draws its own parts, weights and order.

Skill is 0 for the best constant and 100 for perfect, the mean over tasks; intervals are the
corrected t over splits (`evenhand.comparison.inference`), of the difference to hard sharing of the
same size, each by itself and not simultaneous.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from evenhand import cross_stitch, hard_sharing, soft_sharing, trace_norm_sharing
from evenhand.comparison.compare import Comparison, compare
from evenhand.comparison.folder import environment
from evenhand.comparison.inference import over_splits
from evenhand.comparison.request import Settings
from evenhand.comparison.skill import average, points
from evenhand.comparison.statistics import Row
from evenhand.data import Problem
from evenhand.recipes import Composition, Recipe
from evenhand.sharing import Sharing
from evenhand.sharing.base import size, width_for

OUT = Path(__file__).parent / "results" / "soft_sharing.json"
WEIGHTS = (1e-3, 3e-2)
"""λ, of which validation chooses one."""


def recipe(name: str, made: Mapping[str, Callable[[], Sharing]]) -> Recipe:
    """One network for all tasks; of several ways of sharing validation chooses one."""

    def compose(tasks: tuple[str, ...]) -> dict[str, Composition]:
        return {label: Composition(tasks, network=make()) for label, make in made.items()}

    return Recipe(name, "for this comparison", "", compose)


def tied(name: str, make: Callable[..., Sharing], size: str) -> Recipe:
    def of(weight: float) -> Callable[[], Sharing]:
        return lambda: make(weight, size=size)

    return recipe(f"{name}-{size}", {f"{weight:g}": of(weight) for weight in WEIGHTS})


def stitched(size: Any) -> Recipe:
    return recipe(f"cross-stitch-{size}", {"": lambda: cross_stitch(size=size)})


def rows_of(whole: Problem) -> dict[str, tuple[Recipe | str, str]]:
    """What is compared, by title, and what each is compared with."""
    tasks = tuple(whole.tasks)
    shared = size(whole, tasks)
    apart = sum(size(whole, (task,)) for task in tasks)
    widths = {task: width_for(whole, (task,), shared // len(tasks)) for task in tasks}
    wide = width_for(whole, tasks, apart)

    def narrow(tasks: tuple[str, ...]) -> dict[str, Composition]:
        return {t: Composition((t,), network=hard_sharing(widths[t])) for t in tasks}

    equal, full = "hard", "hard-wide"
    return {
        "hard": (recipe("hard", {"": hard_sharing}), equal),
        "single-equal": (
            Recipe("single-equal", "narrow networks", "", narrow),
            equal,
        ),
        "soft-equal": (tied("soft", soft_sharing, "equal"), equal),
        "soft-trace-equal": (tied("soft-trace", trace_norm_sharing, "equal"), equal),
        "cross-stitch-equal": (stitched("equal"), equal),
        "hard-wide": (recipe("hard-wide", {"": lambda: hard_sharing(wide)}), full),
        "single-task": ("single-task", full),
        "soft-full": (tied("soft", soft_sharing, "full"), full),
        "soft-trace-full": (tied("soft-trace", trace_norm_sharing, "full"), full),
        "cross-stitch-full": (stitched("full"), full),
    }


def diabetes() -> Any:
    """The table, divided anew for each split."""
    from sklearn.datasets import load_diabetes

    from evenhand.tables.examined import examined
    from evenhand.tables.problem import TableProblem
    from evenhand.tables.question import Question
    from evenhand.tables.reading import held

    found = load_diabetes(scaled=False)
    columns = {**dict(zip(found.feature_names, found.data.T, strict=True)), "after": found.target}
    question = Question(targets=("after", "bp", "s5"), network="mlp(width=32,depth=2)")
    return TableProblem("", question, examined(held(columns), question))


ASKED: Mapping[str, tuple[Callable[[], Any], Mapping[str, Any]]] = {
    "digits": (lambda: "digits", {"epochs": 12, "rates": (3e-3, 1e-2)}),
    "diabetes": (diabetes, {"epochs": 40}),
}
"""By name: what a comparison is asked, and settings that are not the problem's own."""


def told(row: Row, found: Comparison, whole: Problem, against: Row) -> dict[str, Any]:
    """A row in numbers."""
    zero = found.references[0]

    def skilled(of: Row) -> Any:
        return average([points(of, zero, name, task) for name, task in whole.tasks.items()])

    mine, difference = skilled(row), skilled(row) - skilled(against)
    labels = [r.job.label for r in row.chosen]
    sizes: dict[int, int] = {}
    for result in row.chosen:
        sizes[result.job.split] = sizes.get(result.job.split, 0) + result.parameters
    every = [r for r in found.results if r.job.recipe == row.recipe]
    spent = sum(r.processor for r in every)  # NaN where runs were gone on with
    values = {
        "parameters": round(statistics.fmean(sizes.values())),
        "test": {task: statistics.fmean(v) for task, v in row.test.items()},
        "skill": [round(v, 2) for v in mine.values.values()],
        "weights": labels if len(row.chosen) == len(sizes) else [],
        "processor": None if math.isnan(spent) else round(spent, 1),
    }
    if row is not against:
        ratio = statistics.fmean(f.ratio for f in found.facts)
        estimate = over_splits(list(difference.values.values()), ratio)
        interval = estimate.interval()
        values["against"] = against.recipe
        values["difference"] = [round(v, 2) for v in (estimate.mean, interval.low, interval.high)]
    return values


SHOWN = ("splits", "epochs", "rates", "optimizer")
"""Settings that the results say."""


def compared(name: str, splits: int, epochs: int | None, runs: Path) -> dict[str, Any]:
    """All rows on one problem."""
    source, own = ASKED[name]
    said = {**own, **({} if epochs is None else {"epochs": epochs})}
    settings = Settings.suggested(
        source(), splits=splits, references="none", observe_every=0, **said
    )
    whole = settings.problem()
    asked = rows_of(whole)
    out = runs / name
    found = compare(settings, [entry for entry, _ in asked.values()], out, resume=out.exists())
    rows = {row.recipe: row for row in found.rows}
    return {
        "samples": [len(whole.train), len(whole.validation), len(whole.test)],
        "settings": {k: getattr(settings, k) for k in SHOWN},
        "rows": {
            title: told(rows[title], found, whole, rows[against])
            for title, (_, against) in asked.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=ASKED, help="one problem")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="fewer than usual, for a trial")
    parser.add_argument("--runs", type=Path, help="where runs are kept, and gone on with")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in [options.only] if options.only else ASKED:
        with TemporaryDirectory() as folder:
            runs = options.runs or Path(folder)
            results[name] = compared(name, options.splits, options.epochs, runs)
        results |= environment()
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        for title, row in results[name]["rows"].items():
            skill = statistics.fmean(row["skill"])
            difference = (
                "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["difference"])
                if "difference" in row
                else "reference"
            )
            print(f"{name:10} {title:20} {row['parameters']:>8,} {skill:6.1f}  {difference}")


if __name__ == "__main__":
    main()
