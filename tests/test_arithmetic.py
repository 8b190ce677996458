"""Every number of a comparison, computed a second time from its files alone.

The results are made up so that mistakes show: metrics of both directions, of both signs and of
different sizes, ties, runs that diverged, a rate that is best for one seed and not in the mean,
networks that compete and networks that complete each other. The second computation reads the JSON
files as they lie in the folder, and shares no function with the first.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evenhand import MultiTaskNetwork, data
from evenhand.app import findings, report
from evenhand.app.findings import Findings
from evenhand.comparison.compare import finished, prepare
from evenhand.comparison.execute import _epoch_seconds
from evenhand.comparison.job import Job, Result
from evenhand.comparison.request import Settings, load_problem
from evenhand.comparison.statistics import rows
from evenhand.data import Problem, Source, Split, Task
from evenhand.training.records import Record

TASKS = ("gain", "error", "fit")
HIGHER = {"gain": True, "error": False, "fit": True}
RECIPES = ("single-task", "sg", "mgda", "grid", "ate-sg")
SEEDS, RATES, EPOCHS = (0, 1, 2), (0.001, 0.01, 0.1), 6


def _network(tasks: Sequence[str]) -> MultiTaskNetwork:
    return MultiTaskNetwork(nn.Linear(1, 1), {task: nn.Linear(1, 1) for task in tasks})


def _never() -> Any:
    raise AssertionError("nothing is to be measured here")


def _problem(seed: int = 0) -> Problem:
    split = Split(torch.zeros(4, 1), {task: torch.zeros(4, 1) for task in TASKS})
    tasks = {t: Task(functional.mse_loss, _never, f"of {t}", HIGHER[t]) for t in TASKS}
    return Problem("made-up", "made up", "made up", tasks, _network, split, split, split)


@pytest.fixture(autouse=True)
def _source(monkeypatch) -> Iterator[None]:
    module = ModuleType("made_up_problem")
    module.load = _problem
    monkeypatch.setitem(sys.modules, "made_up_problem", module)
    source = Source("made-up", "made_up_problem", "made up", "made up")
    monkeypatch.setattr(data, "SOURCES", (*data.SOURCES, source))
    yield
    load_problem.cache_clear()


# What is written into the folder --------------------------------------------------------------


def _made_result(job: Job, tasks: tuple[str, ...], chance: random.Random) -> dict[str, Any]:
    """A result whose numbers lie far apart: accuracy, an error in thousands, a negative fit."""
    size = {"gain": 0.7, "error": 3000.0, "fit": -2.0}
    off = {task: chance.uniform(0.6, 1.4) for task in tasks}
    metrics = {task: size[task] * off[task] for task in tasks}
    if "gain" in metrics:
        metrics["gain"] = round(metrics["gain"], 1)  # so that there are ties
    monitored = chance.uniform(0.2, 0.9)
    if job.rate == 0.1 and job.seed == 1:
        monitored = 0.01  # the best of all runs; its rate is the worst in the mean
    elif job.rate == 0.1:
        monitored = 5.0
    return {
        "job": vars(job),
        "tasks": list(tasks),
        "status": "finished",
        "epoch": EPOCHS if job.recipe == "mgda" and job.seed else chance.randint(1, EPOCHS),
        "monitored": monitored,
        "validation": dict.fromkeys(tasks, 77.0),
        "test": metrics,
        "seconds": chance.uniform(0.5, 2.0),
    }


def _made_records(result: dict[str, Any], chance: random.Random) -> list[dict[str, Any]]:
    tasks = result["tasks"]
    found = []
    for epoch in range(EPOCHS + 1):
        resting = result["job"]["recipe"] == "ate-sg" and epoch % 2 == 0
        moves = [] if not epoch else ["own"] if resting else ["shared", "own"]
        weights = {task: chance.uniform(0, 2) for task in tasks} if epoch else {}
        found.append(
            {
                "epoch": epoch,
                "step": 3 * epoch,
                "moves": moves,
                "weights": weights,
                "validation": dict.fromkeys(tasks, 4.0 / (1 + epoch)),
                "monitored": result["monitored"] if epoch == result["epoch"] else 6.0,
                "best": epoch == result["epoch"],
            }
        )
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    """A comparison whose every run is made up."""
    settings = Settings("made-up", seeds=SEEDS, rates=RATES, epochs=EPOCHS, stack="never")
    chance = random.Random(7)
    for job in prepare(settings, RECIPES, tmp_path):
        tasks = (job.label,) if job.recipe == "single-task" else TASKS
        result = _made_result(job, tasks, chance)
        if job.recipe == "mgda" and job.rate == 0.01 and job.seed == 2:
            result = {"job": vars(job), "tasks": list(tasks), "status": "diverged: of error is inf"}
            result["monitored"] = math.inf
        elif job.recipe in ("ate-sg", "mgda"):
            result["test"]["gain"] = 0.7  # a tie
        where = tmp_path / job.folder
        where.mkdir(parents=True)
        (where / "result.json").write_text(json.dumps(result))
        if result["status"] == "finished":
            lines = (json.dumps(record) + "\n" for record in _made_records(result, chance))
            (where / "records.jsonl").write_text("".join(lines))
    return tmp_path


# The second computation -----------------------------------------------------------------------


class Again:
    """The numbers of the comparison in a folder, from its files."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.rglob("result.json"))
        self.runs = [json.loads(file.read_text()) for file in files]
        self.records = {
            self.key(run): [
                json.loads(line)
                for line in (file.parent / "records.jsonl").read_text().splitlines()
            ]
            for run, file in zip(self.runs, files, strict=True)
            if run["status"] == "finished"
        }

    @staticmethod
    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(run["job"][k] for k in ("recipe", "label", "seed", "rate"))

    def chosen(self, recipe: str) -> dict[tuple[str, ...], tuple[str, float]]:
        """{tasks: (label, rate)}: of networks for the same tasks, the lowest mean over seeds."""
        found: dict[tuple[str, ...], tuple[str, float]] = {}
        of_recipe = [run for run in self.runs if run["job"]["recipe"] == recipe]
        for tasks in sorted({tuple(run["tasks"]) for run in of_recipe}):
            best = math.inf
            for label in sorted({run["job"]["label"] for run in of_recipe}):
                for rate in RATES:
                    values = [
                        run["monitored"]
                        for run in of_recipe
                        if (run["job"]["label"], run["job"]["rate"]) == (label, rate)
                        and tuple(run["tasks"]) == tasks
                    ]
                    if values and float(np.mean(values)) < best:
                        best = float(np.mean(values))
                        found[tasks] = (label, rate)
        return found

    def standing(self, recipe: str) -> list[dict[str, Any]]:
        """The runs that stand for a recipe."""
        chosen = self.chosen(recipe)
        return [
            run
            for run in self.runs
            if run["job"]["recipe"] == recipe
            and chosen.get(tuple(run["tasks"])) == (run["job"]["label"], run["job"]["rate"])
        ]

    def test(self, recipe: str) -> np.ndarray:
        """[seeds, tasks]."""
        table = np.full((len(SEEDS), len(TASKS)), np.nan)
        for run in self.standing(recipe):
            for task, value in run["test"].items():
                table[SEEDS.index(run["job"]["seed"]), TASKS.index(task)] = value
        return table

    def delta(self, recipe: str) -> np.ndarray:
        """Δm in per cent, [seeds]: gains over the single-task means, those of errors turned."""
        single = self.test("single-task").mean(axis=0)
        gains = (self.test(recipe) - single) / np.abs(single)
        gains[:, 1] *= -1  # error
        return 100 * gains.mean(axis=1)

    def ranks(self) -> dict[str, float]:
        """One plus how many are better and half of those that are as good, the mean over tasks."""
        means = {recipe: self.test(recipe).mean(axis=0) for recipe in RECIPES}
        ranks = {}
        for recipe, mine in means.items():
            of_task = []
            for k, task in enumerate(TASKS):
                others = [theirs[k] for name, theirs in means.items() if name != recipe]
                better = sum(x > mine[k] if HIGHER[task] else x < mine[k] for x in others)
                equal = sum(x == mine[k] for x in others)
                of_task.append(1 + better + equal / 2)
            ranks[recipe] = float(np.mean(of_task))
        return ranks

    def seconds(self, recipe: str) -> float:
        """Per epoch: the median over seeds, networks that complete each other together."""
        labels: dict[str, list[float]] = {}
        for run in self.standing(recipe):
            labels.setdefault(run["job"]["label"], []).append(run["seconds"])
        return sum(float(np.median(values)) for values in labels.values())

    def weight(self, recipe: str) -> float:
        """The sum of the weights, over the epochs in which the trunk trains, of the runs chosen."""
        totals = [
            sum(record["weights"].values())
            for run in self.standing(recipe)
            for record in self.records[self.key(run)]
            if "shared" in record["moves"]
        ]
        return float(np.mean(totals))


