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
from pathlib import Path

import torch

from evenhand import theirs
from evenhand.comparison.execute import execute
from evenhand.comparison.executors.base import supervise
from evenhand.comparison.job import Listener, Unit, WorkerEndedError
from evenhand.comparison.request import Settings
from evenhand.signals import ENDING
from evenhand.text import warned


class Local:
    """Processes of this machine, with one thread each; one at a time is this process itself."""

    def run(
        self,
        planned: Sequence[Unit],
        settings: Settings,
        out: Path,
        listener: Listener,
        workers: int,
    ) -> None:
        if workers == 1:
            for unit in planned:
                execute(unit, settings, out, listener)
            return
        settings.given.require_picklable()
        most = max(1, min(workers, len(planned)))
        with _noted_signals() as raise_if_any, _processes(settings, out, most) as pool:
            supervise(planned, pool, settings, out, listener, most, raise_if_any)


class _Processes:
    """A pool of processes; another one takes its place when one of them was killed."""

    def __init__(self, settings: Settings, out: Path, most: int) -> None:
        self._settings, self._out, self._most = settings, out, most
        self._pool: ProcessPoolExecutor | None = None
        self._futures: dict[Future[None], Unit] = {}

    def submit(self, unit: Unit) -> None:
        if self._pool is None:
            # Its locks start Python's resource tracker, which leaves signals unblocked.
            self._pool = ProcessPoolExecutor(
                self._most, get_context("spawn"), initializer=_in_worker, initargs=(self._settings,)
            )
        with _deaf_children():
            self._futures[self._pool.submit(_execute_in_worker, unit, self._out)] = unit

    def ended(self, seconds: float) -> list[tuple[Unit, BaseException | None]]:
        done, _ = wait(self._futures, timeout=seconds, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            self.kill()  # nobody says whose worker it was, and all the others end with it
            lost = WorkerEndedError("a worker process was killed")
            found = [
                (unit, future.exception() if future in done and not _broken(future) else lost)
                for future, unit in self._futures.items()
            ]
            self._futures.clear()
            return found
        return [(self._futures.pop(future), future.exception()) for future in done]

    def kill(self) -> None:
        """End all processes at once."""
        if self._pool is None:
            return
        for process in list(self._pool._processes.values()):
            process.kill()
        self.shut()

    def shut(self) -> None:
        """Wait for the end of all processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _broken(future: Future[None]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


@contextmanager
def _processes(settings: Settings, out: Path, most: int) -> Iterator[_Processes]:
    """Processes that end with the block: when they are done, or at once if it raises."""
    pool = _Processes(settings, out, most)
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.shut()


_settings: Settings
"""In a worker: the comparison's. They may hold data, so they are sent once, not with each run."""


def _in_worker(settings: Settings) -> None:
    global _settings
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _settings = settings
    torch.set_num_threads(1)
    warnings.formatwarning = warned


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, however it ends, and end too."""
    parent = parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _execute_in_worker(unit: Unit, out: Path) -> None:
    try:
        execute(unit, _settings, out, lambda job, event: None)
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
