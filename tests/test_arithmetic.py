"""Every number of a comparison, computed a second time from its files alone.

The results are made up so that mistakes show: metrics of both directions, of both signs and of
different sizes, ties, runs that diverged, a rate that is best for one seed and not in the mean,
networks that compete and networks that complete each other. The second computation reads the JSON
files as they lie in the folder, and shares no function with the first.
"""

from __future__ import annotations

import csv
import json
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchmetrics import MeanSquaredError

from evenhand import MultiTaskNetwork, sources
from evenhand.app import exports, findings, report, table
from evenhand.app.findings import Findings
from evenhand.comparison.compare import finished, prepare
from evenhand.comparison.execute import _epoch_seconds
from evenhand.comparison.job import Job, Result
from evenhand.comparison.request import Settings, forget, load_problem
from evenhand.comparison.statistics import rows
from evenhand.data import Problem, Source, Split, Task
from evenhand.training.records import Record

TASKS = ("gain", "error", "fit")
HIGHER = {"gain": True, "error": False, "fit": True}
PERFECT = {"gain": 1.0, "error": 100.0, "fit": 1.0}
RECIPES = ("single-task", "sg", "mgda", "grid", "ate-sg")
SPLITS, SEEDS, RATES, EPOCHS = 3, (0, 1), (0.001, 0.01, 0.1), 6
UNITS = ((80, 20), (70, 30), (90, 10))
"""Of each split: rows that train and validate, and rows that test."""
RATIO = (20 / 80 + 30 / 70 + 10 / 90) / 3
LEVEL = {"gain": (0.3, 0.7), "error": (4000.0, 2500.0), "fit": (-1.0, 0.5)}
"""The constant's metric, and about what networks have where they learn something."""


def _network(tasks: Sequence[str]) -> MultiTaskNetwork:
    return MultiTaskNetwork(nn.Linear(1, 1), {task: nn.Linear(1, 1) for task in tasks})


def _problem(seed: int = 0) -> Problem:
    split = Split(torch.zeros(4, 1), {task: torch.zeros(4, 1) for task in TASKS})
    tasks = {
        t: Task(functional.mse_loss, MeanSquaredError, f"of {t}", HIGHER[t], perfect=PERFECT[t])
        for t in TASKS
    }
    return Problem(
        *("made-up", "made up", "made up", tasks, _network, split, split, split),
        scaled=lambda wanted, width: _network(wanted),
    )


@pytest.fixture(autouse=True)
def _source(monkeypatch) -> Iterator[None]:
    module = ModuleType("made_up_problem")
    module.load = _problem
    monkeypatch.setitem(sys.modules, "made_up_problem", module)
    source = Source("made-up", "made_up_problem", "made up", "made up")
    monkeypatch.setattr(sources, "SOURCES", (*sources.SOURCES, source))
    yield
    forget()


# What is written into the folder --------------------------------------------------------------


BESIDE = {
    "linear": ("linear model", 0.9),
    "trees": ("boosted trees", 1.3),
    "single-task-narrow": ("single-task, equal size", 0.8),
    "sg-wide": ("sum, as large as all", 0.7),
    "sg-own-epochs": ("sum, own epochs", 0.6),
    "sg-tuned": ("sum, tuned", 0.65),
}
"""Reference rows: their titles, and what they learn relative to single-task."""
ONCE = ("constant", "linear", "trees")
"""Computed once in a split, whatever the seeds."""
AHEAD = {"single-task": 1.0, "sg": 1.06, "mgda": 0.5, "ate-sg": 1.6}
AHEAD |= {name: ahead for name, (_, ahead) in BESIDE.items()}
"""What a recipe learns, relative to single-task; the grid is as good."""


