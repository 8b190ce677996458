"""The short run of Pascal et al.'s page, on the digits that stand in for MNIST in tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "papers" / "pascal2021" / "reproduce.py"


def test_pascal2021_multimnist(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, "--quick", "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (experiment,) = json.loads((tmp_path / "result.json").read_text())["experiments"].values()
    rows = experiment["rows"]
    assert {"sus", "ius", "io", "ius-groups", "io-groups"} < set(rows)
    assert all(row["path"][0] > 0 and 0 <= row["mean accuracy"][0] <= 1 for row in rows.values())
    # One step of the sum and one of the mean move Adam alike.
    assert abs(rows["sus"]["path"][0] / rows["uniform"]["path"][0] - 1) < 0.01
    assert rows["io"]["path"][0] > rows["ius"]["path"][0]
    assert (tmp_path / "figures" / "paths.png").stat().st_size > 10_000
