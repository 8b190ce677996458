"""The example for torchrun, run by the real launcher: once through, stopped, and taken up again."""

from __future__ import annotations

import re
import shutil
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
    assert "Warning" not in done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def whole() -> list[str]:
    """Six steps of two processes, and the sum of all parameters' sizes."""
    return run("--steps", "6")


def test_a_job_that_was_told_to_stop_goes_on(whole, tmp_path) -> None:
    """On as many processes to the same bits, on one to rounding."""
    checkpoint = ["--checkpoint", str(tmp_path / "job.pt")]
    before = run("--steps", "6", *checkpoint, "--terminate-at", "2")
    after = run("--steps", "6", *checkpoint)
    assert len(before) == 4
    assert before[:3] == whole[:3]
    assert after == whole[3:]
    assert len(set(whole)) == len(whole)
    alone = run("--steps", "6", *checkpoint, processes=1)
    for one, other in zip(alone[:-1], after[:-1], strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-3)


def test_sharded_parameters_and_their_checkpoint_give_the_same_steps(whole, tmp_path) -> None:
    """On as many processes to the same bits, on more to rounding, and as without --shard."""
    checkpoint, copy = tmp_path / "job", tmp_path / "copy"
    options = ["--steps", "6", "--shard"]
    sharded = run(*options)
    before = run(*options, "--checkpoint", str(checkpoint), "--terminate-at", "2")
    shutil.copytree(checkpoint, copy)
    after = run(*options, "--checkpoint", str(checkpoint))
    assert before[:3] == sharded[:3]
    assert after == sharded[3:]
    on_three = run(*options, "--checkpoint", str(copy), processes=3)
    for line, *others in zip(sharded[3:-1], on_three[:-1], whole[3:-1], strict=True):
        for other in others:
            assert numbers(other) == pytest.approx(numbers(line), rel=1e-3)
    assert size(on_three) == pytest.approx(size(sharded), rel=1e-6)
    assert size(whole) == pytest.approx(size(sharded), rel=1e-6)


def size(lines: list[str]) -> float:
    """The sum of all parameters' sizes."""
    return float.fromhex(lines[-1].removeprefix("parameters "))


def numbers(line: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", line)]