def _made_result(
    job: Job, tasks: tuple[str, ...], chance: random.Random, learned: tuple[str, ...]
) -> dict[str, Any]:
    """A result whose numbers lie far apart: an accuracy, an error in thousands, a negative fit."""
    test = {}
    for task in tasks:
        zero, level = LEVEL[task]
        share = AHEAD.get(job.recipe, 1.0) if job.recipe != "constant" else 0.0
        share *= task in learned
        test[task] = (zero + (level - zero) * share) * chance.uniform(0.97, 1.03)
    if job.recipe in ("ate-sg", "grid") and job.split:
        test["gain"] = 0.9
    monitored = chance.uniform(0.2, 0.9)
    if job.rate == 0.1 and job.seed == 1:
        monitored = 0.01  # the best of all runs; its rate is the worst in the mean
    elif job.rate == 0.1:
        monitored = 5.0
    late = job.recipe == "mgda" and (job.seed or job.split)
    epoch = EPOCHS if late else chance.randint(1, EPOCHS - 1)
    return {
        "job": vars(job),
        "tasks": list(tasks),
        "status": "finished",
        "epoch": epoch,
        "monitored": monitored,
        "validation": dict.fromkeys(tasks, 77.0),
        "test": test,
        "seconds": chance.uniform(0.5, 2.0),
        "parameters": 100 * len(tasks) + len(job.label),
        "flops": chance.uniform(1e9, 3e9),
        "processor": chance.uniform(10.0, 30.0),
    }


def _made_records(result: dict[str, Any], chance: random.Random) -> list[dict[str, Any]]:
    tasks = result["tasks"]
    found = []
    for epoch in range(EPOCHS + 1):
        frozen = result["job"]["recipe"] == "ate-sg" and epoch % 2 == 0
        moves = [] if not epoch else ["own"] if frozen else ["shared", "own"]
        weights = {task: chance.uniform(0, 2) for task in tasks} if epoch else {}
        found.append(
            {
                "epoch": epoch,
                "step": 3 * epoch,
                "trains": moves,
                "weights": weights,
                "validation": dict.fromkeys(tasks, 4.0 / (1 + epoch)),
                "monitored": result["monitored"] if epoch == result["epoch"] else 6.0,
                "best": epoch == result["epoch"],
            }
        )
    return found


def _facts(split: int) -> dict[str, Any]:
    learning, test = UNITS[split]
    return {
        "rows": [learning - 15, 15, test],
        "units": [learning, test],
        "training": dict.fromkeys(TASKS, 60 - split),
        "validation": dict.fromkeys(TASKS, 15),
        "test": {task: {"count": test, "values": None, "rarest": None} for task in TASKS},
    }


@pytest.fixture(params=[("gain", "error"), TASKS], ids=["fit is not learned", "all learned"])
def folder(request, tmp_path) -> Path:
    """A comparison whose every run is made up."""
    return _made_folder(tmp_path, request.param)


def _made_folder(tmp_path: Path, learned: tuple[str, ...], references: str = "none") -> Path:
    settings = Settings(
        "made-up", seeds=SEEDS, rates=RATES, epochs=EPOCHS, stack="never", splits=SPLITS
    )
    settings = replace(settings, references=references)
    chance = random.Random(7)
    for job in prepare(settings, RECIPES, tmp_path):
        where = tmp_path / job.folder
        where.mkdir(parents=True)
        if job.recipe == "constant":
            (where / "facts.json").write_text(json.dumps(_facts(job.split)))
        tasks = (job.label,) if job.recipe.startswith("single-task") else TASKS
        result = _made_result(job, tasks, chance, learned)
        if (job.recipe, job.rate, job.seed, job.split) == ("mgda", 0.01, 1, 2):
            result = {"job": vars(job), "tasks": list(tasks), "status": "diverged: of error is inf"}
            result["monitored"] = math.inf
        (where / "result.json").write_text(json.dumps(result))
        if result["status"] == "finished" and job.recipe != "constant":
            lines = (json.dumps(record) + "\n" for record in _made_records(result, chance))
            (where / "records.jsonl").write_text("".join(lines))
    return tmp_path


# The second computation -----------------------------------------------------------------------


def _quantile(p: float) -> float:
    """Of Student's t with two degrees of freedom, in closed form."""
    a = 2 * p - 1
    return a * math.sqrt(2 / (1 - a * a))


def _below(t: float) -> float:
    """The probability that Student's t with two degrees of freedom is below `t`."""
    return 0.5 + t / (2 * math.sqrt(2 + t * t))


