"""A short profile of every kind of attack; ``python tests/attack`` makes all of them."""

from __future__ import annotations

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
