"""The largest weighted distance to a reference point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients
from evenhand.weighting.preference import Preferring
from evenhand.weighting.reference import Reference
from evenhand.weighting.traits import Traits


class Tchebycheff(Preferring):
    """Descend max_i λ_i (L_i − z*_i): the task that is worst takes all, w_i = λ_i, others 0.

    The weighted Tchebycheff scalarization (Bowman 1976; Miettinen, "Nonlinear Multiobjective
    Optimization", 1999), in the form of Lin et al. (ICML 2024, arXiv 2402.19078): with
    z* below every loss its minimisers over all λ are the weakly Pareto-optimal points, also where
    the front is not convex. It is not differentiable where several tasks are worst; the weights
    are then the subgradient that shares equally among them. `STCH` is the smooth version.

    Args:
        preference: λ, as given; 1/M by default. The larger λ_i, the lower L_i ends up.
        reference: z*, by task, at most the loss each task can reach; 0 by default.

    Raises:
        ValueError: see `Preferring`; a reference is not finite; or (when the tasks become known) a
            task has no reference or a reference no task.

    Example:
        >>> import torch
        >>> from evenhand import TaskGradients
        >>> Tchebycheff()(TaskGradients.of(losses=torch.tensor([1.0, 3.0])))
        tensor([0.0000, 0.5000])
    """

    traits = Traits(needs="losses")

    @checked
    def __init__(
        self,
        preference: Mapping[str, float] | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(preference)
        self.reference = Reference(reference)

    def require(self, tasks: Sequence[str]) -> None:
        self.reference.require(tasks)
        super().require(tasks)

    def weigh(self, g: TaskGradients) -> Tensor:
        preference = self.preferred(g)
        distances = preference * self.reference.shift(g)
        worst = (distances == distances.amax(-1, keepdim=True)).to(distances)
        return (preference * worst / worst.sum(-1, keepdim=True)).to(g.losses)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), self.reference.extra_repr())))