class Certainty:
    """What three values, one per split, say of their mean (Nadeau & Bengio 2003)."""

    def __init__(self, values: np.ndarray) -> None:
        self.mean = float(values.mean())
        self.scale = math.sqrt(float(values.var(ddof=1)) * (1 / SPLITS + RATIO))

    def interval(self, comparisons: int = 1) -> tuple[float, float]:
        half = _quantile(1 - 0.05 / comparisons / 2) * self.scale
        return self.mean - half, self.mean + half

    def chances(self) -> tuple[float, float, float]:
        """Worse, the same, better by more than one point."""
        worse = _below((-1 - self.mean) / self.scale)
        better = 1 - _below((1 - self.mean) / self.scale)
        return worse, 1 - worse - better, better


class Again:
    """The numbers of the comparison in a folder, from its files."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.rglob("result.json"))
        self.runs = [json.loads(file.read_text()) for file in files]
        self.records = {
            self.key(run): [json.loads(line) for line in _lines(file.parent / "records.jsonl")]
            for run, file in zip(self.runs, files, strict=True)
        }

    @property
    def rows(self) -> list[str]:
        """What is compared, the constant left out."""
        there = {run["job"]["recipe"] for run in self.runs}
        return [name for name in (*RECIPES, *BESIDE) if name in there]

    @staticmethod
    def key(run: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(run["job"][k] for k in ("recipe", "label", "seed", "rate", "split"))

    def chosen(self, recipe: str, split: int) -> dict[tuple[str, ...], tuple[str, float]]:
        """{tasks: (label, rate)} in a split: the lowest mean over the seeds."""
        found: dict[tuple[str, ...], tuple[str, float]] = {}
        here = [r for r in self.runs if (r["job"]["recipe"], r["job"]["split"]) == (recipe, split)]
        for tasks in sorted({tuple(run["tasks"]) for run in here}):
            best = math.inf
            for label, rate in sorted({(r["job"]["label"], r["job"]["rate"]) for r in here}):
                values = [
                    run["monitored"]
                    for run in here
                    if (run["job"]["label"], run["job"]["rate"]) == (label, rate)
                    and tuple(run["tasks"]) == tasks
                ]
                if values and float(np.mean(values)) < best:
                    best = float(np.mean(values))
                    found[tasks] = (label, rate)
        return found

    def standing(self, recipe: str) -> list[dict[str, Any]]:
        """The runs that stand for a recipe, of all splits."""
        chosen = {split: self.chosen(recipe, split) for split in range(SPLITS)}
        return [
            run
            for run in self.runs
            if run["job"]["recipe"] == recipe
            and chosen[run["job"]["split"]].get(tuple(run["tasks"]))
            == (run["job"]["label"], run["job"]["rate"])
        ]

    def test(self, recipe: str) -> np.ndarray:
        """[splits, seeds, tasks]; what is computed has one seed."""
        seeds = SEEDS if recipe not in ONCE else (0,)
        table = np.full((SPLITS, len(seeds), len(TASKS)), np.nan)
        for run in self.standing(recipe):
            for task, value in run["test"].items():
                at = run["job"]["split"], seeds.index(run["job"]["seed"]), TASKS.index(task)
                table[at] = value
        return table

    def skill(self, recipe: str) -> np.ndarray:
        """[splits, tasks]: 100 (constant − metric) / (constant − perfect)."""
        zero = self.test("constant").mean(axis=1)
        perfect = np.array([PERFECT[task] for task in TASKS])
        return 100 * (zero - self.test(recipe).mean(axis=1)) / (zero - perfect)

    def judged(self) -> list[int]:
        """The tasks in which the interval of some recipe's skill is above zero."""
        return [
            k
            for k in range(len(TASKS))
            if any(Certainty(self.skill(recipe)[:, k]).interval()[0] > 0 for recipe in self.rows)
        ]

    def mean_skill(self, recipe: str) -> np.ndarray:
        """[splits], the mean over the judged tasks."""
        return self.skill(recipe)[:, self.judged()].mean(axis=1)

    def versus(self, recipe: str, other: str = "single-task") -> Certainty:
        return Certainty(self.mean_skill(recipe) - self.mean_skill(other))

    def delta(self, recipe: str) -> np.ndarray:
        """Δm in per cent, [splits, seeds]: gains over the split's single-task means."""
        single = self.test("single-task").mean(axis=1, keepdims=True)
        gains = (self.test(recipe) - single) / np.abs(single)
        gains[..., 1] *= -1  # error
        return 100 * gains.mean(axis=-1)

    def sources(self) -> tuple[float, float]:
        """Standard deviations of the declared difference between splits, and between seeds."""
        zero = self.test("constant").mean(axis=1, keepdims=True)
        perfect = np.array([PERFECT[task] for task in TASKS])
        both = self.test("single-task") - self.test("sg")  # where low is good, positive is better
        table = (100 * both / (zero - perfect))[..., self.judged()].mean(axis=-1)
        within = table.var(axis=1, ddof=1).mean()
        between = table.mean(axis=1).var(ddof=1) - within / len(SEEDS)
        return math.sqrt(max(0, between)), math.sqrt(within)

    def delta_says(self) -> bool:
        """Unless networks of their own are shown to know more than a constant, Δm is nothing."""
        alone = [Certainty(skill) for skill in self.skill("single-task").T]
        return all(certainty.interval()[0] > 0 for certainty in alone)

    def ranks(self) -> dict[str, float]:
        """One plus how many are better and half of those that are as good, the mean over tasks."""
        means = {recipe: self.test(recipe).mean(axis=(0, 1)) for recipe in RECIPES}
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
        """Per epoch: the median over runs, networks that complete each other together."""
        of_tasks: dict[tuple[str, ...], list[float]] = {}
        for run in self.standing(recipe):
            of_tasks.setdefault(tuple(run["tasks"]), []).append(run["seconds"])
        return sum(float(np.median(values)) for values in of_tasks.values())

    def cost(self, recipe: str, what: str) -> float:
        """Of all networks that a recipe needs, the mean over splits and seeds."""
        number = SPLITS * (1 if recipe in ONCE else len(SEEDS))
        return sum(run[what] for run in self.standing(recipe)) / number

    def weight(self, recipe: str) -> float:
        """The sum of the weights, over the epochs in which the trunk trains, of the runs chosen."""
        totals = [
            sum(record["weights"].values())
            for run in self.standing(recipe)
            for record in self.records[self.key(run)]
            if "shared" in record["trains"]
        ]
        return float(np.mean(totals))

    def rates(self, recipe: str) -> dict[str, float]:
        """The rate that each network has in most splits, the first of equals."""
        found: dict[str, list[float]] = {}
        for split in range(SPLITS):
            for label, rate in self.chosen(recipe, split).values():
                found.setdefault(label, []).append(rate)
        return {label: max(rates, key=rates.count) for label, rates in found.items()}


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _numbers(text: str) -> list[float]:
    """The numbers in a text, with a sign that is the minus of typesetters."""
    found = re.findall(r"[+−-]?\d[\d,]*\.?\d*(?:e[+-]\d+)?", text)
    return [float(x.replace("−", "-").replace(",", "")) for x in found]