def _number(text: str) -> tuple[float, float]:
    """(mean, spread) that a cell shows."""
    mean, _, spread = text.replace("−", "-").partition(" ± ")
    return float(mean), float(spread or "nan")


def _near(text: str, mean: float, spread: float | None = None) -> bool:
    """Whether a cell shows these numbers, as exactly as its digits allow."""
    shown, shown_spread = _number(text)
    digits = text.partition(" ± ")[0].partition(".")[2]
    half = 0.5000001 * 10.0 ** -len(digits)
    same = abs(shown - mean) <= max(half, 0.005 * abs(mean) * ("e" in text))
    return same and (spread is None or abs(shown_spread - spread) <= half)


def test_every_number_of_a_row_is_that_of_its_files(folder) -> None:
    comparison, again = finished(folder), Again(folder)
    reference = again.seconds("sg")
    ranks = again.ranks()
    assert [row.recipe for row in comparison.rows] == list(RECIPES)
    for row in comparison.rows:
        expected = again.test(row.recipe)
        assert not np.isnan(expected).any()
        for k, task in enumerate(TASKS):
            assert row.test[task] == pytest.approx(tuple(expected[:, k])), (row.recipe, task)
        assert dict(row.rates) == dict(again.chosen(row.recipe).values())
        assert row.delta == pytest.approx(tuple(again.delta(row.recipe))), row.recipe
        assert row.rank == pytest.approx(ranks[row.recipe]), row.recipe
        assert row.relative_time == pytest.approx(again.seconds(row.recipe) / reference)
    assert any(not float(rank).is_integer() for rank in (3 * r for r in ranks.values()))  # ties


