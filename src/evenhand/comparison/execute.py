"""Training the runs of a comparison in their folders, going on where they were killed."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.folder import RESULT, STACKED
from evenhand.comparison.job import Job, Listener, Result, Unit
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings, load_problem
from evenhand.comparison.weights import keep_weights
from evenhand.ensemble.training import FINISHED, StackedTraining
from evenhand.training import checkpoint
from evenhand.training.loop import Training, evaluate
from evenhand.training.records import Record, RecordFile, write_atomically


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
        return Result.from_json(done.read_text())
    problem = load_problem(settings.source)
    run = training(job, problem, settings)
    records: list[Record] = []
    try:
        for record in run.run(folder):
            records.append(record)
            on_record(record)
        result = _result(job, run, records)
        keep_weights(run, job, folder, result.epoch)
    except NonFiniteError as error:
        reason, _, _ = str(error).partition(";")
        result = Result(job, run.tasks, f"diverged: {reason}")
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
            found[k] = Result.from_json((folder / RESULT).read_text())
            listener(jobs[k], found[k])
    if len(found) == len(jobs):
        return [found[k] for k in range(len(jobs))]
    saved = out / jobs[0].group / STACKED
    if saved.exists():
        ended = checkpoint.load(saved)["ended"]
        if any(k not in found and status == FINISHED for k, status in ended.items()):
            saved.unlink()  # somebody has taken a result away, and the weights are gone
    problem = load_problem(settings.source)
    runs = StackedTraining([training(job, problem, settings) for job in jobs])
    wanted = [k for k in range(len(jobs)) if k not in found]
    files = {k: RecordFile(folders[k] / "records.jsonl") for k in wanted}
    records: dict[int, list[Record]] = {k: [] for k in wanted}
    for k, event in runs.run(saved, files):
        if k not in records:
            continue
        if isinstance(event, Record):
            records[k].append(event)
            listener(jobs[k], event)
            continue
        if event == FINISHED:
            found[k] = _result(jobs[k], runs.members[k], records[k])
            keep_weights(runs.members[k], jobs[k], folders[k], found[k].epoch)
        else:
            found[k] = Result(jobs[k], runs.members[k].tasks, event)
        write_atomically(folders[k] / RESULT, found[k].to_json())
        listener(jobs[k], found[k])
    saved.unlink(missing_ok=True)
    return [found[k] for k in range(len(jobs))]


def _result(job: Job, run: Training, records: Sequence[Record]) -> Result:
    best = [record for record in records if record.best][-1]
    _, test = evaluate(run.network, run.problem, run.problem.test, run.tasks)
    return Result(
        job,
        run.tasks,
        "finished",
        best.epoch,
        best.monitored,
        best.metrics,
        test,
        _epoch_seconds(records[1:]),
    )


def _epoch_seconds(records: Sequence[Record]) -> float:
    # One median over all epochs of an alternating run would be that of the commoner kind alone.
    kinds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for record in records:
        kinds[record.moves].append(record.seconds)
    total = math.fsum(statistics.median(seconds) * len(seconds) for seconds in kinds.values())
    return total / len(records)
