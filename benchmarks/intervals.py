"""Do the verdict's intervals and words hold? Tables with known truth, by the thousand.

    python benchmarks/intervals.py --tables 1000 --truth 20000 --write
    python benchmarks/intervals.py --table      # the page's, from the results

Each table is drawn, divided into splits like a user's, and judged by the very functions that print
the verdict: skill, corrected intervals, probabilities, words. Two ways of learning stand for
single-task and the plain sum; both are closed-form, so that thousands of tables take minutes:

    twins       random features and ridge regression twice, with other features: exactly no
                difference, the noise is that of initial weights
    strengths   ridge regression at two strengths that are equally good on average, or nearly so
    low rank    a ridge regression per task against one with all tasks' coefficients projected to
                rank 2: together is better (the truth has rank 2)
    rank 1      the same with rank 1 and hardly any ridge: together is better by much
    full rank   the same where the truth has full rank: apart is better, with less noise by much
    classes     twins whose metric is an accuracy
    groups      twins; rows of ten share a subject, and splits keep subjects together

A family is one distribution, its coefficients drawn once; a table is a sample of rows from it. The
truth is the mean difference over `--truth` further samples: what an interval must cover is the
expected difference for samples of this size, not that of the one at hand.
Beside the corrected t stand the intervals that it replaces: plain t over splits, percentile
bootstrap over splits, and t over seeds on one split.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from evenhand.comparison.assessment import assess
from evenhand.comparison.facts import Facts
from evenhand.comparison.folder import environment
from evenhand.comparison.inference import over_splits
from evenhand.comparison.job import Job, Result
from evenhand.comparison.request import BASELINE, REFERENCE, Settings
from evenhand.comparison.statistics import Row
from evenhand.comparison.verdict import verdict
from evenhand.data import Problem, Split, Task
from evenhand.data.splits import Pool

RESULT = Path(__file__).parent / "results" / "intervals.json"
Array = npt.NDArray[np.float64]
Learn = Callable[[Array, Array, Array, int], Array]
"""(training inputs, targets [n, m], test inputs, seed) -> what is said of the test inputs."""
INPUTS, TASKS = 12, 4


@dataclass(frozen=True)
class Table:
    """Inputs [n, d], targets [n, m], and the subject of each row if there are subjects."""

    x: Array
    y: Array
    groups: Array | None = None


@dataclass(frozen=True)
class Family:
    """Tables of one kind, and the two ways of learning that are compared on them."""

    name: str
    draw: Callable[[np.random.Generator], Table]
    apart: Learn
    together: Learn
    accuracy: bool = False
    null: bool = False


# Ways of learning -----------------------------------------------------------------------------


def ridge(strength: float) -> Learn:
    def learn(x: Array, y: Array, test: Array, seed: int) -> Array:
        return test @ _solved(x, y, strength) + y.mean(axis=0)

    return learn


def _solved(x: Array, y: Array, strength: float) -> Array:
    gram = x.T @ x + strength * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ (y - y.mean(axis=0)))


def projected(strength: float, rank: int) -> Learn:
    """Ridge regression, its answers projected to the best rank on the training rows."""

    def learn(x: Array, y: Array, test: Array, seed: int) -> Array:
        coefficients = _solved(x, y, strength)
        _, _, right = np.linalg.svd(x @ coefficients, full_matrices=False)
        onto = right[:rank].T @ right[:rank]
        return test @ coefficients @ onto + y.mean(axis=0)

    return learn


def random_features(which: int, width: int = 24) -> Learn:
    """Ridge regression on the tanh of random projections, drawn anew by the seed."""

    def learn(x: Array, y: Array, test: Array, seed: int) -> Array:
        generator = np.random.default_rng((seed, which))
        weights = generator.normal(size=(x.shape[1], width)) / math.sqrt(x.shape[1])
        inner, outer = np.tanh(x @ weights), np.tanh(test @ weights)
        centre = inner.mean(axis=0)
        return (outer - centre) @ _solved(inner - centre, y, 1.0) + y.mean(axis=0)

    return learn


# Tables ---------------------------------------------------------------------------------------


def fixed() -> np.random.Generator:
    """What a family's coefficients are drawn from: the same for every table."""
    return np.random.default_rng(20_260_000)


