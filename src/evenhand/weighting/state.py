"""A method's state as a value, and the module that holds it for a `Balancer`.

A method gets its state as an argument and returns the next one. It keeps nothing between calls,
so a step that fails has nothing to undo: whoever holds the state does not replace it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.arguments import checked
from evenhand.autodiff.gradients import TaskGradients

State = dict[str, Any]
"""A tree: a value is a tensor, or another tree. Nobody changes one; a new one is made.

The last dimension of per-task state runs over all M tasks. A tensor may gain dimensions in front,
one network of a stacked ensemble after another. A leaf that is an `nn.Parameter` is a learned
weight. A method that wraps another keeps that one's state under "base".
"""


def moved(state: State, device: torch.device) -> State:
    """The same state with its tensors on that device."""
    return {
        name: moved(value, device) if isinstance(value, dict) else value.to(device)
        for name, value in state.items()
    }


class Held(nn.Module):
    """The holder of a state: tensors are its buffers, learned weights its parameters.

    A subtree is a child, so names in `state_dict` are paths through the tree, joined by dots. A
    buffer keeps its dtype when the module is cast, since a history in float64 means it; devices
    it follows.

    Args:
        start: the state to begin with. Its number of dimensions tells later which tensors have
            gained leading ones, for networks that are trained side by side.

    Raises:
        ValueError: a name in the tree is no name for a buffer of a module.
        TypeError: a value is neither a tensor nor a tree.
    """

    @checked
    def __init__(self, start: State) -> None:
        super().__init__()
        self._dimensions: dict[str, int] = {}
        for name, value in start.items():
            match value:
                case nn.Parameter():
                    put_in: Callable[..., None] = self.register_parameter
                case Tensor():
                    put_in = self.register_buffer
                    self._dimensions[name] = value.ndim
                case dict():
                    put_in, value = self.add_module, Held(value)
                case _:
                    raise TypeError(f"{name!r} in a state must be a tensor or a dict of them")
            try:
                put_in(name, value)
            except KeyError as error:
                raise ValueError(f"{name!r} cannot name an entry of a state: {error}") from error

    def tree(self) -> State:
        """The state. The tensors are those held, not copies."""
        return {**self._buffers, **self._parameters, **{n: h.tree() for n, h in self._subtrees()}}

    def require(self, state: State, path: str = "") -> None:
        """Raise ValueError unless `state` has the same names as the state held.

        Args:
            state: any state.
            path: how the message is to name the place of the subtree, if it is one.
        """
        held = self.tree()
        if state.keys() != held.keys():
            raise ValueError(
                f"a method returned a state with the entries {sorted(state)}{path}, where its "
                f"init made {sorted(held)}: return all of them, and no others"
            )
        for name, child in self._subtrees():
            child.require(state[name], f"{path or ' under'} {name!r}")

    def replace(self, state: State, known: bool = False) -> None:
        """Hold this state from now on, on the devices of the present one.

        Learned weights get its values and stay the same objects. What is `known` to have the same
        names is not looked through again.

        Raises:
            ValueError: its entries have other names than those of the state held; nothing changes.
        """
        if not known:
            self.require(state)
        self._replace(state)

    def reset(self, start: State) -> None:
        """Begin again with this state; learned weights lose their `.grad`.

        Raises:
            ValueError: see `replace`.
        """
        self.replace(start)
        for parameter in self.parameters():
            parameter.grad = None

    def expand(self, leading: torch.Size) -> None:
        """Give each of the networks side by side learned weights of its own."""
        for parameter in self.parameters():
            parameter.data = parameter.data.expand(leading).clone()

    def select(self, positions: Tensor) -> None:
        """Go on with these positions, [k], of the leading dimension alone.

        A buffer that has gained no dimension holds for all networks, and stays.
        """
        for name, dimensions in self._dimensions.items():
            buffer: Tensor = self.get_buffer(name)
            if buffer.ndim > dimensions:
                self._buffers[name] = buffer[positions]
        for parameter in self._parameters.values():
            if parameter is not None:
                parameter.data, parameter.grad = parameter.data[positions], None
        for _, child in self._subtrees():
            child.select(positions)

    def _subtrees(self) -> Iterator[tuple[str, Held]]:
        children = self._modules.items()
        return ((name, child) for name, child in children if isinstance(child, Held))

    def _replace(self, state: State) -> None:
        for name, buffer in self._buffers.items():
            if buffer is not None and state[name] is not buffer:
                self._buffers[name] = state[name].detach().to(buffer.device)
        for name, parameter in self._parameters.items():
            if parameter is not None and state[name] is not parameter:
                with torch.no_grad():
                    parameter.copy_(state[name])
        for name, child in self._subtrees():
            child._replace(state[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Held:
        before = dict(self._buffers)
        inherited: Callable[..., nn.Module] = super()._apply
        inherited(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A buffer may have grown since the start (a stacked ensemble, a history over coordinates):
        # take the saved shape.
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.shape != buffer.shape:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def take(state: Tensor, g: TaskGradients) -> Tensor:
    """The entries of per-task state [..., M] of the active tasks, [..., m]."""
    return state.index_select(-1, g.index.to(state.device))


def put(state: Tensor, g: TaskGradients, value: Tensor) -> Tensor:
    """A copy of per-task state [..., M] with `value` [..., m] at the active tasks.

    Where `value` has more leading dimensions (a stacked ensemble), the copy grows them.
    """
    copy = state.expand(*value.shape[:-1], state.shape[-1]).clone()
    return copy.index_copy_(-1, g.index.to(state.device), value.to(state))
