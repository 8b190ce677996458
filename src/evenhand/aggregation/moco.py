"""Multi-objective gradient correction."""

from __future__ import annotations

from torch import Tensor

from evenhand.aggregation.tracking import Tracking
from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.linalg.extremes import products
from evenhand.weighting.base import Outcome
from evenhand.weighting.shares import equal_shares, redistribute
from evenhand.weighting.state import State, put, take


class MoCo(Tracking):
    """v = Yλ with averaged gradients Y, and λ moving towards their min-norm point.

        y_i ← y_i − β_k (y_i − g_i)
        λ   ← Π(λ − γ_k (YᵀY + ρ I) λ)     on the simplex        β_k = β/k^σ,  γ_k = γ/k^σ

    Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning" (ICLR 2023, arXiv
    2210.12624): averaging corrects the bias that the noise of one batch gives to λ.

    y starts at 0 and λ at 1/M; k counts the calls in which a task is active. As in the authors'
    code, λ moves by the new Y and the network by both new ones, and y is not projected onto a ball.
    v is of the active tasks; absent ones keep y_i and λ_i, and the active ones share the rest of λ.
    The state is as large as M gradients.

    LibMTL's (from the authors) is another method: it makes each g_i as long as the loss L_i first
    and puts λ through a softmax instead of Π, which keeps it near equal weights. β, γ and σ here
    are its defaults. The authors' later code has β = γ = ρ = .1, σ = 0.

    Args:
        beta: β in (0, 1].
        gamma: γ > 0.
        rho: ρ >= 0, which pulls λ towards equal weights.
        decay: σ >= 0.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from evenhand import TaskGradients
        >>> g = TaskGradients.of(jacobian=torch.tensor([[3.0, 0.0], [1.0, 2.0]]))
        >>> MoCo(beta=1.0)(g)
        tensor([1.8000, 1.2000])
    """

    @checked
    def __init__(
        self, beta: float = 0.5, gamma: float = 0.1, rho: float = 0.0, decay: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 < beta <= 1 or not gamma > 0:
            raise ValueError(f"beta={beta}, gamma={gamma}: must be in (0, 1] and > 0")
        if not rho >= 0 or not decay >= 0:
            raise ValueError(f"rho={rho}, decay={decay}: must be >= 0")
        self.beta = beta
        self.gamma = gamma
        self.rho = rho
        self.decay = decay

    def init(self, total: int) -> State:
        """Averages Y, counts k and weights λ."""
        return super().init(total) | {"shares": equal_shares(total)}

    def rate(self, count: Tensor) -> Tensor:
        return self.beta / count**self.decay

    def merge_from(self, g: TaskGradients, state: State) -> Outcome:
        tracked, following = self.track(g, state)
        gramian = products(tracked, tracked)
        shares = take(state["shares"], g)
        slope = (gramian @ shares.unsqueeze(-1)).squeeze(-1) + self.rho * shares
        gamma = self.gamma / take(following["count"], g) ** self.decay
        moved = redistribute(shares - gamma * slope, shares.sum(-1, keepdim=True))
        direction = moved.to(tracked).unsqueeze(-2) @ tracked
        following["shares"] = put(state["shares"], g, moved)
        return Outcome(direction.squeeze(-2).to(g.jacobian), following)

    def extra_repr(self) -> str:
        rates = f"beta={self.beta}, gamma={self.gamma}"
        return f"{rates}, rho={self.rho}, decay={self.decay}"
