"""The kinds of attacks. Each is a function of what is common, a number and a seeded chance."""

from __future__ import annotations

import errno
import os
import random
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import DIGITS, SMALL, Child, Tally, fresh, results, run, small_files

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ground:
    """What attacks have in common: a folder, and what an undisturbed comparison gives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reference: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}

    def asked(self, workers: int, stack: str) -> list[str]:
        """The comparison, and what it gives undisturbed, found once."""
        words = [*(SMALL if workers == 1 else DIGITS), "--workers", str(workers), "--stack", stack]
        if (key := shlex.join(words)) not in self.reference:
            folder, begun = fresh(self.root), time.monotonic()
            ended = run(words, folder)
            if ended.code:
                raise RuntimeError(f"without any attack: {ended}")
            self.seconds[key] = time.monotonic() - begun
            self.reference[key] = results(folder / "out")
            shutil.copytree(folder / "out", self.root / "whole", dirs_exist_ok=True)
        return words

    def moment(self, words: list[str], chance: random.Random) -> None:
        """Wait for any moment of it."""
        time.sleep(chance.random() * self.seconds[shlex.join(words)])

    def go_on(self, tally: Tally, words: list[str], folder: Path, what: str) -> None:
        """Whatever is there, the command goes on, or begins, and gives the same."""
        begun = (folder / "out" / "manifest.json").exists()
        ended = run([*words, *(["--resume"] if begun else [])], folder)
        tally.judge(ended, f"going on after {what}", [0], 0)
        tally.attacks -= 1  # it belongs to the attack before
        tally.compare(folder / "out", self.reference[shlex.join(words)], what)


def _drawn(chance: random.Random) -> tuple[int, str]:
    """Workers are processes that import torch anew: one in twelve attacks has them."""
    return (2 if chance.random() < 1 / 12 else 1), chance.choice(["never", "always"])


def kill(ground: Ground, tally: Tally, number: int, chance: random.Random) -> None:
    """SIGKILL of the main process, several times in a row, and on."""
    while tally.wants(number):
        workers, stack = _drawn(chance)
        words, folder = ground.asked(workers, stack), fresh(ground.root)
        for _ in range(chance.randint(1, 3)):
            resume = ["--resume"] if (folder / "out" / "manifest.json").exists() else []
            child = Child([*words, *resume], folder)
            ground.moment(words, chance)
            child.signal(signal.SIGKILL)
            tally.judge(child.wait(), "SIGKILL", [0, -signal.SIGKILL])
        ground.go_on(tally, words, folder, "SIGKILL")


def signals(ground: Ground, tally: Tally, number: int, chance: random.Random) -> None:
    """Ctrl-C, SIGTERM, SIGHUP, to the process or all of its session; the command told goes on."""
    while tally.wants(number):
        workers, stack = _drawn(chance)
        words, folder = ground.asked(workers, stack), fresh(ground.root)
        which, group = chance.choice(SIGNALS), chance.random() < 0.5
        child = Child(words, folder)
        ground.moment(words, chance)
        child.signal(which, group)
        if chance.random() < 0.2:
            child.signal(which, group)  # an impatient one
        ended = child.wait()
        # A signal before the child's first instruction of ours meets Python's own handler.
        tally.judge(ended, f"signal {which}", [0, 128 + which, -which])
        told = [line for line in ended.err.splitlines() if line.startswith("evenhand compare")]
        if told:
            again = shlex.split(told[-1])[1:]
            ended = run(again, folder)
            tally.judge(ended, "the command told", [0], 0)
            tally.attacks -= 1
            tally.compare(folder / "out", ground.reference[shlex.join(words)], f"signal {which}")
        else:
            ground.go_on(tally, words, folder, f"signal {which}")


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


def disk(ground: Ground, tally: Tally, number: int, chance: random.Random) -> None:
    """A disk that is full, or fails, at any moment; and on when there is room again."""
    while tally.wants(number):
        stack = chance.choice(["never", "always"])
        words, folder = ground.asked(1, stack), fresh(ground.root)
        if chance.random() < 0.5:
            before = small_files(int(10 ** chance.uniform(1, 4.5)))
        else:
            code = chance.choice([errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
            before = _failing(chance.randint(1, 40), code)
        tally.judge(run(words, folder, before=before), "full disk", [0, 1, 2])
        if list(folder.rglob("*.draft")):
            tally.other += 1
            tally.said.append("full disk: a draft is left")
        ground.go_on(tally, words, folder, "full disk")


def writers(ground: Ground, tally: Tally, number: int, chance: random.Random) -> None:
    """Two commands on one folder: one of them writes, the other says who does."""
    while tally.wants(number):
        stack = chance.choice(["never", "always"])
        words, folder = ground.asked(1, stack), fresh(ground.root)
        first = Child(words, folder)
        ground.moment(words, chance)
        begun = (folder / "out" / "manifest.json").exists()
        second = run([*words, *(["--resume"] if begun and chance.random() < 0.7 else [])], folder)
        tally.judge(second, "the second writer", [0, 2])
        if second.code == 2 and not (
            "is being written to by" in second.err or "not empty" in second.err
        ):
            tally.other += 1
            tally.said.append(f"the second writer: {second.err}")
        ended = first.wait()
        tally.judge(ended, "the first writer", [0, 2])
        tally.attacks -= 1
        ground.go_on(tally, words, folder, "two writers")


# Folders and files that are not what they should be -----------------------------------------------


def _places(folder: Path, chance: random.Random) -> Path:
    """A path at which nothing can be written, or read."""
    here = folder / f"place{chance.randrange(10**9)}"
    match chance.randrange(10):
        case 0:
            here.write_text("a file")
        case 1:
            here.symlink_to(here)
        case 2:
            os.mkfifo(here)
        case 3:
            here = folder / ("n" * chance.randint(256, 5000))
        case 4:
            here.write_text("a file")
            here = here / "below" / "it"
        case 5:
            here = Path(chance.choice(["/dev/zero", "/dev/full", "/dev/null", "/proc/evenhand/x"]))
        case 6:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(os.path.relpath(here, Path.cwd())[:100])
        case 7:
            here.mkdir()
            (here / "theirs").write_text("something else")
        case 8:
            here.symlink_to("/proc/evenhand/dangling")
        case 9:
            here = (
                folder / chance.choice(["a\nb", "\x1b[2J", "\udcff", "-x", "*"]) / "none" / "x.png"
            )
    return here


COMMANDS: tuple[Callable[[str], list[str]], ...] = (
    lambda place: ["report", place],
    lambda place: ["compare", "--config", place],
    lambda place: ["compare", "multimnist", "--out", place],  # there is no MNIST
    lambda place: ["methods", "--recipes", "sg", "--figure", f"{place}/x.png"],
    lambda place: ["data", place],
    lambda place: ["compare", "quadrants", "--resume", "--out", place],
)


def _spoil(file: Path, chance: random.Random) -> str:
    """Do something to a file of a finished comparison."""
    content = file.read_bytes()
    how = chance.randrange(9)
    if how == 0:
        file.write_bytes(content[: chance.randrange(len(content) + 1)])
    elif how == 1:
        spoilt = bytearray(content)
        for _ in range(chance.randint(1, 20)):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        file.write_bytes(spoilt)
    elif how == 2:
        file.write_bytes(chance.randbytes(chance.randrange(1, 2000)))
    elif how == 3:
        file.unlink()
        os.mkfifo(file)
    elif how == 4:
        file.unlink()
        file.symlink_to(chance.choice(["/dev/zero", str(file), "/proc/self/mem", "nowhere"]))
    elif how == 5:
        file.unlink()
        file.mkdir()
    elif how == 6:
        with file.open("r+b") as sparse:
            sparse.truncate(1 << 40)
    elif how == 7:
        file.write_bytes(chance.choice([b"", b"[" * 100_000, b"\xff\xfe{", b"null", b'{"a":1}\n']))
    else:
        file.unlink()
    return f"file {file.name}, way {how}"


def folders(ground: Ground, tally: Tally, number: int, chance: random.Random) -> None:
    """Paths of every wrong kind for every option that is one; and damaged files read back."""
    words = ground.asked(1, "always")
    while tally.wants(number):
        folder = fresh(ground.root)
        os.chdir(folder)
        if chance.random() < 0.5:
            command = chance.choice(COMMANDS)(str(_places(folder, chance)))
            nowhere = {"EVENHAND_DATA": str(folder / "nowhere")}
            ended = run(command, folder, environment=nowhere)
            drawn = [0, 2] if command[0] == "methods" else [2]  # some places are fit for a figure
            tally.judge(ended, str(command), drawn, 6)
            continue
        shutil.copytree(ground.root / "whole", folder / "out")
        files = [p for p in sorted((folder / "out").rglob("*")) if p.is_file()]
        lost = chance.choice(files)
        if chance.random() < 0.5:  # so that its run is gone on with
            (lost.parent / "result.json").unlink(missing_ok=True)
        file = chance.choice([p for p in files if p.exists()])
        what = _spoil(file, chance)
        ended = run(["report", "out"] if chance.random() < 0.5 else [*words, "--resume"], folder)
        tally.judge(ended, what, [0, 1, 2])
    os.chdir("/")


# Options ------------------------------------------------------------------------------------------

KEYS = [
    "source",
    "recipes",
    "splits",
    "design",
    "seeds",
    "lr",
    "epochs",
    "patience",
    "optimizer",
    "out",
    "resume",
    "workers",
    "stack",
    "jacobian",
    "references",
    "matters",
]
WRONG = (
    *("3e6", "1:30:00", "1" + "0" * 20, "-1", "0", "nan", "inf", "-inf", "1e400", "0x10", "٣", "½"),
    *(
        "true",
        "null",
        "~",
        "[]",
        "{}",
        "[1, [2]]",
        "{a: 1}",
        "''",
        '"\\0"',
        '"\\e[2J"',
        "2020-01-01",
    ),
    *("!!python/name:os.system ''", "!!binary x", "&a [*a]", "*a", "<<", "? x", "- 1", "a: b: c"),
    *(
        "x" * 3000,
        "all,bogus",
        ",",
        "sg,sg",
        "1," * 3000,
        "[" * 900,
        "{" * 900,
        "..",
        "/",
        "%",
        "\t",
    ),
)


def options(ground: Ground, tally: Tally, number: int, chance: random.Random) -> None:
    """Configurations and command lines: a line within a second of computing, and nothing begun."""
    while tally.wants(number):
        folder = fresh(ground.root)
        keys = chance.sample(KEYS, chance.randint(1, 4))
        values = {key: chance.choice(WRONG) for key in keys}
        sure = {"source": "quadrants", "seeds": "0"}  # so that nothing is ever trained
        if chance.random() < 0.6:
            lines = [f"{key}: {value}" for key, value in {**values, **sure}.items()]
            if chance.random() < 0.2:
                lines.append(chance.choice(lines))
            chance.shuffle(lines)
            text = "\n".join(lines)
            encoding = chance.choice(["utf-8"] * 6 + ["utf-16", "latin-1", "utf-8-sig"])
            (folder / "c.yaml").write_bytes(text.encode(encoding, errors="replace"))
            command = ["compare", "--config", "c.yaml"]
        else:
            values.pop("resume", None)
            command = ["compare", values.pop("source", "quadrants")]
            for key, value in {**values, "seeds": "0"}.items():
                command += [f"--{key}={value}".replace("\0", "")]
        ended = run(command, folder)
        tally.judge(ended, shlex.join(command)[:200], [2], 6)
        if ended.processor > 1 or (folder / "evenhand-quadrants").exists():
            tally.other += 1
            tally.said.append(f"{command}: {ended.processor:.2f} s")


KINDS: dict[str, tuple[Callable[[Ground, Tally, int, random.Random], None], int]] = {
    "SIGKILL, and on": (kill, 160),
    "signals, and on": (signals, 120),
    "full and failing disks, and on": (disk, 100),
    "two writers": (writers, 60),
    "hostile folders and files": (folders, 260),
    "configurations and command lines": (options, 600),
}
"""Each kind, and how many make a run of more than a thousand."""
