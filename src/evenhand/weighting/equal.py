"""Equal weights."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting
from evenhand.weighting.traits import Traits


class Equal(Weighting):
    """w_i = 1, the plain sum of the losses; with ``mean=True`` w_i = 1/M over all M tasks.

    The mean is "uniform" in Nakamura et al. (2022); TorchJD calls the two Sum and Mean.

    Example:
        >>> from evenhand import TaskGradients
        >>> Equal(mean=True)(TaskGradients.of(losses=torch.tensor([1.0, 5.0])))
        tensor([0.5000, 0.5000])
    """

    traits = Traits(needs="nothing")

    @checked
    def __init__(self, mean: bool = False) -> None:
        super().__init__()
        self.mean = mean

    def weigh(self, g: TaskGradients) -> Tensor:
        ones = torch.ones_like(g.losses)
        return ones / g.total if self.mean else ones

    def extra_repr(self) -> str:
        return "mean=True" if self.mean else ""
