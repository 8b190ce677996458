"""Problems that a function makes, the starting file, and `evenhand.compare`."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import evenhand
from evenhand import MultiTaskNetwork, sources
from evenhand.app import report
from evenhand.app.cli import app
from evenhand.comparison.request import Settings, forget
from evenhand.data import Problem, Split, Task, resolved

MINE = """
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional
from torchmetrics import MeanSquaredError

from evenhand import MultiTaskNetwork
from evenhand.data import Problem, Split, Task
from evenhand.data.splits import Pool

CALLS = []
X = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
TARGETS = {"sum": X.sum(1, keepdim=True), "gap": X[:, :1] - X[:, 1:2]}

def network(tasks):
    return MultiTaskNetwork(nn.Linear(3, 4), {task: nn.Linear(4, 1) for task in tasks})

def made(parts):
    def part(rows):
        return Split(X[rows], {task: y[rows] for task, y in TARGETS.items()})
    tasks = dict.fromkeys(TARGETS, Task(functional.mse_loss, MeanSquaredError, "MSE", False))
    three = map(part, (parts.train, parts.validation, parts.test))
    return Problem("mine", "points", "", tasks, network, *three, epochs=2, rates=(0.1,))

def problem(split):
    CALLS.append(split)
    return Pool(90, made).problem("hold-out", 1, split)

def divided():
    return replace(problem(0), pool=None)

def pooled():
    return problem(0)

def several(one, two):
    return problem(0)

def nothing():
    return 3

