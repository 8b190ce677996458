"""A short profile of every kind of attack; ``python tests/attack`` makes all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="looks for what is left behind in /proc")
def test_a_few_attacks_of_every_kind_find_no_fault() -> None:
    command = [sys.executable, str(Path(__file__).parent / "attack")]
    command += ["--share", "0.002", "--epochs", "3"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    *_, total = run.stdout.splitlines()
    assert int(total.split("|")[2]) >= 8


def test_the_table_of_attacks_is_what_was_found() -> None:
    root = Path(__file__).parent.parent
    lines = (root / "benchmarks" / "results" / "attacks.jsonl").read_text().splitlines()
    made = [json.loads(line) for line in lines]
    table = (root / "docs" / "reliability.md").read_text()
    for kind in (*dict.fromkeys(one["kind"] for one in made), "all"):
        mine = [one for one in made if kind in (one["kind"], "all")]
        faults = ("tracebacks", "hangs", "orphans", "differing", "other")
        counts = [sum(bool(one[fault]) for one in mine) for fault in faults]
        assert f"| {' | '.join(map(str, [kind, len(mine), *counts]))} |" in table
    assert len({(one["kind"], one["number"]) for one in made}) == len(made) >= 1000
    (commit,) = {one["commit"] for one in made}
    assert f"all are of one commit, {commit}." in table
