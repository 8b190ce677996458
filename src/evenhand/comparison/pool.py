"""The runs of a comparison in several processes, and how these end: with the work or its parent."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from evenhand import theirs
from evenhand.comparison.execute import execute
from evenhand.comparison.job import Job, Listener, Result, Unit, WorkerEndedError
from evenhand.comparison.plan import units
from evenhand.comparison.request import Settings
from evenhand.signals import ENDING
from evenhand.text import warned
from evenhand.training.records import Record


def run_jobs(
    todo: Sequence[Job], settings: Settings, out: Path, listener: Listener, workers: int = 1
) -> list[Result]:
    """Execute the jobs, several processes at a time if asked; results in the order of the jobs.

    Raises:
        WorkerEndedError: a process has ended before its run.
    """
    planned = units(todo, settings)
    if workers == 1:
        return _in_order(todo, [execute(unit, settings, out, listener) for unit in planned])
    context = get_context("spawn")
    reports: Reports = context.SimpleQueue()
    pool = ProcessPoolExecutor(
        max(1, min(workers, len(planned))),
        context,
        initializer=_in_worker,
        initargs=(reports, settings),
    )
    try:
        with _noted_signals() as raise_if_any:
            with _deaf_children():
                futures = [pool.submit(_execute_in_worker, unit, out) for unit in planned]
            try:
                for job, event in _events(futures, reports, raise_if_any):
                    listener(job, event)
            except BrokenProcessPool as error:
                raise_if_any()  # what ended the worker may have been meant for all of us
                raise WorkerEndedError(
                    "a worker process has ended before its run: killed, by the system perhaps, "
                    "where memory is short (fewer workers need less)"
                ) from error
        return _in_order(todo, [future.result() for future in futures])
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(todo: Sequence[Job], found: Sequence[Sequence[Result]]) -> list[Result]:
    by_job = {result.job: result for results in found for result in results}
    return [by_job[job] for job in todo]


def _events(
    futures: Sequence[Future[list[Result]]], reports: Reports, between: Callable[[], None]
) -> Iterator[tuple[Job, Record | Result]]:
    """Records and results as they come; a worker has sent them all when it is done.

    `between` is called ten times a second, while no lock is held.
    """
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
        while not reports.empty():
            yield reports.get()
        for future in done:
            future.result()  # raises what the worker raised
        between()


Reports = SimpleQueue[tuple[Job, Record | Result]]


_reports: Reports
"""In a worker: where its records and results go."""


_settings: Settings
"""In a worker: the comparison's. They may hold data, so they are sent once, not with each run."""


def _in_worker(reports: Reports, settings: Settings) -> None:
    global _reports, _settings
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _reports, _settings = reports, settings
    torch.set_num_threads(1)
    warnings.formatwarning = warned


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, however it ends, and end too."""
    parent = parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _execute_in_worker(unit: Unit, out: Path) -> list[Result]:
    try:
        return execute(unit, _settings, out, lambda job, event: _reports.put((job, event)))
    except BaseException as error:
        theirs.carry(error)
        raise


@contextmanager
def _noted_signals() -> Iterator[Callable[[], None]]:
    """Inside, signals that Python handles are noted; what this gives handles those noted.

    Handled wherever they come, they would now and then leave a lock of the pool taken, and the
    pool could not be shut down.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    found = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in found.items() if callable(handler)}
    noted: list[int] = []
    for number in before:
        signal.signal(number, lambda number, frame: noted.append(number))

    def handle() -> None:
        while noted:
            number = noted.pop(0)
            before[number](number, None)

    try:
        yield handle
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile do not hear of an end that is asked of all of a terminal or job.

    They inherit the signals as blocked ones; none that this process gets is lost.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
