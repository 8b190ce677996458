"""Random loss weighting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting
from evenhand.weighting.traits import Traits


def _normal(total: int, chance: Generator) -> Tensor:
    return torch.randn(total, dtype=torch.float64, generator=chance, device="cpu").softmax(-1)


def _dirichlet(total: int, chance: Generator) -> Tensor:
    waits = torch.empty(total, dtype=torch.float64, device="cpu").exponential_(generator=chance)
    return waits / waits.sum()


DISTRIBUTIONS: dict[str, Callable[[int, Generator], Tensor]] = {
    "normal": _normal,
    "dirichlet": _dirichlet,
}


class RLW(Weighting):
    """Weights drawn anew at every step, on the simplex: w = softmax(z) with z_i ~ N(0, 1).

    Lin, Ye, Zhang & Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for
    Multi-Task Learning" (TMLR 2022, arXiv 2111.10603): the mean weights are equal, and the noise
    about them is all that the method adds to the plain mean of the losses. With
    ``distribution="dirichlet"`` w is uniform on the simplex, Dirichlet(1, …, 1).

    All M tasks are drawn for, and an absent task takes its weight with it, so Σw = 1 over all. The
    draws depend on (seed, step, stream) alone. TorchJD and LibMTL's repository know the normal
    distribution only. LibMTL's release 1.1.5 knew others; it put Dirichlet draws, which lie on the
    simplex already, through the softmax too, so that no weight was more than e times another.

    Args:
        distribution: "normal" or "dirichlet".

    Raises:
        ValueError: `distribution` is neither.

    Example:
        >>> from evenhand import TaskGradients
        >>> RLW()(TaskGradients.of(losses=torch.ones(3))).sum()
        tensor(1.)
    """

    traits = Traits(needs="nothing")

    @checked
    def __init__(self, distribution: str = "normal") -> None:
        super().__init__()
        if distribution not in DISTRIBUTIONS:
            known = ", ".join(map(repr, DISTRIBUTIONS))
            raise ValueError(f"distribution={distribution!r}: must be one of {known}")
        self.distribution = distribution

    def weigh(self, g: TaskGradients) -> Tensor:
        *lead, _ = g.losses.shape
        draw = DISTRIBUTIONS[self.distribution]
        chances = [g.clock.generator("rlw", stream=k) for k in range(math.prod(lead))]
        drawn = torch.stack([draw(g.total, chance) for chance in chances])
        weights = drawn.reshape(*lead, g.total).to(g.losses)
        return weights.index_select(-1, g.index.to(weights.device))

    def extra_repr(self) -> str:
        return f"distribution={self.distribution!r}"
