"""The papers' short runs end, and come out as they did; the table over all is up to date."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PAPERS = Path(__file__).parent.parent / "papers"


def test_nakamura2022_and_xor(tmp_path) -> None:
    script = PAPERS / "nakamura2022" / "reproduce.py"
    options = ["--quick", "--only", "and-xor", "--workers", "1", "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, "-W", "error", script, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = "AND/XOR, one initialisation"
    rows = json.loads((tmp_path / "result.json").read_text())["experiments"][name]["rows"]
    expected = json.loads((PAPERS / "nakamura2022" / "expected.json").read_text())
    printed = expected["experiments"][name]["rows"]
    for row, scale in (("Single AND", "c=1"), ("Uniform", "c=1"), ("Central", "c=10")):
        share, _ = printed[row][f"{scale} converged %"]
        epochs, deviation = printed[row][f"{scale} epochs"]
        assert rows[row][f"{scale} converged %"][0] == share
        assert abs(rows[row][f"{scale} epochs"][0] - epochs) < 3 * deviation
    assert rows["Central + tension"]["c=1 epochs"][0] < rows["Central"]["c=1 epochs"][0]
    assert (tmp_path / "figures" / "figure6.png").stat().st_size > 10_000


def test_the_table_over_all_papers_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, PAPERS / "table.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
