"""What a schedule is: which tasks are active and what trains.

A schedule is a function ``(Clock, tasks) -> Sequence[Phase]``. The training loop calls it once per
step and carries out the phases it returns, in order; it never asks which schedule it is. A phase
says which tasks have a loss in it (`tasks`), which blocks of parameters train (`trains`) and which
batch it sees: phases with equal `batch` within one call see the same batch, each recomputing its
forward pass with what the phases before it have moved.

A plain function will do. One with a state, or one whose phases keep moments of their own, derives
from `Schedule`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from evenhand.arguments import checked
from evenhand.schedules.clock import Clock, Phase

Phases = Callable[[Clock, tuple[str, ...]], Sequence[Phase]]
"""(clock, all tasks) -> the phases of one step."""
Groups = Callable[[int], tuple[int, ...]]


class Schedule(ABC):
    """A schedule that may have a state. Without anything but `__call__` it has none.

    Example:
        >>> class Halving(Schedule):
        ...     "Alternates ever faster."
        ...
        ...     def __call__(self, clock, tasks):
        ...         block = ("shared", "own")[clock.epoch.bit_length() % 2]
        ...         return (Phase(tasks, trains=(block,)),)
        >>> [phase.trains for phase in Halving()(Clock(epoch=4), ("a", "b"))]
        [('own',)]
    """

    @abstractmethod
    def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        """The phases of one step."""

    def groups(self, tasks: int) -> tuple[int, ...]:
        """How many of `tasks` tasks are active in the phases of each group; one entry per group."""
        return (tasks,)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if state:
            raise ValueError(f"{self} keeps no state, yet the checkpoint has {sorted(state)}")

    def observe(self, record: Any) -> None:
        """Learn from the record of a finished epoch; nothing by default."""
        return


class Stateless(Schedule):
    """A schedule that is a pure function of the clock. By default all its phases share a group.

    `draws` says that it looks at the clock's seed; `counted`, that whoever made it has said for how
    many epochs each block trains, none perhaps.
    """

    @checked
    def __init__(
        self,
        phases: Phases,
        description: str,
        groups: Groups = lambda tasks: (tasks,),
        draws: bool = False,
        counted: bool = False,
    ) -> None:
        self._phases = phases
        self._description = description
        self._groups = groups
        self.draws = draws
        self.counted = counted

    def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        return self._phases(clock, tasks)

    def groups(self, tasks: int) -> tuple[int, ...]:
        return self._groups(tasks)

    def __repr__(self) -> str:
        return self._description


STATE = ("groups", "state_dict", "load_state_dict", "observe")


def as_schedule(phases: Schedule | Phases) -> Schedule:
    """A schedule from a plain function. It may look at the clock's seed: nobody knows.

    Raises:
        TypeError: it cannot be called; or it has a part of what a `Schedule` has, and is none.
    """
    if isinstance(phases, Schedule):
        return phases
    if not callable(phases):
        raise TypeError(f"schedule={phases!r}: must be a function (clock, tasks) -> phases")
    if has := [name for name in STATE if hasattr(phases, name)]:
        raise TypeError(
            f"schedule={phases!r} has {has[0]}, which would not be asked: derive its class from "
            "evenhand.schedules.Schedule"
        )
    return Stateless(phases, getattr(phases, "__qualname__", repr(phases)), draws=True)


def jointly() -> Schedule:
    """All tasks are active at once and everything trains: the plain training step."""
    return Stateless(lambda clock, tasks: (Phase(tasks),), "jointly()")
