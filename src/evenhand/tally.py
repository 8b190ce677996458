"""What the steps of one epoch add up to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from evenhand.balancer import Balance
from evenhand.gradients import TaskGradients
from evenhand.records import oscillation
from evenhand.schedule import Phase


class Tally:
    """Sums over the steps of one epoch, kept on the device until they are read.

    Attributes:
        rates: learning rate of each optimizer.
        seconds: wall time of the steps.
        work: floating-point operations of the steps, None if they are not counted.
        reused: samples whose features came from memory.
    """

    def __init__(self, rates: Mapping[str, float] | None = None, counts_work: bool = False) -> None:
        self.rates = rates or {}
        self.seconds = 0.0
        self.work: float | None = 0.0 if counts_work else None
        self.reused = 0
        self._steps = self._watched = 0
        self._path: list[Tensor] = []
        self._moves: dict[str, None] = {}
        self._sums: dict[str, dict[str, list[Tensor]]] = {
            name: defaultdict(list) for name in ("losses", "weights", "norms", "cosines", "changes")
        }

    def step(self, watched: bool) -> None:
        """One call of the schedule; whether it is observed."""
        self._steps += 1
        self._watched += watched

    def add(self, balance: Balance, phase: Phase) -> None:
        """One phase."""
        self._moves.update(dict.fromkeys(phase.moves))
        weights = balance.weights if balance.trunk_weights is None else balance.trunk_weights
        self._gather("losses", balance.tasks, balance.losses.unbind(-1))
        if weights is not None:
            self._gather("weights", balance.tasks, weights.unbind(-1))

    def observe(self, g: TaskGradients) -> None:
        """The gradients at one observed step."""
        self._gather("norms", g.tasks, g.norms.unbind(-1))
        pairs = [(i, j) for j in range(len(g.tasks)) for i in range(j)]
        names = [f"{g.tasks[i]}|{g.tasks[j]}" for i, j in pairs]
        self._gather("cosines", names, [g.cosines[..., i, j] for i, j in pairs])

    def watch(self, mover: str, changes: Mapping[str, Tensor], length: Tensor) -> None:
        """What one observed phase did to each task's loss, and how far it moved the trunk."""
        self._gather("changes", [f"{mover}|{task}" for task in changes], list(changes.values()))
        self._path.append(length)

    def members(self, number: int) -> list[Tally]:
        """What it says of each of the `number` members of a stacked ensemble."""
        apart = [copy(self) for _ in range(number)]
        sums = {
            what: {name: torch.stack(values, dim=-1).unbind(0) for name, values in named.items()}
            for what, named in self._sums.items()
        }
        paths = torch.stack(self._path, dim=-1).unbind(0) if self._path else ()
        for k, one in enumerate(apart):
            one._sums = {w: {n: list(v[k]) for n, v in named.items()} for w, named in sums.items()}
            one._path = list(paths[k]) if paths else []
        return apart

    def _gather(self, what: str, names: Sequence[str], values: Sequence[Tensor]) -> None:
        for name, value in zip(names, values, strict=True):
            self._sums[what][name].append(value.detach())

    def means(self) -> dict[str, Any]:
        """What of a `Record` the epoch's steps tell."""
        found = {
            what: {name: torch.stack(values).double() for name, values in sums.items()}
            for what, sums in self._sums.items()
        }
        means = {
            what: {name: float(values.mean()) for name, values in sums.items()}
            for what, sums in found.items()
        }
        return {
            **means,
            "oscillation": {t: oscillation(v.tolist()) for t, v in found["losses"].items()},
            "path": self._path_length(),
            "moves": tuple(self._moves),
            "rates": self.rates,
            "seconds": self.seconds,
            "work": self.work,
            "reused": self.reused,
        }

    def _path_length(self) -> float | None:
        if not self._watched:
            return None
        return math.fsum(map(float, self._path)) * self._steps / self._watched
