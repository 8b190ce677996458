"""What a loop of a user's own may do in vain, found at no cost: gradients that nobody uses, heads
that see detached features.

Either may be meant, so it is said once and never an error.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from evenhand.autodiff.call import Call
from evenhand.autodiff.owners import Owners
from evenhand.autodiff.ownership import Ownership


class Unused:
    """Whether learned weights have gradients that nobody uses while the model is trained.

    A gradient that a call has added to, in place, is the same tensor one version later. Where this
    is so at the next call, it was not cleared; where the weight is of the version that the call
    left, no optimizer has stepped on it. Both hold between micro-batches of one step too, so a
    parameter of the model must have moved meanwhile.
    """

    def __init__(self) -> None:
        self._gradients: list[tuple[weakref.ref[Tensor] | None, int]] = []
        self._left: list[int] = []
        self._model: tuple[weakref.ref[Tensor], int] | None = None

    def begun(self, weights: Iterable[nn.Parameter], trained: Sequence[Tensor]) -> bool:
        """When a step begins; true where the gradients of the last one lie idle."""
        weights, before, moved = list(weights), self._gradients, self._moved()
        self._gradients = [_version(weight.grad) for weight in weights]
        self._model = (weakref.ref(trained[0]), trained[0]._version) if trained else None
        same = self._left == [weight._version for weight in weights]
        return moved and same and all(map(_added_to, before, self._gradients))

    def ended(self, weights: Iterable[nn.Parameter]) -> None:
        """When a step has left its state: methods may have written learned weights."""
        self._left = [weight._version for weight in weights]

    def _moved(self) -> bool:
        if self._model is None:
            return False
        leaf = self._model[0]()
        return leaf is not None and leaf._version != self._model[1]

    def __getstate__(self) -> dict[str, object]:
        return vars(Unused())  # tensors are others in a copy, or another process


def _version(gradient: Tensor | None) -> tuple[weakref.ref[Tensor] | None, int]:
    return (None, 0) if gradient is None else (weakref.ref(gradient), gradient._version)


def _added_to(
    before: tuple[weakref.ref[Tensor] | None, int], now: tuple[weakref.ref[Tensor] | None, int]
) -> bool:
    there = None if before[0] is None else before[0]()
    same = there is not None and now[0] is not None and now[0]() is there
    return same and now[1] == before[1] + 1


def unused(methods: Sequence[str]) -> str:
    """What to say where gradients of learned weights lie idle."""
    return (
        f"the learned weights of {' and '.join(methods)} have gradients that no optimizer has used "
        "and nobody has cleared since the last call, while the model was trained: the weights stay "
        "as they are. Give balancer.parameters() to an optimizer. This is said once"
    )


def detached(call: Call, tasks: Sequence[str], owners: Owners, known: bool) -> str | None:
    """What to say where some losses reach what is shared, and others pass it by.

    Args:
        call: the call.
        tasks: all tasks.
        owners: whose the leaves are that it reaches.
        known: whether it is known what is shared by another word than the graph's: features, or
            the structure of the model. Without it a task may well have a tower of its own.
    """
    if not known or call.phase or not owners.balanced or len(call.tasks) < 2:
        return None
    return _told([tasks[k] for k in call.index if not owners.sharers >> k & 1])


def detached_from(ownership: Ownership, tasks: Sequence[str]) -> str | None:
    """The same where no method looks: of the model's trunk, when every task has been heard."""
    network = None if ownership.watches else ownership.network
    leaves = [] if network is None else [p for p in network.trunk.parameters() if p.requires_grad]
    mask = 0
    for leaf in leaves:
        mask |= ownership.union.of(leaf)
    return _told([task for k, task in enumerate(tasks) if mask and not mask >> k & 1])


def _told(silent: Sequence[str]) -> str | None:
    if not silent:
        return None
    return (
        f"the losses of {', '.join(map(repr, silent))} reach nothing of what is shared, as if "
        "heads saw detached features: the trunk is trained for the other tasks alone. This is "
        "said once"
    )
