"""What the steps of one epoch add up to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.balancing.balance import Balance
from evenhand.schedules import Phase
from evenhand.training.records import oscillation

RECENT = 1024
"""Steps whose numbers are kept on the device as they are; older ones are added up."""


@dataclass(frozen=True)
class _Run:
    """What is known of a series whose values were let go; tensors are [...], float64."""

    count: int
    total: Tensor
    size: Tensor
    swing: Tensor
    negative: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Run:
        """Of values [..., k]."""
        known = values.detach().cpu().double()
        return cls(
            known.shape[-1],
            known.sum(-1),
            known.abs().sum(-1),
            known.diff(dim=-1).abs().sum(-1),
            (known < 0).double().sum(-1),
            known[..., 0],
            known[..., -1],
        )

    def then(self, other: _Run) -> _Run:
        """Of the values of both, one after the other."""
        return _Run(
            self.count + other.count,
            self.total + other.total,
            self.size + other.size,
            self.swing + other.swing + (other.first - self.last).abs(),
            self.negative + other.negative,
            self.first,
            other.last,
        )

    def member(self, k: int) -> _Run:
        """Of one member of a stacked ensemble."""
        tensors = (self.total, self.size, self.swing, self.negative, self.first, self.last)
        return _Run(self.count, *(tensor[k] for tensor in tensors))

    @property
    def mean(self) -> float:
        return float(self.total) / self.count

    @property
    def conflicts(self) -> float:
        return float(self.negative) / self.count

    @property
    def oscillation(self) -> float:
        """As `records.oscillation` has it."""
        if self.count < 3 or not float(self.size):
            return 0.0
        swing = max(float(self.swing - (self.last - self.first).abs()), 0.0)
        return swing / (self.count - 2) / (float(self.size) / self.count)


class EpochStatistics:
    """Sums over the steps of one epoch, kept on the device until they are read.

    What it takes does not grow with the steps: every `RECENT` of them are added up.

    Attributes:
        rates: learning rate of each optimizer.
        seconds: wall time of the steps.
        flops: floating-point operations of the steps, None if they are not counted.
        reused: samples whose features came from memory.
        looks: how often gradients were looked at.
    """

    def __init__(
        self, rates: Mapping[str, float] | None = None, counts_flops: bool = False
    ) -> None:
        self.rates = rates or {}
        self.seconds = 0.0
        self.flops: float | None = 0.0 if counts_flops else None
        self.reused = self.looks = 0
        self._steps = self._watched = 0
        self._path: list[Tensor] = []
        self._trains: dict[str, None] = {}
        self._kept: dict[str, list[tuple[Sequence[str], Tensor]]] = {
            name: [] for name in ("losses", "weights", "norms", "cosines", "changes")
        }
        self._runs: dict[str, dict[str, _Run]] = {name: {} for name in self._kept}
        self._gone: Tensor | None = None

    def step(self, watched: bool) -> None:
        """One call of the schedule; whether it is observed."""
        self._steps += 1
        self._watched += watched

    def add(self, balance: Balance, phase: Phase) -> None:
        """One phase."""
        self._trains.update(dict.fromkeys(phase.trains))
        weights = balance.weights if balance.trunk_weights is None else balance.trunk_weights
        self._gather("losses", balance.tasks, balance.losses)
        if weights is not None:
            self._gather("weights", balance.tasks, weights)

    def observe(self, g: TaskGradients) -> None:
        """The gradients at one observed step."""
        self._gather("norms", g.tasks, g.norms)
        pairs = [(i, j) for j in range(len(g.tasks)) for i in range(j)]
        names = [f"{g.tasks[i]}|{g.tasks[j]}" for i, j in pairs]
        i, j = [i for i, _ in pairs], [j for _, j in pairs]
        self._gather("cosines", names, g.cosines[..., i, j])
        self.looks += 1

    def watch(self, mover: str, changes: Mapping[str, Tensor], length: Tensor) -> None:
        """What one observed phase did to each task's loss, and how far it moved the trunk.

        A batch in which no task has a label tells no change.
        """
        if changes:
            names = [f"{mover}|{task}" for task in changes]
            self._gather("changes", names, torch.stack(list(changes.values()), dim=-1))
        self._path.append(length)
        if len(self._path) == RECENT:
            walked = torch.stack(self._path, dim=-1).detach().cpu().double().sum(-1)
            self._gone = walked if self._gone is None else self._gone + walked
            self._path = []

    def members(self, number: int) -> list[EpochStatistics]:
        """What it says of each of the `number` members of a stacked ensemble."""
        apart = [copy(self) for _ in range(number)]
        joined = {what: self._joined(what) for what in self._kept}
        paths = torch.stack(self._path, dim=-1).unbind(0) if self._path else ()
        runs, gone = self._runs, self._gone
        for k, one in enumerate(apart):
            one._kept = {w: [(names, v[k])] if names else [] for w, (names, v) in joined.items()}
            one._runs = {w: {n: r.member(k) for n, r in its.items()} for w, its in runs.items()}
            one._path = list(paths[k]) if paths else []
            one._gone = None if gone is None else gone[k]
        return apart

    def _gather(self, what: str, names: Sequence[str], values: Tensor) -> None:
        self._kept[what].append((names, values.detach()))
        if len(self._kept[what]) == RECENT:
            every, joined = self._joined(what)
            for name in dict.fromkeys(every):
                mine = torch.tensor([k for k, other in enumerate(every) if other == name])
                self._add_up(what, name, joined[..., mine.to(joined.device)])
            self._kept[what] = []

    def _add_up(self, what: str, name: str, values: Tensor) -> None:
        run, before = _Run.of(values), self._runs[what].get(name)
        self._runs[what][name] = run if before is None else before.then(run)

    def _joined(self, what: str) -> tuple[list[str], Tensor]:
        """All that was gathered, in order: names, and values [..., n]."""
        kept = self._kept[what]
        if not kept:
            return [], torch.empty(0)
        names = list(chain.from_iterable(names for names, _ in kept))
        return names, torch.cat([values for _, values in kept], dim=-1)

    def _series(self, what: str) -> dict[str, list[float]]:
        """What was gathered of each name, in order."""
        series: dict[str, list[float]] = defaultdict(list)
        names, values = self._joined(what)
        for name, value in zip(names, values.tolist(), strict=True):
            series[name].append(value)
        return series

    def means(self) -> dict[str, Any]:
        """What of a `Record` the epoch's steps tell."""
        found = {what: self._found(what) for what in self._kept}
        return {
            **{what: {n: mean for n, (mean, _, _) in its.items()} for what, its in found.items()},
            "conflicts": {pair: share for pair, (_, share, _) in found["cosines"].items()},
            "oscillation": {task: swings for task, (_, _, swings) in found["losses"].items()},
            "path": self._path_length(),
            "trains": tuple(self._trains),
            "rates": self.rates,
            "seconds": self.seconds,
            "flops": self.flops,
            "reused": self.reused,
        }

    def _found(self, what: str) -> dict[str, tuple[float, float, float]]:
        """Of each name the mean, the share of values below zero, and the oscillation."""
        recent, told = self._series(what), {}
        for name in dict.fromkeys([*self._runs[what], *recent]):
            values, run = recent.get(name, []), self._runs[what].get(name)
            if run is None:
                swings = oscillation(values) if what == "losses" else 0.0
                told[name] = _mean(values), _mean([v < 0 for v in values]), swings
                continue
            if values:
                run = run.then(_Run.of(torch.tensor(values, dtype=torch.float64)))
            told[name] = run.mean, run.conflicts, run.oscillation
        return told

    def _path_length(self) -> float | None:
        if not self._watched:
            return None
        gone = 0.0 if self._gone is None else float(self._gone)
        return math.fsum([gone, *map(float, self._path)]) * self._steps / self._watched


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
