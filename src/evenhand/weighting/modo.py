"""Multi-objective gradients with double sampling."""

from __future__ import annotations

from dataclasses import replace

from evenhand.arguments import checked
from evenhand.autodiff.gradients import Place, TaskGradients
from evenhand.weighting.base import Outcome, StatefulWeighting
from evenhand.weighting.double_sampling import check, cross_gramian
from evenhand.weighting.shares import equal_shares, redistribute
from evenhand.weighting.state import State, put, take
from evenhand.weighting.traits import Traits


class MoDo(StatefulWeighting):
    """λ ← Π(λ − γ (J₁ J₂ᵀ λ + ρ λ)) on the simplex, one step for each step of the network.

    J₁, J₂ are Jacobians on two independent batches, which makes the step in λ an unbiased one
    towards the min-norm point of the expected gradients; the network steps with the new λ on a
    third batch. Chen, Fernando, Ying & Chen, "Three-Way Trade-Off in Multi-Objective Learning"
    (NeurIPS 2023, arXiv 2305.20057; JMLR 25, 2024), the algorithm MoDo, where ρ = 0.

    λ starts at 1/M and is kept from step to step. Absent tasks keep theirs, and the active ones
    share the rest (Σλ = 1 over all). A large γ‖g‖² moves λ from corner to corner: γ wants the scale
    of the gradients.

    With ``batches=3`` the network steps on the first batch and the other two make up J₁ J₂ᵀ, as
    LibMTL does. With ``batches=2`` the first serves both, which saves a third of the work, and λ is
    then not independent of the gradients it weighs; the authors' code (and the JMLR version)
    steps on the sum (the mean) of both, TorchJD leaves it to the loop. LibMTL defaults to γ = 1e-3,
    ρ = 0.1, its heads take the mean over the three batches; here they step on the first.

    Args:
        gamma: γ > 0, the rate of λ.
        rho: ρ >= 0, which pulls λ towards equal weights.
        batches: 2 or 3.
        at: "parameters", "last_layer" or a callable.

    Raises:
        ValueError: an argument is out of range; or, in a call, further batches are missing.

    Example:
        >>> import torch
        >>> from evenhand import TaskGradients
        >>> jacobian = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
        >>> modo, other = MoDo(gamma=0.1, batches=2), TaskGradients.of(jacobian=jacobian)
        >>> modo(TaskGradients.of(jacobian=jacobian, samples=[other]))
        tensor([0.4000, 0.6000])
    """

    traits = Traits(needs="jacobian")

    @checked
    def __init__(
        self,
        gamma: float = 0.1,
        rho: float = 0.0,
        *,
        batches: int = 3,
        at: Place = "parameters",
    ) -> None:
        super().__init__(at=at)
        if not gamma > 0 or not rho >= 0:
            raise ValueError(f"gamma={gamma}, rho={rho}: must be > 0 and >= 0")
        check(self, batches, at)
        self.gamma = gamma
        self.rho = rho
        self.traits = replace(self.traits, batches=batches)

    def init(self, total: int) -> State:
        """The weights λ."""
        return {"shares": equal_shares(total)}

    def weigh_from(self, g: TaskGradients, state: State) -> Outcome:
        cross = cross_gramian(g, self.traits.batches)
        shares = take(state["shares"], g).cpu()
        slope = (cross @ shares.unsqueeze(-1)).squeeze(-1) + self.rho * shares
        moved = redistribute(shares - self.gamma * slope, shares.sum(-1, keepdim=True))
        return Outcome(moved.to(g.losses), {"shares": put(state["shares"], g, moved)})

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, rho={self.rho}, batches={self.traits.batches}"
