"""Hooks of a user's tensors, in passes that only look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the hooks that stand on these tensors do not run.

    `torch.autograd.grad` runs a tensor's hooks before it hands the tensor's gradient out. A pass
    that only looks would run them once, and the pass that delivers a second time.
    """
    found = [t._backward_hooks for t in tensors if t._backward_hooks]
    kept = [dict(hooks) for hooks in found]
    for hooks in found:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in zip(found, kept, strict=True):
            hooks.update(before)
