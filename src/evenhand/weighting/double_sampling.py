"""Gradients of two batches that are independent of each other.

For one batch, E[J Jᵀ] ≠ E[J] E[J]ᵀ: the noise of the batch is in both factors and adds its own
variance to the diagonal. With two independent batches E[J₁ J₂ᵀ] = E[J] E[J]ᵀ.
"""

from __future__ import annotations

from torch import Tensor

from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.linalg.extremes import products
from evenhand.weighting.base import Weighting


def check(method: Weighting, batches: int, at: Place) -> None:
    """Raises ValueError unless two batches can be compared with these arguments."""
    name = type(method).__name__
    if batches not in (2, 3):
        raise ValueError(f"batches={batches}: {name} takes 2 or 3")
    if at == "representation":
        raise ValueError(
            f"at='representation': {name} multiplies gradients of different batches, whose "
            "features have nothing to do with each other; use 'parameters' or 'last_layer'"
        )


def cross_gramian(g: TaskGradients, batches: int) -> Tensor:
    """J₁ J₂ᵀ of the last two of `batches` batches (g is the first), [..., m, m], float64, CPU.

    Raises:
        ValueError: g has not so many samples.
    """
    if len(g.samples) < batches - 1:
        raise ValueError(
            f"this method wants {batches - 1} further independent batch(es) in g.samples, "
            f"and there are {len(g.samples)}"
        )
    first, second = (g, *g.samples)[batches - 2 : batches]
    return products(first.jacobian, second.jacobian).cpu()
