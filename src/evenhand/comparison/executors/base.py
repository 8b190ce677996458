"""What all executors share: units are sent, those that are lost are sent again, folders are read.

A worker tells nothing by itself: how far a run is, and that it is finished, is read from its
folder. So a worker may be on another machine that sees the same folder, and what a worker has
finished counts even if it is lost in the next moment. A lost worker's unit is sent again and goes
on from its checkpoint, a bounded number of times; a unit whose results are there is sent to nobody.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from evenhand.comparison.execute import execute
from evenhand.comparison.folder import RESULT
from evenhand.comparison.job import Job, Listener, Result, Unit, WorkerEndedError
from evenhand.comparison.request import Settings
from evenhand.files import read_text
from evenhand.training.records import Record

TRIES = 3
"""How often a unit is sent before its loss is told."""
LOOK = 0.1
"""Seconds that a look waits for an end."""
SHARE = 10
"""Between two looks into the folders passes so many times what a look takes."""
RECORDS = "records.jsonl"


class Executor(Protocol):
    """Where units are trained."""

    def run(
        self,
        planned: Sequence[Unit],
        settings: Settings,
        out: Path,
        listener: Listener,
        workers: int,
    ) -> None:
        """Train units, so many at a time, until each run's result is in its folder.

        Args:
            planned: the units, in order.
            settings: of the comparison.
            out: its folder.
            listener: is told of every record and result, as `Watch` sees them.
            workers: units at a time.

        Raises:
            WorkerEndedError: a unit's workers were lost again and again.
            Exception: whatever a run has raised.
        """


class Pool(Protocol):
    """Workers that are there now."""

    def submit(self, unit: Unit) -> None:
        """Have a unit trained."""

    def ended(self, seconds: float) -> list[tuple[Unit, BaseException | None]]:
        """The units that have ended since the last look, waiting for one at most so long.

        With each stands what it raised; a `WorkerEndedError` where its worker was lost.
        """


class Watch:
    """Tells a listener what the folders of runs say: each record once, then the result.

    A run that is tried again goes on from its checkpoint; records after that are told twice.
    """

    def __init__(self, out: Path, listener: Listener) -> None:
        self._out = out
        self._listener = listener
        self._told: Counter[Job] = Counter()  # records
        self._seen: dict[Job, tuple[int, int]] = {}
        self.results: dict[Job, Result] = {}

    def look(self, jobs: Sequence[Job]) -> None:
        """Tell what is new of these runs."""
        for job in jobs:
            if job not in self.results:
                done = (self._out / job.folder / RESULT).exists()  # before: then records are whole
                self._tell_records(job)
                if done:
                    self.tell(job, Result.read(self._out / job.folder / RESULT, job))

    def tell(self, job: Job, event: Record | Result) -> None:
        """Tell an event that is known otherwise."""
        if isinstance(event, Result):
            if job in self.results:
                return
            self.results[job] = event
        self._listener(job, event)

    def _tell_records(self, job: Job) -> None:
        file = self._out / job.folder / RECORDS
        try:
            stat = file.stat()
        except FileNotFoundError:
            return
        if self._seen.get(job) == (stat.st_mtime_ns, stat.st_size):
            return
        self._seen[job] = stat.st_mtime_ns, stat.st_size
        lines = read_text(file).split("\n")[:-1]
        told = min(self._told[job], len(lines))
        for number, line in enumerate(lines[told:], told + 1):
            self._listener(job, Record.from_json(line, f"{file}, line {number}"))
        self._told[job] = len(lines)

    def finished(self, unit: Unit) -> bool:
        """Whether the results of all runs of a unit are there."""
        return all((self._out / job.folder / RESULT).exists() for job in unit.jobs)


def supervise(
    planned: Sequence[Unit],
    pool: Pool,
    settings: Settings,
    out: Path,
    listener: Listener,
    workers: int,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Have all units trained, so many at a time, and tell what their folders say.

    `between` is called between looks.

    Raises:
        WorkerEndedError: a unit was lost `TRIES` times.
        Exception: what a run has raised.
    """
    watch = Watch(out, listener)
    waiting, away, tries = deque(planned), dict[Unit, None](), Counter[Unit]()
    rest = 0.0
    while waiting or away:
        while waiting and len(away) < workers:
            unit = waiting.popleft()
            if watch.finished(unit):
                execute(unit, settings, out, watch.tell)  # reads and tidies up; trains nothing
                continue
            tries[unit] += 1
            away[unit] = None
            pool.submit(unit)
        for unit, error in pool.ended(LOOK) if away else ():
            del away[unit]
            watch.look(unit.jobs)
            if error is None and not watch.finished(unit):
                error = WorkerEndedError("it ended without its results")
            if isinstance(error, WorkerEndedError):
                if tries[unit] >= TRIES:
                    raise _given_up(unit, error) from error
                waiting.append(unit)
            elif error is not None:
                raise error
        between()
        if time.monotonic() > rest:
            begun = time.monotonic()
            watch.look([job for unit in away for job in unit.jobs])
            rest = time.monotonic() + SHARE * (time.monotonic() - begun)


def _given_up(unit: Unit, error: WorkerEndedError) -> WorkerEndedError:
    which = unit.jobs[0].group if unit.stacked else unit.jobs[0].folder
    return WorkerEndedError(
        f"the worker of {which} has ended before its run, {TRIES} times: killed, by the system "
        f"perhaps, where memory is short (fewer workers need less); the last time: {error}"
    )
