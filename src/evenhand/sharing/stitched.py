"""Cross-stitch networks: a network for each task, mixed between their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.arguments import require_kind
from evenhand.network import Blocks, MultiTaskNetwork
from evenhand.sharing.columns import Columns, require_columns


def stages(trunk: nn.Module) -> list[nn.Sequential]:
    """An `nn.Sequential` in pieces, each of which ends with what follows its layers.

    A piece begins with the first child that has parameters after one that has none: ``Linear, Tanh,
    Linear, Tanh`` are two, ``Conv, BatchNorm, ReLU, MaxPool`` is one. Sequentials in it are taken
    apart.

    Raises:
        ValueError: it is none, has hooks, or holds nothing.
    """
    if type(trunk) is not nn.Sequential or not len(trunk):
        raise ValueError(
            "cross-stitch units stand between the layers of a trunk that is an nn.Sequential, and "
            f"this one is a {type(trunk).__name__} of {len(list(trunk.children()))} modules"
        )
    pieces: list[list[nn.Module]] = [[]]
    learned = False
    for child in _flat(trunk):
        has = any(True for _ in child.parameters())
        if has and learned and not any(True for _ in pieces[-1][-1].parameters()):
            pieces.append([])
        learned = learned or has
        pieces[-1].append(child)
    return [nn.Sequential(*piece) for piece in pieces]


def _flat(trunk: nn.Sequential) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in trunk:
        found += _flat(child) if type(child) is nn.Sequential else [child]
    return found


class Mixed(nn.Module):
    """The columns' trunks with a cross-stitch unit behind every stage but the last.

    Args:
        columns: the stages of each.
        units: α at the beginning, [T, T].
    """

    def __init__(self, columns: Sequence[Sequence[nn.Module]], unit: Tensor) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.ModuleList(column) for column in columns)
        self.units = nn.ParameterList(nn.Parameter(unit.clone()) for _ in columns[0][1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        """The last stage's features of each column."""
        last = len(self.units)
        found = [x] * len(self.columns)
        for k in range(last + 1):
            found = [
                column.get_submodule(str(k))(z)
                for column, z in zip(self.columns, found, strict=True)
            ]
            if k < last:
                found = list(_stitched(self.units[k], found).unbind())
        return found


def _stitched(unit: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Σ_j α_ij x_j for the rows i of a unit, [n, T] and T tensors [b, ...] → [n, b, ...]."""
    mixed: Tensor = torch.tensordot(unit, torch.stack(list(features)), dims=1)
    return mixed


class StitchedHead(nn.Module):
    """A head behind its row of the last cross-stitch unit.

    Args:
        row: α of this task at the beginning, [T].
        head: maps the mixed features to the output.
    """

    def __init__(self, row: Tensor, head: nn.Module) -> None:
        super().__init__()
        self.row = nn.Parameter(row.clone())
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Any:
        return self.head(_stitched(self.row.unsqueeze(0), features)[0])


class CrossStitchNetwork(MultiTaskNetwork):
    """A network for each task whose layers' outputs are mixed by learned numbers.

    Behind stage l of T columns stands a unit α^l [T, T], which gives column i

        x̃_i^l = Σ_j α_ij^l x_j^l

    to go on with; behind the last stage, the heads of task i read its row of it. A unit has one
    number for each pair of columns and all entries of their outputs, and begins at α_ii = own and
    α_ij = (1 − own)/(T − 1), so that rows sum to 1. With own = 1 the columns start as networks by
    themselves, and stay so if units do not train.

    Every loss reaches every column and every unit between stages: these are what tasks share, what
    an aggregator balances and what a phase calls the trunk. Row i of the last unit is reached by
    task i alone, so it is a part of its head. The representation, where methods look at it, is what
    the last stages say before that row mixes them.

    Source: Misra, Shrivastava, Gupta & Hebert, "Cross-stitch networks for multi-task learning"
    (CVPR 2016, arXiv 1604.03539), equation (1). They put units behind pooling and fully connected
    layers and give them a higher learning rate than the layers; here they have the trunk's. LibMTL
    has units between the four stages of a ResNet and none behind the last, and starts all entries
    at 1, so that rows sum to T.

    Args:
        columns: for each task, its network: a `MultiTaskNetwork` whose trunk is an `nn.Sequential`
            and which has the heads that the task reads.
        own: α_ii at the beginning, from 0 to 1.

    Raises:
        ValueError: `own` is out of range; a trunk is no `nn.Sequential` (`stages`); or the columns
            are not alike, see `require_columns`.

    Example:
        >>> def trunk():
        ...     return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> columns = {task: MultiTaskNetwork(trunk(), {task: nn.Linear(2, 1)}) for task in "ab"}
        >>> network = CrossStitchNetwork(columns, own=0.75)
        >>> network.trunk.units[0].tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """

    def __init__(self, columns: Mapping[str, MultiTaskNetwork], own: float = 0.9) -> None:
        require_own(own)
        require_columns(columns)
        number = len(columns)
        like = next(next(iter(columns.values())).parameters())
        unit = torch.full((number, number), (1 - own) / max(number - 1, 1)).to(like)
        unit.fill_diagonal_(own if number > 1 else 1.0)
        trunk = Mixed([stages(column.trunk) for column in columns.values()], unit)
        super().__init__(
            trunk,
            {
                head: StitchedHead(unit[place], column.head(head))
                for place, column in enumerate(columns.values())
                for head in column.tasks
            },
        )

    def blocks(self) -> Blocks:
        """Columns and units are shared; the last shared layer is the last one of every column."""
        last: list[Tensor] = []
        for column in self.trunk.get_submodule("columns").children():
            layers = [m for m in column.modules() if any(True for _ in m.parameters(recurse=False))]
            last += layers[-1].parameters(recurse=False) if layers else ()
        return replace(super().blocks(), last_layer=tuple(last))


def require_own(own: float) -> None:
    """See that α_ii is a number from 0 to 1.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range.
    """
    require_kind("own", own, float)
    if not 0 <= own <= 1:
        raise ValueError(f"own={own}: must be from 0 to 1")


@dataclass(frozen=True)
class Stitched(Columns):
    """Makes a `CrossStitchNetwork` of the problem's own.

    Attributes:
        own: α_ii at the beginning.
    """

    own: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_own(self.own)

    def joined(self, columns: Mapping[str, MultiTaskNetwork]) -> MultiTaskNetwork:
        return CrossStitchNetwork(columns, self.own)