def linear(rows: int, rank: int, noise: float) -> Callable[[np.random.Generator], Table]:
    nature = fixed()
    left, right = nature.normal(size=(INPUTS, rank)), nature.normal(size=(rank, TASKS))
    coefficients = left @ right / math.sqrt(INPUTS * rank)

    def draw(generator: np.random.Generator) -> Table:
        x = generator.normal(size=(rows, INPUTS))
        return Table(x, x @ coefficients + noise * generator.normal(size=(rows, TASKS)))

    return draw


def curved(rows: int, noise: float) -> Callable[[np.random.Generator], Table]:
    nature = fixed()
    inner, outer = nature.normal(size=(INPUTS, 6)) / 2, nature.normal(size=(6, TASKS)) / 6**0.5

    def draw(generator: np.random.Generator) -> Table:
        x = generator.normal(size=(rows, INPUTS))
        signal = np.tanh(x @ inner) @ outer
        return Table(x, signal + noise * generator.normal(size=signal.shape))

    return draw


def classes(rows: int) -> Callable[[np.random.Generator], Table]:
    numbers = curved(rows, 0.3)

    def draw(generator: np.random.Generator) -> Table:
        table = numbers(generator)
        return Table(table.x, np.sign(table.y + 0.2))

    return draw


def grouped(subjects: int, each: int) -> Callable[[np.random.Generator], Table]:
    numbers = curved(subjects * each, 0.3)

    def draw(generator: np.random.Generator) -> Table:
        table = numbers(generator)
        groups = np.repeat(np.arange(subjects), each)
        level = generator.normal(size=(subjects, TASKS))[groups]
        shift = generator.normal(size=(subjects, INPUTS))[groups]
        return Table(table.x + shift, table.y + 0.5 * level, groups)

    return draw


FAMILIES = (
    Family("twins, 150 rows", curved(150, 0.5), random_features(0), random_features(1), null=True),
    Family("twins, 600 rows", curved(600, 0.5), random_features(0), random_features(1), null=True),
    Family("strengths, 200 rows", linear(200, 4, 1.0), ridge(3.0), ridge(17.0)),
    Family("low rank, 200 rows", linear(200, 2, 1.5), ridge(10.0), projected(10.0, 2)),
    Family("low rank, 600 rows", linear(600, 2, 1.5), ridge(10.0), projected(10.0, 2)),
    Family("low rank, 80 rows", linear(80, 2, 1.0), ridge(1.0), projected(1.0, 2)),
    Family("full rank, 200 rows", linear(200, 4, 1.0), ridge(10.0), projected(10.0, 2)),
    Family("rank 1, 100 rows", linear(100, 1, 1.0), ridge(0.1), projected(0.1, 1)),
    Family("full rank, less noise", linear(200, 4, 0.5), ridge(10.0), projected(10.0, 2)),
    Family(
        "classes, 400 rows", classes(400), random_features(0), random_features(1), True, null=True
    ),
    Family("groups, 40 x 10", grouped(40, 10), random_features(0), random_features(1), null=True),
)


# One table ------------------------------------------------------------------------------------


def metrics(family: Family, table: Table, splits: int, seeds: int, seed: int) -> Iterator[Result]:
    """The test metrics of constant, apart and together in each split, as a comparison has them."""
    groups = None if table.groups is None else torch.from_numpy(table.groups)
    pool = Pool(len(table.x), _never, groups=groups)
    for split in range(splits):
        parts = pool.parts("hold-out", splits, split + splits * seed)
        learning = np.concatenate([parts.train.numpy(), parts.validation.numpy()])
        x, y = table.x[learning], table.y[learning]
        tx, ty = table.x[parts.test.numpy()], table.y[parts.test.numpy()]
        constant = np.where(y.mean(axis=0) >= 0, 1.0, -1.0) if family.accuracy else y.mean(axis=0)
        yield _result(
            "constant", split, 0, _scored(family, np.broadcast_to(constant, ty.shape), ty)
        )
        for name, learn in ((REFERENCE, family.apart), (BASELINE, family.together)):
            for k in range(seeds):
                said = learn(x, y, tx, seed * 1_000 + split * 10 + k)
                yield _result(name, split, k, _scored(family, said, ty))


def _never(parts: object) -> Problem:
    raise NotImplementedError


def _scored(family: Family, said: Array, truth: Array) -> Array:
    if family.accuracy:
        return (np.sign(said) == np.sign(truth)).mean(axis=0)
    return np.square(said - truth).mean(axis=0)


