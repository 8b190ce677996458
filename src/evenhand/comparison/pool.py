"""The runs of a comparison in several processes, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from evenhand.comparison.execute import execute
from evenhand.comparison.job import Job, Listener, Result, Unit
from evenhand.comparison.plan import units
from evenhand.comparison.request import Settings
from evenhand.training.records import Record


def run_jobs(
    todo: Sequence[Job], settings: Settings, out: Path, listener: Listener, workers: int = 1
) -> list[Result]:
    """Execute the jobs, several processes at a time if asked; results in the order of the jobs."""
    planned = units(todo, settings)
    if workers == 1:
        return _in_order(todo, [execute(unit, settings, out, listener) for unit in planned])
    context = get_context("spawn")
    reports: Reports = context.SimpleQueue()
    pool = ProcessPoolExecutor(
        workers, context, initializer=_in_worker, initargs=(reports, settings)
    )
    try:
        with _deaf_children():
            futures = [pool.submit(_execute_in_worker, unit, out) for unit in planned]
        with _noted_interrupts() as raise_if_any:
            for job, event in _events(futures, reports, raise_if_any):
                listener(job, event)
        return _in_order(todo, [future.result() for future in futures])
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
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
    _reports, _settings = reports, settings
    torch.set_num_threads(1)


def _execute_in_worker(unit: Unit, out: Path) -> list[Result]:
    return execute(unit, _settings, out, lambda job, event: _reports.put((job, event)))


@contextmanager
def _noted_interrupts() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C is noted, and raised by the function that this gives.

    Raised wherever it comes, it would now and then leave a lock of the pool taken, and the pool
    could not be shut down.
    """
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: None
        return
    noted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.set())

    def raise_if_any() -> None:
        if noted.is_set():
            raise KeyboardInterrupt

    try:
        yield raise_if_any
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which reaches every process of a terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
