"""What a comparison is asked: the data, the settings, and what they may be.

Nothing here loads torch before it is needed, so that the tool refuses a mistake at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evenhand.autodiff.chunking import Chunking, Jacobian

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from evenhand.data.problem import Problem

REFERENCE = "single-task"
"""The recipe that Δm compares with."""


BASELINE = "sg"
"""The recipe that times are relative to."""


STACK = ("auto", "never", "always")


def sgd(parameters: Iterable[Tensor], **options: Any) -> Optimizer:
    """SGD with momentum 0.9."""
    from torch.optim import SGD

    return SGD(parameters, momentum=0.9, fused=True, **options)


def adam(parameters: Iterable[Tensor], **options: Any) -> Optimizer:
    """Adam with torch's defaults."""
    from torch.optim import Adam

    return Adam(parameters, fused=True, **options)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"sgd": sgd, "adam": adam}
"""Fused: one pass over the memory instead of several; ``benchmarks/alternation.py`` has both."""


@dataclass(frozen=True)
class Settings:
    """What a comparison is made with, besides the recipes.

    Attributes:
        source: name of the data set.
        seeds: of initial weights, order of data, dropout and methods.
        rates: learning rates to choose from.
        epochs: the most epochs of one run; None takes the problem's own.
        patience: epochs without improvement after which a run stops; None never stops.
        optimizer: "sgd" (momentum 0.9) or "adam".
        weights_rate: learning rate of learned task weights (Adam).
        observe_every: steps between looks at the tasks' gradients.
        stack: train the runs of a recipe as one (`ensemble/training.py`): "auto" where it can be
            and pays, "never", or "always". What was chosen is in the manifest, with the reason.
        jacobian: how tasks' gradients are taken, see `Balancer`.
    """

    source: str
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    epochs: int | None = None
    patience: int | None = None
    optimizer: str = "sgd"
    weights_rate: float = 0.025
    observe_every: int = 10
    stack: str = "auto"
    jacobian: Jacobian = "looped"

    @classmethod
    def suggested(cls, source: str, **given: Any) -> Settings:
        """What the data set suggests, and what is given (None counts as not given)."""
        problem = load_problem(source)
        own = {"rates": problem.rates, "optimizer": problem.optimizer}
        return cls(source, **own | {k: v for k, v in given.items() if v is not None})

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds={self.seeds}: must be different integers >= 0")
        if not self.rates or any(not (math.isfinite(r) and r > 0) for r in self.rates):
            raise ValueError(f"rates={self.rates}: must be positive numbers")
        if len({f"{rate:g}" for rate in self.rates}) != len(self.rates):
            raise ValueError(f"rates={self.rates}: must differ within six digits")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={self.optimizer!r}: must be one of {', '.join(OPTIMIZERS)}"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be at least 1 epoch, or None")
        if not (math.isfinite(self.weights_rate) and self.weights_rate > 0):
            raise ValueError(f"weights_rate={self.weights_rate}: must be a positive number")
        if self.observe_every < 0:
            raise ValueError(f"observe_every={self.observe_every}: must be >= 0")
        if self.stack not in STACK:
            raise ValueError(f"stack={self.stack!r}: must be one of {', '.join(STACK)}")
        Chunking(self.jacobian)


@lru_cache(maxsize=4)
def load_problem(source: str) -> Problem:
    """The problem called `source`, with the split that all seeds share.

    It is kept while one comparison is made; `prepare` and `finished` load it afresh.
    """
    from evenhand import data

    return data.problem(source)