def _result(name: str, split: int, seed: int, scores: Array) -> Result:
    test = {f"t{k}": float(score) for k, score in enumerate(scores)}
    return Result(Job(name, "", seed, 0.1, split), tuple(test), "finished", 1, 0.5, test=test)


def rows_of(results: list[Result]) -> dict[str, Row]:
    """A row per name."""
    found = {}
    for name in ("constant", REFERENCE, BASELINE):
        chosen = tuple(result for result in results if result.job.recipe == name)
        test = {t: tuple(r.test[t] for r in chosen) for t in chosen[0].tasks}
        found[name] = Row(name, chosen, test, {"": 0.1})
    return found


def frame(family: Family) -> Problem:
    """The tasks, with no data: all that an assessment looks at."""
    task = Task(lambda o, t: o, lambda: None, "metric", family.accuracy)
    nothing = Split(torch.zeros(1, 1), {})
    tasks = {f"t{k}": task for k in range(TASKS)}
    return Problem("-", "-", "-", tasks, lambda names: None, nothing, nothing, nothing)


def difference(family: Family, table: Table, splits: int, seed: int) -> list[float]:
    """Together against apart in mean skill, a value per split; all tasks."""
    return differences(family, rows_of(list(metrics(family, table, splits, 1, seed))), splits)


def differences(family: Family, rows: Mapping[str, Row], splits: int) -> list[float]:
    """The same, of rows that are there."""
    found = []
    for split in range(splits):
        gains = []
        for task in rows[BASELINE].test:
            constant, apart, together = (
                rows[name].by_split(task)[split] for name in ("constant", REFERENCE, BASELINE)
            )
            perfect = 1.0 if family.accuracy else 0.0
            gains.append(100 * (apart - together) / (constant - perfect))
        found.append(statistics.fmean(gains))
    return found


# A study --------------------------------------------------------------------------------------


@lru_cache
def truth(family: Family, tables: int, seed: int) -> tuple[float, float]:
    """The expected difference and its standard error; exactly zero for a null family."""
    if family.null:
        return 0.0, 0.0
    generator = np.random.default_rng((seed, 1))
    found = [
        statistics.fmean(difference(family, family.draw(generator), 1, 10_000_000 + k))
        for k in range(tables)
    ]
    return statistics.fmean(found), statistics.stdev(found) / math.sqrt(tables)


def study(family: Family, splits: int, tables: int, truth_tables: int, seed: int) -> dict[str, Any]:
    """How often intervals cover the truth, and which words are said."""
    expected, error = truth(family, truth_tables, seed)
    generator = np.random.default_rng((seed, 2))
    settings = Settings("-", seeds=(0,), splits=splits)
    problem = frame(family)
    covered = dict.fromkeys(("corrected t", "plain t", "bootstrap over splits"), 0)
    seeds_covered = 0
    words: dict[str, int] = {}
    enough = 0
    widths = []
    for k in range(tables):
        table = family.draw(generator)
        rows = rows_of(list(metrics(family, table, splits, 1, k)))
        units = len(table.x) if table.groups is None else len(np.unique(table.groups))
        test = round(0.2 * units)
        facts = Facts((0, 0, 0), (units - test, test), {}, {})
        found = assess(
            [rows[REFERENCE], rows[BASELINE]],
            [rows["constant"]],
            problem,
            settings,
            [facts] * splits,
        )
        said = verdict(found)
        words[said.word] = words.get(said.word, 0) + 1
        enough += any("is enough" in sentence for sentence in said.sentences)
        values = differences(family, rows, splits)
        ratio = test / (units - test)
        corrected = over_splits(values, ratio).interval()
        widths.append(corrected.high - corrected.low)
        covered["corrected t"] += expected in corrected
        covered["plain t"] += expected in over_splits(values, 0.0).interval()
        draws = np.random.default_rng((seed, 3, k)).choice(values, (400, splits)).mean(axis=1)
        low, high = np.percentile(draws, [2.5, 97.5])
        covered["bootstrap over splits"] += bool(low <= expected <= high)
        seeds_covered += family.null and _over_seeds(family, table, expected, k)
    together = words.get("TOGETHER", 0) + words.get("TOGETHER, PROBABLY", 0)
    apart = words.get("APART", 0) + words.get("APART, PROBABLY", 0)
    return {
        "family": family.name,
        "null": family.null,
        "splits": splits,
        "tables": tables,
        "truth": round(expected, 3),
        "truth_error": round(error, 3),
        "coverage": {
            **{name: count / tables for name, count in covered.items()},
            **({"t over seeds, one split": seeds_covered / tables} if family.null else {}),
        },
        "half_width": round(statistics.fmean(widths) / 2, 2),
        "words": {word: count / tables for word, count in sorted(words.items())},
        "together_surely": words.get("TOGETHER", 0) / tables,
        "together_at_all": together / tables,
        "apart_surely": words.get("APART", 0) / tables,
        "apart_at_all": apart / tables,
        "sum_is_enough": enough / tables,
    }


