"""The tool as a child that is attacked: started, hit, watched until it ends, and judged.

A child is a fork of this process, which has imported everything, so that a thousand attacks take
minutes; its workers are new processes. Nothing leaves the temporary folder, nothing uses a network.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds after which a child hangs."""
TOKEN = "EVENHAND_ATTACK"
CLOCKS = ("seconds", "processor")
OPTIONS = "--recipes sg,mgda --splits 1 --seeds 2 --lr 0.1 --references none --out out"
SMALL = ["compare", "small", *shlex.split(OPTIONS)]
DIGITS = ["compare", "digits", *shlex.split(OPTIONS), "--epochs", "1"]
"""For workers, which are new processes and know only what is built in."""


@dataclass
class Ended:
    """How a child ended."""

    code: int
    out: str
    err: str
    hung: bool
    orphans: int
    processor: float


@dataclass
class Tally:
    """What came of an attack, which may be several runs of the tool in a row.

    Attributes:
        attack: what was done, for people.
        tracebacks: runs that ended in a trace, or said that there is a defect.
        hangs: runs that did not end within `PATIENCE`.
        orphans: runs that left a process behind.
        differing: whether results differ from those of an undisturbed run.
        other: other exit codes, more lines, more time or other files than promised.
        said: the faults.
    """

    attack: str = ""
    tracebacks: int = 0
    hangs: int = 0
    orphans: int = 0
    differing: int = 0
    other: int = 0
    said: list[str] = field(default_factory=list)

    def judge(self, ended: Ended, what: str, codes: Sequence[int], lines: int = 2) -> None:
        """No trace, no hang, no orphan, one of the codes, no more lines than these."""
        self.hangs += ended.hung
        self.orphans += ended.orphans > 0
        trace = "Traceback" in ended.err or "defect of ours" in ended.err
        self.tracebacks += trace
        told = [line for line in ended.err.splitlines() if line.strip()]
        odd = ended.code not in codes or len(told) > lines or (ended.code > 0 and not told)
        if odd and not trace and not ended.hung:
            self.other += 1
        if trace or ended.hung or ended.orphans or odd:
            self.said.append(f"{what}: code {ended.code}, {ended.err[-600:]!r}")

    def expect(self, holds: bool, what: str) -> None:
        """Anything else that was promised."""
        if not holds:
            self.other += 1
            self.said.append(what)

    def compare(self, folder: Path, reference: dict[str, Any], what: str) -> None:
        """The results of a comparison that was hit and went on are those of one that was not."""
        if (found := results(folder)) != reference:
            self.differing += 1
            self.said.append(
                f"{what}: differs in {[k for k in reference if found.get(k) != reference[k]]}"
            )


def results(folder: Path) -> dict[str, Any]:
    """Every result and every file of weights, without what clocks say."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("result.json")):
        values = json.loads(file.read_text())
        found[str(file.relative_to(folder))] = {
            key: repr(value) for key, value in values.items() if key not in CLOCKS
        }
    for file in sorted(folder.rglob("best.safetensors")):
        found[str(file.relative_to(folder))] = file.read_bytes()
    return found


class Child:
    """A run of the tool in `folder`."""

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        before: Callable[[], None] = lambda: None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.token = f"{os.getpid()}-{time.monotonic_ns()}"
        self._files = [folder.parent / f"{self.token}.{k}" for k in ("out", "err")]
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, folder, before, environment or {})

    def _run(
        self,
        words: Sequence[str],
        folder: Path,
        before: Callable[[], None],
        environment: dict[str, str],
    ) -> None:
        code = 70
        try:
            os.setsid()
            os.environ.update({TOKEN: self.token, **environment})
            os.chdir(folder)
            for number, path in enumerate(self._files, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = ["evenhand", *words]
            from evenhand.app import start

            before()
            start.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # noqa: BLE001  # what an interpreter would do
            sys.excepthook(*sys.exc_info())
            code = 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):  # the disk that is full may be theirs
                    stream.flush()
            os._exit(code)

    def signal(self, number: int, group: bool = False) -> None:
        """Hit it, or all of its session."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self) -> Ended:
        """Its end, or that it hangs."""
        until, hung = time.monotonic() + PATIENCE, False
        while True:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until and not hung:
                hung = True
                self.signal(signal.SIGKILL, group=True)
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(status)
        texts = [p.read_text(errors="replace") if p.exists() else "" for p in self._files]
        for path in self._files:
            path.unlink(missing_ok=True)
        return Ended(code, *texts, hung, self._orphans(), used.ru_utime + used.ru_stime)

    def _orphans(self) -> int:
        """How many processes it has left, after half a minute; they are ended.

        A worker hears of its parent's end when it has imported torch: a second, on a busy machine
        many.
        """
        until = time.monotonic() + 30
        while (left := self._left()) and time.monotonic() < until:
            time.sleep(0.1)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return len(left)

    def _left(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                marked = f"{TOKEN}={self.token}".encode() in (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            # What multiprocessing starts to count semaphores ends a moment later by itself.
            if marked and b"resource_tracker" not in command:
                found.append(int(entry.name))
        return found


def run(words: Sequence[str], folder: Path, **options: Any) -> Ended:
    """The tool, from begin to end."""
    return Child(words, folder, **options).wait()


def small_files(size: int) -> Callable[[], None]:
    """No file may grow beyond `size` bytes: a full disk for who writes it."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fresh(root: Path) -> Path:
    """An empty folder below `root`, the last one gone."""
    folder = root / "here"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