def _near(text: str, *expected: float) -> bool:
    """Whether a text shows these numbers, as exactly as its digits allow."""
    shown = _numbers(text)
    digits = [len(x.partition(".")[2]) for x in re.findall(r"\d[\d,]*\.?\d*", text)]
    halves = [0.5000001 * 10.0**-count for count in digits]
    return len(shown) == len(expected) and all(
        abs(a - b) <= half for a, b, half in zip(shown, expected, halves, strict=True)
    )


def test_every_number_of_a_row_is_that_of_its_files(folder) -> None:
    comparison, again = finished(folder), Again(folder)
    reference = again.seconds("sg")
    ranks = again.ranks()
    assert [row.recipe for row in comparison.rows] == list(RECIPES)
    for row in comparison.rows:
        expected = again.test(row.recipe)
        assert not np.isnan(expected).any()
        for k, task in enumerate(TASKS):
            found = np.reshape(row.test[task], (SPLITS, len(SEEDS)))
            assert np.allclose(np.sort(found), np.sort(expected[..., k])), (row.recipe, task)
        assert dict(row.rates) == again.rates(row.recipe)
        deltas = np.reshape(row.delta, (SPLITS, len(SEEDS)))
        assert np.allclose(np.sort(deltas), np.sort(again.delta(row.recipe))), row.recipe
        assert row.rank == pytest.approx(ranks[row.recipe]), row.recipe
        assert row.relative_time == pytest.approx(again.seconds(row.recipe) / reference)


