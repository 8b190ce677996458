"""Fast adaptive multitask optimization."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.positive import positive
from evenhand.weighting.reference import Reference
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits

FORGETTING = (0.9, 0.999)
SMALL = 1e-8
"""Adam's β₁, β₂ and ε."""


class FAMO(StatefulWeighting):
    """Weights from the losses alone that make all of them fall at the same rate.

    With z = softmax(ξ) of logits ξ that start at 0,

        w_i = c z_i / L_i,   c = 1 / Σ_j z_j / L_j                              (so Σw = 1)
        ξ  ← ξ − Adam(∇_ξ (z·Δ) + γ ξ),   ∇_ξ (z·Δ) = z ∘ (Δ − z·Δ)
        Δ_i = log L_i before the update − log L_i after it, on the same batch.

    Liu, Feng, Stone & Liu, "FAMO: Fast Adaptive Multitask Optimization" (NeurIPS 2023, arXiv
    2306.03792), Algorithm 1, where the step in ξ is a plain gradient step; Adam, with γ as its
    weight decay, is what the authors' code uses, and LibMTL and TorchJD with it. The authors' code
    also clips the trunk's gradient to norm 1: do so in your loop if you reproduce. Its γ is 1e-5 or
    1e-2, by file; 1e-3 is that of the others.

    `Training` tells the losses after the update. A loop of your own does so by
    ``balancer.updated(losses)`` after ``optimizer.step()``, with losses of the same batch. Where it
    does not, the losses of the next call, on another batch, stand in for them, and a warning says
    so once: Δ then has the noise of the batches in it.

    An absent task has no part in c, in Δ or in Adam's moments; it keeps its ξ_i. The direction does
    not depend on the scale of the losses. What L_i exceeds z*_i by counts as 1e-12 if it is less;
    others add 1e-8.

    Args:
        lr: the step size of ξ, > 0.
        decay: γ >= 0, which pulls the weights back to equal ones.
        reference: z*, a lower bound of each task's loss, subtracted from it; 0 by default.

    Raises:
        ValueError: an argument is out of range; (when the tasks become known) a task has no
            reference or a reference no task; or, in a call, a loss lies below its bound.

    Example:
        >>> from evenhand import Running, TaskGradients
        >>> famo = Running(FAMO(), ["a", "b"])
        >>> before, after = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.9])
        >>> famo(TaskGradients.of(losses=before))
        tensor([0.5000, 0.5000])
        >>> famo.after(TaskGradients.of(losses=after))
        >>> famo(TaskGradients.of(losses=before))  # b fell less
        tensor([0.4875, 0.5125])
    """

    traits = Traits(needs="losses", after=True, scale_invariant=True)

    @checked
    def __init__(
        self,
        lr: float = 0.025,
        decay: float = 1e-3,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not lr > 0 or not decay >= 0:
            raise ValueError(f"lr={lr}, decay={decay}: must be > 0 and >= 0")
        self.lr = lr
        self.decay = decay
        self.reference = Reference(reference)

    def require(self, tasks: Sequence[str]) -> None:
        self.reference.require(tasks)
        super().require(tasks)

    def init(self, total: int) -> State:
        """ξ, Adam's moments and steps, log L before the update, who waits for that after it.

        And whether a warning has said that nobody tells the losses after the update.
        """
        names = ("logits", "mean", "square", "steps", "before", "waiting")
        zeros = {name: torch.zeros(total, dtype=torch.float64) for name in names}
        return {**zeros, "warned": torch.zeros((), dtype=torch.bool)}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        losses = positive(self.reference.shift(g), g, "FAMO")
        if bool(take(state["waiting"], g).any()):
            state = self._step(g, losses.log(), _warned(state))
        logits = take(state["logits"], g)
        weights = (logits - losses.log()).softmax(-1).to(g.losses)  # z_i/L_i over their sum
        following = {
            **state,
            "before": put(state["before"], g, losses.log()),
            "waiting": put(state["waiting"], g, torch.ones_like(losses)),
        }
        return Outcome(weights, following)

    def after(self, losses: TaskGradients, state: State) -> State:
        if not bool(take(state["waiting"], losses).any()):
            return state
        after = positive(self.reference.shift(losses), losses, "FAMO").log()
        state = self._step(losses, after, state)
        return {**state, "waiting": put(state["waiting"], losses, torch.zeros_like(after))}

    def _step(self, g: TaskGradients, after: Tensor, state: State) -> State:
        """One step of Adam on the logits of the tasks that waited, given log L after the update."""
        waited = (take(state["waiting"], g) > 0).expand_as(after)
        logits, mean, square, steps = (
            take(state[name], g) for name in ("logits", "mean", "square", "steps")
        )
        z = logits.masked_fill(~waited, -torch.inf).softmax(-1)
        fall = torch.where(waited, take(state["before"], g) - after, 0)
        slope = z * (fall - (z * fall).sum(-1, keepdim=True)) + self.decay * logits
        forget, forget_square = FORGETTING
        moved_mean = mean + (1 - forget) * (slope - mean)
        moved_square = square + (1 - forget_square) * (slope.square() - square)
        moved_steps = steps + 1
        unbiased = moved_mean / (1 - forget**moved_steps)
        scale = (moved_square / (1 - forget_square**moved_steps)).sqrt() + SMALL
        moved = torch.where(waited, logits - self.lr * unbiased / scale, logits)
        return {
            **state,
            "logits": put(state["logits"], g, moved),
            "mean": put(state["mean"], g, torch.where(waited, moved_mean, mean)),
            "square": put(state["square"], g, torch.where(waited, moved_square, square)),
            "steps": put(state["steps"], g, torch.where(waited, moved_steps, steps)),
        }

    def extra_repr(self) -> str:
        parts = (f"lr={self.lr}, decay={self.decay}", self.reference.extra_repr())
        return ", ".join(filter(None, parts))


def _warned(state: State) -> State:
    if bool(state["warned"]):
        return state
    warnings.warn(
        "FAMO was not told the losses after the update, so it takes those of the next "
        "batch for them; call balancer.updated(losses) after optimizer.step()",
        stacklevel=3,
    )
    return {**state, "warned": torch.ones_like(state["warned"])}
