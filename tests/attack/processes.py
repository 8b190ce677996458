"""Attacks on processes: kills, signals, disks that are full, and a second writer."""

from __future__ import annotations

import errno
import os
import random
import shlex
import signal
from collections.abc import Callable

from ground import Ground
from harness import Child, Tally, fresh, run, small_files

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _drawn(chance: random.Random) -> tuple[int, str]:
    """Workers are processes that import torch anew: one in twelve attacks has them."""
    return (2 if chance.random() < 1 / 12 else 1), chance.choice(["never", "always"])


def kill(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """SIGKILL of the main process, several times in a row, and on."""
    workers, stack = _drawn(chance)
    words, folder = ground.asked(workers, stack), fresh(ground.root)
    times = chance.randint(1, 3)
    tally.attack = f"{times} kills, {workers} workers, {stack} stacked"
    for _ in range(times):
        resume = ["--resume"] if (folder / "out" / "manifest.json").exists() else []
        child = Child([*words, *resume], folder)
        ground.moment(words, chance)
        child.signal(signal.SIGKILL)
        tally.judge(child.wait(), "SIGKILL", [0, -signal.SIGKILL])
    ground.go_on(tally, words, folder, "SIGKILL")


def signals(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """Ctrl-C, SIGTERM, SIGHUP, to the process or all of its session; the command told goes on."""
    workers, stack = _drawn(chance)
    words, folder = ground.asked(workers, stack), fresh(ground.root)
    which, group = chance.choice(SIGNALS), chance.random() < 0.5
    tally.attack = f"{which.name}{' to all' * group}, {workers} workers, {stack} stacked"
    child = Child(words, folder)
    ground.moment(words, chance)
    child.signal(which, group)
    if chance.random() < 0.2:
        child.signal(which, group)  # an impatient one
    ended = child.wait()
    # A signal before the child's first instruction of ours meets Python's own handler.
    tally.judge(ended, tally.attack, [0, 128 + which, -which])
    told = [line for line in ended.err.splitlines() if line.startswith("evenhand compare")]
    if told:
        tally.judge(run(shlex.split(told[-1])[1:], folder), "the command told", [0], 0)
        tally.compare(folder / "out", ground.reference[shlex.join(words)], tally.attack)
    else:
        ground.go_on(tally, words, folder, tally.attack)


def _failing(nth: int, code: int) -> Callable[[], None]:
    """Syncing a file fails from the n-th time on."""

    def before() -> None:
        real, count = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count >= nth:
                raise OSError(code, os.strerror(code))
            real(descriptor)

        os.fsync = fsync

    return before


def disk(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """A disk that is full, or fails, at any moment; and on when there is room again."""
    words, folder = ground.asked(1, chance.choice(["never", "always"])), fresh(ground.root)
    if chance.random() < 0.5:
        size = int(10 ** chance.uniform(2.8, 4.5))  # what is told fits
        before, tally.attack = small_files(size), f"no file above {size} bytes"
    else:
        code = chance.choice([errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
        nth = chance.randint(1, 40)
        before, tally.attack = _failing(nth, code), f"{errno.errorcode[code]} from sync {nth} on"
    tally.judge(run(words, folder, before=before), tally.attack, [0, 1, 2])
    tally.expect(not list(folder.rglob("*.draft")), f"{tally.attack}: a draft is left")
    ground.go_on(tally, words, folder, tally.attack)


def writers(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """Two commands on one folder: one of them writes, the other says who does."""
    words, folder = ground.asked(1, chance.choice(["never", "always"])), fresh(ground.root)
    first = Child(words, folder)
    ground.moment(words, chance)
    resume = (folder / "out" / "manifest.json").exists() and chance.random() < 0.7
    tally.attack = f"a second writer{', resuming' * resume}"
    second = run([*words, *(["--resume"] if resume else [])], folder)
    tally.judge(second, "the second writer", [0, 2])
    told = any(said in second.err for said in ("is being written to by", "not empty"))
    tally.expect(second.code == 0 or told, f"the second writer: {second.err}")
    tally.judge(first.wait(), "the first writer", [0, 2])
    ground.go_on(tally, words, folder, tally.attack)
