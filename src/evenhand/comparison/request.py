"""What a comparison is asked: the data, the settings, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from evenhand import data
from evenhand.autodiff.chunking import Chunking, Jacobian
from evenhand.data.problem import Problem
from evenhand.data.splits import DESIGNS

REFERENCE = "single-task"
"""The recipe that Δm compares with."""


BASELINE = "sg"
"""The recipe that times are relative to."""


STACK = ("auto", "never", "always")
LEVELS = ("none", "cheap", "all")


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
}
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
        splits: how often the data are divided anew. Each split has its own parts, initial weights
            and order of the data, and chooses its own rates and epochs; `seeds` are trained in
            each of them.
        design: how they are divided, see `data/splits.py`. "hold-out" is the data set's own way.
        references: which rows stand beside the recipes, see `references`: "none" but the
            constant, "cheap" or "all".
        matters: the smallest difference that matters, in points of skill.
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
    splits: int = 1
    design: str = "hold-out"
    references: str = "none"
    matters: float = 1.0

    @classmethod
    def suggested(cls, source: str, **given: Any) -> Settings:
        """What the data set suggests, and what is given (None counts as not given).

        Where nothing is said, the seed is one and the splits are five; three, where the test set
        is fixed and they only draw training and validation anew.
        """
        problem = load_problem(source)
        own = {
            "rates": problem.rates,
            "optimizer": problem.optimizer,
            "seeds": (0,),
            "splits": 3 if problem.official_test else 5,
            "references": "cheap",
        }
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
        if self.splits < 1:
            raise ValueError(f"splits={self.splits}: must be at least 1")
        if self.design not in DESIGNS:
            raise ValueError(f"design={self.design!r}: must be one of {', '.join(DESIGNS)}")
        if self.references not in LEVELS:
            raise ValueError(f"references={self.references!r}: must be one of {', '.join(LEVELS)}")
        if not (math.isfinite(self.matters) and self.matters >= 0):
            raise ValueError(f"matters={self.matters}: must be a number of points >= 0")

    def problem(self, split: int = 0) -> Problem:
        """The problem with the parts of one split.

        Raises:
            ValueError: the data cannot be divided in this way.
        """
        if self.design == "hold-out":
            return load_problem(self.source, split)
        whole = load_problem(self.source)
        if whole.pool is None:
            raise ValueError(
                f"design={self.design!r}: {self.source} is divided by its loader, "
                "which knows hold-out only"
            )
        return whole.pool.problem(self.design, self.splits, split)


@lru_cache(maxsize=4)
def load_problem(source: str, split: int = 0) -> Problem:
    """The problem called `source`, divided for the `split`-th time.

    It is kept while one comparison is made; `prepare` and `finished` load it afresh.
    """
    return data.problem(source, split)
