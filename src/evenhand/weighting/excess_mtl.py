"""Weights by excess risk."""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.per_coordinate import nothing, recalled, remembered
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits


class ExcessMTL(StatefulWeighting):
    """α_i ∝ α_i exp(η E_i/E_i⁰): tasks that are far from their own optimum gain weight.

    E_i = g_iᵀ H_i⁻¹ g_i estimates how much of task i's loss can be trained away (not the loss that
    label noise leaves), with the diagonal H_i = diag(√Σ_t g_i(t)²), the squares summed over all
    calls as in Adagrad; E_i⁰ is its mean over the first `warmup` calls, in which α stays. He et
    al., "Robust Multi-Task Learning with Excess Risks" (ICML 2024, arXiv 2402.02009), equations
    (6), (7) and (9).

    α starts at 1/M and stays on the simplex over all M tasks; an absent task keeps its standing.
    Where a coordinate's gradients were all zero it adds nothing; a call in which g_i = 0 tells
    nothing about E_i⁰ and is not counted. The state is as large as M gradients.

    The authors' code and LibMTL have one call of warm-up (so here by default; the paper has three
    epochs), Σα = M, and add 1e-7 under the root; TorchJD adds it to E_i⁰ as well, and with its
    default of no warm-up moves α in the first call by the raw E_i.

    Args:
        lr: η > 0, the rate of the weights.
        warmup: how many calls of a task E_i⁰ is the mean of, >= 1.
        at: "parameters", "last_layer" or a callable.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> from evenhand import Running, TaskGradients
        >>> excess = Running(ExcessMTL(lr=1.0), ["a", "b"])
        >>> for rows in ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 0.5]]):
        ...     g = TaskGradients.of(jacobian=torch.tensor(rows), tasks=["a", "b"])
        ...     weights = excess(g)
        >>> weights
        tensor([0.6186, 0.3814])
    """

    traits = Traits(needs="jacobian")

    @checked
    def __init__(self, lr: float = 0.01, warmup: int = 1, *, at: Place = "parameters") -> None:
        super().__init__(at=at)
        if not lr > 0 or warmup < 1:
            raise ValueError(f"lr={lr}, warmup={warmup}: must be > 0 and >= 1")
        if at == "representation":
            raise ValueError(
                "at='representation': ExcessMTL sums squares by coordinate over batches, and the "
                "features of different batches have nothing to do with each other"
            )
        self.lr = lr
        self.warmup = warmup

    def init(self, total: int) -> State:
        """Σ g², the sum of the first E_i and their number, and log α up to a constant."""
        names = ("baseline", "count", "logits")
        zeros = {name: torch.zeros(total, dtype=torch.float64) for name in names}
        return {"squares": nothing(total), **zeros}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        squares, excess = _excess(g, state["squares"])
        baseline, count, logits = (take(state[n], g) for n in ("baseline", "count", "logits"))
        ready = count >= self.warmup
        gain = self.lr * excess * self.warmup / baseline
        logits = put(state["logits"], g, logits + torch.where(ready, gain, 0))
        return Outcome(
            take(logits.softmax(-1), g).to(g.losses),
            {
                "squares": squares,
                "baseline": put(state["baseline"], g, baseline + torch.where(ready, 0, excess)),
                "count": put(state["count"], g, count + (excess > 0)),
                "logits": logits,
            },
        )

    def extra_repr(self) -> str:
        return f"lr={self.lr}, warmup={self.warmup}"


def _excess(g: TaskGradients, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Σ g² with this call's, [..., n, M], and E_i, [..., m], float64."""
    history = recalled(squares, g)
    square = g.jacobian.mT.to(history).square()
    summed = take(history, g) + square
    excess = torch.where(summed > 0, square / summed.sqrt(), 0).sum(-2).double()
    return remembered(squares, g, put(history, g, summed)), excess
