"""Executors with real workers, one of which is killed in mid-run: what `make executors` runs.

    python benchmarks/executors.py [local ray slurm]    # needs the extras ray and slurm

A small comparison is trained in this process, and then by each executor. As soon as the first
record of a run is seen, the process that trains it is killed. All results must then be those of
this process, bit for bit; the killed run must have been sent twice, and go on from its checkpoint;
and no result may have been written twice. Ray is a real one,
started on this machine. No Slurm was at hand: submitit's own `local` cluster runs the same code
in processes that it starts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch

from evenhand.comparison.compare import prepare
from evenhand.comparison.executors import base, executor_of
from evenhand.comparison.executors.sent import LOCKS
from evenhand.comparison.folder import RESULT
from evenhand.comparison.job import Job, Result
from evenhand.comparison.request import Settings, forget
from evenhand.comparison.running import run_jobs
from evenhand.files import LOCK
from evenhand.training.records import Record

OUT = Path(__file__).parent / "results" / "executors.json"
SPELLED = {"local": "local", "ray": "ray(address=local)", "slurm": "slurm(cluster=local)"}
PACKAGES = {"ray": "ray", "slurm": "submitit"}
RECIPES = ("sg", "mgda")
SETTINGS = Settings(
    "lines:problem", seeds=(0, 1), rates=(0.1,), epochs=100, references="none", stack="never"
)


class Killer:
    """A listener that kills the process of the first run that it hears of."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.killed: Job | None = None
        self.finished: dict[Path, int] = {}  # files, with when they were written

    def __call__(self, job: Job, event: Record | Result) -> None:
        if isinstance(event, Result):
            file = self.out / job.folder / RESULT
            self.finished[file] = file.stat().st_mtime_ns
            return
        process = self._process_of(job) if self.killed is None and 0 < event.epoch < 70 else 0
        if process:
            self.killed = job
            os.kill(process, signal.SIGKILL)

    def _process_of(self, job: Job) -> int:
        lock = self.out / LOCKS / job.folder / LOCK
        children = [child.pid for child in active_children()]  # of the local pool
        if children:
            return children[0] or 0
        return int(json.loads(lock.read_text())["pid"]) if lock.exists() else 0


def trained(executor: str, out: Path, listener: Any, workers: int) -> list[Result]:
    forget()
    jobs = prepare(SETTINGS, RECIPES, out)
    return run_jobs(jobs, SETTINGS, out, listener, workers, executor)


def compared(one: Result, other: Result) -> bool:
    return (one.status, one.epoch, one.monitored, one.validation, one.test) == (
        (other.status, other.epoch, other.monitored, other.validation, other.test)
    )


def check(name: str, folder: Path, expected: list[Result]) -> dict[str, Any]:
    """What an executor did."""
    sent: Counter[Job] = Counter()
    kinds = {"local": "local._Processes", "ray": "ray._Tasks", "slurm": "slurm._Jobs"}
    executor_of(SPELLED[name])  # loads its module
    module, _, pool = kinds[name].partition(".")
    kind = getattr(sys.modules[f"evenhand.comparison.executors.{module}"], pool)
    submit = kind.submit

    def counting(self: Any, unit: base.Unit) -> None:
        sent.update(unit.jobs)
        submit(self, unit)

    kind.submit = counting
    killer = Killer(folder)
    found = trained(SPELLED[name], folder, killer, 2)
    kind.submit = submit
    assert killer.killed is not None, "no run was killed: it was too short"
    again = {job.folder: count for job, count in sent.items() if count > 1}
    records = folder / killer.killed.folder / base.RECORDS
    return {
        "runs": len(found),
        "killed": killer.killed.folder,
        "sent more than once": again,
        "same results as one process": all(map(compared, found, expected)),
        "finished": len(killer.finished),
        "results written again": sum(
            file.stat().st_mtime_ns != then for file, then in killer.finished.items()
        ),
        "records of the killed run": len(records.read_text().splitlines()),
    }


def main() -> int:
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(SPELLED)
    with tempfile.TemporaryDirectory() as folder:
        expected = trained("local", Path(folder) / "one", lambda job, event: None, 1)
        found = {}
        for name in names:
            found[name] = check(name, Path(folder) / name, expected)
            print(name, json.dumps(found[name]), flush=True)
    right = all(
        told["same results as one process"]
        and not told["results written again"]
        and told["killed"] in told["sent more than once"]
        for told in found.values()
    )
    installed = ["evenhand", "torch", *(p for p in PACKAGES.values() if find_spec(p))]
    result = {
        "command": "python benchmarks/executors.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in installed},
        "right": right,
        "executors": found,
    }
    if OUT.exists():
        result["executors"] = {**json.loads(OUT.read_text())["executors"], **found}
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
