"""Records: what a run says about each epoch; JSON lines in and out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One epoch. What was not measured is empty.

    Attributes:
        epoch: how many epochs are finished; 0 is the network before training.
        step: how many calls of the schedule are finished.
        moves: the blocks that moved in this epoch ("shared", "own").
        losses: each task's training loss, the mean over the steps in which it spoke.
        validation: each task's mean loss on the validation set.
        metrics: each task's metric on the validation set.
        weights: each task's mean weight in the trunk (in the heads, where a method leaves the
            gradients' span or the trunk rests).
        norms: mean of ‖∇_θ L_i‖ over the observed steps, θ the shared parameters.
        cosines: mean of cos(g_i, g_j) over the observed steps, by "i|j".
        conflicts: share of the observed steps at which that cosine was below zero, by "i|j".
        path: length of the path of the shared parameters, Σ ‖Δθ‖₂ over all sub-steps; measured at
            the observed steps and scaled up to all, so exact where every step is observed. None
            where none was.
        changes: what each phase did to each task's loss on its own batch, in eval mode, the mean
            over the observed steps; by "what moved|task" ("shared|seg"; a phase in which not all
            tasks spoke is "shared+own of depth|seg").
        oscillation: of each task's training loss over the steps of the epoch, see `oscillation`.
        rates: learning rate of each optimizer, as used in this epoch.
        monitored: the quantity that early stopping and model choice watch; lower is better.
        best: whether it is the lowest so far.
        seconds: wall time of the training steps, without evaluation and observation.
        work: floating-point operations of the training steps, counted (see `Training`); None
            where they were not.
        reused: how many samples had the features that a resting trunk gives them from memory.
        state_bytes: memory of the optimizers' state (moments, counts).
    """

    epoch: int
    step: int
    moves: tuple[str, ...] = ()
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
    work: float | None = None
    reused: int = 0
    state_bytes: int = 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record that a line of `to_json` holds.

        Raises:
            ValueError: the line is no such record.
        """
        try:
            values: dict[str, Any] = json.loads(line)
            values["moves"] = tuple(values.get("moves", ()))
            known = {entry.name for entry in fields(cls)}
            return cls(**{key: value for key, value in values.items() if key in known})
        except (json.JSONDecodeError, AttributeError, TypeError) as error:
            raise ValueError(f"no record: {line[:80]!r} ({error})") from error


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


class RecordFile:
    """Records on disk, a line each. Every line is flushed; a line cut off by a kill is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[Record]:
        if self.path.exists():
            for line in self.path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    yield Record.from_json(line)

    def append(self, *records: Record) -> None:
        """Add a line for each record and see them written."""
        with self.path.open("a") as file:
            file.write("".join(record.to_json() + "\n" for record in records))
            file.flush()
            os.fsync(file.fileno())

    def keep(self, records: Iterable[Record]) -> None:
        """Replace the file by these records, at once or not at all."""
        write_atomically(self.path, "".join(r.to_json() + "\n" for r in records))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, meets the old content or the new one whole."""
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
