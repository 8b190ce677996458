"""Smooth Tchebycheff scalarization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.positive import positive
from evenhand.weighting.preference import Preferring
from evenhand.weighting.reference import Reference
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits


class STCH(Preferring):
    """Descend μ log Σ_i exp(λ_i (L_i − z*_i)/μ), a smooth maximum of λ_i (L_i − z*_i).

    w_i = λ_i exp(λ_i (L_i − z*_i)/μ) / Σ_j exp(λ_j (L_j − z*_j)/μ). Lin et al., "Smooth
    Tchebycheff Scalarization for Multi-Objective Optimization" (ICML 2024, arXiv 2402.19078). As
    μ → 0 it becomes `Tchebycheff`, as μ → ∞ the weights become λ_i/m. The maximum is over the
    active tasks. Losses of different scale want λ or `LogSTCH`. TorchJD agrees.

    Args:
        mu: μ > 0. The paper tries .01, .1, .5 and 1.
        preference: λ, as given (on the simplex in the paper); 1/M by default.
        reference: z*, the ideal point, by task; 0 by default.

    Raises:
        ValueError: `mu` is not positive; see also `Tchebycheff`.

    Example:
        >>> from evenhand import TaskGradients
        >>> STCH()(TaskGradients.of(losses=torch.tensor([1.0, 3.0])))
        tensor([0.1345, 0.3655])
    """

    traits = Traits(needs="losses")

    @checked
    def __init__(
        self,
        mu: float = 1.0,
        preference: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(preference)
        _require_positive(mu)
        self.mu = mu
        self.reference = Reference(reference)

    def require(self, tasks: Sequence[str]) -> None:
        self.reference.require(tasks)
        super().require(tasks)

    def weigh(self, g: TaskGradients) -> Tensor:
        preference = self.preferred(g)
        smooth = (preference * self.reference.shift(g) / self.mu).softmax(-1)
        return (preference * smooth).to(g.losses)

    def extra_repr(self) -> str:
        parts = (f"mu={self.mu}", super().extra_repr(), self.reference.extra_repr())
        return ", ".join(filter(None, parts))


class LogSTCH(Preferring, StatefulWeighting):
    """STCH of the relative losses log(L_i/n_i), as its authors train networks with it.

    n_i is task i's mean loss over epoch number `warmup`, counted from 0. Up to and including that
    epoch Σ log L_i is descended (`ScaleInvariant`); then

        M μ log Σ_i exp(λ'_i log(L_i/n_i)/μ),    λ'_i = M λ_i,

    which is Lin et al.'s released multi-task training (`STCH_MTL`; its preference is uniform,
    λ'_i = 1), whose LibMTL version is the same; the paper (ICML 2024, arXiv 2402.19078) gives the
    scalarization, see `STCH`. w_i = M λ'_i softmax(λ' log(L/n)/μ)_i / L_i. Neither direction nor
    length depends on the scale of the losses.

    Epochs are those of the clock: in a loop of your own pass ``clock=Clock(epoch=…)`` to
    `Balancer.backward`, or the warm-up never ends. A task that is not active in epoch `warmup` is
    measured in the first later step in which it is. Losses below 1e-12 count as 1e-12.

    Args:
        mu: μ > 0.
        preference: λ, on the simplex; 1/M by default.
        warmup: the epoch, >= 0, whose mean losses the tasks are measured by.

    Raises:
        ValueError: an argument is out of range; see also `Preferring`; or, in a call, a loss is
            negative.

    Example:
        >>> from evenhand import Clock, Running, TaskGradients
        >>> stch = Running(LogSTCH(warmup=0), ["a", "b"])
        >>> for epoch, losses in enumerate([[1.0, 2.0], [1.0, 1.0]]):
        ...     g = TaskGradients.of(
        ...         losses=torch.tensor(losses), tasks=["a", "b"], clock=Clock(epoch=epoch)
        ...     )
        ...     weights = stch(g)
        >>> weights
        tensor([1.3333, 0.6667])
    """

    traits = Traits(needs="losses", counts_epochs=True, scale_invariant=True)

    @checked
    def __init__(
        self,
        mu: float = 1.0,
        preference: Mapping[str, float] | None = None,
        warmup: int = 4,
    ) -> None:
        super().__init__(preference)
        _require_positive(mu)
        if warmup < 0:
            raise ValueError(f"warmup={warmup}: epochs count from 0")
        self.mu = mu
        self.warmup = warmup

    def init(self, total: int) -> State:
        """The sum and the number of the losses that each task is measured by."""
        return {name: torch.zeros(total, dtype=torch.float64) for name in ("running", "count")}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        losses = positive(g.losses, g, "LogSTCH")
        if g.clock.epoch < self.warmup:
            return Outcome((1 / losses).to(g.losses), state)
        measure, state = self._measured(g, losses, state)
        if g.clock.epoch == self.warmup:
            return Outcome((1 / losses).to(g.losses), state)
        preference = g.total * self.preferred(g)
        smooth = (preference * (losses / measure).log() / self.mu).softmax(-1)
        return Outcome((g.total * preference * smooth / losses).to(g.losses), state)

    def _measured(self, g: TaskGradients, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """n_i with this step's loss, where it counts, [..., m]; and the next state."""
        running, count = take(state["running"], g), take(state["count"], g)
        counted = (count == 0) | (g.clock.epoch == self.warmup)
        running = running + counted * losses
        count = (count + counted).expand_as(losses)
        following = {
            "running": put(state["running"], g, running),
            "count": put(state["count"], g, count),
        }
        return running / count, following

    def extra_repr(self) -> str:
        parts = (f"mu={self.mu}", super().extra_repr(), f"warmup={self.warmup}")
        return ", ".join(filter(None, parts))


def _require_positive(mu: float) -> None:
    if not mu > 0:
        raise ValueError(f"mu={mu}: must be > 0; for its limit at 0 use Tchebycheff")
