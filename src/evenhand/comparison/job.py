"""One run of a comparison, and how it ended."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from evenhand.asking import option
from evenhand.files import parsed, read_text
from evenhand.text import plain
from evenhand.training.records import Record

LONGEST = 100
"""Letters of a label in the name of a folder."""
APART = 1_000_003
"""Between the seeds of one split and those of the next: more than anybody asks for."""


class WorkerEndedError(RuntimeError):
    """A worker process has ended before its run: killed, by the system where memory is short."""


@dataclass(frozen=True)
class Job:
    """One network's training: a recipe, which of its networks, a seed, a rate and a split."""

    recipe: str
    label: str
    seed: int
    rate: float
    split: int = 0

    @property
    def network(self) -> str:
        """The recipe, and which of its networks; a folder inside the comparison's."""
        return f"{self.recipe}-{self.label}" if self.label else self.recipe

    @property
    def group(self) -> str:
        """The folder, inside the comparison's, of the runs that differ in seed and rate alone."""
        return f"{_component(self.network)}/split{self.split}"

    @property
    def folder(self) -> str:
        """The run's folder inside the comparison's."""
        return f"{self.group}/seed{self.seed}-lr{self.rate:g}"

    @property
    def run_seed(self) -> int:
        """Of initial weights and all chance in training: another one in every split."""
        return self.seed + APART * self.split


def _component(name: str) -> str:
    """A folder's name: the same, or what is left of it and a checksum.

    A task may be called anything; no folder leaves the comparison's, or is too long for a disk.
    """
    if name == plain(name) and not {"/", "\\"} & {*name} and len(name.encode()) <= 150:
        return name if name.strip(". ") == name else f"_{name}_"
    kept = "".join(c for c in name[:40] if c.isascii() and (c.isalnum() or c in "-_+"))
    return f"{kept}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
        tasks: what the network was trained on.
        status: "finished", or "diverged: …" (a reference may be "left out: …") with the reason.
        epoch: the best epoch by the monitored quantity.
        monitored: its value there; infinite for a diverged run.
        validation, test: each task's metric with the best epoch's weights.
        seconds: wall time of an epoch's training steps, the median over epochs that move the same
            parameters, averaged over all of them.
        resampled: each task's metric on draws of the test rows (`resampling`), the same draws for
            every run of a split; empty where splits show the spread.
        parameters: how many the network has.
        flops: floating-point operations of all its training steps; None where not counted.
        processor: processor seconds of training and validating it, all threads together; of runs
            that are trained as one, an equal share.
    """

    job: Job
    tasks: tuple[str, ...]
    status: str
    epoch: int = 0
    monitored: float = math.inf
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    resampled: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    parameters: int = 0
    flops: float | None = None
    processor: float = math.nan

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, file: Path, job: Job) -> Result:
        """The result of `job` that `file` holds.

        Raises:
            ValueError: it is damaged, or another run's; the message says what to do.
        """
        again = f"delete it, and {option('resume', True)} makes the run again, to the same numbers"
        found = parsed(cls, read_text(file), f"{file} is damaged ({again})")
        if found.job != job:
            raise ValueError(
                f"{file} is the result of another run ({plain(found.job.folder, 80)}): {again}"
            )
        return found


Listener = Callable[[Job, Record | Result], None]
"""Called with every record of a running job, and with its result."""


@dataclass(frozen=True)
class Unit:
    """Runs that are trained together: one, or several as one.

    Attributes:
        jobs: the runs.
        why: for a single run, why it is not one of a stack.
    """

    jobs: tuple[Job, ...]
    why: str = ""

    @property
    def stacked(self) -> bool:
        """Whether they are trained as one."""
        return not self.why
