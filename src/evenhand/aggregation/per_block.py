"""A weighting for each block of shared parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from evenhand.aggregation.base import StatefulAggregator
from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.linalg.solution import Solution
from evenhand.schedules import Clock
from evenhand.weighting.base import Gradients, Outcome, Weighting
from evenhand.weighting.state import State
from evenhand.weighting.traits import Needs, dearest, joined

Choose = Callable[[tuple[Tensor, ...]], Iterable[Tensor]]


class Make(Protocol):
    """What makes the weighting of a block: it looks at gradients at `at`."""

    def __call__(self, *, at: Place) -> Weighting: ...


class PerBlock(StatefulAggregator):
    """Any weighting, applied to each block of shared parameters by itself.

    For block b (a layer, a level of a pyramid) with the part g_i^b of every task's gradient, the
    weighting w^b sees the losses and the Gramian of that part only, and

        v^b = Σ_i w_i^b g_i^b,   v = (v^1, v^2, …).

    Each block has a weighting of its own, with its own state. What the weighting promises on
    g_i·v ≥ 0 it keeps, block by block, so the sum does too; a Pareto-stationary point of the whole
    need not be one of each block, so v can be non-zero there. No single vector of task weights
    gives v, which is why this is an `Aggregator`; heads keep their own gradients.

    Args:
        make: called as ``make(at=place)`` once per block: a class such as `MGDA`, or
            ``lambda at: Tension(CentralDirection(at=at))``.
        blocks: by name, the parameters of each block: tensors, a module, or a function of all
            shared parameters. What they do not hold is one more block. A block of which nothing
            is balanced in a call (it is frozen) waits.

    Raises:
        TypeError: `make` cannot be called, or `blocks` is no mapping.
        ValueError: a block is empty; the made weighting looks elsewhere; or, when merging, a
            shared parameter is in two blocks.

    Example:
        >>> from evenhand import MGDA, Balancer
        >>> trunk = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> z = trunk(torch.ones(4, 2))
        >>> per_layer = PerBlock(MGDA, {"first": trunk[0], "second": trunk[2]})
        >>> losses = {"a": z[:, 0].square().mean(), "b": z.sum()}
        >>> balance = Balancer(aggregator=per_layer).backward(losses, shared=trunk.parameters())
        >>> trunk[2].weight.grad.shape
        torch.Size([2, 3])
    """

    @checked
    def __init__(
        self,
        make: Make,
        blocks: Mapping[str, Iterable[Tensor] | nn.Module | Choose],
    ) -> None:
        super().__init__()
        if not callable(make):
            raise TypeError(f"make={make!r}: must be a function of at=, such as the class MGDA")
        if not blocks:
            raise ValueError("blocks must name at least one block of shared parameters")
        self.places: dict[str, Choose] = {n: _place(n, chosen) for n, chosen in blocks.items()}
        rest = _Rest(tuple(self.places.values()))
        made = [_made(make, name, place) for name, place in self.places.items()]
        made.append(_made(make, "the rest", rest))
        self.weightings = nn.ModuleList(made)
        self.traits = replace(
            joined(*(weighting.traits for weighting in made), needs="jacobian"),
            stationary=False,
            scale_invariant=False,
        )

    def require(self, tasks: Sequence[str]) -> None:
        for _, weighting in self._parts():
            weighting.require(tasks)

    def init(self, total: int) -> State:
        """The state of each block's weighting, by the block's number."""
        return {number: weighting.init(total) for number, weighting in self._parts()}

    def needs(self, state: State, clock: Clock) -> Needs:
        parts = (weighting.needs(state[number], clock) for number, weighting in self._parts())
        return dearest("jacobian", *parts)

    def merge_from(self, g: TaskGradients, state: State) -> Outcome:
        jacobian = g.jacobian  # asked for first: the blocks' rows are then slices of its rows
        blocks = self._columns(g)
        direction = torch.zeros_like(jacobian[..., 0, :])
        following: State = {}
        solves: list[Solution] = []
        for (number, weighting), columns in zip(self._parts(), blocks, strict=True):
            if not columns:  # nothing of this block is there to be balanced now: it waits
                following[number] = state[number]
                continue
            found = weighting.advance(g, state[number])
            following[number] = found.state
            solves += found.solves
            weights = found.value.to(jacobian).unsqueeze(-2)
            for span in columns:
                direction[..., span] = (weights @ jacobian[..., span]).squeeze(-2)
        return Outcome(direction, following, tuple(solves))

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        gradients: Gradients = {}
        for (number, weighting), columns in zip(self._parts(), self._columns(g), strict=True):
            if columns:
                gradients |= weighting.learn(g, state[number])
        return gradients

    def _columns(self, g: TaskGradients) -> list[list[slice]]:
        """Where each block stands among the columns of J; the last is what the others leave."""
        spans = {name: g.spans(place) for name, place in self.places.items()}
        _require_apart(spans)
        every = [span for its in spans.values() for span in its]
        return [*spans.values(), _gaps(every, g.jacobian.shape[-1])]

    def after(self, losses: TaskGradients, state: State) -> State:
        return {number: part.after(losses, state[number]) for number, part in self._parts()}

    def _parts(self) -> Iterator[tuple[str, Weighting]]:
        for number, weighting in self.weightings.named_children():
            if isinstance(weighting, Weighting):
                yield number, weighting

    def extra_repr(self) -> str:
        return ", ".join(self.places)


@dataclass(frozen=True, eq=False)
class _Given:
    """The place of parameters that were named themselves, of those that are balanced now."""

    parameters: tuple[Tensor, ...]

    def __call__(self, shared: tuple[Tensor, ...]) -> list[Tensor]:
        mine = {id(parameter) for parameter in self.parameters}
        return [parameter for parameter in shared if id(parameter) in mine]


@dataclass(frozen=True, eq=False)
class _Rest:
    """The place of what is in no other block."""

    others: tuple[Choose, ...]

    def __call__(self, shared: tuple[Tensor, ...]) -> list[Tensor]:
        taken = {id(parameter) for other in self.others for parameter in other(shared)}
        return [parameter for parameter in shared if id(parameter) not in taken]


def _place(name: str, chosen: Iterable[Tensor] | nn.Module | Choose) -> Choose:
    if isinstance(chosen, nn.Module):
        chosen = chosen.parameters()
    if callable(chosen):
        return chosen
    parameters = tuple(chosen)
    if not parameters:
        raise ValueError(f"block {name!r} has no parameters")
    return _Given(parameters)


def _made(make: Make, name: str, place: Choose) -> Weighting:
    weighting = make(at=place)
    if weighting.traits.reads_gradients and weighting.at is not place:
        raise ValueError(
            f"make(at=…) for block {name!r} gave {weighting}, which looks at "
            f"{weighting.at!r}: hand `at` on to the method"
        )
    return weighting


def _require_apart(spans: Mapping[str, list[slice]]) -> None:
    """Raises ValueError where a parameter stands in two blocks."""
    pieces = sorted((span.start, span.stop, name) for name, its in spans.items() for span in its)
    for (_, end, last), (start, _, name) in pairwise(pieces):
        if start < end:
            raise ValueError(f"a shared parameter is in block {name!r} and in block {last!r}")


def _gaps(spans: Sequence[slice], total: int) -> list[slice]:
    """What these spans leave of the columns from 0 to `total`."""
    ends = sorted((span.start, span.stop) for span in spans)
    starts = [0, *(stop for _, stop in ends)]
    stops = [*(start for start, _ in ends), total]
    pairs = zip(starts, stops, strict=True)
    return [slice(start, stop) for start, stop in pairs if start < stop]
