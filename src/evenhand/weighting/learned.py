"""One learned number per task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Gradients, StatefulWeighting
from evenhand.weighting.state import State


class Learned(StatefulWeighting):
    """A weighting that learns one scalar for each task, from gradients in closed form.

    The scalars are parameters in the state, "scalars", by the task's number. An optimizer of the
    user's choice must know them before the first step. The gradient of an absent task's scalar is
    not zero but missing, so an optimizer with momentum leaves it where it is. In a stacked ensemble
    each scalar has the shape of the stack.
    """

    initial: float
    """What every scalar starts from."""

    def init(self, total: int) -> State:
        """A scalar for each task."""
        scalars = (nn.Parameter(torch.full((), self.initial)) for _ in range(total))
        return {"scalars": {str(i): scalar for i, scalar in enumerate(scalars)}}

    def scalars_of(self, g: TaskGradients, state: State) -> Tensor:
        """The scalars of the active tasks, detached, [..., m]."""
        return torch.stack([scalar.detach() for scalar in self._scalars(g, state)], dim=-1)

    def gradients_of(self, g: TaskGradients, state: State, gradient: Tensor) -> Gradients:
        """`gradient` [..., m] by the scalar of the task that each entry is for.

        Raises:
            ValueError: the shape of the stack is not that of the scalars.
        """
        gradients = dict(zip(self._scalars(g, state), gradient.unbind(-1), strict=True))
        for scalar, value in gradients.items():
            if value.shape != scalar.shape:
                raise ValueError(
                    f"the learned weights of {self} have shape {list(scalar.shape)}, the losses "
                    f"are a stack of {list(value.shape)}: each network needs weights of its own"
                )
        return gradients

    def _scalars(self, g: TaskGradients, state: State) -> list[nn.Parameter]:
        return [state["scalars"][str(i)] for i in g.index.tolist()]
