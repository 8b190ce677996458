"""Optimizers of a stack: every member has its own learning rate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from evenhand.training.optimizers import Factory, Groups


class StackedOptimizer(torch.optim.Optimizer):
    """An optimizer in which every member of a stack has its own learning rate α_e.

    In a parameter group, "rates" are the members' rates, and "lr" is a factor for all of them, 1
    at first, which a schedule may change.

    Args:
        parameters: the stack's, each beginning with [E].
        rates: α, one per member.
        **settings: what else a group has, the same for all members.

    Raises:
        ValueError: a rate is not positive.
    """

    own: tuple[str, ...] = ()
    """The settings that it has beside the rate."""

    def __init__(
        self, parameters: Iterable[Tensor] | Groups, rates: Sequence[float], **settings: Any
    ) -> None:
        if not all(rate > 0 for rate in rates):
            raise ValueError(f"rates={list(rates)}: must be positive")
        alpha = torch.tensor(rates, dtype=torch.float64)
        super().__init__(parameters, {"lr": 1.0, "rates": alpha, **settings})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every member that has gradients."""
        if closure is not None:
            raise ValueError("a stack takes no closure: members cannot be evaluated one by one")
        for group in self.param_groups:
            rates = group["lr"] * group["rates"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alpha = rates.to(parameter).reshape(-1, *(1,) * (parameter.ndim - 1))
                    self.move(parameter, parameter.grad, alpha, group, self.state[parameter])

    @abstractmethod
    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        alpha: Tensor,
        group: dict[str, Any],
        state: dict[str, Tensor],
    ) -> None:
        """Move one parameter of all members, with `alpha` [E, 1, ...]."""

    def select(self, index: Tensor) -> None:
        """Go on with the members at `index` alone, as `Stack.keep` does."""
        for group in self.param_groups:
            group["rates"] = group["rates"][index]
        for state in self.state.values():
            state.update({name: value[index] for name, value in state.items()})


class StackedSGD(StackedOptimizer):
    """v ← μ v + g, θ_e ← θ_e − α_e v_e: torch.optim.SGD, member by member.

    Args:
        parameters: the stack's, each beginning with [E].
        rates: α, one per member.
        momentum: μ.
    """

    own = ("momentum",)

    def __init__(
        self,
        parameters: Iterable[Tensor] | Groups,
        rates: Sequence[float],
        momentum: float = 0.0,
    ) -> None:
        super().__init__(parameters, rates, momentum=momentum)

    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        alpha: Tensor,
        group: dict[str, Any],
        state: dict[str, Tensor],
    ) -> None:
        if group["momentum"]:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = gradient.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
            gradient = state["momentum_buffer"]
        parameter.addcmul_(gradient, alpha, value=-1)


class StackedAdam(StackedOptimizer):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²: torch.optim.Adam, member by member.

        θ_e ← θ_e − α_e m̂_e / (√v̂_e + ε),   m̂ = m / (1 − β₁ᵗ),   v̂ = v / (1 − β₂ᵗ)

    Args:
        parameters: the stack's, each beginning with [E].
        rates: α, one per member.
        betas: β₁, β₂.
        eps: ε.
    """

    own = ("betas", "eps")

    def __init__(
        self,
        parameters: Iterable[Tensor] | Groups,
        rates: Sequence[float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, rates, betas=betas, eps=eps)

    def move(
        self,
        parameter: Tensor,
        gradient: Tensor,
        alpha: Tensor,
        group: dict[str, Any],
        state: dict[str, Tensor],
    ) -> None:
        if not state:  # the counts are equal, and one for each member, so that they leave with it
            state["step"] = torch.zeros(len(parameter), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        t, (first, second) = float(state["step"][0]), group["betas"]
        m = state["exp_avg"].lerp_(gradient, 1 - first)
        v = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (v.sqrt() / (1 - second**t) ** 0.5).add_(group["eps"])
        parameter.addcmul_(m / root, alpha / (1 - first**t), value=-1)


KINDS: dict[type[torch.optim.Optimizer], tuple[type[StackedOptimizer], dict[str, Any]]] = {
    torch.optim.SGD: (StackedSGD, torch.optim.SGD([torch.zeros(1)]).defaults),
    torch.optim.Adam: (StackedAdam, torch.optim.Adam([torch.zeros(1)]).defaults),
}
"""For each optimizer its stacked form, and what its settings are by default."""


EXECUTION = ("foreach", "fused")
"""Settings that say how an optimizer computes, and not what."""


def stacked(factories: Sequence[Factory]) -> Factory:
    """Makes for a stack what the members' `factories` make for each of them.

    Raises:
        ValueError: (when it makes one) the members' optimizers differ in more than their rates, or
            are of a kind, or have settings, that no stacked optimizer has.
    """

    def make(groups: Groups) -> torch.optim.Optimizer:
        singles = [factory(_stand_ins(groups)) for factory in factories]
        single, common = type(singles[0]), _beside_rate(singles[0].defaults)
        if single not in KINDS:
            raise ValueError(f"{single.__name__} has no stacked form")
        kind, usual = KINDS[single]
        if any(type(s) is not single or _beside_rate(s.defaults) != common for s in singles):
            raise ValueError("the members' optimizers differ in more than their rates")
        known = {*kind.own, *EXECUTION}
        odd = [n for n, value in common.items() if n not in known and value != usual[n]]
        if odd:
            raise ValueError(f"{kind.__name__} has no {odd[0]}={common[odd[0]]}")
        rates = [[float(s.param_groups[k]["lr"]) for s in singles] for k in range(len(groups))]
        return kind(
            [
                {**group, "rates": torch.tensor(alpha, dtype=torch.float64)}
                for group, alpha in zip(groups, rates, strict=True)
            ],
            rates[0],
            **{name: common[name] for name in kind.own},
        )

    return make


def _beside_rate(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "lr"}


def _stand_ins(groups: Groups) -> Groups:
    return [{**group, "params": [torch.zeros(1, requires_grad=True)]} for group in groups]
