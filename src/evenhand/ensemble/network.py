"""Many seeds and rates of a small model, trained as one.

A small network leaves a processor waiting: most of a step is the cost of starting operations. A
stack of E copies starts each operation once for all of them. Its parameters begin with a dimension
of E members, its losses are [E], and everything downstream (`Balancer(leading=(E,))`, Gramians
[E, m, m], weights [E, m], the solvers) takes leading dimensions as independent networks.

`StackedTraining` (`ensemble/training.py`) makes whole runs of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from evenhand.network import Blocks, MultiTaskNetwork, Nest

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


class _Penalty(nn.Module):
    """A network's penalty as a forward pass, for `functional_call`."""

    def __init__(self, network: MultiTaskNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self) -> Tensor | None:
        return self.network.penalty()


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
        named = self.named_values()
        stacked: dict[Tensor, Tensor] = {p: named[name] for name, p in first.named_parameters()}
        whose = first.blocks()
        self._blocks = Blocks(
            tuple(stacked[p] for p in whose.shared),
            {task: tuple(stacked[p] for p in own) for task, own in whose.own.items()},
            tuple(stacked[p] for p in whose.last_layer),
        )
        self._penalty = None if first.penalty() is None else (_Penalty(first),)

    def __len__(self) -> int:
        return len(next(self.parameters()))

    def blocks(self) -> Blocks:
        """Whose each stacked parameter is."""
        return self._blocks

    def penalty(self) -> Tensor | None:
        """The sum of the members' penalties, each of which reaches its own member alone."""
        if self._penalty is None:
            return None
        (penalty,) = self._penalty

        def one(parameters: dict[str, Tensor]) -> Any:
            return functional_call(penalty, parameters, ())

        values: dict[str, Tensor] = {
            f"network.{name}": value for name, value in self.named_values().items()
        }
        each: Tensor = torch.func.vmap(one, randomness="error")(values)
        return each.sum()

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

    def select(self, index: Tensor) -> None:
        """Go on with the members at `index` alone, in this order; one may be there several times.

        The parameters stay the same objects, with less in them, so whoever knows them still does.
        """
        for parameter in self.parameters():
            reshaped(parameter, parameter.data[index])
