"""Records: what a run says about each epoch; JSON lines in and out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from evenhand.files import append, parsed, read_text
from evenhand.files import write_atomically as write_atomically


@dataclass(frozen=True)
class Record:
    """One epoch. What was not measured is empty.

    Attributes:
        epoch: how many epochs are finished; 0 is the network before training.
        step: how many calls of the schedule are finished.
        trains: the blocks that moved in this epoch ("shared", "own").
        losses: each task's training loss, the mean over the steps in which it was active.
        validation: each task's mean loss on the validation set.
        metrics: each task's metric on the validation set.
        weights: each task's mean weight in the trunk (in the heads, where a method leaves the
            gradients' span or the trunk is frozen).
        norms: mean of ‖∇_θ L_i‖ over the observed steps, θ the shared parameters.
        cosines: mean of cos(g_i, g_j) over the observed steps, by "i|j".
        conflicts: share of the observed steps at which that cosine was below zero, by "i|j".
        path: length of the path of the shared parameters, Σ ‖Δθ‖₂ over all sub-steps; measured at
            the observed steps and scaled up to all, so exact where every step is observed. None
            where none was.
        changes: what each phase did to each task's loss on its own batch, in eval mode, the mean
            over the observed steps; by "what moved|task" ("shared|seg"; a phase in which not all
            tasks were active is "shared+own of depth|seg").
        oscillation: of each task's training loss over the steps of the epoch, see `oscillation`.
        rates: learning rate of each optimizer, as used in this epoch.
        monitored: the quantity that early stopping and model choice watch; lower is better.
        best: whether it is the lowest so far.
        seconds: wall time of the training steps, without evaluation and observation.
        flops: floating-point operations of the training steps, counted (see `Training`); None
            where they were not.
        reused: how many samples had the features that a frozen trunk gives them from memory.
        state_bytes: memory of the optimizers' state (moments, counts).
    """

    epoch: int
    step: int
    trains: tuple[str, ...] = ()
    losses: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    norms: Mapping[str, float] = field(default_factory=dict)
    cosines: Mapping[str, float] = field(default_factory=dict)
    conflicts: Mapping[str, float] = field(default_factory=dict)
    path: float | None = None
    changes: Mapping[str, float] = field(default_factory=dict)
    oscillation: Mapping[str, float] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    monitored: float = float("nan")
    best: bool = False
    seconds: float = 0.0
    flops: float | None = None
    reused: int = 0
    state_bytes: int = 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str, where: str = "no record") -> Record:
        """The record that a line of `to_json` holds.

        Raises:
            ValueError: the line is no such record; the message begins with `where`.
        """
        return parsed(cls, line, where)


def oscillation(losses: Sequence[float]) -> float:
    """How much a loss swings beyond its net change, relative to its size, per step.

        (Σ_k |L_{k+1} − L_k| − |L_K − L_1|) / ((K − 2) · mean_k |L_k|)

    Zero for a monotone curve and for fewer than three values; a zigzag of ±a around M has about
    2a/M. It does not depend on the scale of the loss, and little on the number of values. Over
    records it measures the spikes that alternate training damps (Bellavia et al., section 4),
    over the steps of an epoch the noise of the batches too.

    Example:
        >>> oscillation([4.0, 2.0, 1.0]), oscillation([1.5, 0.5, 1.5, 0.5])
        (0.0, 1.0)
    """
    total = math.fsum(abs(after - before) for before, after in pairwise(losses))
    size = math.fsum(map(abs, losses))
    if len(losses) < 3 or size == 0:
        return 0.0
    swing = max(total - abs(losses[-1] - losses[0]), 0.0)
    return swing / (len(losses) - 2) / (size / len(losses))


@dataclass(frozen=True)
class Mark:
    """How far a file of records has come: its complete lines, and their SHA-256."""

    lines: int
    sha256: str


class RecordFile:
    """Records on disk, a line each. Every line is flushed; a line cut off by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count, self._hash = 0, hashlib.sha256()
        self._known = False  # whether these two are the file's

    def __iter__(self) -> Iterator[Record]:
        for number, line in enumerate(self._lines(), 1):
            yield Record.from_json(line, f"{self.path}, line {number}")

    def _lines(self) -> list[str]:
        lines = read_text(self.path).split("\n") if self.path.exists() else [""]
        return [f"{line}\n" for line in lines[:-1]]

    def append(self, *records: Record) -> None:
        """Add a line for each record and see them written."""
        text = "".join(record.to_json() + "\n" for record in records)
        append(self.path, text)
        self._hash.update(text.encode())
        self._count += len(records)

    def mark(self) -> Mark:
        """How far it has come."""
        if not self._known:
            self._count_from(self._lines())
        return Mark(self._count, self._hash.hexdigest())

    def _count_from(self, lines: Sequence[str]) -> None:
        self._count, self._hash = len(lines), hashlib.sha256("".join(lines).encode())
        self._known = True

    def rewind(self, to: Mark | None) -> None:
        """Drop what came after a mark, at once or not at all; everything, without one.

        Raises:
            ValueError: what came before it is not what was there then.
        """
        lines = [] if to is None else self._lines()[: to.lines]
        self._count_from(lines)
        if to is not None and self.mark() != to:
            raise ValueError(f"{self.path} does not hold the {to.lines} records")
        write_atomically(self.path, "".join(lines))
