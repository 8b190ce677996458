"""The shape of the network for a table, as it is asked for; nothing here loads torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from evenhand.spelling import Spelled
from evenhand.text import quoted

ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "elu")
LEAST, WIDEST = 16, 256


MOST = {"width": 65_536, "depth": 1_000, "head": 65_536}
"""More than a table can use."""


@dataclass(frozen=True)
class Shape:
    """A trunk of `depth` hidden layers of `width`, and a head with one hidden layer for each task.

    Attributes:
        width: of the trunk's layers; None until the data's size is known.
        depth: how many layers the trunk has.
        head: the width of a head's hidden layer, 0 for a head that is linear; None: half of the
            trunk's.
        dropout: after each hidden layer, in training.
        activation: relu, tanh, gelu, silu or elu.
    """

    width: int | None = None
    depth: int = 2
    head: int | None = None
    dropout: float = 0.0
    activation: str = "relu"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "head"):
            value = getattr(self, name)
            least, most = (0 if name == "head" else 1), MOST[name]
            if value is not None and (type(value) is not int or not least <= value <= most):
                raise ValueError(
                    f"mlp({name}={quoted(value)}): must be an integer from {least} to {most:,}"
                )
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"mlp(dropout={self.dropout}): must be at least 0 and below 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"mlp(activation={self.activation}): must be one of {', '.join(ACTIVATIONS)}"
            )

    @classmethod
    def of(cls, text: str) -> Shape:
        """Read `mlp(width=64,depth=2,…)`.

        Raises:
            ValueError: it is spelled otherwise, or out of range.
        """
        spelled = Spelled.of(text)
        known = list(cls.__dataclass_fields__)
        if spelled.name != "mlp":
            raise ValueError(f"network={text}: a table has mlp({', '.join(known)})")
        if unknown := [key for key in spelled.options if key not in known]:
            raise ValueError(f"network={text}: no option {unknown[0]!r}; there are {known}")
        return cls(**spelled.options)  # type: ignore[arg-type]  # each is checked above

    def sized(self, rows: int) -> Shape:
        """With the widths that suit so many training rows.

        The width is the power of two nearest to √rows, at least 16 and at most 256: then the
        number of weights grows as the number of rows.
        """
        usual = 2 ** round(math.log2(max(1.0, math.sqrt(rows))))
        width = min(WIDEST, max(LEAST, usual)) if self.width is None else self.width
        head = max(1, width // 2) if self.head is None else self.head
        return replace(self, width=width, head=head)

    def __str__(self) -> str:
        options = {
            "width": self.width,
            "depth": self.depth,
            "head": self.head,
            "dropout": self.dropout,
            "activation": self.activation,
        }
        return str(Spelled("mlp", {k: v for k, v in options.items() if v is not None}))
