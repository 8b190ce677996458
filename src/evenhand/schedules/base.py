"""What a schedule is: which tasks speak and what moves.

A schedule is a function ``(Clock, tasks) -> Sequence[Phase]``. The training loop calls it once per
step and carries out the phases it returns, in order; it never asks which schedule it is. A phase
says which tasks have a loss in it (`tasks`), which blocks of parameters move (`moves`) and which
batch it sees: phases with equal `batch` within one call see the same batch, each recomputing its
forward pass with what the phases before it have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from evenhand.schedules.clock import Clock, Phase


@runtime_checkable
class Schedule(Protocol):
    """Anything that maps a clock and the tasks to the phases of one step."""

    def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]: ...

    def slots(self, tasks: int) -> tuple[int, ...]:
        """How many of `tasks` tasks speak in the phases of each slot; one entry per slot."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def observe(self, record: Any) -> None:
        """Learn from the record of a finished epoch (adaptive schedules)."""


Phases = Callable[[Clock, tuple[str, ...]], Sequence[Phase]]


Slots = Callable[[int], tuple[int, ...]]


class Stateless:
    """A schedule that is a pure function of the clock. By default all its phases share a slot.

    `draws` says that it looks at the clock's seed; `counted`, that whoever made it has said for how
    many epochs each block trains, none perhaps.
    """

    def __init__(
        self,
        phases: Phases,
        description: str,
        slots: Slots = lambda tasks: (tasks,),
        draws: bool = False,
        counted: bool = False,
    ) -> None:
        self._phases = phases
        self._description = description
        self._slots = slots
        self.draws = draws
        self.counted = counted

    def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        return self._phases(clock, tasks)

    def slots(self, tasks: int) -> tuple[int, ...]:
        return self._slots(tasks)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{self} keeps no state, yet the checkpoint has {sorted(state)}")

    def observe(self, record: Any) -> None:
        """Nothing to learn."""

    def __repr__(self) -> str:
        return self._description


def jointly() -> Schedule:
    """All tasks speak at once and everything moves: the plain training step."""
    return Stateless(lambda clock, tasks: (Phase(tasks),), "jointly()")
