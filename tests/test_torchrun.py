"""The example for torchrun, run by the real launcher: once through, stopped, and taken up again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "processes" / "torchrun_ddp.py"


def run(*options: str, processes: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(processes), str(EXAMPLE), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_job_that_was_told_to_stop_goes_on(tmp_path) -> None:
    """On as many processes to the same bits, on one to rounding; `make requeue` has more."""
    checkpoint = ["--checkpoint", str(tmp_path / "job.pt")]
    whole = run("--steps", "6")
    before = run("--steps", "6", *checkpoint, "--terminate-at", "2")
    after = run("--steps", "6", *checkpoint)
    assert len(before) == 4
    assert before[:3] == whole[:3]
    assert after == whole[3:]
    assert len(set(whole)) == len(whole)
    alone = run("--steps", "6", *checkpoint, processes=1)
    for one, other in zip(alone[:-1], after[:-1], strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-3)


def test_sharded_parameters_and_their_checkpoint_give_the_same_steps(tmp_path) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "job")]
    plain = run("--steps", "4")
    sharded = run("--steps", "4", "--shard", *checkpoint, "--terminate-at", "1")[:2]
    sharded += run("--steps", "4", "--shard", *checkpoint)
    assert len(sharded) == 5
    for one, other in zip(plain[:-1], sharded[:-1], strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-3)


def numbers(line: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", line)]
