"""What attacks have in common: a folder, and what undisturbed runs give."""

from __future__ import annotations

import random
import shlex
import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import DIGITS, SMALL, Tally, fresh, results, run

TRAIN = shlex.split("train t.csv --targets wage,kind --epochs 2 --lr 0.01 --out kept")


class Ground:
    """A folder, and what is found there once for all attacks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reference: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}

    def asked(self, workers: int, stack: str) -> list[str]:
        """The comparison, and what it gives undisturbed."""
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

    @cached_property
    def kept(self) -> Path:
        """A folder with a table, t.csv, and a network that was trained on it, in kept/."""
        folder = fresh(self.root)
        (folder / "t.csv").write_text(table(random.Random(0)))
        ended = run(TRAIN, folder)
        if ended.code:
            raise RuntimeError(f"without any attack: {ended}")
        return Path(shutil.copytree(folder, self.root / "table"))

    def moment(self, words: list[str], chance: random.Random) -> None:
        """Wait for any moment of it."""
        time.sleep(chance.random() * self.seconds[shlex.join(words)])

    def go_on(self, tally: Tally, words: list[str], folder: Path, what: str) -> None:
        """Whatever is there, the command goes on, or begins, and gives the same."""
        begun = (folder / "out" / "manifest.json").exists()
        ended = run([*words, *(["--resume"] if begun else [])], folder)
        tally.judge(ended, f"going on after {what}", [0], 0)
        tally.compare(folder / "out", self.reference[shlex.join(words)], what)


def table(chance: random.Random, rows: int = 120) -> str:
    """A small table that can be trained on."""
    lines = ["age,town,wage,kind"]
    for _ in range(rows):
        age, town = chance.randint(18, 80), chance.choice("abc")
        lines.append(f"{age},{town},{age * 3 + chance.random():.3f},{chance.choice('xy')}")
    return "\n".join(lines) + "\n"
