"""One call of a balancer, checked: which tasks are active, their losses, and what is to train."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from evenhand.autodiff.gradients import NonFiniteError, all_finite
from evenhand.schedules import BLOCKS, Block, Phase


@dataclass(frozen=True)
class Call:
    """What a balancer was asked to differentiate.

    Attributes:
        tasks: the m active tasks, in the order of all tasks.
        index: their positions among all tasks.
        losses: their losses, scalars, or [E] for a stack of E networks.
        values: the same as one tensor, [..., m], detached.
        trains: the blocks that train.
        phase: whether the user named a phase; without one everything trains.
        plus: a scalar that is nobody's task, or None.
        scale: what every loss, and `plus`, is multiplied by before it is differentiated: a loss
            scale, or the incoming gradient of a backward pass. None for 1.
        retain: whether the graph must outlive the call.
        left_out: tasks that have a loss and are left out, since it or its gradient is not finite.
    """

    tasks: tuple[str, ...]
    index: tuple[int, ...]
    losses: tuple[Tensor, ...]
    values: Tensor
    trains: tuple[Block, ...] = BLOCKS
    phase: bool = False
    plus: Tensor | None = None
    scale: float | Tensor | None = None
    retain: bool = False
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, losses: Mapping[str, Tensor], tasks: Sequence[str], **rest: Any) -> Call:
        """The call of these losses; `rest` are the other attributes."""
        position = {task: k for k, task in enumerate(tasks)}
        return cls(
            tasks=tuple(losses),
            index=tuple(position[task] for task in losses),
            losses=tuple(losses.values()),
            values=values_of(losses),
            **rest,
        )

    @property
    def leading(self) -> torch.Size:
        """The shape of a stack of independent networks; () for a single one."""
        return self.values.shape[:-1]

    def without(self, tasks: Sequence[str]) -> Call:
        """The same call, in which these tasks are absent."""
        keep = [k for k, task in enumerate(self.tasks) if task not in tasks]
        return replace(
            self,
            tasks=tuple(self.tasks[k] for k in keep),
            index=tuple(self.index[k] for k in keep),
            losses=tuple(self.losses[k] for k in keep),
            values=self.values[..., keep],
            left_out=(*self.left_out, *tasks),
        )


def values_of(losses: Mapping[str, Tensor]) -> Tensor:
    """The losses' values, [..., m]; where dtypes differ, in one that holds them all."""
    values = list(losses.values())
    with torch.no_grad():
        if not all(v.is_cpu for v in values):
            values = [v.to(values[0].device) for v in values]
        return torch.stack(values, dim=-1)


class Absent:
    """Losses that no gradient can be taken of: None, or constants. Each task is told of once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def sorted_out(
        self, losses: Mapping[str, Tensor | None], some: bool = True
    ) -> dict[str, Tensor]:
        """The losses that have a graph.

        Raises:
            TypeError: a loss is neither a tensor nor None.
            ValueError: no loss has a graph, and there must be `some`.
        """
        present: dict[str, Tensor] = {}
        absent: dict[str, str] = {}
        for task, loss in losses.items():
            if loss is None:
                absent[task] = "is None"
            elif not isinstance(loss, Tensor):
                raise TypeError(
                    f"the loss of {task!r} is a {type(loss).__name__}: it must be a tensor with "
                    "its graph, or None where the task is absent"
                )
            elif not loss.requires_grad:
                absent[task] = "has no graph"
            else:
                present[task] = loss
        if some and losses and not present:
            task, why = next(iter(absent.items()))
            raise ValueError(
                f"the loss of {task!r} {why}, and so does every other: was it computed under "
                "no_grad, or from parameters that are all frozen?"
            )
        for task, why in absent.items():
            if task not in self._told:
                self._told.add(task)
                warnings.warn(
                    f"the loss of {task!r} {why}: the task counts as absent in such a step. This "
                    "is said once",
                    stacklevel=5,
                )
        return present


def active(
    losses: Mapping[str, Tensor],
    tasks: Sequence[str],
    phase: Phase | None,
    leading: torch.Size,
    some: bool = True,
) -> dict[str, Tensor]:
    """The losses that count in a call, in the order of all tasks, each of the right shape.

    Raises:
        ValueError: a task is unknown, a loss has the wrong shape, or none has a loss where there
            must be `some`.
    """
    known = set(tasks)
    unknown = [t for t in (*losses, *(phase.tasks if phase else ())) if t not in known]
    if unknown:
        raise ValueError(
            f"unknown task {unknown[0]!r}: the tasks are {', '.join(tasks)}"
            f"{_nearest(unknown[0], tasks)}; they are fixed by tasks= or the first call"
        )
    admitted = tasks if phase is None else phase.tasks
    among = set(admitted)
    found = {task: losses[task] for task in tasks if task in losses and task in among}
    if some and not found:
        raise ValueError(f"none of the tasks {', '.join(admitted)} has a loss in this call")
    for task, loss in found.items():
        fits = loss.shape == leading
        if not fits and not (loss.numel() == 1 and not leading):
            wanted = f"of shape {tuple(leading)}" if leading else "a scalar"
            raise ValueError(
                f"the loss of {task!r} has shape {tuple(loss.shape)}; it must be {wanted}: "
                "take its mean or sum"
            )
        if loss.is_complex():
            raise ValueError(f"the loss of {task!r} is complex: a loss is a real number")
        if not fits:
            found[task] = loss.reshape(leading)
    return found


def _nearest(task: str, tasks: Sequence[str]) -> str:
    near = get_close_matches(task, tasks, n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""


def not_finite(values: Tensor, tasks: Sequence[str]) -> list[str]:
    """The tasks whose entries of values [..., m] are NaN or infinite."""
    if all_finite(values):
        return []
    finite = values.isfinite().reshape(-1, len(tasks)).all(0)
    return [task for task, ok in zip(tasks, finite.tolist(), strict=True) if not ok]


def require_finite(values: Tensor, tasks: Sequence[str], what: str) -> None:
    """Raises NonFiniteError, naming the tasks whose entries of values [..., m] are not finite."""
    guilty = not_finite(values, tasks)
    if guilty:
        raise NonFiniteError(what, guilty)