def test_every_number_that_is_printed_is_that_of_its_files(folder) -> None:
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    assert [TASKS[k] for k in again.judged()][:2] == ["gain", "error"]
    columns = {
        c.title: [cell.text for cell in c.cells] for c in findings.columns(found, delta=True)
    }
    assert [text.split(" ")[0] for text in columns["row"]] == ["constant", *RECIPES]
    for k, recipe in enumerate(("constant", *RECIPES)):
        cells = {title: texts[k] for title, texts in columns.items()}
        assert _near(cells["skill"], again.mean_skill(recipe).mean())
        for j, task in enumerate(TASKS):
            assert _near(cells[task], again.test(recipe)[..., j].mean()), (recipe, task)
        if recipe == "constant":
            continue
        if recipe == "single-task":
            assert cells["vs single-task"] == "reference"
        else:
            versus = again.versus(recipe)
            assert _near(cells["vs single-task"], versus.mean, *versus.interval(len(RECIPES) - 1))
            chances = [100 * p for p in versus.chances()]
            assert _near(cells["worse/same/"].replace("/", " "), *chances)
        assert _near(cells["parameters"], again.cost(recipe, "parameters"))
        for title, what in (("operations", "flops"), ("processor", "processor")):
            assert _near(cells[title], again.cost(recipe, what) / again.cost("sg", what))
        assert float(cells["Σw"]) == pytest.approx(again.weight(recipe), rel=5e-3)
        assert set(_numbers(cells["rate"].partition(" (")[0])) <= set(RATES)
        sound = again.delta_says()
        assert (cells["Δm"] != "–") == sound
        assert sound == (len(again.judged()) == len(TASKS))
        assert not sound or _near(cells["Δm"], again.delta(recipe).mean())


def test_rows_are_marked_where_the_interval_excludes_zero(folder) -> None:
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    (column,) = (c for c in findings.columns(found) if c.title == "vs single-task")
    marked = {recipe: cell.shown for recipe, cell in zip(RECIPES, column.cells[1:], strict=True)}
    expected = {"single-task": 0}
    for recipe in RECIPES[1:]:
        low, high = again.versus(recipe).interval(len(RECIPES) - 1)
        expected[recipe] = (low > 0) - (high < 0)
    assert marked == expected
    assert {marked["mgda"], marked["ate-sg"]} == {-1, 1}


def test_every_number_in_the_sentences_is_that_of_the_files(folder) -> None:
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    said = found.verdict
    text = " ".join((said.headline, *said.sentences, said.advice, *said.footnotes))
    versus = again.versus("sg")
    declared = re.search(r"one per task: (\S+) points of skill \(95 %: (.+?)\)", text)
    assert declared is not None
    assert _near(" ".join(declared.groups()), versus.mean, *versus.interval())
    chances = re.search(r"Better (.+?) %, no difference that matters (.+?) %, worse (.+?) %", text)
    assert chances is not None
    for told, expected in zip(chances.groups(), reversed(versus.chances()), strict=True):
        assert _near(told, 100 * expected) or (
            told in ("below 1", "over 99") and min(expected, 1 - expected) < 0.01
        )
    costs = re.search(r"The one network has (.+?) of the parameters", text)
    ratio = again.cost("sg", "parameters") / again.cost("single-task", "parameters")
    assert costs is not None
    assert costs[1] == f"{100 * ratio:.0f} %"
    for word, what in (("operations", "flops"), ("processor time", "processor")):
        shown = re.search(rf"([\d.]+) x the {word}", text)
        assert shown is not None
        expected = again.cost("sg", what) / again.cost("single-task", what)
        assert float(shown[1]) == pytest.approx(expected, rel=0.05)
    visible = re.search(r"differences above ([\d.]+) points", text)
    assert visible is not None
    assert _near(visible[1], versus.interval()[1] - versus.mean)
    sources = re.search(r"by (\S+) points between splits and by (\S+) between seeds", text)
    assert sources is not None
    assert _near(" ".join(sources.groups()), *again.sources())
    doubled = re.search(r"splits=6 gives about ±([\d.]+)", text)
    variance = versus.scale**2 / (1 / SPLITS + RATIO) * (1 / 6 + RATIO)
    assert doubled is not None
    assert _near(doubled[1], 2.570582 * math.sqrt(variance))  # t of five degrees of freedom


