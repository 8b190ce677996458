"""Attacks on every command: standard streams that nobody serves, and signals at any moment."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ground import Ground
from harness import Child, Ended, Tally, fresh, run
from processes import SIGNALS

PRINTING = (
    *("datasets", "methods --json", "--version", "--help", "compare --help", "compare --nothing"),
    *("predict kept t.csv", "predict kept t.csv --json", "compare t.csv --target nowhere"),
    *("compare t.csv --target wage --plan", "compare t.csv --target wage --print-config"),
    *("new problem x.py", "compare - --target wage --plan", "predict kept -", "report kept"),
    "train t.csv --targets wage,kind --epochs 1 --lr 0.01 --out new",
)
STREAMS = ("stdin", "stdout", "stderr")


def _lost(name: str, how: str) -> Callable[[], None]:
    """A standard stream is closed, as `>&-` does; or full; or nobody reads it any more."""

    def before() -> None:
        number = STREAMS.index(name)
        if how == "closed":
            os.close(number)
            setattr(sys, name, None)  # as Python begins then
            return
        if how == "unread":
            reader, place = os.pipe()
            os.close(reader)
        elif name == "stdin":
            place = os.open(os.devnull, os.O_WRONLY)  # nothing can be read from it
        else:
            place = os.open("/dev/full", os.O_WRONLY)
        os.dup2(place, number)
        setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115

    return before


def streams(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """A command whose input, output or errors go nowhere ends with its code, and a line."""
    folder = _there(ground)
    command, name = chance.choice(PRINTING), chance.choice(STREAMS)
    how = chance.choice(["closed", "full", *["unread"] * (name != "stdin")])
    tally.attack = f"{name} {how}: {command}"
    data = {"EVENHAND_DATA": str(folder / "data")}
    ended = run(shlex.split(command), folder, before=_lost(name, how), environment=data)
    if name == "stderr":  # nothing can be told there
        ended.err = ""
        fits = ended.code in (0, 1, 2) and not (ended.hung or ended.orphans)
        tally.expect(fits, f"{tally.attack}: {ended}")
        return
    tally.judge(ended, tally.attack, [0, 1, 2], 20)


STOPPED = (
    "doctor small --verify --epochs 3 --out done",
    "train t.csv --targets wage,kind --epochs 20 --lr 0.01 --out done",
    "predict kept t.csv --out done.csv",
    "export kept --out done --format torch",
    "compare t.csv --target wage --plan --budget 10m",
    "report whole",
    "resume whole",
)


def stopped(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """Ctrl-C, SIGTERM, SIGHUP, or SIGKILL; the same command again, or the one told, is done."""
    command = chance.choice(STOPPED)
    words, folder = shlex.split(command), _there(ground)
    if command not in ground.seconds:
        begun = time.monotonic()
        if (ended := run(words, folder)).code:
            raise RuntimeError(f"without any attack: {ended}")
        ground.seconds[command] = time.monotonic() - begun
        folder = _there(ground)
    which, group = chance.choice((*SIGNALS, *SIGNALS, 9)), chance.random() < 0.5
    tally.attack = f"signal {int(which)}{' to all' * group}: {command}"
    child = Child(words, folder)
    time.sleep(chance.random() * ground.seconds[command])
    child.signal(which, group)
    if which != 9 and chance.random() < 0.3:
        child.signal(which, group)  # an impatient one
    ended = child.wait()
    tally.judge(ended, tally.attack, [0, 128 + which, -which], 9)
    tally.judge(run(_again(words, ended, folder), folder), f"again: {command}", [0], 9)


def _again(words: list[str], ended: Ended, folder: Path) -> list[str]:
    """The command that was told; or the same, going on where it does."""
    told = [line for line in ended.err.splitlines() if line.startswith("evenhand ")]
    if told:
        return shlex.split(told[-1])[1:]
    resume = words[0] == "train" and (folder / "done" / "manifest.json").exists()
    return [*words, *["--resume"] * resume]


def _there(ground: Ground) -> Path:
    """A folder with a table, a trained network, and a comparison that is finished."""
    ground.asked(1, "never")
    kept, folder = ground.kept, fresh(ground.root)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    shutil.copytree(ground.root / "whole", folder / "whole")
    return folder
