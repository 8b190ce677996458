"""A call of a balancer as the user made it, and the same step when it has been checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor, nn

from evenhand.autodiff.call import Call
from evenhand.autodiff.owners import Owners
from evenhand.autodiff.replay import Trunk
from evenhand.network import Nest, Outputs
from evenhand.schedules import Clock, Phase
from evenhand.text import quoted, unknown


@dataclass(frozen=True)
class Request:
    """What a user asks for; `Balancer.backward` explains each part.

    `samples` is None where nobody is to see any, and then none is missing.

    Raises:
        TypeError: a part is of the wrong kind; the message names it.
        ValueError: `plus` is no scalar, `scale` is not positive, or a count is no whole number.
    """

    losses: Mapping[str, Tensor | None]
    shared: Iterable[Tensor] | None = None
    own: Mapping[str, Iterable[Tensor]] | None = None
    features: Nest | Outputs | nn.Module | None = None
    plus: Tensor | None = None
    samples: Sequence[Mapping[str, Tensor]] | None = ()
    phase: Phase | None = None
    clock: Clock | None = None
    scale: float | Tensor | None = None
    counts: Mapping[str, float] | None = None
    retain: bool = False

    def __post_init__(self) -> None:
        for name, kinds, told in KINDS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kinds) or _is_single(value)):
                raise TypeError(f"{NAMED.get(name, name)}={quoted(value)}: must be {told}")
        if self.plus is not None:
            _require_scalar_plus(self.plus)
        if self.scale is not None:
            _require_scale(self.scale)
        if self.counts is not None:
            require_counts(self.counts)
        for task, its in (self.own or {}).items():
            if not isinstance(its, Iterable) or _is_single(its):
                raise TypeError(f"own= of {task!r} is {quoted(its)}: must be several parameters")

    def require(self, tasks: Sequence[str]) -> None:
        """See that nothing is said of tasks that are none; of unknown losses `active` tells.

        Raises:
            ValueError: a name is unknown; the message names the nearest.
        """
        for argument, names in (("own", self.own), ("counts", self.counts)):
            for name in names or ():
                if name not in tasks:
                    raise ValueError(unknown(name, tasks, "task", argument))

    @property
    def wants_the_sum(self) -> bool:
        """Whether nothing is asked for that the backward pass of a sum of losses does not do."""
        asked = (self.phase, self.shared, self.own, self.counts)
        return all(given is None for given in asked)


KINDS: tuple[tuple[str, Any, str], ...] = (
    ("losses", Mapping, "a mapping of tasks to losses, {task: loss}"),
    ("shared", Iterable | nn.Module, "several parameters, such as trunk.parameters()"),
    ("own", Mapping, "a mapping of tasks to their parameters"),
    ("samples", Sequence, "several mappings of tasks to losses, one for each batch"),
    ("phase", Phase, "a Phase"),
    ("clock", Clock, "a Clock"),
    ("counts", Mapping, "a mapping of tasks to numbers of labels"),
    ("retain", bool, "True or False"),
)
"""What each part must be, and how that is said."""
NAMED = {"retain": "retain_graph"}


def _is_single(value: object) -> bool:
    """A text and a tensor can be gone through, and neither is several of anything."""
    return isinstance(value, str | Tensor)


def require_counts(counts: Mapping[str, Any]) -> None:
    """See that counts are counts.

    Raises:
        TypeError: one is no number.
        ValueError: one is negative, or a fraction.
    """
    for task, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Real | Tensor):
            raise TypeError(f"counts= of {task!r} is {quoted(count)}: must be a number of labels")
        number = float(count)
        if not (number >= 0 and number.is_integer()):
            raise ValueError(
                f"counts= of {task!r} is {number:g}: must be how many labels its loss is the "
                "mean of, a whole number >= 0"
            )


def _require_scalar_plus(plus: Any) -> None:
    if not isinstance(plus, Tensor):
        raise TypeError(f"plus={quoted(plus)}: must be a tensor with its graph, or None")
    if plus.numel() != 1:
        raise ValueError(f"plus= has shape {tuple(plus.shape)}: take its sum or mean, a scalar")


def _require_scale(scale: Any) -> None:
    """Of a scale that lies on another device only the shape is seen: to look would be to wait."""
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            raise ValueError(f"scale= has shape {tuple(scale.shape)}: must be one number")
        known = scale.device.type == "cpu"
    elif isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale={quoted(scale)}: must be a number, or a tensor of one")
    else:
        known = True
    if known and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={float(scale):g}: must be positive and finite, such as 65536")


@dataclass(frozen=True)
class Step:
    """One call, as far as it is known before anything is differentiated.

    Attributes:
        tasks: all tasks.
        call: the active ones and their losses.
        owners: whose the leaves are that they reach.
        clock: when.
        features, outputs: the representation as the user gave it.
        samples: losses on further batches; None where nobody is to see any.
        counts: how many labels each loss is the mean of, or None.
        trunk: how the features can be made again, where that was recorded.
    """

    tasks: tuple[str, ...]
    call: Call
    owners: Owners
    clock: Clock
    features: Sequence[Tensor]
    outputs: Outputs | None
    samples: Sequence[Mapping[str, Tensor]] | None
    counts: Mapping[str, float] | None
    trunk: Trunk | None = None
