"""Alternate training that chooses how long each phase lasts.

Bellavia, Della Santa & Papini (arXiv 2312.16340) leave to future work how E_sh and E_ts could be
adapted during training, together with the learning rate. This is one answer; how it fares is in
docs/adaptive.md.

Let an epoch in block b (shared or own), made with the rate α_b, lower the monitored quantity M by
the fraction r = (M_before − M_after)/|M_before|, at the cost of the work c. To first order r is
α_b times a property of the place where training stands, so r/α_b is what is remembered: a rate
that has been reduced since does not look like progress that has dried up. The question after each
epoch is the forager's: has this place become poorer than the land at large? The phase ends when

    r / c  <  max(0, Σ_b α_b Σ (r/α_b) / Σ_b Σ c)

where the sums on the right run over the phases finished so far, each older phase of a block
counting `memory` times what the one after it counts. This is the marginal value theorem (Charnov,
Theor. Popul. Biol. 1976): leave when the marginal rate of gain falls to the average rate of the
whole cycle. A phase lasts at most twice as long as the phase of its block before, so lengths grow
only where they have paid, and at most `longest` epochs, so both blocks move again and again, which
the convergence theorems ask for.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from evenhand.arguments import checked
from evenhand.schedules import BLOCKS, Block, Clock, Phase, Schedule
from evenhand.training.records import Record


@checked
def alternate_adaptively(longest: int = 100, memory: float = 0.8) -> Schedule:
    """ATE-SG whose phases end when they bring less per unit of work than training has lately.

    Progress is measured by the monitored validation quantity, work is counted, never timed, so
    runs are reproducible; `Training` must count it (``count_flops=True``). See the module's text.

    Args:
        longest: the most epochs of a phase.
        memory: what a finished phase still counts after one more of its block, from 0 (only the
            last one counts) to below 1.

    Raises:
        ValueError: an argument is out of range; or, during training, work is not counted.
    """
    return _Adaptive(longest, memory)


@dataclass
class _Past:
    """What the phases of one block brought per unit of rate, and their work; the older the less.

    Attributes:
        length: epochs of the last phase.
    """

    gain: float = 0.0
    flops: float = 0.0
    length: int = 1


@dataclass
class _State:
    """Where the alternation stands: the phase going on, what it brought, and the past."""

    block: Block = "shared"
    epochs: int = 0
    gain: float = 0.0
    flops: float = 0.0
    monitored: float = math.nan
    past: dict[str, _Past] = field(default_factory=lambda: {block: _Past() for block in BLOCKS})


class _Adaptive(Schedule):
    def __init__(self, longest: int, memory: float) -> None:
        if longest < 1:
            raise ValueError(f"longest={longest}: a phase lasts at least 1 epoch")
        if not 0 <= memory < 1:
            raise ValueError(f"memory={memory}: must be at least 0 and below 1")
        self.longest = longest
        self.memory = memory
        self.state = _State()

    def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> tuple[Phase]:
        return (Phase(tasks, trains=(self.state.block,), lasts=self._longest_now()),)

    def groups(self, tasks: int) -> tuple[int, ...]:
        return (tasks,)

    def observe(self, record: Record) -> None:
        """Decide, after an epoch, whether the next one trains the other block."""
        before, self.state.monitored = self.state.monitored, record.monitored
        if not record.trains:  # the network before training
            return
        if record.flops is None:
            raise ValueError(
                "adaptive alternation weighs progress against work: Training(count_flops=True)"
            )
        state, rates = self.state, {block: _rate(record, block) for block in BLOCKS}
        gain = _fraction(before, record.monitored)
        state.epochs += 1
        state.gain += gain / rates[state.block] if rates[state.block] else 0.0
        state.flops += record.flops
        dried_up = gain / record.flops < max(0.0, self._average(rates)) if record.flops else True
        if dried_up or state.epochs >= self._longest_now():
            self._leave()

    def _longest_now(self) -> int:
        return min(self.longest, 2 * self.state.past[self.state.block].length)

    def _average(self, rates: dict[Block, float]) -> float:
        """Gain per unit of work over the finished phases, at the rates of today."""
        past = self.state.past
        work = math.fsum(past[block].flops for block in BLOCKS)
        gain = math.fsum(rates[block] * past[block].gain for block in BLOCKS)
        return gain / work if work else 0.0

    def _leave(self) -> None:
        state = self.state
        past = state.past[state.block]
        past.gain = self.memory * past.gain + state.gain
        past.flops = self.memory * past.flops + state.flops
        past.length = state.epochs
        state.block = "own" if state.block == "shared" else "shared"
        state.epochs, state.gain, state.flops = 0, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        past = {block: _Past(**entry) for block, entry in state["past"].items()}
        self.state = _State(**{**state, "past": past})

    def __repr__(self) -> str:
        return f"alternate_adaptively(longest={self.longest}, memory={self.memory})"


def _rate(record: Record, block: Block) -> float:
    """The rate of a block: of its first optimizer, where it has several."""
    rates = (rate for name, rate in record.rates.items() if name.split(".")[0] == block)
    return next(rates, 0.0)


def _fraction(before: float, after: float) -> float:
    """The fraction by which a quantity fell; nothing where it is not finite."""
    if not (math.isfinite(before) and math.isfinite(after)) or before == 0:
        return 0.0
    return (before - after) / abs(before)
