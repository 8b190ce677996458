"""Many seeds and rates of a small model, trained as one.

A small network leaves a processor waiting: most of a step is the cost of starting operations. A
stack of E copies starts each operation once for all of them. Its parameters begin with a dimension
of E members, its losses are [E], and everything downstream (`Balancer(members=(E,))`, Gramians
[E, m, m], weights [E, m], the solvers) takes leading dimensions as independent networks.

`StackedTraining` (`stacked.py`) makes whole runs of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from evenhand.network import Blocks, MultiTaskNetwork, Nest
from evenhand.optimizers import Factory, Groups

POINTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Identity)
"""Modules that treat every entry alike, whatever dimensions there are."""


class Stacked(nn.Module):
    """E modules of one architecture as one: inputs [E, b, ...], outputs [E, b, ...].

    Linear layers, and what treats every entry alike, are evaluated for all members at once as they
    stand; anything else goes through `torch.func.vmap`, which costs several times as much to start.

    Args:
        modules: the members. They must differ in their parameters only.

    Raises:
        ValueError: the members have buffers (running statistics) or different parameters.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        named = [dict(module.named_parameters()) for module in modules]
        shapes = [{name: p.shape for name, p in parameters.items()} for parameters in named]
        if any(other != shapes[0] for other in shapes):
            raise ValueError("the members of a stack must have the same parameters")
        if any(True for module in modules for _ in module.buffers()):
            raise ValueError("a stack cannot hold networks with buffers (running statistics)")
        self.skeleton = (modules[0],)  # in a tuple: its own parameters are not the stack's
        self.names = list(named[0])
        self.values = nn.ParameterList(
            nn.Parameter(
                torch.stack([parameters[name].detach() for parameters in named]),
                requires_grad=named[0][name].requires_grad,
            )
            for name in self.names
        )

    def forward(self, x: Nest) -> Nest:
        """What each member makes of its own inputs."""
        return _applied(self.skeleton[0], "", dict(zip(self.names, self.values, strict=True)), x)

    def train(self, mode: bool = True) -> Stacked:
        """The members' mode."""
        self.skeleton[0].train(mode)
        return super().train(mode)


def _applied(module: nn.Module, prefix: str, values: dict[str, Tensor], x: Nest) -> Nest:
    """`module`, whose parameters are called `prefix` and their name in it, for all members."""
    kind = type(module)
    plain = isinstance(x, Tensor) and not (module._forward_hooks or module._forward_pre_hooks)
    if plain and kind is nn.Sequential:
        for name, child in module.named_children():
            x = _applied(child, f"{prefix}{name}.", values, x)
        return x
    if plain and kind is nn.Linear and x.ndim >= 3:
        return _linear(x, values[f"{prefix}weight"], values.get(f"{prefix}bias"))
    if plain and kind in POINTWISE:
        return module(x)
    if plain and isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return x.flatten(2)
    own = {name: values[f"{prefix}{name}"] for name, _ in module.named_parameters()}

    def one(parameters: dict[str, Tensor], inputs: Nest) -> Any:
        return functional_call(module, parameters, (inputs,))

    return torch.func.vmap(one, randomness="error")(own, x)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Y = x Wᵀ + b, [E, ..., k] → [E, ..., o]."""
    flat = x if x.ndim == 3 else x.flatten(1, -2)
    y = flat @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight.mT)
    return y if x.ndim == 3 else y.view(*x.shape[:-1], y.shape[-1])


def reshaped(parameter: Tensor, data: Tensor) -> None:
    """Give a parameter data of another shape; it keeps its identity, and loses its gradient."""
    parameter.grad = None
    # As long as a graph is alive that it was part of, autograd remembers its shape. A change of
    # the type makes it forget.
    other = torch.float64 if data.dtype == torch.float32 else torch.float32
    parameter.data = data.new_empty(0, dtype=other)
    parameter.data = data


class Stack(MultiTaskNetwork):
    """E networks of one architecture as one network.

    Called with inputs [E, b, ...] it returns outputs [E, b, ...]. Networks must differ in their
    parameters only and have no buffers and no active dropout.

    Args:
        networks: the members.

    Raises:
        ValueError: there is no member; the members have buffers (running statistics), different
            parameters, a forward pass of their own, or parameters that trunk and heads share.

    Example:
        >>> members = [MultiTaskNetwork(nn.Linear(2, 3), {"a": nn.Linear(3, 1)}) for _ in range(5)]
        >>> Stack(members)(torch.zeros(5, 7, 2))["a"].shape
        torch.Size([5, 7, 1])
    """

    def __init__(self, networks: Sequence[MultiTaskNetwork]) -> None:
        if not networks:
            raise ValueError("a stack needs at least one network")
        first = networks[0]
        if type(first).forward is not MultiTaskNetwork.forward:
            raise ValueError(f"a stack cannot hold {type(first).__name__}: it has its own forward")
        trunk = Stacked([network.trunk for network in networks])
        super().__init__(
            trunk, {t: Stacked([network.head(t) for network in networks]) for t in first.tasks}
        )
        if len(list(self.parameters())) != len(list(first.parameters())):
            raise ValueError("a stack cannot hold networks whose trunk and heads share parameters")
        shared = zip(first.trunk.parameters(), trunk.values, strict=True)
        stacked: dict[Tensor, Tensor] = dict(shared)
        self._last_layer = tuple(stacked[p] for p in first.blocks().last_layer)

    def __len__(self) -> int:
        return len(next(self.parameters()))

    def blocks(self) -> Blocks:
        """Whose each stacked parameter is."""
        return replace(super().blocks(), last_layer=self._last_layer)

    def named_values(self) -> dict[str, nn.Parameter]:
        """The stacked parameters [E, ...] by the names that they have in a member."""
        parts = {"trunk": self.trunk, **{f"heads.{k}": h for k, h in enumerate(self.heads)}}
        return {
            f"{where}.{name}": value
            for where, part in parts.items()
            if isinstance(part, Stacked)
            for name, value in zip(part.names, part.values, strict=True)
        }

    def member(self, index: int) -> dict[str, Tensor]:
        """The state_dict of one member."""
        return {name: value[index].detach().clone() for name, value in self.named_values().items()}

    def keep(self, index: Tensor) -> None:
        """Go on with the members at `index` alone, in this order; one may be there several times.

        The parameters stay the same objects, with less in them, so whoever knows them still does.
        """
        for parameter in self.parameters():
            reshaped(parameter, parameter.data[index])


# Optimizers -------------------------------------------------------------------------------------


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

    def keep(self, index: Tensor) -> None:
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
