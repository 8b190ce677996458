"""A method and its state outside a Balancer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Gradients, Method, warn_of
from evenhand.weighting.state import Held, State


class Running(nn.Module):
    """A method that goes on from call to call, for those who have gradients but no `Balancer`.

    A call gives the weights (of an aggregator: the direction), adds the gradients of the learned
    weights to their `.grad`, and holds the next state. A call that raises changes nothing.

    Args:
        method: the method, with or without a state.
        tasks: the names of all tasks, in order.

    Raises:
        ValueError: the method cannot serve these tasks.

    Example:
        >>> import torch
        >>> from evenhand import MGDA, Every
        >>> lazy = Running(Every(MGDA(), steps=2), ["a", "b"])
        >>> lazy(TaskGradients.of(jacobian=torch.tensor([[3.0, 0.0], [1.0, 2.0]])))
        tensor([0.2500, 0.7500])
        >>> lazy(TaskGradients.of(jacobian=torch.eye(2)))  # not asked yet
        tensor([0.2500, 0.7500])
    """

    @checked
    def __init__(self, method: Method, tasks: Sequence[str]) -> None:
        super().__init__()
        method.require(tasks)
        self.method = method
        self.tasks = tuple(tasks)
        self.held = Held(method.init(len(self.tasks)))
        self._warned = False

    @property
    def state(self) -> State:
        """The state that the next call begins with."""
        return self.held.tree()

    def forward(self, g: TaskGradients) -> Tensor:
        """The method's value for g."""
        before = self.state
        outcome = self.method.advance(g, before)
        gradients = self.method.learn(g, before)
        self.held.replace(outcome.state)
        add_gradients(gradients)
        self._warned = self._warned or warn_of(self.method, outcome.solves)
        return outcome.value

    def after(self, losses: TaskGradients) -> None:
        """Tell the method the losses after the update."""
        self.held.replace(self.method.after(losses, self.state))

    def reset(self) -> None:
        """Begin again, with the state of the beginning."""
        self.held.reset(self.method.init(len(self.tasks)))


def add_gradients(gradients: Gradients) -> None:
    """Add to `.grad`, as a backward pass does."""
    for parameter, gradient in gradients.items():
        gradient = gradient.to(parameter)
        before = parameter.grad
        parameter.grad = gradient.clone() if before is None else before + gradient
