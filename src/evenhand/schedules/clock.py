"""When, and what: the clock of a run, and the phases that one step consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from evenhand.arguments import require_fields
from evenhand.text import quoted

Block = Literal["shared", "own"]


BLOCKS: tuple[Block, ...] = ("shared", "own")


@dataclass(frozen=True)
class Clock:
    """Where a run stands.

    `step` counts calls of the schedule, `epoch` counts drawn batches divided by the batches per
    epoch N_b (whoever drew them), both from 0. `seed` is the run's seed: with the clock it
    determines every random choice a method, schedule or grouping makes. Where
    networks are trained side by side as runs with seeds of their own, these are `seeds`.
    """

    epoch: int = 0
    step: int = 0
    seed: int = 0
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require_fields(self)
        if min(self.epoch, self.step, self.seed) < 0:
            for name in ("epoch", "step", "seed"):
                if getattr(self, name) < 0:
                    raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")

    def generator(self, purpose: str, stream: int = 0, every: str = "step") -> torch.Generator:
        """A CPU generator that depends on (seed, time, purpose, stream) alone.

        `every` is what the choice is redrawn with: "step", "epoch" or "run". Nothing is ever
        drawn from torch's global stream, so resumed runs, ranks and networks that are trained side
        by side make equal choices by construction. Each of these has a `stream` of its own.
        """
        times = {"step": (1, self.step), "epoch": (2, self.epoch), "run": (3, 0)}
        if every not in times:
            raise ValueError(f"every={every!r}: must be one of {', '.join(times)}")
        seed, stream = (self.seeds[stream], 0) if self.seeds else (self.seed, stream)
        words = [seed, *times[every], stream, *purpose.encode()]
        return torch.Generator().manual_seed(mixed_seed(*words))


def mixed_seed(*words: int) -> int:
    """One 63-bit seed from several non-negative integers, well mixed."""
    return int(np.random.SeedSequence(words).generate_state(2, np.uint32).view(np.uint64)[0]) >> 1


@dataclass(frozen=True)
class Phase:
    """One update: the losses of `tasks`, on batch number `batch` of a call, train `trains`.

    Attributes:
        group: numbers the phases that can keep optimizer moments of their own over the shared
            parameters (independent task steps).
        lasts: for how many epochs in a row, from the first to the last of them, the schedule
            plans to freeze what is frozen here; 0 when that changes within an epoch. What a
            frozen trunk computes can be kept that long.
    """

    tasks: tuple[str, ...]
    trains: tuple[Block, ...] = BLOCKS
    batch: int = 0
    group: int = 0
    lasts: int = 0

    def __post_init__(self) -> None:
        require_fields(self)
        if not self.tasks:
            raise ValueError("a phase needs at least one task")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={quoted(self.tasks)}: must be different names")
        unknown = [block for block in self.trains if block not in BLOCKS]
        if unknown or not self.trains:
            raise ValueError(f"trains={self.trains!r}: a non-empty selection of {BLOCKS}")
        for name in ("batch", "group", "lasts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
