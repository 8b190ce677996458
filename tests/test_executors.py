"""Executors: what is sent again, what never, what is told; and what is refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dying import dying
from evenhand import compare
from evenhand.app.cli import app
from evenhand.comparison import executors
from evenhand.comparison.executors import executor_of
from evenhand.comparison.executors.base import RECORDS, TRIES, supervise
from evenhand.comparison.executors.local import Local
from evenhand.comparison.executors.sent import LOCKS, Sent
from evenhand.comparison.folder import RESULT
from evenhand.comparison.job import Job, Result, Unit, WorkerEndedError
from evenhand.comparison.request import Settings
from evenhand.files import held
from evenhand.training.records import Record

JOBS = [Job("sg", "", seed, 0.1) for seed in range(4)]
UNITS = [Unit((job,), "alone") for job in JOBS]
SETTINGS = Settings("quadrants")
End = BaseException | None


def finish(out: Path, job: Job) -> None:
    (out / job.folder).mkdir(parents=True, exist_ok=True)
    (out / job.folder / RESULT).write_text(Result(job, ("a",), "finished").to_json())


def record(out: Path, job: Job, *epochs: int) -> None:
    (out / job.folder).mkdir(parents=True, exist_ok=True)
    lines = "".join(Record(epoch, epoch).to_json() + "\n" for epoch in epochs)
    (out / job.folder / RECORDS).write_text(lines)


@dataclass
class Scripted:
    """A pool that does with each unit what it is told, in the order in which it is sent them.

    Attributes:
        does: for the k-th time that a unit is sent, what happens.
        sent: the seeds of what it was sent.
        most: the most units that it had at a time.
    """

    out: Path
    does: Callable[[Job, int], End]
    sent: list[int] = field(default_factory=list)
    most: int = 0
    away: list[Unit] = field(default_factory=list)

    def submit(self, unit: Unit) -> None:
        self.sent.append(unit.jobs[0].seed)
        self.away.append(unit)
        self.most = max(self.most, len(self.away))

    def ended(self, seconds: float) -> Sequence[tuple[Unit, End]]:
        unit = self.away.pop(0)
        (job,) = unit.jobs
        return [(unit, self.does(job, self.sent.count(job.seed)))]


def run(out: Path, does: Callable[[Job, int], End]) -> tuple[Scripted, list[tuple[int, str]]]:
    heard: list[tuple[int, str]] = []

    def listener(job: Job, event: Record | Result) -> None:
        told = "done" if isinstance(event, Result) else f"epoch {event.epoch}"
        heard.append((job.seed, told))

    pool = Scripted(out, does)
    supervise(UNITS, pool, SETTINGS, out, listener, 2)
    return pool, heard


def test_what_is_lost_is_sent_again_and_what_is_finished_never(tmp_path) -> None:
    finish(tmp_path, JOBS[1])  # from an earlier call

    def does(job: Job, time: int) -> End:
        if job.seed == 2 and time < TRIES:
            record(tmp_path, job, *range(time))
            return WorkerEndedError("killed")
        record(tmp_path, job, 0, 1, 2)
        finish(tmp_path, job)
        return WorkerEndedError("killed right after") if job.seed == 3 else None

    pool, heard = run(tmp_path, does)
    assert sorted(pool.sent) == [0, 2, 2, 2, 3]
    assert pool.most == 2
    by_seed = {seed: [told for whose, told in heard if whose == seed] for seed in range(4)}
    every = ["epoch 0", "epoch 1", "epoch 2", "done"]
    assert by_seed == {0: every, 1: ["done"], 2: every, 3: every}


@pytest.mark.parametrize("lost", [WorkerEndedError("killed by hand"), None])
def test_a_loss_is_told_after_so_many_tries(tmp_path, lost) -> None:
    """None: it ends well, and leaves no result."""
    pools: list[Scripted] = []

    def does(job: Job, time: int) -> End:
        if job.seed == 1:
            return lost
        finish(tmp_path, job)
        return None

    with pytest.raises(WorkerEndedError, match=r"sg/split0/seed1-lr0\.1 .* 3 times: .*the last"):
        pools.append(run(tmp_path, does)[0])
    kept = [(tmp_path / job.folder / RESULT).exists() for job in JOBS]
    assert kept == [True, False, True, True]


def test_what_a_run_raises_is_raised_at_once(tmp_path) -> None:
    with pytest.raises(ArithmeticError, match="mine"):
        run(tmp_path, lambda job, time: ArithmeticError("mine"))


# Workers ----------------------------------------------------------------------------------------


def test_a_killed_process_of_this_machine_is_replaced(tmp_path, monkeypatch) -> None:
    marker = tmp_path / "pid"
    marker.write_text(str(os.getpid()))
    monkeypatch.setenv("EVENHAND_TEST_DYING", str(marker))
    asked = {"epochs": 1, "rates": (0.1,), "splits": 1, "references": "none"}
    made = compare(dying, ["sg"], out=tmp_path / "out", workers=2, **asked)
    assert marker.with_suffix(".died").exists()
    assert [result.status for result in made.results if result.job.recipe == "sg"] == ["finished"]


def test_what_a_worker_elsewhere_raises_comes_back(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    sent = Sent.of(Settings("no such thing"), tmp_path)
    error = sent(UNITS[0])
    assert isinstance(error, ValueError)
    assert "no such thing" in str(error)


def test_two_workers_never_train_one_run(tmp_path) -> None:
    sent = Sent.of(SETTINGS, tmp_path)
    with held(tmp_path / LOCKS / JOBS[0].folder):
        assert isinstance(sent(UNITS[0]), WorkerEndedError)
    assert not (tmp_path / JOBS[0].folder).exists()


# What is refused --------------------------------------------------------------------------------


def test_executors_that_there_are_not(monkeypatch) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    for spelled, message in (
        ("rey", "must be one of local, ray, slurm"),
        ("ray", r"needs ray: pip install 'evenhand\[ray\]'"),
        ("slurm(mem_gb=4)", r"needs submitit: pip install 'evenhand\[slurm\]'"),
        ("local(cpus=2)", "executor=local.cpus=2.: "),
    ):
        with pytest.raises(ValueError, match=message):
            executor_of(spelled)
    with pytest.raises(TypeError, match="executor= is a int"):
        executor_of(3)
    made = Local()
    assert executor_of(made) is made
    assert isinstance(executor_of("local"), Local)


@pytest.mark.parametrize("command", ["compare tiny", "resume out"])
def test_the_command_refuses_before_any_work(command) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--executor", "rey"])
    assert done.exit_code == 2
    assert "must be one of local, ray, slurm" in done.stderr


@pytest.mark.parametrize("spelled", ["slrum", "ray(cpus=2)"])
def test_an_executor_that_cannot_be_had_is_named_once(spelled, monkeypatch) -> None:
    monkeypatch.setattr(executors, "find_spec", lambda package: None)
    asked = ["compare", "digits", "--executor", spelled]
    said = CliRunner().invoke(app, asked).stderr
    assert re.fullmatch(r"evenhand: executor=.*(must be one of|pip install).*\n", said)
    assert said.count("executor=") == 1
