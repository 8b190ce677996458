"""What a weighting is: TaskGradients -> one weight per task.

``forward(g)`` is a pure function of the gradients and of the state kept so far. What a method
learns from a step it hands to `stage`; the Balancer calls `commit` once the step stands, or
`discard` when it does not (a gradient was NaN, an exception passed), so a step that is skipped
leaves no trace. State lives in buffers whose last dimension runs over all M tasks, each with a
count of its own where counts matter; `take` and `put` touch the entries of the tasks that speak.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evenhand.autodiff.gradients import PLACES, Place, TaskGradients
from evenhand.linalg.solution import TOLERANCE, Solution

Needs = Literal["nothing", "losses", "product", "norms", "gramian", "jacobian"]


class Method(nn.Module, ABC):
    """What weightings and aggregators have in common: a place, staged state, declared needs.

    Attributes:
        at: the place at which gradients are looked at.
        needs: the most expensive thing the method looks at.
        batches: how many independent batches it wants (`g.samples` holds the further ones).
        after: whether it wants the losses again after the update, on the same batch.
        counts_epochs: whether it looks at `g.clock.epoch`, which a loop must then tell it.
        learned: whether it has learned weights, which need an optimizer from the start.
        feasible: whether it promises g_i·v ≥ 0 for every task, as an aggregator.
        stationary: whether it promises v = 0 at a Pareto-stationary point, as an aggregator.
        scale_invariant: whether it promises that the direction of v does not change when the
            tasks' losses (and so their gradients) are multiplied one by one by positive factors.
        status: how the last solve ended (see `linalg.Solution`); None before any.
    """

    needs: Needs = "gramian"
    batches: int = 1
    after: bool = False
    counts_epochs: bool = False
    learned: bool = False
    feasible: bool = False
    stationary: bool = False
    scale_invariant: bool = False

    def __init__(self, *, at: Place = "parameters") -> None:
        super().__init__()
        if at not in PLACES and not callable(at):
            raise ValueError(f"at={at!r}: must be one of {', '.join(PLACES)}, or a callable")
        self.at: Place = at
        self._staged: dict[str, Tensor] = {}
        self._dimensions: dict[str, int] = {}
        self.tasks: tuple[str, ...] | None = None
        self.status: str | None = None
        self._told = False

    @property
    def reads_gradients(self) -> bool:
        """Whether the method cannot work in a phase in which the trunk rests."""
        return self.needs in ("product", "norms", "gramian", "jacobian")

    def bind(self, tasks: Sequence[str]) -> None:
        """Fix the tasks. Called once, before the first `forward`; makes per-task state.

        Raises:
            ValueError: the method is bound to other tasks already, or cannot serve these.
        """
        if self.tasks is not None and self.tasks != tuple(tasks):
            raise ValueError(
                f"{self} belongs to the tasks {', '.join(self.tasks)}; it cannot serve "
                f"{', '.join(tasks)} as well: make a second one"
            )
        if self.tasks is None:
            self.tasks = tuple(tasks)
            self.setup(len(self.tasks))
            self._dimensions = {name: b.ndim for name, b in self._buffers.items() if b is not None}
        for child in self.inner():
            child.bind(tasks)

    def setup(self, total: int) -> None:
        """Make buffers and learned parameters for `total` tasks. Nothing by default."""

    def inner(self) -> Iterator[Method]:
        """The methods that this one wraps."""
        return (child for child in self.children() if isinstance(child, Method))

    def used(self, solution: Solution) -> Tensor:
        """The weights that a solver found; its status is kept.

        A solve that missed its tolerance is told of, once: its weights are used all the same.
        """
        self.status = solution.status
        if solution.status == "inaccurate" and not self._told:
            self._told = True
            gap = float(solution.gap.max())
            warnings.warn(
                f"{type(self).__name__}: a solve ended {gap:.1e} from its optimum after "
                f"{solution.iterations} iterations, where {TOLERANCE:.0e} was asked; its weights "
                "are used. This is said once; Balance.status says how each step's solves ended",
                RuntimeWarning,
                stacklevel=2,
            )
        return solution.weights

    # State ------------------------------------------------------------------------------------

    def stage(self, **state: Tensor) -> None:
        """Hand over new values for the buffers named; they take effect at `commit`."""
        unknown = set(state) - set(self._buffers)
        if unknown:
            raise KeyError(f"{type(self).__name__} has no buffer {sorted(unknown)}")
        self._staged.update({name: value.detach() for name, value in state.items()})

    def commit(self) -> None:
        """Let what was staged take effect, here and in every wrapped method."""
        for name, value in self._staged.items():
            self._buffers[name] = value
        self._staged.clear()
        for child in self.inner():
            child.commit()

    def discard(self) -> None:
        """Forget what was staged."""
        self._staged.clear()
        for child in self.inner():
            child.discard()

    def keep(self, members: Tensor) -> None:
        """Of a stacked ensemble's state, keep the members at these positions alone."""
        for name, dimensions in self._dimensions.items():
            buffer = self._buffers[name]
            if buffer is not None and buffer.ndim > dimensions:  # the others hold for all members
                self._buffers[name] = buffer[members]
        for child in self.inner():
            child.keep(members)

    def learn(self, g: TaskGradients) -> None:
        """Add to the `.grad` of the method's own learned weights. Nothing by default."""
        for child in self.inner():
            child.learn(g)

    def updated(self, losses: TaskGradients) -> None:
        """Called after the update with the new losses, if `after` is declared."""
        for child in self.inner():
            child.updated(losses)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A buffer may have grown leading dimensions (a stacked ensemble): take the saved shape.
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.shape != buffer.shape:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class Weighting(Method):
    """TaskGradients -> task weights [m]. Methods implement `weigh`.

    Serves two slots of a `Balancer`: as `weighting` its weights multiply the losses everywhere,
    as `aggregator` they combine the gradients of the trunk alone.
    """

    def forward(self, g: TaskGradients) -> Tensor:
        """The weights of the tasks that speak, [..., m]."""
        return self.weigh(g.at(self.at))

    @abstractmethod
    def weigh(self, g: TaskGradients) -> Tensor:
        """The weights, from gradients at the method's own place."""


class Wrapper(Weighting):
    """A weighting made from another one; its place and its needs are the base's."""

    def __init__(self, base: Weighting) -> None:
        super().__init__(at=base.at)
        self.base = base
        self.needs = base.needs
        self.batches = base.batches
        self.after = base.after
        self.counts_epochs = base.counts_epochs
        self.learned = base.learned
        self.feasible = base.feasible
        self.stationary = base.stationary
        self.scale_invariant = base.scale_invariant


def take(state: Tensor, g: TaskGradients) -> Tensor:
    """The entries of per-task state [..., M] of the tasks that speak, [..., m]."""
    return state.index_select(-1, g.index.to(state.device))


def put(state: Tensor, g: TaskGradients, value: Tensor) -> Tensor:
    """A copy of per-task state [..., M] with `value` [..., m] at the tasks that speak.

    Where `value` has more leading dimensions (a stacked ensemble), the copy grows them.
    """
    copy = state.expand(*value.shape[:-1], state.shape[-1]).clone()
    return copy.index_copy_(-1, g.index.to(state.device), value.to(state))