def test_every_task_by_itself_is_that_of_the_files(folder) -> None:
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    judged = again.judged()
    for k in judged:
        difference = found.assessment.by_task[TASKS[k]]
        expected = Certainty(again.skill("sg")[:, k] - again.skill("single-task")[:, k])
        assert difference.mean == pytest.approx(expected.mean)
        interval = (difference.interval.low, difference.interval.high)
        assert interval == pytest.approx(expected.interval(len(judged)))
    for name in ("mgda", "grid", "ate-sg"):
        difference, expected = found.assessment.against_sum[name], again.versus(name, "sg")
        assert difference.mean == pytest.approx(expected.mean)
        interval = (difference.interval.low, difference.interval.high)
        assert interval == pytest.approx(expected.interval(3))
        chances = difference.chances
        told = (chances.worse, chances.same, chances.better)
        assert told == pytest.approx(expected.chances())


def test_every_number_of_the_reference_rows_is_that_of_the_files(tmp_path) -> None:
    folder = _made_folder(tmp_path, TASKS, "all")
    again = Again(folder)
    assert again.rows == [*RECIPES, *BESIDE]
    found = Findings.of(finished(folder), load_problem("made-up"))
    columns = {c.title: [cell.text for cell in c.cells] for c in findings.columns(found)}
    tried = {run["job"]["label"] for run in again.runs if run["job"]["recipe"] == "sg-tuned"}
    titles = [told for told, _ in BESIDE.values()]
    assert columns["row"][1 + len(RECIPES) :] == [*titles[:-1], f"sum, tuned ({len(tried)})"]
    # as many as all balancing recipes: mgda and ate-sg at each rate, and grid's networks
    grid = {run["job"]["label"] for run in again.runs if run["job"]["recipe"] == "grid"}
    assert len(tried) == (2 + len(grid)) * len(RATES)
    for k, name in enumerate(BESIDE, start=1 + len(RECIPES)):
        cells = {title: texts[k] for title, texts in columns.items()}
        assert _near(cells["skill"], again.mean_skill(name).mean())
        versus = again.versus(name)
        assert _near(cells["vs single-task"], versus.mean, *versus.interval(len(again.rows) - 1))
        chances = [100 * p for p in versus.chances()]
        assert _near(cells["worse/same/"].replace("/", " "), *chances)
        for j, task in enumerate(TASKS):
            assert _near(cells[task], again.test(name)[..., j].mean())
        assert _near(cells["parameters"], again.cost(name, "parameters"))
        for title, what in (("operations", "flops"), ("processor", "processor")):
            assert _near(cells[title], again.cost(name, what) / again.cost("sg", what))
    # Each reference stands against the sum by itself, the best of the two of scikit-learn is told.
    text = " ".join(found.verdict.sentences)
    trees = again.versus("trees", "sg")
    told = re.search(r"Boosted trees lead the sum by (\S+) \((.+?)\): use them", text)
    assert told is not None
    assert _near(" ".join(told.groups()), trees.mean, *trees.interval())
    equal = again.mean_skill("sg").mean() - again.mean_skill("single-task-narrow").mean()
    told = re.search(r"per task of the same total size: (\S+)\.", text)
    assert told is not None
    assert _near(told[1], equal)


