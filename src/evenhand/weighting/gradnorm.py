"""Weights that bring the gradients' norms, and with them the tasks' training rates, together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Gradients, Outcome
from evenhand.weighting.learned import Learned
from evenhand.weighting.positive import SMALLEST_LOSS
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits

SMALLEST_WEIGHT = 1e-8


class GradNorm(Learned):
    """Learn weights w_i, Σ w_i = M, by descent on Σ |G_i − Ḡ r_i^α|.

    Chen et al. (ICML 2018, arXiv 1711.02257), Algorithm 1, with

        G_i = ‖∇_W w_i L_i‖,   Ḡ = mean G_i,   L̃_i = L_i(t) / L_i(0),   r_i = L̃_i / mean L̃_i

    at the last shared layer W. The target Ḡ r_i^α is held constant, so the gradient of w_i is
    sign(G_i − Ḡ r_i^α) ‖∇_W L_i‖: no second differentiation. A task that trains slowly (r_i > 1)
    is given larger gradients.

    After every step of the optimizer the M weights are scaled to the sum M; one that it pushed
    below 0 is held at 1e-8 of their mean (the paper is silent; the gradient brings it back). L_i(0)
    is the loss of the first step in which task i is active and the trunk trains. The means run over
    the active tasks; the weight of one that stays away changes by the scaling to the sum alone.
    Losses below 1e-12 count as 1e-12.

    Other implementations: LibMTL learns logits and takes M times their softmax, at all shared
    parameters (or the representation), with the first epoch's mean loss for L_i(0).

    Args:
        alpha: α ≥ 0, the strength of the pull to a common rate; the paper uses 1.5 on NYUv2.
        at: the place W. For a model without a known trunk it must be named, for example
            ``at=lambda shared: model.layer.parameters()``.

    Raises:
        ValueError: `alpha` is negative or not finite.

    Example:
        >>> gradnorm = GradNorm()
        >>> g = TaskGradients.of(jacobian=torch.tensor([[3.0, 4.0], [5.0, -12.0]]))
        >>> state = gradnorm.init(2)
        >>> gradnorm.advance(g, state).value
        tensor([1., 1.])
        >>> [float(gradient) for gradient in gradnorm.learn(g, state).values()]
        [-5.0, 13.0]
    """

    traits = Traits(needs="norms", learned=True)
    initial = 1.0

    @checked
    def __init__(self, alpha: float = 1.5, *, at: Place = "last_layer") -> None:
        super().__init__(at=at)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha={alpha}: must be finite and >= 0")
        self.alpha = alpha

    def init(self, total: int) -> State:
        """The weights, and L_i(0), which is 0 until task i has been active."""
        return super().init(total) | {"first_losses": torch.zeros(total, dtype=torch.float64)}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        weights = _of_mean_1(state)
        normalised = {name: weights[..., int(name)] for name in state["scalars"]}
        first = put(state["first_losses"], g, _first_losses(g, state))
        return Outcome(
            take(weights, g).to(g.losses).expand_as(g.losses),
            # The next step of the optimizer starts from the normalised weights.
            {"scalars": normalised, "first_losses": first},
        )

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        g = g.at(self.at)
        norms, losses = g.norms.double(), g.losses.double().clamp_min(SMALLEST_LOSS)
        weighted = take(_of_mean_1(state), g) * norms
        progress = losses / _first_losses(g, state)
        rate = progress / progress.mean(-1, keepdim=True)
        target = weighted.mean(-1, keepdim=True) * rate**self.alpha
        return self.gradients_of(g, state, (weighted - target).sign() * norms)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


def _of_mean_1(state: State) -> Tensor:
    """The weights of all M tasks, with the sum M, [..., M]."""
    scalars = [scalar.detach().double() for scalar in state["scalars"].values()]
    positive = torch.stack(scalars, dim=-1).clamp_min(SMALLEST_WEIGHT)
    return positive / positive.mean(-1, keepdim=True)


def _first_losses(g: TaskGradients, state: State) -> Tensor:
    """L_i(0) of the active tasks, [..., m]: this call's loss where none is known."""
    known = take(state["first_losses"], g)
    return torch.where(known > 0, known, g.losses.double().clamp_min(SMALLEST_LOSS))
