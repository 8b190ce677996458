"""Independent task steps: tasks take turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from evenhand.arguments import checked
from evenhand.schedules.base import Schedule, Stateless
from evenhand.schedules.clock import Clock, Phase


@checked
def one_by_one(order: Literal["fixed", "random"] = "fixed") -> Schedule:
    """A step for each task in turn, on the same batch, with the forward pass recomputed.

    Pascal et al. (arXiv 2109.11678). With one optimizer for all tasks, whose moments mix them,
    this is IUS; with one per task over the shared parameters (a group each) it is IO. Under plain
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
        return [Phase((tasks[k],), group=k) for k in turns]

    return Stateless(
        phases, f"one_by_one({order!r})", lambda tasks: (1,) * tasks, draws=order == "random"
    )


@checked
def in_groups(size: int, redraw: Literal["never", "epoch", "step"] = "never") -> Schedule:
    """Tasks are split at random into groups of `size`, and the groups take turns like tasks.

    Pascal et al. (arXiv 2109.11678), random grouping: a group's loss is the sum of its members,
    its step sees the same batch as the others', with the forward pass recomputed. `size` = m is
    the joint step (SUS), 1 is `one_by_one` in an order drawn at random. Where m is no multiple of
    `size` the last group is smaller. A method sees the members of the active group.

    Args:
        size: tasks per group.
        redraw: when groups are drawn: once ("never" again; the authors' code), at each epoch, or
            at each call. A redrawn group inherits the number, and with it the moments over the
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
        return [Phase(tuple(tasks[k] for k in g), group=number) for number, g in enumerate(groups)]

    def groups(tasks: int) -> tuple[int, ...]:
        whole, rest = divmod(tasks, size)
        return (size,) * whole + ((rest,) if rest else ())

    return Stateless(phases, f"in_groups({size}, redraw={redraw!r})", groups, draws=True)


def _permutation(clock: Clock, purpose: str, tasks: int, every: str) -> list[int]:
    generator = clock.generator(purpose, every=every)
    order: list[int] = torch.randperm(tasks, generator=generator, device="cpu").tolist()
    return order