def test_every_number_that_is_printed_is_that_of_its_files(folder) -> None:
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    columns = {column.title: column for column in findings.columns(found)}
    ranks = again.ranks()
    for k, recipe in enumerate(RECIPES):
        cells = {title: column.cells[k].text for title, column in columns.items()}
        table = again.test(recipe)
        for j, task in enumerate(TASKS):
            assert _near(cells[task], table[:, j].mean(), table[:, j].std(ddof=1)), (recipe, task)
        delta = again.delta(recipe)
        assert _near(cells["Δm"], delta.mean(), delta.std(ddof=1))
        assert _near(cells["rank"], ranks[recipe])
        assert _near(cells["time"], again.seconds(recipe) / again.seconds("sg"))
        assert float(cells["Σw"]) == pytest.approx(again.weight(recipe), rel=5e-3)
        rates = [f"{rate:g}" for _, rate in again.chosen(recipe).values()]
        assert all(rate in cells["rate"] for rate in rates)
    for task in TASKS:
        means = {recipe: again.test(recipe)[:, TASKS.index(task)].mean() for recipe in RECIPES}
        best = (max if HIGHER[task] else min)(means.values())
        told = [RECIPES[k] for k, cell in enumerate(columns[task].cells) if cell.best]
        assert told == [recipe for recipe, mean in means.items() if mean == best]
    least = min(ranks.values())
    told = [RECIPES[k] for k, cell in enumerate(columns["rank"].cells) if cell.best]
    assert told == [recipe for recipe, rank in ranks.items() if rank == least]


def test_the_search_over_rates_is_that_of_the_files(folder) -> None:
    comparison, again = finished(folder), Again(folder)
    names, *columns = report.search(comparison)
    for k, name in enumerate(names.cells):
        recipe, _, label = name.text.rstrip(")").partition(" (")
        for column in columns:
            values = [
                run["monitored"]
                for run in again.runs
                if (run["job"]["recipe"], run["job"]["label"]) == (recipe, label)
                and run["job"]["rate"] == float(column.title)
            ]
            cell = column.cells[k]
            if all(map(math.isfinite, values)):
                assert float(cell.text) == pytest.approx(np.mean(values), rel=5e-4)
            else:
                assert cell.text == "diverged"
            assert cell.best == ((label, float(column.title)) in again.chosen(recipe).values())


def test_notes_count_what_the_files_say(folder) -> None:
    found = Findings.of(finished(folder), load_problem("made-up"))
    told = findings.notes(found)
    assert "mgda: 1 of 9 runs diverged (at rate 0.01: of error is inf)." in told
    again = Again(folder)
    last = [
        recipe
        for recipe in RECIPES
        if np.mean([run["epoch"] == EPOCHS for run in again.standing(recipe)]) > 0.5
    ]
    assert last
    assert _named(told, "Still improving") == set(last)
    for edge, which in ((0.001, "smallest"), (0.1, "largest")):
        at = {r for r in RECIPES if edge in {rate for _, rate in again.chosen(r).values()}}
        assert _named(told, f"The {which} rate") == at


def _named(notes: Sequence[str], beginning: str) -> set[str]:
    """The recipes that the note which begins so names."""
    words = {w for note in notes if note.startswith(beginning) for w in re.split(r"[ ,.:]", note)}
    return words & set(RECIPES)


# Three recipes, two seeds, two tasks, by hand -------------------------------------------------


def _by_hand(recipe: str, seed: int, seconds: float, monitored: float = 1.0, rate=0.1, **test):
    label = next(iter(test)) if recipe == "single-task" else ""
    job = Job(recipe, label, seed, rate)
    return Result(
        job, tuple(test), "finished", 3, monitored, dict.fromkeys(test, 9.0), test, seconds
    )


