"""The other processes of a balancer, if there are any; nothing is loaded for them before."""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, Literal

import torch.distributed as dist
from torch import nn

from evenhand.autodiff.ownership import Ownership

if TYPE_CHECKING:
    from evenhand.distributed.parallel import Parallel

Group = Any
"""A process group or a mesh; False for nobody; None for the model's group, else the world."""


class Partners:
    """Whom a balancer speaks to.

    Args:
        group: as `Balancer` gets it.
        ownership: whose the parameters are.

    Raises:
        TypeError: `group` is no group.
    """

    def __init__(self, group: Group | Literal[False] | None, ownership: Ownership) -> None:
        self._group = group
        self._ownership = ownership
        self._model: weakref.ref[nn.Module] | None = None
        self._parallel: Parallel | None = None
        if group is not None and group is not False:
            self._made()

    def watch(self, model: nn.Module) -> None:
        """See what the forward passes of `model` run in, once there are several processes."""
        self._model = weakref.ref(model)
        if started():
            self._made().watch(model)

    def together(self) -> Parallel | None:
        """The processes of a group that this one has joined; None where there is no group."""
        return self._made() if started() else None

    def _made(self) -> Parallel:
        if self._parallel is None:
            from evenhand.distributed.parallel import Parallel

            self._parallel = Parallel(self._group, self._ownership)
            model = None if self._model is None else self._model()
            if model is not None and started():
                self._parallel.watch(model)
        return self._parallel

    def __deepcopy__(self, memo: dict[int, Any]) -> Partners:
        # The copy of a model is in no wrapper; the group is the same.
        return Partners(self._group, copy.deepcopy(self._ownership, memo))

    def __reduce__(self) -> tuple[type[Partners], tuple[Any, Ownership]]:
        group = False if self._group is False else None  # a group does not outlive its process
        return Partners, (group, self._ownership)


def started() -> bool:
    """Whether this process is one of a process group."""
    return dist.is_available() and dist.is_initialized()
