"""Penalty-based boundary intersection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.preference import Preferring
from evenhand.weighting.reference import Reference
from evenhand.weighting.traits import Traits


class PBI(Preferring):
    """Descend d₁ + θ d₂: down along a ray of preferred losses, and towards it.

    With f = L − z* and λ̂ = λ/‖λ‖, d₁ = f·λ̂ is the distance along the ray from z* in direction λ
    and d₂ = ‖f − d₁ λ̂‖ the distance to it, so

        w = λ̂ + θ (f − d₁ λ̂)/d₂,    w = λ̂ on the ray itself.

    Zhang & Li, "MOEA/D" (IEEE Trans. Evol. Comput. 11, 2007, 712-731), the PBI approach, there for
    maximisation and with |d₁|. Unlike in `Tchebycheff` a large λ_i wants a *large* loss: λ is the
    direction in which the losses are to lie. A task that is ahead of the ray has a negative weight
    once θ is large, and is made worse, its head too in the weighting slot.

    The ray is that of the active tasks. d₂ counts as zero below the precision of the losses;
    TorchJD adds 1e-12 to d₂² instead, and agrees elsewhere.

    Args:
        theta: θ >= 0; 5 in the paper's experiments.
        preference: λ; equal by default. Its length does not matter.
        reference: z*, by task, at most the loss each task can reach; 0 by default.

    Raises:
        ValueError: `theta` is negative; see also `Tchebycheff`.

    Example:
        >>> from evenhand import TaskGradients
        >>> PBI(theta=0.5)(TaskGradients.of(losses=torch.tensor([1.0, 3.0])))
        tensor([0.3536, 1.0607])
    """

    traits = Traits(needs="losses")

    @checked
    def __init__(
        self,
        theta: float = 5.0,
        preference: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(preference)
        if not theta >= 0:
            raise ValueError(f"theta={theta}: must be >= 0")
        self.theta = theta
        self.reference = Reference(reference)

    def require(self, tasks: Sequence[str]) -> None:
        self.reference.require(tasks)
        super().require(tasks)

    def weigh(self, g: TaskGradients) -> Tensor:
        f = self.reference.shift(g)
        ray = _unit(self.preferred(g), 0.0)
        across = f - (f * ray).sum(-1, keepdim=True) * ray
        rounding = (
            4 * torch.finfo(g.losses.dtype).eps * g.losses.double().norm(dim=-1, keepdim=True)
        )
        return (ray + self.theta * _unit(across, rounding)).to(g.losses)

    def extra_repr(self) -> str:
        parts = (f"theta={self.theta}", super().extra_repr(), self.reference.extra_repr())
        return ", ".join(filter(None, parts))


def _unit(vectors: Tensor, least: Tensor | float) -> Tensor:
    """v/‖v‖, zero where ‖v‖ is not larger than `least`."""
    length = vectors.norm(dim=-1, keepdim=True)
    return torch.where(length > least, vectors / length, 0)