constant = 3
"""
QUICK = ["--recipes", "single-task,sg", "--references", "none", "--workers", "1"]


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    forget()
    return file


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_a_function_of_a_file_is_compared(mine, monkeypatch) -> None:
    monkeypatch.setattr(report, "plates", lambda findings: iter(()))
    output = run("compare", "mine.py:problem", "--splits", "3", *QUICK)
    assert "mine: 90 rows, 2 tasks; 3 splits" in output
    assert Path("evenhand-mine-problem/report.html").exists()
    assert "3 splits" in run("report", "evenhand-mine-problem")


def test_a_function_without_arguments_is_one_problem(mine) -> None:
    assert isinstance(resolved("mine.py:divided", {}), Problem)
    assert Settings.suggested(sources.checked("mine.py:divided")).splits == 1
    assert Settings.suggested(sources.checked("mine.py:pooled")).splits == 5
    output = run("compare", "mine.py:divided", "--splits", "3", *QUICK, code=2)
    assert "divided" in output
    settings = Settings.suggested(sources.checked("mine.py:pooled"), splits=2)
    parts = [settings.problem(split).test.inputs for split in range(2)]
    assert not torch.equal(*parts)


def test_a_function_of_a_package_is_found(mine, monkeypatch) -> None:
    package = mine.parent / "some_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inside.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(mine.parent))
    assert resolved("some_package.inside:problem", {})(1).name == "mine"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("mine.py:prolbem", "has no function 'prolbem'"),
        ("mine.py:constant", "has no function 'constant'"),
        ("mine.py:nothing", "gave a int: it must return an evenhand.data.Problem"),
        ("mine.py:several", "wants 2 arguments"),
        ("other.py:problem", "there is no file"),
        ("no_such_package.inside:problem", "there is no module 'no_such_package.inside'"),
    ],
)
def test_a_function_that_cannot_serve_is_refused_in_a_line(mine, source, said) -> None:
    output = run("compare", source, code=2)
    assert said in output
    assert output.count("\n") == 1


def test_the_starting_file_runs_as_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    forget()
    told = run("new", "problem", "start.py")
    monkeypatch.setattr(report, "plates", lambda findings: iter(()))
    (command,) = re.findall(r"evenhand (compare .*)", told)
    output = run(*command.split(), *QUICK)
    assert "mine: 600 rows, 2 tasks; 2 splits" in output
    assert "is there already" in run("new", "problem", "start.py", code=2)
    assert "must end in .py" in run("new", "problem", "start.txt", code=2)
    assert "no folder" in run("new", "problem", "none/start.py", code=2)


# In Python ------------------------------------------------------------------------------------


def columns(rows: int = 80) -> dict[str, list]:
    x = np.random.default_rng(0).normal(size=(rows, 3))
    return {
        "a": x[:, 0].tolist(),
        "b": x[:, 1].tolist(),
        "up": (x[:, 0] + x[:, 1] / 2 + x[:, 2] / 9).tolist(),
        "side": ["left" if value < 0 else "right" for value in x[:, 1]],
    }


HOW = {"splits": 2, "epochs": 3, "rates": (0.01,), "references": "none"}


def test_a_frame_a_mapping_and_a_file_give_the_same_numbers(tmp_path, monkeypatch) -> None:
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    frame = pandas.DataFrame(columns())
    frame.to_csv("t.csv", index=False)
    asked = {"targets": ["up", "side"], **HOW}
    three = [evenhand.compare(given, ["sg"], **asked) for given in (frame, columns(), "t.csv")]
    for other in three[1:]:
        ours, theirs = (
            [r.test for r in found.results if r.job.recipe == "sg"] for found in (three[0], other)
        )
        assert ours == theirs
    assert [found.out.name for found in three] == [
        "evenhand-table",
        "evenhand-table-2",
        "evenhand-t",
    ]
    assert str(three[0]).splitlines()[0] == three[0].verdict.headline


def network(tasks) -> MultiTaskNetwork:
    return MultiTaskNetwork(nn.Linear(2, 4), {task: nn.Linear(4, 1) for task in tasks})


def test_a_problem_is_compared(tmp_path) -> None:
    from torchmetrics import MeanSquaredError

    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    part = [Split(rows, {"sum": rows.sum(1, keepdim=True)}) for rows in x.split(20)]
    task = Task(functional.mse_loss, MeanSquaredError, "MSE", False)
    problem = Problem("p", "", "", {"sum": task}, network, *part, epochs=2, rates=(0.1,))
    found = evenhand.compare(problem, ["sg"], out=tmp_path / "out", references="none")
    assert found.settings.splits == 1
    with pytest.raises(ValueError, match="targets: only a table has columns"):
        evenhand.compare(problem, ["sg"], targets=["sum"], out=tmp_path / "2")
    with pytest.raises(TypeError, match="asked= is a list, which cannot be compared on"):
        evenhand.compare([1, 2], out=tmp_path / "2")
    with pytest.raises(TypeError, match="there is no setting 'seed'"):
        evenhand.compare(problem, out=tmp_path / "2", seed=3)
    with pytest.raises(ValueError, match="no column 'upp'; did you mean 'up'"):
        evenhand.compare(columns(), targets="upp", out=tmp_path / "2")


# Listening ------------------------------------------------------------------------------------


def test_tensorboard_gets_the_records(tmp_path, monkeypatch) -> None:
    """The listener of the page, with what it writes to in place of TensorBoard's writer."""
    from torchmetrics import MeanSquaredError

    written: dict[str, list[tuple[str, float, int]]] = {}
    closed: list[str] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            self.folder = str(Path(folder).relative_to(tmp_path / "curves"))
            written.setdefault(self.folder, [])

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            written[self.folder].append((tag, value, step))

        def close(self) -> None:
            closed.append(self.folder)

    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    page = (Path(__file__).parents[1] / "docs/howto/records.md").read_text()
    (shown,) = re.findall(r":class: tensorboard\n\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(shown, "records.md", "exec"), names)
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    goals = {"sum": x.sum(1, keepdim=True), "gap": x[:, :1] - x[:, 1:]}
    part = [
        Split(x[rows], {task: y[rows] for task, y in goals.items()})
        for rows in torch.arange(60).split(20)
    ]
    task = Task(functional.mse_loss, MeanSquaredError, "MSE", False)
    problem = Problem("p", "", "", dict.fromkeys(goals, task), network, *part)
    told = names["ToTensorBoard"](str(tmp_path / "curves"))
    found = evenhand.compare(
        problem,
        ["sg"],
        out=tmp_path / "out",
        epochs=2,
        rates=(0.01,),
        references="none",
        listener=told,
    )
    (run,) = (r for r in found.results if r.job.recipe == "sg")
    records = found.records(run)
    assert [record.epoch for record in records] == [0, 1, 2]
    curves = set(written[run.job.folder])
    for record in records:
        for what in ("losses", "validation", "metrics", "weights", "norms"):
            for task, value in getattr(record, what).items():
                assert (f"{what}/{task}", value, record.epoch) in curves
    assert {(f"test/{task}", value, run.epoch) for task, value in run.test.items()} <= curves
    assert len(curves) == len(run.test) + sum(
        len(getattr(record, what))
        for record in records
        for what in ("losses", "validation", "metrics", "weights", "norms")
    )
    assert sorted(closed) == sorted(written) == sorted(r.job.folder for r in found.results)
    with pytest.raises(TypeError, match="listener="):
        evenhand.compare(problem, ["sg"], out=tmp_path / "2", listener="print")