def _over_seeds(family: Family, table: Table, expected: float, seed: int) -> bool:
    """Whether three seeds on one split, as comparisons used to have, cover the truth."""
    rows = rows_of(list(metrics(family, table, 1, 3, seed)))
    perfect = 1.0 if family.accuracy else 0.0
    gains = []
    for k in range(3):
        per_task = []
        for task in rows[BASELINE].test:
            constant = rows["constant"].test[task][0]
            apart = statistics.fmean(rows[REFERENCE].test[task])  # the reference's mean, as it was
            together = rows[BASELINE].test[task][k]
            per_task.append(100 * (apart - together) / (constant - perfect))
        gains.append(statistics.fmean(per_task))
    spread = statistics.stdev(gains)
    half = float(stats.t.isf(0.025, 2)) * spread / math.sqrt(3)
    return abs(statistics.fmean(gains) - expected) <= half + 1e-12


# The page's table -----------------------------------------------------------------------------

BEGIN, END = "<!-- table of benchmarks/intervals.py -->", "<!-- end of the table -->"
PAGE = Path(__file__).parents[1] / "docs" / "verdict.md"


def page_table(written: Mapping[str, Any]) -> str:
    """The studies in markdown."""
    heads = ["tables", "splits", "truth", "corrected t covers", "plain t", "bootstrap"]
    heads += ["visible", "TOGETHER", "with PROBABLY", "APART", "with PROBABLY"]
    lines = [heads, ["---"] * len(heads)]
    for s in written["studies"]:
        cover = s["coverage"]
        chosen = (cover["corrected t"], cover["plain t"], cover["bootstrap over splits"])
        said = ("together_surely", "together_at_all", "apart_surely", "apart_at_all")
        lines.append(
            [s["family"], str(s["splits"]), "0 exactly" if s["null"] else f"{s['truth']:+.2f}"]
            + [f"{value:.1%}" for value in chosen]
            + [f"{s['half_width']:.1f}"]
            + [f"{s[name]:.1%}" for name in said]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill() -> None:
    """Write the committed results' table between the page's markers."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    table = page_table(json.loads(RESULT.read_text()))
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def summary(studies: list[dict[str, Any]]) -> Mapping[str, float]:
    """The worst of what is promised."""
    covering = [s["coverage"]["corrected t"] for s in studies]
    nulls = [s for s in studies if s["null"]]
    return {
        "lowest_coverage": min(covering),
        "most_often_better_on_null": max(s["together_at_all"] for s in nulls),
        "most_often_surely_better_on_null": max(s["together_surely"] for s in nulls),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--truth", type=int, default=40_000)
    parser.add_argument("--splits", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--table", action="store_true", help="fill the page's, and nothing else")
    asked = parser.parse_args()
    if asked.table:
        fill()
        return
    studies = []
    start = time.process_time()
    for family in FAMILIES:
        for splits in asked.splits:
            done = study(family, splits, asked.tables, asked.truth, asked.seed)
            studies.append(done)
            cover = done["coverage"]
            print(
                f"{family.name:20} {splits:2} splits  truth {done['truth']:+6.2f}  "
                + "  ".join(f"{name} {value:.1%}" for name, value in cover.items())
                + f"  together {done['together_surely']:.1%}/{done['together_at_all']:.1%}"
                f"  apart {done['apart_surely']:.1%}/{done['apart_at_all']:.1%}"
                f"  ±{done['half_width']}",
                flush=True,
            )
    found = summary(studies)
    print(found)
    if asked.write:
        splits = " ".join(map(str, asked.splits))
        result = {
            "command": f"python benchmarks/intervals.py --tables {asked.tables} "
            f"--truth {asked.truth} --splits {splits} --seed {asked.seed}",
            "cpu_seconds": round(time.process_time() - start, 1),
            "summary": found,
            "studies": studies,
            **environment(),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
