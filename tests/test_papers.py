"""The papers' short runs end, and come out as they did; the table over all is up to date."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evenhand.data import celeba
from evenhand.training.flops import Meter

PAPERS = Path(__file__).parent.parent / "papers"


def finished(script: Path, *options: str | Path) -> None:
    """Run a script; no warning and no failure is let pass."""
    command = [sys.executable, "-W", "error", script, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def quick(paper: str, out: Path, *figures: str) -> dict[str, dict[str, Any]]:
    """Rows of each experiment, {row: {quantity: [mean, std, n]}}, of the paper's short run."""
    script = PAPERS / paper / "reproduce.py"
    finished(script, "--quick", "--workers", "1", "--out", out)
    for name in figures:
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000
    result = json.loads((out / "result.json").read_text())
    return {name: found["rows"] for name, found in result["experiments"].items()}


def test_nakamura2022(tmp_path) -> None:
    name = "AND/XOR, one initialisation"
    rows = quick("nakamura2022", tmp_path, "figure6")[name]
    expected = json.loads((PAPERS / "nakamura2022" / "expected.json").read_text())
    printed = expected["experiments"][name]["rows"]
    for row in ("Single AND", "Central", "Central + tension"):
        assert rows[row]["c=10 converged %"][0] == printed[row]["c=10 converged %"][0] == 100
        epochs, deviation = printed[row]["c=10 epochs"]
        assert abs(rows[row]["c=10 epochs"][0] - epochs) < 3 * deviation
    assert rows["Central + tension"]["c=10 epochs"][0] < rows["Central"]["c=10 epochs"][0]


def test_bellavia2026(tmp_path) -> None:
    drawn = ("figure2-data", "quadrants-loss", "quadrants-rate", "signals-loss", "signals-rate")
    tables = quick("bellavia2026", tmp_path, *drawn)
    for rows in tables.values():
        every, tenth, hundredth, plain = (
            {quantity: mean for quantity, (mean, *_) in row.items() if "seconds" not in quantity}
            for row in rows.values()
        )
        # In two epochs the heads have had a turn only where turns change after one.
        assert tenth == hundredth
        assert every != tenth != plain
        assert all(0 <= recall <= 1 for quantity, recall in plain.items() if "recall" in quantity)


def test_pascal2021(tmp_path) -> None:
    (rows,) = quick("pascal2021", tmp_path, "paths").values()
    assert {"sus", "ius", "io", "ius-groups", "io-groups"} < set(rows)
    assert all(row["path"][0] > 0 and 0 <= row["mean accuracy"][0] <= 1 for row in rows.values())
    # One step of the sum and one of the mean move Adam alike.
    assert abs(rows["sus"]["path"][0] / rows["uniform"]["path"][0] - 1) < 0.01
    assert rows["io"]["path"][0] > rows["ius"]["path"][0]


def test_sener2018(tmp_path) -> None:
    (rows,) = quick("sener2018", tmp_path, "min-norm", "pareto-front").values()
    assert list(rows) == ["3 tasks"]
    exact, bound = (rows["3 tasks"][name] for name in ("MGDA, ms", "MGDA-UB, ms"))
    ratio = rows["3 tasks"]["MGDA / MGDA-UB"]
    for middle, spread, rounds in (exact, bound, ratio):
        assert rounds == 2
        assert 0 <= spread < 2 * middle  # two values differ by √2 spreads, and are above zero
    # With two rounds a median is a mean, and lies between what each round says.
    assert exact[0] / bound[0] == pytest.approx(ratio[0], abs=ratio[1])


def convolutional() -> tuple[nn.Module, int]:
    """A trunk for CelebA's pictures, 16 features, that takes little time."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
    return nn.Sequential(nn.AvgPool2d(4), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 16


def test_sener2018_times_one_trunk_pass_beside_one_for_each_task(monkeypatch) -> None:
    """What is timed, in operations: a forward pass, and m or one backward passes of the trunk."""
    monkeypatch.syspath_prepend(PAPERS / "sener2018")
    monkeypatch.setattr(celeba, "resnet18", convolutional)
    timing = importlib.import_module("timing")
    with Meter() as forward:
        features = convolutional()[0](torch.randn(2, 3, celeba.SIDE, celeba.SIDE))
    with Meter() as backward:
        features.sum().backward()
    for tasks in (1, 3):
        for at, passes in (("parameters", tasks), ("representation", 1)):
            take = timing.step(at, tasks, 2)
            with Meter() as meter:
                take()
            expected = forward.total + passes * backward.total
            assert meter.total == pytest.approx(expected, rel=0.01), (at, tasks)


def test_sener2018_tables_the_medians_of_the_rounds(monkeypatch) -> None:
    monkeypatch.syspath_prepend(PAPERS / "sener2018")
    timing = importlib.import_module("timing")
    times = {"parameters": [6.0, 9.0, 30.0], "representation": [2.0, 9.0, 3.0]}
    row = timing.rows({40: times})["40 tasks"]
    assert {name: values[0] for name, values in row.items()} == {
        "MGDA, ms": 9.0,
        "MGDA-UB, ms": 3.0,
        "MGDA / MGDA-UB": 3.0,
    }
    assert row["MGDA-UB, ms"][1] == pytest.approx(statistics.stdev([2.0, 9.0, 3.0]))
    assert row["MGDA, ms"][2] == 3


def test_the_table_over_all_papers_is_up_to_date() -> None:
    finished(PAPERS / "table.py", "--check")
