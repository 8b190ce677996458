"""The papers' short runs end, and come out as they did; the table over all is up to date."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    exact, _, rounds = rows["3 tasks"]["MGDA, ms"]
    bound, _, _ = rows["3 tasks"]["MGDA-UB, ms"]
    assert rounds == 2
    assert exact > 0 < bound


def test_the_table_over_all_papers_is_up_to_date() -> None:
    finished(PAPERS / "table.py", "--check")
