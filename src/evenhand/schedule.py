"""Schedules: which tasks speak and what moves.

A schedule is a function ``(Clock, tasks) -> Sequence[Phase]``. The training loop calls it once per
step and carries out the phases it returns, in order; it never asks which schedule it is. A phase
says which tasks have a loss in it (`tasks`), which blocks of parameters move (`moves`) and which
batch it sees: phases with equal `batch` within one call see the same batch, each recomputing its
forward pass with what the phases before it have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

Block = Literal["shared", "own"]
BLOCKS: tuple[Block, ...] = ("shared", "own")


@dataclass(frozen=True)
class Clock:
    """Where a run stands.

    `step` counts calls of the schedule, `epoch` counts drawn batches divided by the batches per
    epoch N_b (whoever drew them), both from 0. `seed` is the run's seed: with the clock it
    determines every random choice a method, schedule or grouping makes. Where the members of a
    stacked ensemble stand for runs with seeds of their own, these are `seeds`.
    """

    epoch: int = 0
    step: int = 0
    seed: int = 0
    seeds: tuple[int, ...] = ()

    def generator(self, purpose: str, member: int = 0, every: str = "step") -> torch.Generator:
        """A CPU generator that depends on (seed, time, purpose, member) alone.

        `every` is what the choice is redrawn with: "step", "epoch" or "run". Nothing is ever
        drawn from torch's global stream, so resumed runs, ranks and the members of a stacked
        ensemble make equal choices by construction.
        """
        times = {"step": (1, self.step), "epoch": (2, self.epoch), "run": (3, 0)}
        if every not in times:
            raise ValueError(f"every={every!r}: must be one of {', '.join(times)}")
        seed, member = (self.seeds[member], 0) if self.seeds else (self.seed, member)
        words = [seed, *times[every], member, *purpose.encode()]
        return torch.Generator().manual_seed(mixed_seed(*words))


def mixed_seed(*words: int) -> int:
    """One 63-bit seed from several non-negative integers, well mixed."""
    return int(np.random.SeedSequence(words).generate_state(2, np.uint32).view(np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Phase:
    """One update: the losses of `tasks`, on batch number `batch` of this call, move `moves`.

    Attributes:
        slot: numbers the phases that can keep optimizer moments of their own over the shared
            parameters (independent task steps).
        lasts: for how many epochs in a row, from the first to the last of them, the schedule
            plans to let rest what rests here; 0 when that changes within an epoch. What a
            resting trunk computes can be kept that long.
    """

    tasks: tuple[str, ...]
    moves: tuple[Block, ...] = BLOCKS
    batch: int = 0
    slot: int = 0
    lasts: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("a phase needs at least one task")
        unknown = [block for block in self.moves if block not in BLOCKS]
        if unknown or not self.moves:
            raise ValueError(f"moves={self.moves!r}: a non-empty selection of {BLOCKS}")


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

    `draws` says that it looks at the clock's seed.
    """

    def __init__(
        self,
        phases: Phases,
        description: str,
        slots: Slots = lambda tasks: (tasks,),
        draws: bool = False,
    ) -> None:
        self._phases = phases
        self._description = description
        self._slots = slots
        self.draws = draws

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


# Alternate training: trunk and heads take turns ------------------------------------------------


def alternate_steps() -> Schedule:
    """SAT-SG: a step on the trunk, then one on the heads with a fresh batch and the new trunk.

    Bellavia, Della Santa & Papini, "ATE-SG" (arXiv 2312.16340), Algorithm 3.1:

        sample B1;  θ    ← θ    − α_k ∇_θ  ℓ(θ, θ_ts; B1)
        sample B2;  θ_ts ← θ_ts − β_k ∇_ts ℓ(θ_new, θ_ts; B2)

    A call draws two batches, and an epoch ends when N_b batches have been drawn, whoever drew
    them: an epoch is about N_b/2 steps of either kind. α and β are the rates of the two optimizers.

    Example:
        >>> for phase in alternate_steps()(Clock(), ("a", "b")):
        ...     print(phase.moves, "on batch", phase.batch)
        ('shared',) on batch 0
        ('own',) on batch 1
    """
    return Stateless(
        lambda clock, tasks: (
            Phase(tasks, moves=("shared",), batch=0),
            Phase(tasks, moves=("own",), batch=1),
        ),
        "alternate_steps()",
    )


