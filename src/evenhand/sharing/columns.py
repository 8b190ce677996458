"""A network for each task: several copies of the problem's own, its columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from evenhand.arguments import require_fields, require_kind
from evenhand.network import MultiTaskNetwork, Nest
from evenhand.sharing.base import Blueprint, Make, Sharing, of_width, size, width_for
from evenhand.text import quoted

Size = Literal["full", "equal"]
Start = Literal["same", "own"]


class Reads(nn.Module):
    """A head that reads the features of one column among those of all.

    Args:
        place: of the column.
        head: maps its features to the output.
    """

    def __init__(self, place: int, head: nn.Module) -> None:
        super().__init__()
        self.place, self.head = place, head

    def forward(self, features: Sequence[Nest]) -> Any:
        return self.head(features[self.place])


def require_columns(columns: Mapping[str, MultiTaskNetwork]) -> list[dict[str, nn.Parameter]]:
    """The parameters of the columns' trunks by name, column by column.

    Raises:
        TypeError: `columns` is no mapping, or a column is no `MultiTaskNetwork`.
        ValueError: there is none; one has a forward pass of its own; two have a head of the same
            name, trunks with other parameters, or a parameter in common.
    """
    require_kind("columns", columns, Mapping)
    if not columns:
        raise ValueError("columns= must have one for at least one task")
    heads: dict[str, str] = {}
    holders: dict[Tensor, str] = {}
    for task, column in columns.items():
        if not isinstance(column, MultiTaskNetwork):
            raise TypeError(f"the column of {task!r} is no MultiTaskNetwork")
        if type(column).forward is not MultiTaskNetwork.forward:
            kind = type(column).__name__
            raise ValueError(f"the column of {task!r}, a {kind}, has a forward pass of its own")
        for head in column.tasks:
            if head in heads:
                raise ValueError(
                    f"the tasks {heads[head]!r} and {task!r} read one head, {head!r}: a network "
                    "for each task needs a head for each"
                )
            heads[head] = task
        for parameter in column.parameters():
            if holders.setdefault(parameter, task) != task:
                other = holders[parameter]
                raise ValueError(f"the columns of {other!r} and {task!r} share a parameter already")
    named = [dict(column.trunk.named_parameters()) for column in columns.values()]
    shapes = [{name: tuple(p.shape) for name, p in trunk.items()} for trunk in named]
    for task, found in zip(columns, shapes, strict=True):
        if found != shapes[0]:
            raise ValueError(
                f"the trunk of {task!r} has other parameters than that of {next(iter(columns))!r}: "
                f"{quoted(found)} and {quoted(shapes[0])}. Columns must be alike"
            )
    return named


@dataclass(frozen=True)
class Columns(Sharing):
    """A network for each task, made by the problem as for that task alone.

    Attributes:
        size: "full": each column is as wide as the problem's network, so T tasks have about T times
            its parameters. "equal": the columns are so narrow that all together have about as many
            parameters as it has; that takes `Problem.scaled`.
        start: "same": all columns start from the same draw of weights, that from which networks of
            single tasks start, and their trunks are equal. "own": each has a draw of its own.

    Raises:
        ValueError: `size` or `start` is another word.
    """

    size: Size = "full"
    start: Start = "same"
    cost: ClassVar[str] = ", a trunk for each task"

    def __post_init__(self) -> None:
        require_fields(self)
        for name, words in (("size", get_args(Size)), ("start", get_args(Start))):
            if (given := getattr(self, name)) not in words:
                raise ValueError(f"{name}={given!r}: must be {' or '.join(map(repr, words))}")

    @abstractmethod
    def joined(self, columns: Mapping[str, MultiTaskNetwork]) -> MultiTaskNetwork:
        """The columns, by task, as one network."""

    def network(self, problem: Blueprint, tasks: Sequence[str]) -> MultiTaskNetwork:
        width = 1.0
        if self.size == "equal":
            width = width_for(
                problem,
                tasks,
                size(problem, tasks),
                lambda width: self._made(of_width(problem, width), tasks),
            )
        return self._made(of_width(problem, width), tasks)

    def _made(self, make: Make, tasks: Sequence[str]) -> MultiTaskNetwork:
        stream = torch.random.get_rng_state()
        columns: dict[str, MultiTaskNetwork] = {}
        for task in tasks:
            if self.start == "same":
                torch.random.set_rng_state(stream)
            columns[task] = make((task,))
        require_columns(columns)
        if self.start == "same":  # networks whose heads are drawn first, too
            first, *others = columns.values()
            for column in others:
                column.trunk.load_state_dict(first.trunk.state_dict())
        return self.joined(columns)
