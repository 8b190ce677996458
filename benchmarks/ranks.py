"""Every method, slot and place on several processes against one: what `make ranks` runs.

    python benchmarks/ranks.py [--worlds 2 3] [--methods mgda upgrad] [--jobs 1] [--minutes 5]
                               [--out FILE]
    python benchmarks/ranks.py --summary    # of the file, into benchmarks/results/ranks.txt
    python benchmarks/ranks.py --sources    # the files that a line depends on, and their checksum

A line of FILE is one method, slot and place on so many ranks: how many of its eight trainings
agree, one for each route (plain, `DistributedDataParallel`, `fully_shard`; `loss` and `backward`),
and what is wrong with the others. A training takes seven steps in float64, in which the batch is
shared out in every way in turn: evenly; unevenly; with tasks that are missing on some ranks; with
one that is missing on all; with a loss, and with a gradient, that is NaN on one rank; with a rank
that has next to nothing. With which way it begins differs from line to line. Gradients of every
step, parameters and states must agree with one process to 1e-10, and all ranks with each other bit
for bit; tests/test_ranks.py trains three steps in each way alone, of a sample.

Where values of a training do not agree so, it is made again in one process, several times, with
initial parameters that are moved by a relative 2.2e-16 (`rounded`). Values that this moves far too,
such as those of a step that divides by an eigenvalue which is zero but for rounding, are held to
ten times the farthest that they moved, and such a training is counted apart.

The order is shuffled, once for all, so that a part of the lines is a fair sample. Called again, it
goes on: lines without a fault are not made again, unless they were made by another source or
another torch, in which case they are dropped from FILE. The source is the files of evenhand that a
balanced step imports (`STEP`), by their contents, and those of the test. Several groups of ranks
are at work at a time with --jobs; after --minutes, what is not finished is dropped.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import evenhand

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT / "tests")  # this file has the other's name

from ranks import (  # noqa: E402 - it lies in another folder
    IN_TURN,
    ROUTES,
    Trained,
    Variation,
    differences,
    leave,
    moved,
    train,
    variations,
)

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a mesh would take the cards that there are
RESULTS = ROOT / "benchmarks" / "results"
DEADLINE = datetime.timedelta(seconds=30)
"""Of every collective."""
TOLERANCE = 1e-10
DRAWS = 8
"""How often a training that does not agree is made again, each time with other roundings."""
ALLOWED = 10
"""How many times as far as roundings move a value of one process may a rank's be from it: of eight
draws the farthest is not the farthest of all."""
SLICE = 40
"""Lines that one group of processes makes before it ends and another is started."""
STEP = ("balancer", "distributed", "weighting", "aggregation", "schedules", "network")
"""What a balanced step of the registry is asked of. The public names, which the test goes by, load
more (what compares, what diagnoses), of which no training calls anything."""
EXPECTED = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError)
"""What a training may raise; it is told in the line."""


@dataclass(frozen=True)
class Round:
    """What makes a line: a method, slot and place on a number of ranks."""

    method: str
    slot: str
    at: str
    world: int

    def trainings(self) -> list[Variation]:
        first = zlib.crc32(repr(astuple(self)).encode()) % len(IN_TURN)
        v = Variation(self.method, self.slot, self.at, f"in turn from {first}", "")
        return [replace(v, route=route) for route in ROUTES]


@dataclass
class Line:
    """What came of a round.

    Attributes:
        agree: how many trainings agree with one process to `TOLERANCE`.
        wrong: what others differ in, by their names.
        seconds: of the processors, of all ranks together.
        moved: the others, within what rounding moves one process: how far it moves that at most.
    """

    method: str
    slot: str
    at: str
    world: int
    agree: int
    wrong: dict[str, str]
    seconds: float
    torch: str
    source: str
    moved: dict[str, float] = field(default_factory=dict)

    @property
    def round(self) -> Round:
        return Round(self.method, self.slot, self.at, self.world)


def rounds(worlds: Sequence[int], methods: Sequence[str] | None) -> list[Round]:
    found = [
        Round(v.method, v.slot, v.at, world)
        for v in variations()
        if methods is None or v.method in methods
        for world in worlds
    ]
    random.Random(0).shuffle(found)
    return found


def sources() -> list[Path]:
    """What is under test and what tests it, in order of names.

    Of evenhand, the modules that importing `STEP` loads in a process of its own, and all of
    `distributed`, which is loaded when there are several processes.
    """
    names = [f"evenhand.{name}" for name in STEP]
    loaded = (
        f"import sys; [__import__(name) for name in {names}]; print(*(m.__file__ for name, m in "
        "sys.modules.items() if name.split('.')[0] == 'evenhand'), sep='\\n')"
    )
    told = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    files = {Path(line) for line in told.stdout.split("\n") if line}
    files |= set((Path(str(evenhand.__file__)).parent / "distributed").glob("*.py"))
    return [*sorted(files), ROOT / "tests/cases.py", ROOT / "tests/ranks.py"]


def checksum(files: Sequence[Path]) -> str:
    """Of the contents of files, one behind the other with their names."""
    found = hashlib.sha256()
    for file in files:
        contents = file.read_bytes()
        found.update(f"{file.parent.name}/{file.name} {len(contents)}\n".encode() + contents)
    return found.hexdigest()[:12]


def lines(file: Path) -> dict[Round, Line]:
    """The last line of each round; one that was cut off by a kill is passed over."""
    found = {}
    for text in file.read_text().splitlines() if file.exists() else ():
        if text.endswith("}"):
            line = Line(**json.loads(text))
            found[line.round] = line
    return found


def write(file: Path, line: Line) -> None:
    with file.open("a") as out:
        out.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")


# One group of ranks -----------------------------------------------------------------------------


def work(
    rank: int, world: int, folder: str, todo: list[Round], until: float, out: str, source: str
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun = 0.0  # the first line's time has that of the start in it
    for number, chosen in enumerate(todo):
        alone = list(dict.fromkeys(v.alone for v in chosen.trainings()))
        mine = {v: train(v, 0, 1) for v in alone[rank::world]}  # no group yet: one process
        store = f"file://{folder}/{number}"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=world, timeout=DEADLINE
        )
        found = list(_outcomes(chosen, mine, rank, world, until))
        spent = _told(time.process_time() - begun, rank, world)
        dist.destroy_process_group()
        begun = time.process_time()
        if any(outcome.told == [LATE] for outcome in found):
            break
        if rank == 0:
            seconds = round(sum(spent), 1)
            write(Path(out), line_of(chosen, found, seconds, source))
    leave()


@dataclass(frozen=True)
class Outcome:
    """What came of a training, on the first rank.

    Attributes:
        training: which.
        told: what is wrong with it; nothing, if it agrees to `TOLERANCE`.
        ranks, alone: what the ranks and one process came to, if they did.
    """

    training: Variation
    told: list[str]
    ranks: Sequence[Any] = ()
    alone: Trained | None = None


def line_of(chosen: Round, found: Sequence[Outcome], seconds: float, source: str) -> Line:
    """The line of a round; in one process, since what does not agree is made again."""
    wrong: dict[str, str] = {}
    far: dict[str, float] = {}
    for outcome in found:
        told, most = judged(outcome)
        name = f"{outcome.training.route}, {outcome.training.share}"
        if told:
            wrong[name] = "; ".join(told[:3])[:400]
        elif outcome.told:
            far[name] = most
    agree = len(chosen.trainings()) - len(wrong) - len(far)
    parts = (chosen.method, chosen.slot, chosen.at, chosen.world, agree, wrong, seconds)
    return Line(*parts, torch.__version__, source, far)


def judged(outcome: Outcome) -> tuple[list[str], float]:
    """What is wrong with a training, and how far rounding moves the values that it excuses.

    That is measured only where values do not agree to `TOLERANCE`. What a single disturbance turns
    into a value of another kind (none instead of some, a NaN) is excused by nothing.
    """
    if not outcome.told or outcome.alone is None:
        return outcome.told, 0.0
    again = [train(outcome.training.alone, 0, 1, draw) for draw in range(DRAWS)]
    far = {
        name: most
        for name, most in moved(outcome.alone, again).items()
        if TOLERANCE < ALLOWED * most < math.inf
    }
    allowed = {name: ALLOWED * most for name, most in far.items()}
    told = differences(outcome.ranks, outcome.alone, TOLERANCE, allowed)
    return told, max(far.values(), default=0.0)


LATE = "the time is over"


def _outcomes(
    chosen: Round, mine: dict[Variation, Any], rank: int, world: int, until: float
) -> Iterator[Outcome]:
    """What came of each training; what its ranks differ in is looked at by the first one."""
    alone = {v: found for there in _told(mine, rank, world) for v, found in there.items()}
    for variation in chosen.trainings():
        found: Any
        try:
            found = train(variation, rank, world)
        except EXPECTED as error:
            found = f"{type(error).__name__}: {error}"
        outcomes = _told((found, time.time() > until), rank, world)
        if not outcomes:  # the ranks are out of step, or one is gone
            why = found if isinstance(found, str) else ""
            yield Outcome(variation, [f"the ranks lost each other: {why}"])
            return
        if any(late for _, late in outcomes):
            yield Outcome(variation, [LATE])
            return
        if rank == 0:
            ranks, expected = [f for f, _ in outcomes], alone[variation.alone]
            told = differences(ranks, expected, TOLERANCE)
            yield Outcome(variation, told, ranks if told else (), expected if told else None)


def _told(what: Any, rank: int, world: int) -> list[Any]:
    """What every rank tells; nothing, if that fails."""
    found: list[Any] = [None] * world
    try:
        dist.all_gather_object(found, what)
    except RuntimeError:
        return []
    return found


# All groups -------------------------------------------------------------------------------------


def run(todo: list[Round], jobs: int, until: float, out: Path, source: str) -> None:
    """Groups of processes, `jobs` at a time, of a few rounds each, until there is no more."""
    running: list[tuple[Any, list[Round], Any]] = []
    while (todo and time.time() < until) or running:
        while todo and len(running) < jobs and time.time() < until:
            chosen = [r for r in todo if r.world == todo[0].world][:SLICE]
            todo = [r for r in todo if r not in chosen]
            folder = tempfile.TemporaryDirectory()
            arguments = (chosen[0].world, folder.name, chosen, until, str(out), source)
            context = mp.start_processes(
                work, arguments, nprocs=chosen[0].world, join=False, start_method="spawn"
            )
            running.append((context, chosen, folder))
        for entry in list(running):
            context, chosen, folder = entry
            try:
                ended = context.join(timeout=0.3)
            except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
                ended = True
                todo = [*todo, *_after(error, chosen, out, source)]
            if ended:
                running.remove(entry)
                folder.cleanup()


def _after(error: Exception, chosen: list[Round], out: Path, source: str) -> list[Round]:
    """A line for the round in which ranks ended, and the rounds that are left."""
    known = lines(out)
    left = [r for r in chosen if r not in known]
    if left:
        first, told = left.pop(0), str(error).strip().splitlines()[-1]
        parts = (first.method, first.slot, first.at, first.world, 0, {"all": told[:400]}, 0.0)
        write(out, Line(*parts, torch.__version__, source))
        print(f"  {first}: {told}", flush=True)
    return left


def only_of(file: Path, source: str) -> dict[Round, Line]:
    """The lines that this source and this torch have made; all others are dropped from the file."""
    found = {
        r: line
        for r, line in lines(file).items()
        if (line.source, line.torch) == (source, torch.__version__)
    }
    file.write_text("")
    for line in found.values():
        write(file, line)
    return found


def summary(file: Path, source: str) -> str:
    """What the file's lines come to."""
    found, every = lines(file), rounds((2, 3), None)
    versions = ", ".join(sorted({line.torch for line in found.values()}))
    told = [f"python benchmarks/ranks.py   (gloo, float64; torch {versions})"]
    if old := sum(line.source != source for line in found.values()):
        told.append(f"{old} of {len(found)} lines were made by another source than the present one")
    for world in (2, 3):
        there = [line for line in found.values() if line.world == world]
        agree, of = sum(line.agree for line in there), len(there) * len(ROUTES)
        whole = sum(r.world == world for r in every)
        hours = sum(line.seconds for line in there) / 3600
        far = [most for line in there for most in line.moved.values()]
        told.append(
            f"{world} ranks: {agree} of {of} trainings of {len(IN_TURN)} steps agree with one "
            f"process to {TOLERANCE:g}"
            + (f", {len(far)} within {ALLOWED} times what rounding moves it" if far else "")
            + f"; {len(there)} of {whole} methods, slots and places; {hours:.2f} processor hours"
            + (f", {hours * whole / len(there):.2f} for all" if there else "")
        )
        told += [
            f"  {line.method}, {line.slot}, {line.at or 'own'}, {name}: {what}"
            for line in there
            for name, what in line.wrong.items()
        ]
        told += [
            f"  {line.method}, {line.slot}, {line.at or 'own'}: in {len(line.moved)} trainings "
            f"rounding moves one process by up to {max(line.moved.values()):.0e}"
            for line in there
            if line.moved
        ]
    return "\n".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--jobs", type=int, default=1, help="groups of ranks at a time")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--out", type=Path, default=RESULTS / "ranks.jsonl")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--sources", action="store_true")
    options = parser.parse_args()
    until = time.time() + 60 * options.minutes
    files = sources()
    source = checksum(files)
    if options.sources:
        print(*files, source, sep="\n")
        return 0
    if not options.summary:
        if "lo" in [name for _, name in socket.if_nameindex()]:  # the host may have no name
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of what it was asked for
        known = only_of(options.out, source)
        todo = [
            r for r in rounds(options.worlds, options.methods) if r not in known or known[r].wrong
        ]
        print(f"{len(todo)} lines to make", flush=True)
        run(todo, options.jobs, until, options.out, source)
    told = summary(options.out, source)
    print(told)
    if options.summary:
        (RESULTS / "ranks.txt").write_text(told + "\n")
    return int(any(line.wrong for line in lines(options.out).values()))


if __name__ == "__main__":
    sys.exit(main())
