"""Dual-balancing multi-task learning: the balance of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.aggregation.tracking import Tracking
from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.linalg.extremes import lengths
from evenhand.weighting.base import Outcome
from evenhand.weighting.state import State
from evenhand.weighting.traits import Traits


class DBMTL(Tracking):
    """v = max_j ‖ĝ_j‖ Σ_i ĝ_i/‖ĝ_i‖ with averaged gradients ĝ_i ← β_k ĝ_i + (1 − β_k) g_i.

    All tasks pull as hard as the hardest. Lin et al., "Dual-Balancing for Multi-Task Learning"
    (arXiv 2308.12029), equations (1) and (2). Its other half descends log L_i instead of L_i, in
    the heads too: that is `ScaleInvariant` in the weighting slot, so their Algorithm 1 is

        Balancer(weighting=ScaleInvariant(), aggregator=DBMTL())

    ĝ starts at 0; β_k = β/k^σ, where k counts the calls in which task i is active (the paper
    searches β in {.1, .5, .9} and σ in {0, .5}). Maximum and sum are over the active tasks; a zero
    ĝ_i adds nothing. The direction does not depend on the scale of the losses, nor does its length
    with `ScaleInvariant`. The state is as large as M gradients.

    LibMTL (the authors') agrees but for 1e-8 in the denominators and in the logarithm.

    Args:
        beta: β in [0, 1).
        decay: σ >= 0.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from evenhand import TaskGradients
        >>> g = TaskGradients.of(jacobian=torch.tensor([[8.0, 0.0], [0.0, 1.0]]))
        >>> DBMTL(beta=0.5)(g)
        tensor([4., 4.])
    """

    traits = Traits(needs="jacobian", scale_invariant=True)

    @checked
    def __init__(self, beta: float = 0.9, decay: float = 0.0) -> None:
        super().__init__()
        if not 0 <= beta < 1 or not decay >= 0:
            raise ValueError(f"beta={beta}, decay={decay}: must be in [0, 1) and >= 0")
        self.beta = beta
        self.decay = decay

    def rate(self, count: Tensor) -> Tensor:
        return 1 - self.beta / count**self.decay

    def merge_from(self, g: TaskGradients, state: State) -> Outcome:
        tracked, following = self.track(g, state)
        length = lengths(tracked)
        units = torch.where(length > 0, tracked / length, 0)
        direction: Tensor = length.amax(-2) * units.sum(-2)
        return Outcome(direction.to(g.jacobian), following)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, decay={self.decay}"