def _two_tasks() -> Problem:
    problem = _problem()
    tasks = {"gain": problem.tasks["gain"], "error": problem.tasks["error"]}
    return Problem("two", "two", "two", tasks, _network, *[problem.test] * 3)


def test_three_recipes_two_seeds_and_two_tasks_by_hand() -> None:
    r"""Means of single-task: gain (0.8 + 0.8)/2 = 0.8, error (2 + 4)/2 = 3.

                   gain      error     Δm of a seed, %                           rank
        single 0   0.8       2         100 (0       + 1/3)/2 = 50/3
        single 1   0.8       4         100 (0       − 1/3)/2 = −50/3             (1 + 2)/2 = 1.5
        sg 0       0.8       3         100 (0       + 0  )/2 = 0
        sg 1       0.64      1.5       100 (−0.2    + 0.5)/2 = 15                (2 + 1)/2 = 1.5
        mgda 0     0.48      6         100 (−0.4    − 1  )/2 = −70
        mgda 1     0.48      3         100 (−0.4    + 0  )/2 = −20               (3 + 3)/2 = 3

    Seconds: single-task (1 + 3)/2 and (2 + 3)/2, 4.5 together; sg (2 + 4)/2 = 3; mgda 6.
    """
    results = [
        _by_hand("single-task", 0, 1.0, gain=0.8),
        _by_hand("single-task", 1, 3.0, gain=0.8),
        _by_hand("single-task", 0, 2.0, error=2.0),
        _by_hand("single-task", 1, 3.0, error=4.0),
        _by_hand("sg", 0, 2.0, gain=0.8, error=3.0),
        _by_hand("sg", 1, 4.0, gain=0.64, error=1.5),
        _by_hand("mgda", 0, 6.0, gain=0.48, error=6.0),
        _by_hand("mgda", 1, 6.0, gain=0.48, error=3.0),
    ]
    single, plain, mgda = rows(results, ("single-task", "sg", "mgda"), _two_tasks())
    assert single.test == {"gain": (0.8, 0.8), "error": (2.0, 4.0)}
    assert plain.test == {"gain": (0.8, 0.64), "error": (3.0, 1.5)}
    assert single.delta == pytest.approx((50 / 3, -50 / 3))
    assert plain.delta == pytest.approx((0, 15), abs=1e-12)
    assert mgda.delta == pytest.approx((-70, -20))
    assert (single.rank, plain.rank, mgda.rank) == (1.5, 1.5, 3.0)
    times = (single.relative_time, plain.relative_time, mgda.relative_time)
    assert times == pytest.approx((1.5, 1.0, 2.0))


def test_the_rate_is_the_best_in_the_mean_over_seeds() -> None:
    """At 0.1: 0.1 and 0.9, 0.5 in the mean; at 0.01: 0.4 twice. The best single seed is at 0.1."""
    results = [
        _by_hand("sg", seed, 1.0, monitored, rate, gain=10 * rate, error=1.0)
        for rate, values in ((0.1, (0.1, 0.9)), (0.01, (0.4, 0.4)))
        for seed, monitored in enumerate(values)
    ]
    (row,) = rows(results, ("sg",), _two_tasks())
    assert row.rates == {"": 0.01}
    assert row.test["gain"] == (0.1, 0.1)


def test_a_rate_at_which_a_seed_diverged_does_not_stand() -> None:
    results = [
        _by_hand("sg", seed, 1.0, monitored, rate, gain=rate, error=1.0)
        for rate, values in ((0.1, (0.1, 0.1)), (0.01, (0.4, 0.4)))
        for seed, monitored in enumerate(values)
    ]
    fallen = Result(Job("sg", "", 0, 0.1), ("gain", "error"), "diverged: loss")
    (row,) = rows([fallen, *results[1:]], ("sg",), _two_tasks())
    assert row.rates == {"": 0.01}
    assert row.diverged == (fallen,)
    (row,) = rows([fallen], ("sg",), _two_tasks())
    assert row.rates == {}
    assert row.test == {}


# What a run says of itself --------------------------------------------------------------------


def test_seconds_are_of_an_epoch_of_the_mean_kind() -> None:
    """Trunk epochs 1, 3, 9 (median 3), head epochs 1, 2 (1.5): (3·3 + 2·1.5)/5 = 2.4."""
    records = [
        Record(k, k, moves=(what,), seconds=seconds)
        for k, (what, seconds) in enumerate(
            (("shared", 1.0), ("own", 1.0), ("shared", 9.0), ("own", 2.0), ("shared", 3.0))
        )
    ]
    assert _epoch_seconds(records) == pytest.approx(2.4)