def alternate_epochs(shared: int, own: int) -> Schedule:
    """ATE-SG: `shared` epochs on the trunk, then `own` epochs on the heads, and again.

    Bellavia, Della Santa & Papini, "ATE-SG" (arXiv 2312.16340), Algorithms 3.2 and A.1 with
    E_sh = `shared` and E_ts = `own`; the epoch counter counts epochs of either kind. How batches
    are drawn is the data's affair: with replacement is Algorithm 3.2, a fresh permutation per
    epoch Algorithm A.1 (see `Stream`). The authors' code can overrun the cap on epochs by a
    phase; here the cap holds inside a phase too.

    Raises:
        ValueError: an epoch count is negative, or both are zero.
    """
    if shared < 0 or own < 0 or shared + own == 0:
        raise ValueError(
            f"alternate_epochs(shared={shared}, own={own}): epoch counts are >= 0, one of them > 0"
        )

    def phases(clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        if clock.epoch % (shared + own) < shared:
            return (Phase(tasks, moves=("shared",), lasts=shared),)
        return (Phase(tasks, moves=("own",), lasts=own),)

    return Stateless(phases, f"alternate_epochs(shared={shared}, own={own})")


# Independent task steps: tasks take turns ------------------------------------------------------


def one_by_one(order: Literal["fixed", "random"] = "fixed") -> Schedule:
    """A step for each task in turn, on the same batch, with the forward pass recomputed.

    Pascal et al. (arXiv 2109.11678). With one optimizer for all tasks, whose moments mix them,
    this is IUS; with one per task over the shared parameters (a slot each) it is IO. Under plain
    SGD the two are the same update.

    Args:
        order: "fixed" is the order of the tasks, as in the authors' code; "random" draws one for
            each call.

    Raises:
        ValueError: `order` is neither.
    """
    if order not in ("fixed", "random"):
        raise ValueError(f"order={order!r}: must be 'fixed' or 'random'")

    def phases(clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        turns = (
            range(len(tasks))
            if order == "fixed"
            else _permutation(clock, "turns", len(tasks), "step")
        )
        return [Phase((tasks[k],), slot=k) for k in turns]

    return Stateless(
        phases, f"one_by_one({order!r})", lambda tasks: (1,) * tasks, draws=order == "random"
    )


def in_groups(size: int, redraw: Literal["never", "epoch", "step"] = "never") -> Schedule:
    """Tasks are split at random into groups of `size`, and the groups take turns like tasks.

    Pascal et al. (arXiv 2109.11678), random grouping: a group's loss is the sum of its members,
    its step sees the same batch as the others', with the forward pass recomputed. `size` = m is
    the joint step (SUS), 1 is `one_by_one` in an order drawn at random. Where m is no multiple of
    `size` the last group is smaller. A method sees the members of the group that speaks.

    Args:
        size: tasks per group.
        redraw: when groups are drawn: once ("never" again; the authors' code), at each epoch, or
            at each call. A redrawn group inherits the slot, and with it the moments over the
            shared parameters, of the group in its place before.

    Raises:
        ValueError: `size` is less than 1, or `redraw` is unknown.

    Example:
        >>> [phase.tasks for phase in in_groups(2)(Clock(seed=1), ("a", "b", "c"))]
        [('a', 'b'), ('c',)]
    """
    if size < 1:
        raise ValueError(f"size={size}: a group has at least 1 task")
    if redraw not in ("never", "epoch", "step"):
        raise ValueError(f"redraw={redraw!r}: must be 'never', 'epoch' or 'step'")
    every = "run" if redraw == "never" else redraw

    def phases(clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        drawn = _permutation(clock, "groups", len(tasks), every)
        groups = [sorted(drawn[k : k + size]) for k in range(0, len(tasks), size)]
        return [Phase(tuple(tasks[k] for k in g), slot=slot) for slot, g in enumerate(groups)]

    def slots(tasks: int) -> tuple[int, ...]:
        whole, rest = divmod(tasks, size)
        return (size,) * whole + ((rest,) if rest else ())

    return Stateless(phases, f"in_groups({size}, redraw={redraw!r})", slots, draws=True)


def _permutation(clock: Clock, purpose: str, tasks: int, every: str) -> list[int]:
    generator = clock.generator(purpose, every=every)
    order: list[int] = torch.randperm(tasks, generator=generator).tolist()
    return order


# Nesting ---------------------------------------------------------------------------------------


def nested(outer: Schedule, inner: Schedule, within: Sequence[Block] = BLOCKS) -> Schedule:
    """Each phase of `outer` is carried out by `inner`: tasks and moves are intersected.

    `inner` is called with the tasks of a phase of `outer`, and its phases keep of their `moves`
    what the outer phase moves; one that keeps nothing is dropped. Phases see the same batch if
    they do in both schedules. Every slot of `outer` gets slots of its own from `inner`.

    Args:
        outer: the schedule whose phases are refined.
        inner: the schedule that refines them.
        within: only phases that move one of these blocks are refined; the others stand.

    Raises:
        ValueError: `within` is no selection of blocks; or, when the schedule is called, the two
            leave nothing to move.

    Example: groups of two tasks in ATE-SG's shared phases, all heads at once in its own phases.
        >>> schedule = nested(alternate_epochs(1, 1), in_groups(2), within=("shared",))
        >>> [(p.tasks, p.moves) for p in schedule(Clock(epoch=0, seed=1), ("a", "b", "c"))]
        [(('a', 'b'), ('shared',)), (('c',), ('shared',))]
        >>> [(p.tasks, p.moves) for p in schedule(Clock(epoch=1, seed=1), ("a", "b", "c"))]
        [(('a', 'b', 'c'), ('own',))]
    """
    return _Nested(outer, inner, within)


class _Nested:
    def __init__(self, outer: Schedule, inner: Schedule, within: Sequence[Block] = BLOCKS) -> None:
        unknown = [block for block in within if block not in BLOCKS]
        if unknown or not within:
            raise ValueError(f"within={within!r}: a non-empty selection of {BLOCKS}")
        self.outer = outer
        self.inner = inner
        self.within = tuple(within)

    def __call__(self, clock: Clock, tasks: tuple[str, ...]) -> Sequence[Phase]:
        first = self._first_slots(len(tasks))
        numbers: dict[tuple[int, int], int] = {}
        phases = []
        for over in self.outer(clock, tasks):
            for under in self._refined(over, clock):
                moves = tuple(block for block in under.moves if block in over.moves)
                if moves:
                    batch = numbers.setdefault((over.batch, under.batch), len(numbers))
                    slot = first[over.slot] + under.slot
                    lasts = max(over.lasts, under.lasts)
                    phases.append(Phase(under.tasks, moves, batch, slot, lasts))
        if not phases:
            raise ValueError(f"nothing moves in epoch {clock.epoch} of {self}")
        return phases

    def slots(self, tasks: int) -> tuple[int, ...]:
        return tuple(k for group in self.outer.slots(tasks) for k in self.inner.slots(group))

    def _first_slots(self, tasks: int) -> list[int]:
        counts = [len(self.inner.slots(group)) for group in self.outer.slots(tasks)]
        return [sum(counts[:slot]) for slot in range(len(counts))]

    def _refined(self, phase: Phase, clock: Clock) -> Sequence[Phase]:
        if not set(phase.moves) & set(self.within):
            return (replace(phase, batch=0, slot=0),)
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
