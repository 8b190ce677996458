"""Work, counted in floating-point operations: the same number on every machine and in every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of matrix products, convolutions and attention made inside it.

    Everything else is free: it is little beside these, and has no agreed count. Backward passes
    count like forward ones. The formulas are those of `torch.utils.flop_counter`.

    Example:
        >>> import torch
        >>> with Meter() as meter:
        ...     product = torch.ones(2, 3) @ torch.ones(3, 5)
        >>> meter.total
        60
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is not counted."""
        total = self.total
        try:
            yield
        finally:
            self.total = total
