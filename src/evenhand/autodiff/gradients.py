"""What a method may look at: the tasks' losses and the gradients of them, computed when asked.

The Jacobian J has one row g_i = ∂L_i/∂θ per task; the Gramian is G = J Jᵀ. A gradient is taken at
a *place*:

    "parameters"      the shared parameters θ                            n = number of them
    "representation"  the features Z = trunk(x), over the whole batch    n = size of Z
    "last_layer"      the parameters of the last shared layer
    a callable        (shared parameters) -> those of them to look at

`TaskGradients` is the view that methods get. In training the source behind it is the autograd
graph (`passes.py`), which takes each pass once; `Matrices` is the source for those who
have the numbers already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from evenhand.linalg.solution import require, require_gramian
from evenhand.schedules import Clock

Place = (
    Literal["parameters", "representation", "last_layer"]
    | Callable[[tuple[Tensor, ...]], Iterable[Tensor]]
)
PLACES = ("parameters", "representation", "last_layer")
Gradient = Sequence[Tensor | None]
"""One task's gradient, a tensor per parameter; None where the task does not reach it."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite. `tasks` names whose."""

    def __init__(self, what: str, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        super().__init__(
            f"the {what} of {', '.join(repr(t) for t in tasks)} is not finite; "
            "nothing was updated and no history was written"
        )


@dataclass(frozen=True)
class Columns:
    """Where the columns of a Jacobian stand among all coordinates that were ever looked at.

    Attributes:
        total: the number of all coordinates.
        index: the position of each column, int64 [n]; None where the columns are all, in order.
        anew: whether none of them was there before, so that a history begins again.
    """

    total: int
    index: Tensor | None = None
    anew: bool = False


class Source(Protocol):
    """Where gradients come from."""

    def jacobian(self, place: Place) -> Tensor: ...

    def gramian(self, place: Place) -> Tensor: ...

    def norms(self, place: Place) -> Tensor: ...

    def product(self, place: Place, weights: Tensor) -> Tensor: ...

    def spans(self, place: Place) -> list[slice]: ...

    def columns(self, place: Place) -> Columns: ...


class TaskGradients:
    """The losses of the active tasks, and their gradients at a place.

    Leading dimensions are independent networks: a stacked ensemble has losses [..., m] and
    Gramians [..., m, m].

    Attributes:
        tasks: names of the m active tasks, in the order of all tasks.
        index: their positions among all tasks, int64 [m]; by default they are all tasks.
        total: the number of all tasks.
        clock: when.
        samples: the same view on further independent batches, for methods that declare them.
    """

    def __init__(
        self,
        source: Source,
        losses: Tensor,
        *,
        tasks: Sequence[str],
        index: Tensor | None = None,
        total: int | None = None,
        clock: Clock | None = None,
        place: Place = "parameters",
        factor: Tensor | None = None,
        samples: Sequence[TaskGradients] = (),
    ) -> None:
        self.tasks = tuple(tasks)
        if index is None:
            index = torch.arange(len(self.tasks), device=losses.device)
        self.index = index
        self.total = len(self.tasks) if total is None else total
        self.clock = clock or Clock()
        self.samples = tuple(samples)
        self.place = place
        self._source = source
        self._raw_losses = losses
        self._factor = factor
        self._jacobian: Tensor | None = None  # kept by hand: in Python 3.11 cached_property locks

    @classmethod
    def of(
        cls,
        *,
        losses: Tensor | None = None,
        jacobian: Tensor | None = None,
        gramian: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        index: Tensor | None = None,
        total: int | None = None,
        clock: Clock | None = None,
        samples: Sequence[TaskGradients] = (),
    ) -> TaskGradients:
        """A view of given numbers: a Jacobian [..., m, n], or a Gramian [..., m, m], or losses.

        Losses default to ones; every place shows the same numbers.

        Raises:
            TypeError: what was given is not a floating point tensor.
            ValueError: nothing was given, there is no task, a number is not finite, the Gramian is
                not square, or the number of tasks does not agree.

        Example:
            >>> TaskGradients.of(jacobian=torch.tensor([[3.0, 0.0], [1.0, 2.0]])).gramian
            tensor([[9., 3.],
                    [3., 5.]])
        """
        if jacobian is not None:
            require(jacobian, "jacobian", "[..., m, n]", 2)
        if gramian is not None:
            require_gramian(gramian)
        if losses is not None:
            require(losses, "losses", "[..., m]", 1)
        source = Matrices(jacobian, gramian)
        if losses is None and jacobian is None and gramian is None:
            raise ValueError("give losses, a jacobian or a gramian")
        if losses is None:
            losses = torch.ones_like(source.norms("parameters"))
        if tasks is None:
            tasks = [f"task{i}" for i in range(losses.shape[-1])]
        sizes = {losses.shape[-1], len(tasks)}
        if jacobian is not None or gramian is not None:
            sizes.add(source.norms("parameters").shape[-1])
        if len(sizes) > 1:
            raise ValueError(
                f"losses, names and gradients disagree on the number of tasks: {sizes}"
            )
        return cls(
            source, losses, tasks=tasks, index=index, total=total, clock=clock, samples=samples
        )

    def at(self, place: Place) -> TaskGradients:
        """The same tasks, their gradients taken at `place`."""
        return self if place == self.place else self._like(place=place)

    def scaled(self, factor: Tensor) -> TaskGradients:
        """The problem with losses factor ∘ L: Jacobian diag(factor) J, without a second pass."""
        so_far = self._factor
        samples = tuple(sample.scaled(factor) for sample in self.samples)
        return self._like(factor=factor if so_far is None else so_far * factor, samples=samples)

    def _like(
        self,
        *,
        place: Place | None = None,
        factor: Tensor | None = None,
        samples: Sequence[TaskGradients] | None = None,
    ) -> TaskGradients:
        place = self.place if place is None else place
        if samples is None:
            samples = tuple(sample.at(place) for sample in self.samples)
        return TaskGradients(
            self._source,
            self._raw_losses,
            tasks=self.tasks,
            index=self.index,
            total=self.total,
            clock=self.clock,
            place=place,
            factor=self._factor if factor is None else factor,
            samples=samples,
        )

    def among(self, positions: Sequence[int]) -> TaskGradients:
        """The view that has the tasks at these positions alone."""
        at = torch.tensor(positions, device=self._raw_losses.device)
        return TaskGradients(
            Among(self._source, at, len(self.tasks)),
            self._raw_losses.index_select(-1, at),
            tasks=[self.tasks[k] for k in positions],
            index=self.index.index_select(0, at.to(self.index.device)),
            total=self.total,
            clock=self.clock,
            place=self.place,
            factor=None if self._factor is None else self._factor.index_select(-1, at),
            samples=[sample.among(positions) for sample in self.samples],
        )

    @property
    def losses(self) -> Tensor:
        """L, [m], detached."""
        return self._scaled(self._raw_losses)

    @property
    def jacobian(self) -> Tensor:
        """J, [m, n], the rows flattened and joined (zeros where a task does not reach)."""
        if self._jacobian is None:
            jacobian = self._source.jacobian(self.place)
            factor = self._factor
            self._jacobian = jacobian if factor is None else factor.unsqueeze(-1) * jacobian
        return self._jacobian

    def spans(self, place: Place) -> list[slice]:
        """Where the parameters of `place` stand among the columns of J at "parameters"."""
        return self._source.spans(place)

    @property
    def columns(self) -> Columns:
        """Where the columns of J stand among all coordinates, for histories over these."""
        return self._source.columns(self.place)

    @property
    def gramian(self) -> Tensor:
        """G = J Jᵀ, [m, m]."""
        gramian = self._source.gramian(self.place)
        if self._factor is None:
            return gramian
        return self._factor.unsqueeze(-1) * gramian * self._factor.unsqueeze(-2)

    def product(self, weights: Tensor) -> Tensor:
        """G w, [m], for weights w [m]: what each g_i makes of the direction Σ w_j g_j.

        At the parameters it costs two backward passes for any m, unless G is known already.

        Raises:
            ValueError: the network has operations without a second derivative.

        Example:
            >>> g = TaskGradients.of(jacobian=torch.tensor([[3.0, 0.0], [1.0, 2.0]]))
            >>> g.product(torch.tensor([0.25, 0.75]))
            tensor([4.5000, 4.5000])
        """
        if self._factor is None:
            return self._source.product(self.place, weights)
        return self._factor * self._source.product(self.place, self._factor * weights)

    @property
    def norms(self) -> Tensor:
        """‖g_i‖, [m]."""
        norms = self._source.norms(self.place)
        return norms if self._factor is None else self._factor.abs() * norms

    @property
    def cosines(self) -> Tensor:
        """cos(g_i, g_j), [m, m]; zero where a gradient is zero."""
        return cosines(self.gramian)

    def _scaled(self, values: Tensor) -> Tensor:
        return values if self._factor is None else self._factor * values


class Among:
    """The gradients of some of a source's m tasks, at these positions, [k]."""

    def __init__(self, source: Source, positions: Tensor, m: int) -> None:
        self._source = source
        self._positions = positions
        self._m = m

    def jacobian(self, place: Place) -> Tensor:
        jacobian = self._source.jacobian(place)
        return jacobian.index_select(-2, self._positions.to(jacobian.device))

    def gramian(self, place: Place) -> Tensor:
        gramian = self._source.gramian(place)
        at = self._positions.to(gramian.device)
        return gramian.index_select(-1, at).index_select(-2, at)

    def norms(self, place: Place) -> Tensor:
        return norms(self.gramian(place))

    def product(self, place: Place, weights: Tensor) -> Tensor:
        at = self._positions.to(weights.device)
        of_all = weights.new_zeros(*weights.shape[:-1], self._m).index_copy(-1, at, weights)
        return self._source.product(place, of_all).index_select(-1, at)

    def spans(self, place: Place) -> list[slice]:
        return self._source.spans(place)

    def columns(self, place: Place) -> Columns:
        return self._source.columns(place)


class Matrices:
    """Gradients that are given as numbers."""

    def __init__(self, jacobian: Tensor | None, gramian: Tensor | None) -> None:
        self._jacobian = jacobian
        self._gramian = gramian

    def jacobian(self, place: Place) -> Tensor:
        if self._jacobian is None:
            raise ValueError("this method looks at the Jacobian, and only a Gramian is at hand")
        return self._jacobian

    def gramian(self, place: Place) -> Tensor:
        if self._gramian is None:
            jacobian = self.jacobian(place)
            gramian = jacobian @ jacobian.mT
            if not all_finite(gramian):
                raise ValueError(
                    f"squared norms of the jacobian's rows overflow {jacobian.dtype}: "
                    "give it in torch.float64, or divide the losses"
                )
            self._gramian = gramian
        return self._gramian

    def norms(self, place: Place) -> Tensor:
        return norms(self.gramian(place))

    def product(self, place: Place, weights: Tensor) -> Tensor:
        return times(self.gramian(place), weights)

    def spans(self, place: Place) -> list[slice]:
        return [slice(0, self.jacobian(place).shape[-1])]

    def columns(self, place: Place) -> Columns:
        return Columns(self.jacobian(place).shape[-1])


def norms(gramian: Tensor) -> Tensor:
    """‖g_i‖ = √G_ii, [..., m]."""
    return gramian.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def all_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # A sum is not finite if an entry is not, and much cheaper than to test each; should finite
    # entries overflow it, they are tested after all.
    seen = values.detach() if values.requires_grad else values
    if seen.is_complex():
        seen = torch.view_as_real(seen.resolve_conj())
    return math.isfinite(seen.sum().item()) or bool(seen.isfinite().all())


def times(gramian: Tensor, weights: Tensor) -> Tensor:
    """G w, [..., m]."""
    return (gramian @ weights.to(gramian).unsqueeze(-1)).squeeze(-1)


def cosines(gramian: Tensor) -> Tensor:
    """cos(g_i, g_j) = G_ij / (‖g_i‖‖g_j‖), [..., m, m]; zero where a gradient is zero."""
    length = norms(gramian)
    inverse = torch.where(length > 0, 1 / length, torch.zeros_like(length))
    return (inverse.unsqueeze(-1) * gramian * inverse.unsqueeze(-2)).clamp(-1, 1)
