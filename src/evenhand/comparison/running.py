"""The runs of a comparison, wherever they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evenhand.comparison.executors import LOCAL, executor_of
from evenhand.comparison.executors.base import Executor
from evenhand.comparison.folder import RESULT
from evenhand.comparison.job import Job, Listener, Result
from evenhand.comparison.plan import units
from evenhand.comparison.request import Settings


def run_jobs(
    todo: Sequence[Job],
    settings: Settings,
    out: Path,
    listener: Listener,
    workers: int = 1,
    executor: str | Executor = LOCAL,
) -> list[Result]:
    """Execute the jobs, several at a time if asked; results in the order of the jobs.

    Raises:
        ValueError: there is no such executor, or it cannot be had here; no worker is asked for.
        WorkerEndedError: workers have ended before a run, again and again.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: must be at least 1")
    executor_of(executor).run(units(todo, settings), settings, out, listener, workers)
    return [Result.read(out / job.folder / RESULT, job) for job in todo]
