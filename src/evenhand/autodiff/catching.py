"""What a module returns, caught by a forward hook inside whatever wraps it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evenhand.autodiff.replay import Recording, Tape, running_again
from evenhand.autodiff.walk import edge_of, walk
from evenhand.network import MultiTaskNetwork, leaves

MOST = 256
"""Outputs of one module that are remembered between two calls."""


class Catcher:
    """The outputs of modules since the last call, held weakly.

    A module is caught from the time on that it is asked for. A model that is known beforehand is
    prepared: all its modules are caught until the first call, which tells the one that is wanted.
    """

    def __init__(self) -> None:
        self._caught: dict[int, tuple[weakref.ref[nn.Module], RemovableHandle]] = {}
        self._found: dict[int, list[weakref.ref[Tensor]]] = {}
        self._tapes: dict[int, Tape] = {}
        self._preparing = False
        self._token = _Token()

    def prepare(self, model: nn.Module) -> None:
        """Catch every module of `model` until one is asked for, but those inside heads."""
        self._preparing = True
        networks = [module for module in model.modules() if isinstance(module, MultiTaskNetwork)]
        heads = {module for network in networks for module in network.heads.modules()}
        for module in model.modules():
            if module not in heads and not isinstance(module, torch.jit.ScriptModule):
                self.catch(module)

    def catch(self, module: nn.Module, replay: bool = False) -> None:
        """Catch what `module` returns from now on; with `replay`, keep what it was given too."""
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                "features= is a scripted module, whose outputs cannot be caught, since it takes no "
                "hooks: give the tensor that it returns"
            )
        key = id(module)
        known = self._caught.get(key)
        if known is None or known[0]() is not module:
            note = self._copied(module) or _Note(self._token, [])
            self._found[key] = note.found
            handle = module.register_forward_hook(note)
            self._caught[key] = weakref.ref(module), handle
        if replay and key not in self._tapes:
            tape = self._tapes[key] = Tape()
            tape.on(module)

    @property
    def recordings(self) -> list[Recording]:
        """The forward passes since the last step that can be run again."""
        return [recording for tape in self._tapes.values() for recording in tape.recordings]

    def _copied(self, module: nn.Module) -> _Note | None:
        """The hook that `module` has if it was copied together with this catcher."""
        for key, hook in module._forward_hooks.items():
            if isinstance(hook, _Note) and hook.token is self._token:
                del module._forward_hooks[key]
                return hook
        return None

    def settle(self, module: nn.Module | None) -> None:
        """From the first call on, catch `module` alone."""
        if not self._preparing:
            return
        self._preparing = False
        for key, (ref, handle) in list(self._caught.items()):
            if module is None or ref() is not module:
                handle.remove()
                del self._caught[key], self._found[key]

    def forget(self) -> None:
        """Forget what was returned so far: a backward pass has gone through it."""
        for found in self._found.values():
            found.clear()
        for tape in self._tapes.values():
            tape.forget()

    def outputs(self, module: nn.Module, losses: Sequence[Tensor], needed: bool) -> list[Tensor]:
        """What `module` has returned since the last backward pass, of that what the losses reach.

        Args:
            module: the module.
            losses: with their graphs. Where there are none, all that it has returned is meant.
            needed: whether nothing can be done without them.

        Raises:
            ValueError: they are needed, and there are none.
        """
        self.settle(module)
        self.catch(module)
        found = self._found[id(module)]
        made = [z for z in (ref() for ref in found) if z is not None and z.requires_grad]
        made = list(dict.fromkeys(made))
        if made and losses:
            edges = [edge_of(z) for z in made]
            reach = walk([(edge_of(loss), 1) for loss in losses], edges)
            made = [z for z, edge in zip(made, edges, strict=True) if edge in reach.stops]
        if not made and needed:
            raise ValueError(
                f"features={type(module).__name__}(…): nothing that it returned leads to these "
                "losses. It is caught from the first call on that names it: give the balancer "
                "model= (or call balancer.catch(module)) before the forward pass; inside a "
                "compiled model nothing can be caught: compile trunk and heads apart"
            )
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Catcher:
        # Hooks stand on the modules that the original was given. Modules that are copied along
        # take theirs with them, and the token tells that they are this copy's.
        other = Catcher()
        other._token = copy.deepcopy(self._token, memo)
        return other

    def __reduce__(self) -> tuple[type[Catcher], tuple[()]]:
        return Catcher, ()


class _Token:
    """Tells whose a hook is."""


class _Note:
    """The hook: it notes what a module returns, for the catcher that has the same token."""

    def __init__(self, token: _Token, found: list[weakref.ref[Tensor]]) -> None:
        self.token = token
        self.found = found

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or running_again():
            return
        try:
            tensors = leaves(output)
        except TypeError:
            return
        self.found.extend(weakref.ref(z) for z in tensors if z.requires_grad)
        del self.found[:-MOST]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Note:
        return _Note(copy.deepcopy(self.token, memo), [])

    def __reduce__(self) -> tuple[type[_Note], tuple[_Token, list[Any]]]:
        return _Note, (_Token(), [])
