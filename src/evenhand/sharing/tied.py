"""Soft parameter sharing: a network for each task, tied by a penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.network import Blocks, MultiTaskNetwork, Nest
from evenhand.sharing.columns import Columns, Reads, require_columns
from evenhand.sharing.ties import SquaredDistance, Tie


class Separate(nn.Module):
    """The columns' trunks: an input → the features of each."""

    def __init__(self, trunks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(trunks)

    def forward(
        self, *inputs: Any, places: frozenset[int] | None = None, **named: Any
    ) -> list[Nest]:
        """The features of the columns at `places` (all by default), None for the others."""
        return [
            column(*inputs, **named) if places is None or k in places else None
            for k, column in enumerate(self.columns)
        ]


class TiedNetwork(MultiTaskNetwork):
    """Soft parameter sharing: a network for each task, and a penalty on how their trunks differ.

        F = Σ_i L_i(θ_i, η_i) + λ Ω(θ_1, …, θ_T)

    θ_i are the parameters of column i's trunk, which have the same shapes in all columns, and η_i
    those of its heads, which are not tied. Nothing is shared: no loss reaches another task's
    column, and gradients of different tasks meet in no parameter. What a column gets is

        ∂F/∂θ_i = c_i ∂L_i/∂θ_i + λ ∂Ω/∂θ_i

    with c_i the weight of a weighting, 1 without one. So a weighting that looks at losses decides
    how much task i's loss counts against the tie. A method that merges gradients of shared
    parameters has nothing to merge: a `Training` refuses it. So it does a phase that trains the
    trunk alone. Tasks may take turns, and each turn moves the columns of its tasks, with the
    penalty counted once in it and the other columns held.

    Columns of tasks that are not asked for are not evaluated.

    Args:
        columns: for each task, its network: a `MultiTaskNetwork` with the heads that it reads.
        tie: the penalty.

    Raises:
        ValueError, TypeError: the columns are not alike, see `require_columns`.

    Example: a loop of one's own hands the penalty over as `plus`.
        >>> from evenhand import Balancer
        >>> columns = {
        ...     task: MultiTaskNetwork(nn.Linear(2, 3), {task: nn.Linear(3, 1)}) for task in "ab"
        ... }
        >>> network = TiedNetwork(columns, SquaredDistance(0.1))
        >>> losses = {task: y.square().mean() for task, y in network(torch.ones(4, 2)).items()}
        >>> balance = Balancer(model=network).backward(losses, plus=network.penalty())
        >>> network.blocks().shared
        ()
    """

    def __init__(self, columns: Mapping[str, MultiTaskNetwork], tie: Tie) -> None:
        named = require_columns(columns)
        trunk = Separate([column.trunk for column in columns.values()])
        places = {
            head: place for place, column in enumerate(columns.values()) for head in column.tasks
        }
        each = list(columns.values())
        super().__init__(
            trunk, {head: Reads(place, each[place].head(head)) for head, place in places.items()}
        )
        self.tie = tie
        self._places = places
        self._tied = tuple(named[0])

    def extra_repr(self) -> str:
        return f"tie={self.tie!r}"

    def features_of(self, tasks: Sequence[str], inputs: Any, named: Mapping[str, Any]) -> Nest:
        places = frozenset(self._places[task] for task in tasks)
        return self.trunk(*inputs, places=places, **named)

    def penalty(self) -> Tensor:
        """λ Ω of the columns' trunks."""
        trunks = self.trunk.get_submodule("columns").children()
        columns = [dict(trunk.named_parameters()) for trunk in trunks]
        return self.tie(torch.stack([c[name] for c in columns]) for name in self._tied)

    def blocks(self) -> Blocks:
        """All of a column is its task's own; of one with several heads, its trunk the first's."""
        held = super().blocks().own
        own: dict[str, tuple[Tensor, ...]] = {}
        met: set[int] = set()
        for head, place in self._places.items():
            column = self.trunk.get_submodule(f"columns.{place}")
            trunk = tuple(column.parameters()) if place not in met else ()
            own[head] = (*trunk, *held[head])
            met.add(place)
        return Blocks((), own)


@dataclass(frozen=True)
class Tied(Columns):
    """Makes a `TiedNetwork` of the problem's own.

    Attributes:
        tie: the penalty.
    """

    tie: Tie = field(default_factory=SquaredDistance)

    def joined(self, columns: Mapping[str, MultiTaskNetwork]) -> MultiTaskNetwork:
        return TiedNetwork(columns, self.tie)
