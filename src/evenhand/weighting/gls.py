"""Geometric loss strategy."""

from __future__ import annotations

import math

from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting
from evenhand.weighting.positive import positive
from evenhand.weighting.traits import Traits


class GLS(Weighting):
    """Descend the geometric mean GL = (Π L_i)^(1/m) of the losses: w_i = GL / (m L_i).

    Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy
    for Multi-Task Learning" (CVPR 2019 workshops). The weights are ∂GL/∂L_i, so w_i L_i is the same
    for all tasks. The mean is over the m tasks that speak. The direction does not depend on the
    scale of the losses; its length does, and shrinks with them, which is what sets it apart from
    `ScaleInvariant`.

    Losses below 1e-12 count as 1e-12. TorchJD agrees. LibMTL agrees in what it descends; the
    weights it reports, L_i / (m Π L_j), are not these.

    Raises:
        ValueError: in a call, a loss is negative.

    Example:
        >>> import torch
        >>> from evenhand import TaskGradients
        >>> GLS()(TaskGradients.of(losses=torch.tensor([1.0, 4.0])))
        tensor([1.0000, 0.2500])
    """

    traits = Traits(needs="losses", scale_invariant=True)

    def weigh(self, g: TaskGradients) -> Tensor:
        logs = positive(g.losses, g, "GLS").log()
        m = logs.shape[-1]
        return (logs.mean(-1, keepdim=True) - logs - math.log(m)).exp().to(g.losses)
