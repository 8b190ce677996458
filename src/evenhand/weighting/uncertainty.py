"""Losses weighted by the noise that each task is believed to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Gradients, Outcome
from evenhand.weighting.learned import Learned
from evenhand.weighting.positive import require_bounded
from evenhand.weighting.state import State
from evenhand.weighting.traits import Traits

FACTORS = {"regression": 0.5, "classification": 1.0}


class Uncertainty(Learned):
    """Minimise Σ (f_i exp(−s_i) L_i + ½ s_i), where s_i = log σ_i² is learned.

    Kendall, Gal & Cipolla (CVPR 2018, arXiv 1705.07115): the negative log-likelihood of a Gaussian
    of variance σ², L/(2σ²) + log σ, has f = ½ ("regression", L the squared error; their equation
    (7) for two such tasks); that of a softmax at temperature σ² is, in their approximation,
    L/σ² + log σ, so f = 1 ("classification", L the cross-entropy; equation (10) for one task of
    each kind). The weights are w_i = f_i exp(−s_i), and the gradient of s_i is ½ − w_i L_i in both
    forms: each w_i L_i is drawn to ½. The forms differ only by where s_i starts, at σ = 1.

    Losses must be ≥ 0: with a negative one the objective has no minimum in s_i, and w_i grows
    without end. An absent task keeps its s_i.

    Other implementations: LibMTL and TorchJD take the regression form for every task; LibMTL
    starts at s = −0.5, TorchJD and we at 0.

    Args:
        kind: "regression" or "classification", for all tasks or by task.

    Raises:
        ValueError: a kind is unknown, or (when the tasks become known) a task has no kind or a
            kind no task; or, in a call, a loss is negative.

    Example:
        >>> import torch
        >>> weighting = Uncertainty({"depth": "regression", "seg": "classification"})
        >>> g = TaskGradients.of(losses=torch.tensor([4.0, 0.1]), tasks=["depth", "seg"])
        >>> state = weighting.init(2)
        >>> weighting.advance(g, state).value
        tensor([0.5000, 1.0000])
        >>> [round(float(gradient), 4) for gradient in weighting.learn(g, state).values()]
        [-1.5, 0.4]
    """

    traits = Traits(needs="losses", learned=True)
    initial = 0.0

    @checked
    def __init__(self, kind: str | Mapping[str, str] = "regression") -> None:
        super().__init__()
        kinds = [kind] if isinstance(kind, str) else list(kind.values())
        wrong = sorted(set(kinds) - set(FACTORS))
        if wrong:
            raise ValueError(f"kind={wrong[0]!r}: must be one of {', '.join(map(repr, FACTORS))}")
        self.kind = kind if isinstance(kind, str) else dict(kind)

    def require(self, tasks: Sequence[str]) -> None:
        if isinstance(self.kind, dict) and set(tasks) != set(self.kind):
            raise ValueError(
                f"kinds are given for {', '.join(self.kind)}, but the tasks are "
                f"{', '.join(tasks)}: give one kind for each"
            )
        super().require(tasks)

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        require_bounded(g, "Uncertainty")
        return Outcome(self._weights(g, state), state)

    def learn(self, g: TaskGradients, state: State) -> Gradients:
        return self.gradients_of(g, state, 0.5 - self._weights(g, state) * g.losses)

    def _weights(self, g: TaskGradients, state: State) -> Tensor:
        weights = self._factors(g) * (-self.scalars_of(g, state)).exp().to(g.losses)
        return weights.expand_as(g.losses)

    def _factors(self, g: TaskGradients) -> Tensor:
        kinds = self.kind if isinstance(self.kind, dict) else dict.fromkeys(g.tasks, self.kind)
        return g.losses.new_tensor([FACTORS[kinds[task]] for task in g.tasks])

    def extra_repr(self) -> str:
        return repr(self.kind)
