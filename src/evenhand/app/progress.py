"""How a comparison is coming along: bars on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)
from rich.table import Column

from evenhand.comparison.folder import AS_ONE, MANIFEST, RESULT
from evenhand.comparison.job import Job, Listener, Result
from evenhand.text import LINE, NAME, plain
from evenhand.training.records import Record

if TYPE_CHECKING:
    from evenhand.data.labels import LabelCount

EVERY = 30.0
"""Seconds between lines about a run that is not finished."""


def kept(jobs: Sequence[Job], folder: Path, again: str) -> str:
    """What there is after a fault, and the command that goes on."""
    done = sum((folder / job.folder / RESULT).exists() for job in jobs)
    resume = " --resume" if (folder / MANIFEST).exists() else ""
    return f"{done} of {len(jobs)} runs are finished and kept. Go on with:\n{again}{resume}"


@contextmanager
def shown(console: Console, jobs: Sequence[Job], epochs: int) -> Iterator[Listener]:
    """A listener that shows what it hears; `epochs` is the most that a run trains."""
    if not console.is_terminal:
        yield Lines(console, len(jobs))
        return
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn(
            "{task.fields[losses]}",
            markup=False,
            style="dim",
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        ),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(progress, len(jobs), epochs)


class Bars:
    """A bar for all runs, and one for each run that is being trained, with its losses."""

    def __init__(self, progress: Progress, jobs: int, epochs: int) -> None:
        self._progress = progress
        self._epochs = epochs
        self._overall = progress.add_task("all runs", total=jobs, unit="runs", losses="")
        self._running: dict[Job, TaskID] = {}

    def __call__(self, job: Job, event: Record | Result) -> None:
        if isinstance(event, Result):
            if job in self._running:
                self._progress.remove_task(self._running.pop(job))
            self._progress.advance(self._overall)
            return
        if job not in self._running:
            self._running[job] = self._progress.add_task(
                named(job), total=self._epochs, unit="epochs", losses=""
            )
        self._progress.update(self._running[job], completed=event.epoch, losses=numbers(event))


class Lines:
    """A line for each finished run, and now and then one for a run that takes long."""

    def __init__(self, console: Console, jobs: int) -> None:
        self._out = saying(console)
        self._jobs = jobs
        self._finished = 0
        self._spoke = time.monotonic()

    def __call__(self, job: Job, event: Record | Result) -> None:
        if isinstance(event, Result):
            self._finished += 1
            trained = f"best epoch {event.epoch}" if job.rate else "done"
            ended = trained if event.status == "finished" else plain(event.status, 2 * LINE)
            self._say(f"[{self._finished}/{self._jobs}] {named(job)}: {ended}")
        elif time.monotonic() - self._spoke > EVERY:
            self._say(f"{named(job)}: epoch {event.epoch}, {numbers(event)}")

    def _say(self, line: str) -> None:
        self._out(line)
        self._spoke = time.monotonic()


Say = Callable[[str], None]


def saying(console: Console) -> Say:
    """Writes a line at once, also where output is buffered."""

    def say(line: str) -> None:
        console.out(plain(line))
        console.file.flush()

    return say


def named(job: Job) -> str:
    """The run, as people call it."""
    label = f" {plain(job.label, NAME)}" if job.label else ""
    split = f", split {job.split}" if job.split else ""
    settings = f", seed {job.seed}, rate {job.rate:g}" if job.rate else ""  # else it is computed
    return f"{plain(job.recipe, NAME)}{label}{split}{settings}"


def numbers(record: Record) -> str:
    """The tasks' validation losses."""
    return "  ".join(f"{plain(task, NAME)} {loss:.3g}" for task, loss in record.validation.items())


def told_labels(counts: Mapping[str, Mapping[str, LabelCount]]) -> str:
    """How many samples have a label of each task, by part, and how many are left out."""
    parts = next(iter(counts.values()), {})
    if not parts:
        return "labels: not counted, the data are read from files"
    lines = []
    for task, found in counts.items():
        used = _by_part([count.used for count in found.values()])
        out = [count.left_out for count in found.values()]
        gaps = [count.gaps for count in found.values()]
        also = [f"{_by_part(out)} without a label left out"] if any(out) else []
        also += [f"{_by_part(gaps)} entries without one"] if any(gaps) else []
        lines.append(f"{plain(task, NAME)} {used}" + (f" ({', '.join(also)})" if also else ""))
    return f"labels ({'/'.join(parts)}): {'; '.join(lines)}"


def _by_part(counts: Sequence[int]) -> str:
    return "/".join(map(str, counts))


def told_memory(state_bytes: Mapping[str, int]) -> str:
    """What the optimizers keep for a network: what most recipes need, and those that need more."""
    usual = statistics.mode(state_bytes.values())
    more = {name: held for name, held in state_bytes.items() if held > usual}
    others = "".join(f"; {plain(name, NAME)} {bytes_told(held)}" for name, held in more.items())
    return f"optimizer state per network: {bytes_told(usual)}{others}"


def told_stacks(trained: Mapping[str, str]) -> str:
    """How many recipes' networks have all their runs trained as one; "" if none has."""
    together = sum(how.endswith(AS_ONE) for how in trained.values())
    if not together:
        return ""
    return (
        f"the runs of {together} of {len(trained)} networks are each trained as one "
        f"({MANIFEST} says which; --stack never trains each by itself)"
    )


def bytes_told(count: int) -> str:
    """A size in memory as people say it."""
    for unit, bytes_per in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= bytes_per:
            return f"{count / bytes_per:.3g} {unit}"
    return f"{count} bytes"