def test_what_else_a_gap_could_be_is_told_by_the_numbers_of_the_files(
    tmp_path, monkeypatch
) -> None:
    """Where the sum is behind: the larger one, the one with own epochs, and the tuned one."""
    monkeypatch.setitem(AHEAD, "sg", 0.5)
    folder = _made_folder(tmp_path, TASKS, "all")
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    text = " ".join(found.verdict.sentences)
    gap = again.versus("sg").mean
    for name, what in (
        ("sg-wide", "as large as all networks together"),
        ("sg-own-epochs", "with an epoch of its own for each task"),
        ("sg-tuned", "with its weights tuned"),
    ):
        told = re.search(rf"A sum {what} is at (\S+) instead of (\S+)\. ", f"{text} ")
        assert told is not None
        assert _near(" ".join(told.groups()), again.versus(name).mean, gap)
    beating = again.versus("ate-sg", "sg")
    told = re.search(r"ate-sg is shown to beat the sum: (\S+) \((.+?)\); (.+?)\.( |$)", text)
    assert told is not None
    assert _near(" ".join(told.groups()[:2]), beating.mean, *beating.interval(3))
    assert _near(told[3], again.versus("ate-sg", "sg-tuned").mean)
    nearest = max(("mgda", "grid", "ate-sg"), key=lambda name: again.versus(name).mean)
    nearest_said = r"Of the other recipes (\S+) comes nearest to single-task: (\S+) \((.+?)\)"
    told = re.search(nearest_said, text)
    assert told is not None
    assert told[1] == nearest
    versus = again.versus(nearest)
    assert _near(" ".join(told.groups()[1:]), versus.mean, *versus.interval(len(again.rows) - 1))


def test_every_task_is_a_row_of_numbers_of_the_files(folder) -> None:
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    columns = {c.title: [x.text for x in c.cells] for c in findings.task_table(found, TASKS)}
    assert columns["task"] == list(TASKS)
    judged = again.judged()
    for k, task in enumerate(TASKS):
        metric, value = columns["metric"][k].rsplit(" ", 1)
        assert metric == f"of {task}"
        assert float(value) == pytest.approx(again.test("constant")[..., k].mean(), rel=5e-3)
        for recipe in RECIPES:
            title = "sg (plain sum)" if recipe == "sg" else recipe
            assert _near(columns[title][k], again.skill(recipe)[:, k].mean())
        difference = Certainty(again.skill("sg")[:, k] - again.skill("single-task")[:, k])
        cell = columns["sg vs single-task"][k]
        if k in judged:
            assert _near(cell, difference.mean, *difference.interval(len(judged)))
        else:
            assert cell == "–"


def test_the_distribution_over_many_tasks_is_that_of_the_files(folder, monkeypatch) -> None:
    monkeypatch.setattr(findings, "MANY", 2)
    again = Again(folder)
    found = Findings.of(finished(folder), load_problem("made-up"))
    columns = {c.title: [cell.text for cell in c.cells] for c in findings.columns(found)}
    for k, recipe in enumerate(RECIPES, start=1):
        skills = sorted(again.skill(recipe).mean(axis=0)[again.judged()])
        expected = {
            "lowest": skills[0],
            "quarter": float(np.quantile(skills, 0.25)),
            "median": float(np.median(skills)),
            "highest": skills[-1],
        }
        for title, value in expected.items():
            assert _near(columns[title][k], value), (recipe, title)


def test_labels_and_rows_are_those_of_the_files(folder, monkeypatch) -> None:
    found = Findings.of(finished(folder), load_problem("made-up"))
    assert table.subject(found) == "made-up: 100 rows, 3 tasks; 3 splits (hold-out) x 2 seeds"
    told = "gain, error and fit 60/15/20"
    assert table.labels(found) == f"Labels (train/validation/test) of the first split: {told}."
    monkeypatch.setattr(table, "DIFFERENT", 1)
    facts = replace(found.comparison.facts[0], training={"gain": 60, "error": 7, "fit": 1234})
    found = replace(found, comparison=replace(found.comparison, facts=(facts,)))
    assert table.labels(found) == "Labels (train/validation/test): 7–1,234/15/20 for 3 tasks."


