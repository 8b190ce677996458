"""Schedules inside schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from evenhand.arguments import checked
from evenhand.schedules.base import Phases, Schedule, Stateless, as_schedule
from evenhand.schedules.clock import BLOCKS, Block, Clock, Phase


@checked
def nested(
    outer: Schedule | Phases, inner: Schedule | Phases, within: Sequence[Block] = BLOCKS
) -> Schedule:
    """Each phase of `outer` is carried out by `inner`: tasks and what trains are intersected.

    `inner` is called with the tasks of a phase of `outer`, and its phases keep of their `trains`
    what the outer phase trains; one that keeps nothing is dropped. Phases see the same batch if
    they do in both schedules. Every group of `outer` gets groups of its own from `inner`.

    Args:
        outer: the schedule whose phases are refined.
        inner: the schedule that refines them.
        within: only phases that move one of these blocks are refined; the others stand.

    Raises:
        ValueError: `within` is no selection of blocks; or, when the schedule is called, the two
            leave nothing to move.

    Example: groups of two tasks in ATE-SG's shared phases, all heads at once in its own phases.
        >>> from evenhand import alternate_epochs, in_groups
        >>> schedule = nested(alternate_epochs(1, 1), in_groups(2), within=("shared",))
        >>> [(p.tasks, p.trains) for p in schedule(Clock(epoch=0, seed=1), ("a", "b", "c"))]
        [(('a', 'b'), ('shared',)), (('c',), ('shared',))]
        >>> [(p.tasks, p.trains) for p in schedule(Clock(epoch=1, seed=1), ("a", "b", "c"))]
        [(('a', 'b', 'c'), ('own',))]
    """
    return _Nested(as_schedule(outer), as_schedule(inner), within)


class _Nested(Schedule):
    def __init__(self, outer: Schedule, inner: Schedule, within: Sequence[Block] = BLOCKS) -> None:
        unknown = [block for block in within if block not in BLOCKS]
        if unknown or not within:
            raise ValueError(f"within={within!r}: a non-empty selection of {BLOCKS}")
        self.outer = outer
        self.inner = inner
        self.within = tuple(within)

    def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        first = self._first_groups(len(tasks))
        numbers: dict[tuple[int, int], int] = {}
        phases = []
        for over in self.outer(clock, tasks):
            for under in self._refined(over, clock):
                both = tuple(block for block in under.trains if block in over.trains)
                if both:
                    batch = numbers.setdefault((over.batch, under.batch), len(numbers))
                    group = first[over.group] + under.group
                    lasts = max(over.lasts, under.lasts)
                    phases.append(Phase(under.tasks, both, batch, group, lasts))
        if not phases:
            raise ValueError(f"nothing trains in epoch {clock.epoch} of {self}")
        return phases

    def groups(self, tasks: int) -> tuple[int, ...]:
        return tuple(k for group in self.outer.groups(tasks) for k in self.inner.groups(group))

    def _first_groups(self, tasks: int) -> list[int]:
        counts = [len(self.inner.groups(group)) for group in self.outer.groups(tasks)]
        return [sum(counts[:group]) for group in range(len(counts))]

    def _refined(self, phase: Phase, clock: Clock) -> Sequence[Phase]:
        if not set(phase.trains) & set(self.within):
            return (replace(phase, batch=0, group=0),)
        return self.inner(clock, phase.tasks)

    def state_dict(self) -> dict[str, Any]:
        return {"outer": self.outer.state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.outer.load_state_dict(state["outer"])
        self.inner.load_state_dict(state["inner"])

    def observe(self, record: Any) -> None:
        """Both schedules learn."""
        self.outer.observe(record)
        self.inner.observe(record)

    def __repr__(self) -> str:
        within = "" if self.within == BLOCKS else f", within={self.within!r}"
        return f"nested({self.outer!r}, {self.inner!r}{within})"


def in_step(schedule: Schedule) -> bool:
    """Whether runs with different seeds, and different fortunes, have the same phases under it."""
    match schedule:
        case Stateless(draws=draws):
            return not draws
        case _Nested(outer=outer, inner=inner):
            return in_step(outer) and in_step(inner)
    return False
