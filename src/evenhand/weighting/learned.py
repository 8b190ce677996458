"""One learned number per task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting


class Learned(Weighting):
    """A weighting that learns one scalar for each task, from gradients in closed form.

    The scalars are parameters, for an optimizer of the user's choice, which must know them before
    the first step; those of a task that is absent keep `.grad` None and so do not move. In a
    stacked ensemble each has the shape of the stack.
    """

    learned = True
    initial: float
    """What every scalar starts from."""

    def setup(self, total: int) -> None:
        """A scalar for each task."""
        self.scalars = nn.ParameterList(torch.full((), self.initial) for _ in range(total))

    def scalars_of(self, g: TaskGradients) -> Tensor:
        """The scalars of the tasks that speak, detached, [..., m]."""
        return torch.stack([self._scalar(task).detach() for task in g.tasks], dim=-1)

    def add_gradient(self, g: TaskGradients, gradient: Tensor) -> None:
        """Add `gradient` [..., m] to the `.grad` of the scalars of the tasks that speak.

        Raises:
            ValueError: the shape of the stack is not that of the scalars.
        """
        for task, value in zip(g.tasks, gradient.unbind(-1), strict=True):
            scalar = self._scalar(task)
            if value.shape != scalar.shape:
                raise ValueError(
                    f"the learned weights of {self} have shape {list(scalar.shape)}, the losses "
                    f"are a stack of {list(value.shape)}: each member needs weights of its own"
                )
            value = value.to(scalar)
            scalar.grad = value.clone() if scalar.grad is None else scalar.grad + value

    def _scalar(self, task: str) -> nn.Parameter:
        by_task: dict[str, nn.Parameter] = dict(zip(self.tasks or (), self.scalars, strict=True))
        return by_task[task]