def test_every_number_in_the_exports_is_that_of_the_files(folder) -> None:
    again = Again(folder)
    exports.write(Findings.of(finished(folder), load_problem("made-up")))
    with (folder / exports.TABLE).open(newline="") as file:
        lines = {line["row"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["constant", *RECIPES]
    for recipe in RECIPES[1:]:
        line = {name: float(x) for name, x in lines[recipe].items() if name != "row" and x}
        versus = again.versus(recipe)
        low, high = versus.interval(len(RECIPES) - 1)
        worse, same, better = versus.chances()
        expected = {
            "reference": 0,
            "skill": again.mean_skill(recipe).mean(),
            "versus": versus.mean,
            **{"low": low, "high": high, "worse": worse, "same": same, "better": better},
            **({"delta_m": again.delta(recipe).mean()} if again.delta_says() else {}),
            "parameters": again.cost(recipe, "parameters"),
            "operations": again.cost(recipe, "flops"),
            "processor_seconds": again.cost(recipe, "processor"),
        }
        for k, task in enumerate(TASKS):
            expected[f"skill:{task}"] = again.skill(recipe)[:, k].mean()
            expected[f"metric:{task}"] = again.test(recipe)[..., k].mean()
        assert line == pytest.approx(expected)
    with (folder / exports.RESULTS).open(newline="") as file:
        rows_told = list(csv.DictReader(file))
    standing = [run for recipe in ("constant", *RECIPES) for run in again.standing(recipe)]
    assert len(rows_told) == sum(len(run["test"]) for run in standing)
    by_run = {again.key(run): run for run in standing}
    for row in rows_told:
        key = row["row"], row["network"], int(row["seed"]), float(row["rate"]), int(row["split"])
        assert float(row["metric"]) == by_run[key]["test"][row["task"]]
        zero = again.test("constant")[int(row["split"]), 0, TASKS.index(row["task"])]
        assert float(row["constant"]) == pytest.approx(zero)
    told = json.loads((folder / exports.VERDICT).read_text())
    assert told["headline"]["by_split"] == pytest.approx(
        dict(zip("012", again.mean_skill("sg") - again.mean_skill("single-task"), strict=True))
    )


def test_the_search_over_rates_is_that_of_the_files(folder) -> None:
    comparison, again = finished(folder), Again(folder)
    names, *columns = report.search(comparison)
    for k, name in enumerate(names.cells):
        recipe, _, label = name.text.rstrip(")").partition(" (")
        for column in columns:
            rate = float(column.title)
            values = [
                run["monitored"]
                for run in again.runs
                if (run["job"]["recipe"], run["job"]["label"]) == (recipe, label)
                and run["job"]["rate"] == rate
            ]
            text, _, times = column.cells[k].text.rstrip(")").partition(" (")
            if all(map(math.isfinite, values)):
                assert float(text) == pytest.approx(np.mean(values), rel=5e-4)
            else:
                assert text == "diverged"
            chosen = [(label, rate) in again.chosen(recipe, s).values() for s in range(SPLITS)]
            assert int(times or 0) == sum(chosen)


def test_notes_count_what_the_files_say(folder) -> None:
    found = Findings.of(finished(folder), load_problem("made-up"))
    told = findings.notes(found)
    assert "mgda: 1 of 18 runs diverged (at rate 0.01: of error is inf)." in told
    assert "Fewer than 100 training labels: gain (58), error (58) and fit (58)." in told
    again = Again(folder)
    last = {
        recipe
        for recipe in RECIPES
        if np.mean([run["epoch"] == EPOCHS for run in again.standing(recipe)]) > 0.5
    }
    assert last == {"mgda"}
    assert _named(told, "Still improving") == last
    for edge, which in ((0.001, "smallest"), (0.1, "largest")):
        at = {r for r in RECIPES if edge in again.rates(r).values()}
        assert _named(told, f"The {which} rate") == at


def _named(notes: Sequence[str], beginning: str) -> set[str]:
    """The recipes that the note which begins so names."""
    told = [n.partition(": the best")[0] for n in notes if n.startswith(beginning)]
    words = {word for note in told for word in re.split(r"[ ,.:]", note)}
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
        Record(k, k, trains=(what,), seconds=seconds)
        for k, (what, seconds) in enumerate(
            (("shared", 1.0), ("own", 1.0), ("shared", 9.0), ("own", 2.0), ("shared", 3.0))
        )
    ]
    assert _epoch_seconds(records) == pytest.approx(2.4)
