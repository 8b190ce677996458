"""Fast adaptive multitask optimization."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.base import Weighting, put, take
from evenhand.weighting.positive import positive
from evenhand.weighting.reference import Reference

FORGETTING = (0.9, 0.999)
SMALL = 1e-8
"""Adam's β₁, β₂ and ε."""


class FAMO(Weighting):
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
        >>> from evenhand import TaskGradients
        >>> famo = FAMO()
        >>> famo.bind(["a", "b"])
        >>> before, after = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.9])
        >>> famo(TaskGradients.of(losses=before, tasks=["a", "b"]))
        tensor([0.5000, 0.5000])
        >>> famo.commit()
        >>> famo.updated(TaskGradients.of(losses=after, tasks=["a", "b"]))
        >>> famo.commit()
        >>> famo(TaskGradients.of(losses=before, tasks=["a", "b"]))  # b fell less
        tensor([0.4875, 0.5125])
    """

    needs = "losses"
    after = True
    scale_invariant = True
    logits: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    before: Tensor
    waiting: Tensor

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
        self._warned = False

    def bind(self, tasks: Sequence[str]) -> None:
        """Fix the tasks; each must have a reference, where there is one."""
        self.reference.require(tasks)
        super().bind(tasks)

    def setup(self, total: int) -> None:
        """ξ, Adam's moments and steps, log L before the update, and who waits for that after."""
        for name in ("logits", "mean", "square", "steps", "before", "waiting"):
            self.register_buffer(name, torch.zeros(total, dtype=torch.float64))

    def weigh(self, g: TaskGradients) -> Tensor:
        losses = positive(self.reference.shift(g), g, "FAMO")
        logits = take(self.logits, g)
        if bool(take(self.waiting, g).any()):
            self._warn()
            logits = self._step(g, losses.log())
        self.stage(
            before=put(self.before, g, losses.log()),
            waiting=put(self.waiting, g, torch.ones_like(losses)),
        )
        return (logits - losses.log()).softmax(-1).to(g.losses)  # z_i/L_i over their sum

    def updated(self, losses: TaskGradients) -> None:
        if bool(take(self.waiting, losses).any()):
            after = positive(self.reference.shift(losses), losses, "FAMO").log()
            self._step(losses, after)
            self.stage(waiting=put(self.waiting, losses, torch.zeros_like(after)))

    def _step(self, g: TaskGradients, after: Tensor) -> Tensor:
        """One step of Adam on the logits of the tasks that waited; all of g's logits, [..., m]."""
        waited = (take(self.waiting, g) > 0).expand_as(after)
        logits, mean, square, steps = (
            take(state, g) for state in (self.logits, self.mean, self.square, self.steps)
        )
        z = logits.masked_fill(~waited, -torch.inf).softmax(-1)
        fall = torch.where(waited, take(self.before, g) - after, 0)
        slope = z * (fall - (z * fall).sum(-1, keepdim=True)) + self.decay * logits
        forget, forget_square = FORGETTING
        moved_mean = mean + (1 - forget) * (slope - mean)
        moved_square = square + (1 - forget_square) * (slope.square() - square)
        moved_steps = steps + 1
        unbiased = moved_mean / (1 - forget**moved_steps)
        scale = (moved_square / (1 - forget_square**moved_steps)).sqrt() + SMALL
        moved = torch.where(waited, logits - self.lr * unbiased / scale, logits)
        self.stage(
            logits=put(self.logits, g, moved),
            mean=put(self.mean, g, torch.where(waited, moved_mean, mean)),
            square=put(self.square, g, torch.where(waited, moved_square, square)),
            steps=put(self.steps, g, torch.where(waited, moved_steps, steps)),
        )
        return moved

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "FAMO was not told the losses after the update, so it takes those of the next "
                "batch for them; call balancer.updated(losses) after optimizer.step()",
                stacklevel=3,
            )

    def extra_repr(self) -> str:
        parts = (f"lr={self.lr}, decay={self.decay}", self.reference.extra_repr())
        return ", ".join(filter(None, parts))
