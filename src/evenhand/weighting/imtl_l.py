"""Impartial multi-task learning, loss balance."""

from __future__ import annotations

from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Gradients, Outcome
from evenhand.weighting.learned import Learned
from evenhand.weighting.positive import require_bounded
from evenhand.weighting.state import State
from evenhand.weighting.traits import Traits


class IMTLL(Learned):
    """w_i = exp(s_i) with learned s_i, by descent on Σ_i (exp(s_i) L_i − s_i).

    IMTL-L of Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021, openreview
    IMPnRXEWpvr). The gradient of s_i is exp(s_i) L_i − 1: each scaled loss w_i L_i is drawn to 1,
    and with s_i at its minimum the objective is Σ log L_i + M, that of `ScaleInvariant`. It is
    twice Kendall's regression form (`Uncertainty`) with s_i = −log σ_i².

    s_i starts at 0, the plain sum. Losses must be ≥ 0: with a negative one the objective has no
    minimum in s_i, and w_i grows without end. The whole method, IMTL, has IMTL-G in the aggregator
    slot at the same time, which sees the gradients of the scaled losses. TorchJD agrees.

    Raises:
        ValueError: in a call, a loss is negative.

    Example:
        >>> import torch
        >>> balance, g = IMTLL(), TaskGradients.of(losses=torch.tensor([4.0, 0.5]))
        >>> state = balance.init(2)
        >>> balance.advance(g, state).value
        tensor([1., 1.])
        >>> [float(gradient) for gradient in balance.learn(g, state).values()]
        [3.0, -0.5]
    """

    traits = Traits(needs="losses", learned=True)
    initial = 0.0

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        require_bounded(g, "IMTLL")
        return Outcome(self._weights(g, state), state)

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        return self.gradients_of(g, state, self._weights(g, state) * g.losses - 1)

    def _weights(self, g: TaskGradients, state: State) -> Tensor:
        return self.scalars_of(g, state).exp().to(g.losses).expand_as(g.losses)
