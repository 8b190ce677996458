"""The sum of the logarithms of the losses."""

from __future__ import annotations

from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting
from evenhand.weighting.positive import positive
from evenhand.weighting.traits import Traits


class ScaleInvariant(Weighting):
    """Descend Σ log L_i: w_i = 1 / L_i.

    The baseline "SI" of Navon et al., "Multi-Task Learning as a Bargaining Game" (ICML 2022, arXiv
    2202.01017), and the loss half of DB-MTL (Lin et al., arXiv 2308.12029), which shows that other
    methods gain by it too: in the weighting slot it puts the logarithm under whatever fills the
    aggregator slot. Nothing depends on the scale of the losses, neither direction nor length.

    Losses below 1e-12 count as 1e-12, so no weight exceeds 1e12; released code adds 1e-8 to the
    loss (DB-MTL) or nothing (Nash-MTL).

    Raises:
        ValueError: in a call, a loss is negative.

    Example:
        >>> import torch
        >>> from evenhand import TaskGradients
        >>> ScaleInvariant()(TaskGradients.of(losses=torch.tensor([0.5, 4.0])))
        tensor([2.0000, 0.2500])
    """

    traits = Traits(needs="losses", scale_invariant=True)

    def weigh(self, g: TaskGradients) -> Tensor:
        return (1 / positive(g.losses, g, "ScaleInvariant")).to(g.losses)
