"""The example for torchrun, run by the real launcher: once through, and stopped and taken up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "processes" / "torchrun_ddp.py"


def run(*options: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(EXAMPLE), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout


def test_a_job_that_was_told_to_stop_goes_on_to_the_same_bits(tmp_path) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "job.pt")]
    whole = run("--steps", "6").splitlines()
    before = run("--steps", "6", *checkpoint, "--terminate-at", "2").splitlines()
    after = run("--steps", "6", *checkpoint).splitlines()
    assert len(before) == 4
    assert before[:3] == whole[:3]
    assert after == whole[3:]
    assert len(set(whole)) == len(whole)


def test_sharded_parameters_give_the_same_steps() -> None:
    plain, sharded = run("--steps", "3").splitlines(), run("--steps", "3", "--shard").splitlines()
    assert len(sharded) == 3
    for one, other in zip(plain, sharded, strict=False):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-3)


def numbers(line: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", line)]
