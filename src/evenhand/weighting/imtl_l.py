"""Impartial multi-task learning, loss balance."""

from __future__ import annotations

from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.learned import Learned


class IMTLL(Learned):
    """w_i = exp(s_i) with learned s_i, by descent on Σ_i (exp(s_i) L_i − s_i).

    IMTL-L of Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021, openreview
    IMPnRXEWpvr). The gradient of s_i is exp(s_i) L_i − 1: each scaled loss w_i L_i is drawn to 1,
    and with s_i at its minimum the objective is Σ log L_i + M, that of `ScaleInvariant`. It is
    twice Kendall's regression form (`Uncertainty`) with s_i = −log σ_i².

    s_i starts at 0, the plain sum. The losses should be positive: with a negative one the objective
    has no minimum in s_i. The whole method, IMTL, has IMTL-G in the aggregator slot at the same
    time, which sees the gradients of the scaled losses. TorchJD agrees.

    Example:
        >>> import torch
        >>> balance, g = IMTLL(), TaskGradients.of(losses=torch.tensor([4.0, 0.5]))
        >>> balance.bind(g.tasks)
        >>> balance.learn(g)
        >>> balance(g), [float(s.grad) for s in balance.parameters()]
        (tensor([1., 1.]), [3.0, -0.5])
    """

    needs = "losses"
    initial = 0.0

    def weigh(self, g: TaskGradients) -> Tensor:
        return self.scalars_of(g).exp().to(g.losses).expand_as(g.losses)

    def learn(self, g: TaskGradients) -> None:
        self.add_gradient(g, self.weigh(g) * g.losses - 1)
