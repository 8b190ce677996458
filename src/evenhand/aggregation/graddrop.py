"""Gradient sign dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from evenhand.aggregation.base import Aggregator
from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients


class GradDrop(Aggregator):
    """In every coordinate either the positive or the negative entries, by lot, are added up.

    With the sign purity P = ½(1 + Σ_i g_i / Σ_i |g_i|) of a coordinate and U uniform on [0, 1],
    the positive entries stay if f(P) > U and the negative ones if f(P) < U:

        v = Σ_i (ℓ_i + (1 − ℓ_i) M_i) g_i,   M_i = [f(P) > U][g_i > 0] + [f(P) < U][g_i < 0]

    Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout"
    (NeurIPS 2020, arXiv 2010.06808), Algorithm 1. With f(p) = p
    the mean of v over U is Σ_i g_i, whatever the leaks; what v adds is noise where signs differ,
    and it may conflict with tasks.

    The lots are drawn from (seed, step, stream). The paper works on activations: it multiplies the
    gradients there by the activations' signs and adds up the batch before it computes P. Here, as
    in TorchJD, the gradients are those of the shared parameters (lines 10 to 15 of the algorithm),
    in which the batch is added up already; ``at="representation"`` draws for each activation of
    each sample. LibMTL adds 1e-7 to Σ|g_i|.

    Args:
        leak: ℓ, one number for all tasks or one each, in [0, 1]: what gets through regardless.
        f: increasing on [0, 1], with f(1 − p) = 1 − f(p); the identity by default.

    Raises:
        ValueError: a leak is out of range, or (when the tasks become known) a task has no leak or a
            leak has no task.

    Example:
        >>> GradDrop()(TaskGradients.of(jacobian=torch.tensor([[1.0, -2.0], [3.0, -4.0]])))
        tensor([ 4., -6.])
    """

    @checked
    def __init__(
        self,
        leak: float | Mapping[str, float] = 0.0,
        f: Callable[[Tensor], Tensor] | None = None,
        *,
        at: Place = "parameters",
    ) -> None:
        super().__init__(at=at)
        values = dict(leak) if isinstance(leak, Mapping) else {"all tasks": leak}
        wrong = {task: value for task, value in values.items() if not 0 <= value <= 1}
        if wrong:
            raise ValueError(f"leaks must be in [0, 1], got {wrong}")
        self.leak = values if isinstance(leak, Mapping) else float(leak)
        self.f = f

    def require(self, tasks: Sequence[str]) -> None:
        if isinstance(self.leak, Mapping) and set(tasks) != set(self.leak):
            raise ValueError(
                f"leaks for {', '.join(self.leak)}, "
                f"but the tasks are {', '.join(tasks)}: give one number for each"
            )
        super().require(tasks)

    def merge(self, g: TaskGradients) -> Tensor:
        j = g.jacobian
        size = j.abs().sum(-2)
        purity = 0.5 + 0.5 * torch.where(size > 0, j.sum(-2) / size, 0)
        chosen = purity if self.f is None else self.f(purity)
        lots = self._lots(g, j)
        kept = torch.where(j > 0, (chosen > lots).unsqueeze(-2), (chosen < lots).unsqueeze(-2))
        leak = self._leaks(g, j)
        return ((leak + (1 - leak) * kept) * j).sum(-2)

    def _lots(self, g: TaskGradients, j: Tensor) -> Tensor:
        """U, [..., n]."""
        *lead, _, n = j.shape
        chances = [g.clock.generator("graddrop", stream=k) for k in range(math.prod(lead))]
        lots = torch.stack([torch.rand(n, generator=chance, device="cpu") for chance in chances])
        return lots.reshape(*lead, n).to(j)

    def _leaks(self, g: TaskGradients, j: Tensor) -> Tensor:
        """ℓ, [m, 1]."""
        by_task = self.leak if isinstance(self.leak, Mapping) else dict.fromkeys(g.tasks, self.leak)
        return j.new_tensor([by_task[task] for task in g.tasks]).unsqueeze(-1)

    def extra_repr(self) -> str:
        return f"leak={self.leak}"
