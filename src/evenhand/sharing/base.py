"""How the network of a training is made from the problem's own.

A problem has one network, with a trunk that all tasks share. A `Sharing` says what of it becomes
several networks and what ties these: nothing (`HardSharing`), a penalty (`tied.Tied`), or units
between their layers (`stitched.Stitched`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from evenhand.arguments import require_fields
from evenhand.network import MultiTaskNetwork

Make = Callable[[Sequence[str]], MultiTaskNetwork]
"""Tasks -> a network with the heads that they read, its weights drawn from the global stream."""


class Blueprint(Protocol):
    """What makes networks: a `Problem`, or the preparation of a table.

    Attributes:
        name: what messages call it.
        network: makes the network for some tasks.
        scaled: the same, its hidden layers so many times as wide; None where they cannot be.
    """

    @property
    def name(self) -> str: ...

    @property
    def network(self) -> Make: ...

    @property
    def scaled(self) -> Callable[[Sequence[str], float], MultiTaskNetwork] | None: ...


class Sharing(ABC):
    """What a recipe makes of the problem's network.

    Attributes:
        cost: what it adds to a pass through one trunk and its heads, in words.
    """

    cost: ClassVar[str] = ""

    @abstractmethod
    def network(self, problem: Blueprint, tasks: Sequence[str]) -> MultiTaskNetwork:
        """The network to train for `tasks`, its weights drawn from torch's global stream.

        Raises:
            ValueError: the problem's network cannot be shared in this way.
        """


@dataclass(frozen=True)
class HardSharing(Sharing):
    """One trunk for all tasks, and a head for each: the problem's own network.

    Attributes:
        width: its hidden layers are so many times as wide.

    Raises:
        TypeError: the width is no number.
        ValueError: it is not above 0.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        require_fields(self)
        if not 0 < self.width < math.inf:
            raise ValueError(f"width={self.width}: must be above 0")

    def network(self, problem: Blueprint, tasks: Sequence[str]) -> MultiTaskNetwork:
        return of_width(problem, self.width)(tasks)


def of_width(problem: Blueprint, width: float) -> Make:
    """What makes the problem's network, its hidden layers so many times as wide.

    Raises:
        ValueError: the width is not 1, and the problem's network has none to change.
    """
    if width == 1:
        return problem.network
    scaled = problem.scaled
    if scaled is None:
        raise ValueError(f"{problem.name}: its network has no width argument (Problem.scaled)")
    return lambda tasks: scaled(tasks, width)


def parameters(network: MultiTaskNetwork) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def size(problem: Blueprint, tasks: Sequence[str]) -> int:
    """How many parameters the problem's own network for `tasks` has; nothing is drawn for it."""
    with torch.random.fork_rng(devices=[]):
        return parameters(problem.network(tuple(tasks)))


def width_for(
    problem: Blueprint,
    tasks: Sequence[str],
    wanted: int,
    make: Callable[[float], MultiTaskNetwork] | None = None,
) -> float:
    """The width at which the network for `tasks` has about `wanted` parameters, by bisection.

    Args:
        problem: whose network it is.
        tasks: what it is for.
        wanted: how many parameters.
        make: width -> the network; by default the problem's own of that width.

    Raises:
        ValueError: the problem has no width.
    """
    scaled = problem.scaled
    if scaled is None:
        raise ValueError(f"{problem.name}: its network has no width argument (Problem.scaled)")
    low, high = 1 / 64, 64.0
    with torch.random.fork_rng(devices=[]):
        for _ in range(20):
            middle = math.sqrt(low * high)
            made = scaled(tasks, middle) if make is None else make(middle)
            if parameters(made) < wanted:
                low = middle
            else:
                high = middle
    return high
