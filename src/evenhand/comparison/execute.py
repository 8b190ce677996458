"""Training the runs of a comparison in their folders, going on where they were killed."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.constant import evaluated
from evenhand.comparison.folder import RESULT, STACKED
from evenhand.comparison.job import Job, Listener, Result, Unit
from evenhand.comparison.plan import training
from evenhand.comparison.reference_runs import RUNS
from evenhand.comparison.request import Settings
from evenhand.comparison.resampling import resampled, rows_resampled
from evenhand.comparison.weights import keep_weights
from evenhand.ensemble.training import FINISHED, StackedTraining
from evenhand.files import write_atomically
from evenhand.sharing.base import parameters
from evenhand.text import LINE, plain
from evenhand.training import checkpoint
from evenhand.training.loop import Training
from evenhand.training.records import Record, RecordFile

T = TypeVar("T")


def execute(unit: Unit, settings: Settings, out: Path, listener: Listener) -> list[Result]:
    """Train the runs of `unit` in their folders under `out`, going on where they were killed."""
    if unit.stacked:
        return _execute_as_one(unit.jobs, settings, out, listener)
    results = []
    for job in unit.jobs:
        results.append(_execute_alone(job, settings, out, partial(listener, job)))
        listener(job, results[-1])
    return results


def _execute_alone(
    job: Job, settings: Settings, out: Path, on_record: Callable[[Record], None]
) -> Result:
    folder = out / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / RESULT
    if done.exists():
        return Result.read(done, job)
    problem = settings.problem(job.split)
    if job.recipe in RUNS:
        start = time.process_time()
        result = RUNS[job.recipe](job, problem, settings, folder)
        result = replace(result, processor=time.process_time() - start)
        write_atomically(done, result.to_json())
        return result
    run = training(job, problem, settings)
    records: list[Record] = []
    whole = not any(folder.iterdir())  # what was spent before a kill is not known
    cost = _ProcessorTime()
    try:
        for record in cost.of(run.run(folder)):
            records.append(record)
            on_record(record)
        result = _result(job, run, records, settings)
        result = replace(result, processor=cost.seconds if whole else math.nan)
        _keep(run, result, folder)
    except NonFiniteError as error:
        reason, _, _ = str(error).partition(";")
        result = Result(job, run.tasks, f"diverged: {plain(reason, 2 * LINE)}")
    write_atomically(done, result.to_json())
    return result


def _execute_as_one(
    jobs: Sequence[Job], settings: Settings, out: Path, listener: Listener
) -> list[Result]:
    """Those that are finished are trained along, if others are not: the stack stays what it was."""
    folders = [out / job.folder for job in jobs]
    found: dict[int, Result] = {}
    for k, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RESULT).exists():
            found[k] = Result.read(folder / RESULT, jobs[k])
            listener(jobs[k], found[k])
    saved = out / jobs[0].group / STACKED
    if len(found) == len(jobs):
        saved.unlink(missing_ok=True)  # a kill may have come just before
        return [found[k] for k in range(len(jobs))]
    if saved.exists():
        ended = checkpoint.load(saved)["ended"]
        if any(k not in found and status == FINISHED for k, status in ended.items()):
            saved.unlink()  # somebody has taken a result away, and the weights are gone
    problem = settings.problem(jobs[0].split)
    runs = StackedTraining([training(job, problem, settings) for job in jobs])
    wanted = [k for k in range(len(jobs)) if k not in found]
    files = {k: RecordFile(folders[k] / "records.jsonl") for k in wanted}
    records: dict[int, list[Record]] = {k: [] for k in wanted}
    whole = not saved.exists()
    cost = _ProcessorTime()
    for k, event in cost.of(runs.run(saved, files)):
        if k not in records:
            continue
        if isinstance(event, Record):
            records[k].append(event)
            listener(jobs[k], event)
            continue
        if event == FINISHED:
            share = cost.seconds / len(jobs) if whole else math.nan
            found[k] = _result(jobs[k], runs.members[k], records[k], settings)
            found[k] = replace(found[k], processor=share)
            _keep(runs.members[k], found[k], folders[k])
        else:
            found[k] = Result(jobs[k], runs.members[k].tasks, plain(event, 2 * LINE))
        write_atomically(folders[k] / RESULT, found[k].to_json())
        listener(jobs[k], found[k])
    saved.unlink(missing_ok=True)
    return [found[k] for k in range(len(jobs))]


class _ProcessorTime:
    """How long this process computes for what an iterator gives, whatever is done in between."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, items: Iterable[T]) -> Iterator[T]:
        start = time.process_time()
        for item in items:
            self.seconds += time.process_time() - start
            yield item
            start = time.process_time()
        self.seconds += time.process_time() - start


def _keep(run: Training, result: Result, folder: Path) -> None:
    if result.status == FINISHED:
        keep_weights(run, result.job, folder, result.epoch)


def _result(job: Job, run: Training, records: Sequence[Record], settings: Settings) -> Result:
    improved = [record for record in records if record.best]
    if not improved:
        return Result(job, run.tasks, "diverged: no epoch has a finite validation loss")
    best, problem = improved[-1], run.problem
    work = [record.flops for record in records[1:]]
    return Result(
        job,
        run.tasks,
        FINISHED,
        best.epoch,
        best.monitored,
        best.metrics,
        evaluated(run.network, problem, problem.test, run.tasks),
        _epoch_seconds(records[1:]),
        resampled=(
            resampled(run.network, problem, run.tasks, job.split)
            if rows_resampled(problem, settings)
            else {}
        ),
        parameters=parameters(run.network),
        flops=None if None in work else math.fsum(known for known in work if known is not None),
    )


def _epoch_seconds(records: Sequence[Record]) -> float:
    # One median over all epochs of an alternating run would be that of the commoner kind alone.
    kinds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for record in records:
        kinds[record.trains].append(record.seconds)
    total = math.fsum(statistics.median(seconds) * len(seconds) for seconds in kinds.values())
    return total / len(records)
