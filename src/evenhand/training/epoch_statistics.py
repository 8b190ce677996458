"""What the steps of one epoch add up to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.balancing.balance import Balance
from evenhand.schedules import Phase
from evenhand.training.records import oscillation


class EpochStatistics:
    """Sums over the steps of one epoch, kept on the device until they are read.

    Attributes:
        rates: learning rate of each optimizer.
        seconds: wall time of the steps.
        flops: floating-point operations of the steps, None if they are not counted.
        reused: samples whose features came from memory.
    """

    def __init__(
        self, rates: Mapping[str, float] | None = None, counts_flops: bool = False
    ) -> None:
        self.rates = rates or {}
        self.seconds = 0.0
        self.flops: float | None = 0.0 if counts_flops else None
        self.reused = 0
        self._steps = self._watched = 0
        self._path: list[Tensor] = []
        self._trains: dict[str, None] = {}
        self._kept: dict[str, list[tuple[Sequence[str], Tensor]]] = {
            name: [] for name in ("losses", "weights", "norms", "cosines", "changes")
        }

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

    def watch(self, mover: str, changes: Mapping[str, Tensor], length: Tensor) -> None:
        """What one observed phase did to each task's loss, and how far it moved the trunk.

        A batch in which no task has a label tells no change.
        """
        if changes:
            names = [f"{mover}|{task}" for task in changes]
            self._gather("changes", names, torch.stack(list(changes.values()), dim=-1))
        self._path.append(length)

    def members(self, number: int) -> list[EpochStatistics]:
        """What it says of each of the `number` members of a stacked ensemble."""
        apart = [copy(self) for _ in range(number)]
        joined = {what: self._joined(what) for what in self._kept}
        paths = torch.stack(self._path, dim=-1).unbind(0) if self._path else ()
        for k, one in enumerate(apart):
            one._kept = {w: [(names, v[k])] if names else [] for w, (names, v) in joined.items()}
            one._path = list(paths[k]) if paths else []
        return apart

    def _gather(self, what: str, names: Sequence[str], values: Tensor) -> None:
        self._kept[what].append((names, values.detach()))

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
        series = {what: self._series(what) for what in self._kept}
        return {
            **{what: {n: _mean(v) for n, v in found.items()} for what, found in series.items()},
            "conflicts": {pair: _mean([c < 0 for c in v]) for pair, v in series["cosines"].items()},
            "oscillation": {task: oscillation(v) for task, v in series["losses"].items()},
            "path": self._path_length(),
            "trains": tuple(self._trains),
            "rates": self.rates,
            "seconds": self.seconds,
            "flops": self.flops,
            "reused": self.reused,
        }

    def _path_length(self) -> float | None:
        if not self._watched:
            return None
        return math.fsum(map(float, self._path)) * self._steps / self._watched


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())
