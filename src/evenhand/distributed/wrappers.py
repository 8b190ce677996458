"""What a model is wrapped in, so that its gradients are reduced by somebody else."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from evenhand.autodiff.walk import edge_of
from evenhand.network import leaves, unwrapped


@dataclass(frozen=True)
class Managed:
    """The leaves, by identity, whose gradients a wrapper reduces when they are handed over.

    Attributes:
        all: all of them.
        waiting: those that it waits for in this step on this rank.
        partly: whether ranks may wait for different ones.
        sparse: those for which it takes sparse gradients alone.
    """

    all: frozenset[int] = frozenset()
    waiting: frozenset[int] = frozenset()
    partly: bool = False
    sparse: frozenset[int] = frozenset()


class Wrappers:
    """The `DistributedDataParallel` around a model, seen when its forward pass runs inside.

    A model is often wrapped after the balancer was made, so the wrapper is not asked for: a hook on
    the model notes what its forward pass runs in. One that was wrapped before the first step of
    several ranks, with no hook on it yet, is looked for among all objects, once.
    """

    def __init__(self) -> None:
        self._watched: weakref.ref[nn.Module] | None = None
        self._handles: list[RemovableHandle] = []
        self._note = _Note()
        self._looked_for: set[int] = set()

    @property
    def found(self) -> DistributedDataParallel | None:
        """What the last forward pass of the model ran in."""
        return self._note.wrapper

    def watch(self, model: nn.Module) -> None:
        """Note from now on what the forward passes of `model` run in."""
        require_known(model)
        inner = unwrapped(model)
        if self._watched is not None and self._watched() is inner:
            return
        for handle in self._handles:
            handle.remove()
        note = self._note = _Note()
        if isinstance(model, DistributedDataParallel):
            note.saw(model)
        self._watched = weakref.ref(inner)
        self._handles = []
        if not isinstance(inner, torch.jit.ScriptModule):  # which takes no hooks
            self._handles = [
                inner.register_forward_pre_hook(note.before),
                inner.register_forward_hook(note.after),
            ]

    def look(self, losses: Sequence[Tensor], reached: Iterable[Tensor]) -> nn.Module | None:
        """The wrapper (or root under `fully_shard`) of leaves, where no forward pass has told.

        Each leaf is looked for once. The model is watched from then on.
        """
        if self._note.heard:
            return None
        new = {id(leaf): leaf for leaf in reached if id(leaf) not in self._looked_for}
        if not new:
            return None
        self._looked_for |= new.keys()
        for leaf in new.values():
            if type(leaf).__module__.startswith(DTENSORS):
                raise ValueError(SHARDED)
        for other in gc.get_objects():
            kind = type(other)
            if not issubclass(kind, nn.Module):
                continue
            if issubclass(kind, DistributedDataParallel):
                if any(id(parameter) in new for parameter in other.parameters()):
                    wrapper: DistributedDataParallel = other
                    self.watch(wrapper)
                    self._note.used = _behind(losses)
                    return wrapper
            elif kind.__module__.startswith(FULLY_SHARD) and _is_root_of(other, new):
                root: nn.Module = other
                self.watch(root)
                self._note.sharded = weakref.ref(root)
                return root
        return None

    @property
    def sharded(self) -> nn.Module | None:
        """The model, if its last forward pass ran under `fully_shard`."""
        return None if self._note.sharded is None else self._note.sharded()

    @property
    def heard(self) -> bool:
        """Whether a forward pass of the model has told what it runs in."""
        return self._note.heard

    @property
    def waiting(self) -> list[Tensor]:
        """The leaves whose gradients the wrapper waits for in this step, and then reduces."""
        wrapper = self.found
        if wrapper is None:
            return []
        waiting = [p for p in _reduced_by(wrapper) if p.requires_grad]
        used = self._note.used
        if wrapper.find_unused_parameters and used is not None:
            waiting = [p for p in waiting if id(p) in used]
        return waiting

    @property
    def managed(self) -> Managed:
        """The leaves that the wrapper reduces."""
        wrapper = self.found
        if wrapper is None:
            return Managed()
        return Managed(
            frozenset(map(id, _reduced_by(wrapper))),
            frozenset(map(id, self.waiting)),
            wrapper.find_unused_parameters,
            frozenset(map(id, _sparse_in(wrapper))),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrappers:
        return Wrappers()

    def __reduce__(self) -> tuple[type[Wrappers], tuple[()]]:
        return Wrappers, ()


def _reduced_by(wrapper: DistributedDataParallel) -> list[Tensor]:
    ignored = wrapper.parameters_to_ignore
    return [p for name, p in wrapper.module.named_parameters() if name not in ignored]


def _sparse_in(wrapper: DistributedDataParallel) -> list[Tensor]:
    """The parameters whose gradients are sparse, by the modules that the wrapper knows them by."""
    return [
        module.weight
        for module in wrapper.module.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    ]


class _Note:
    """The hooks, and what they saw."""

    def __init__(self) -> None:
        self._wrapper: weakref.ref[DistributedDataParallel] | None = None
        self.used: set[int] | None = None
        self.heard = False
        self.sharded: weakref.ref[nn.Module] | None = None

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        return None if self._wrapper is None else self._wrapper()

    def saw(self, wrapper: DistributedDataParallel | None) -> None:
        self._wrapper = None if wrapper is None else weakref.ref(wrapper)

    def before(self, module: nn.Module, inputs: Any) -> None:
        if not _differentiates():
            return
        if not self.heard:
            require_known(module)
        if self.sharded is None and "torch.distributed.fsdp" in sys.modules:
            self.sharded = weakref.ref(module) if is_fully_sharded(module) else None
        wrapper: DistributedDataParallel | None = DistributedDataParallel._active_ddp_module
        if wrapper is not None and wrapper is not self.wrapper:
            require_known(wrapper)
        if wrapper is not None and wrapper._join_config.enable:
            raise ValueError(
                "DistributedDataParallel.join() answers the wrapper's collectives on ranks that "
                "have run out of batches, and a balanced step has more of them: leave join() out, "
                "and let all ranks take as many steps; one without labels says so by counts="
            )
        self.saw(wrapper)
        self.heard = True

    def after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        wrapper = self.wrapper
        if wrapper is None or not wrapper.find_unused_parameters or not _differentiates():
            return
        self.used = _behind(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Note:
        return _Note()

    def __reduce__(self) -> tuple[type[_Note], tuple[()]]:
        return _Note, ()


def _differentiates() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _behind(output: Any) -> set[int] | None:
    """The identities of all leaves behind an output, as the wrapper itself finds them."""
    try:
        tensors = [t for t in leaves(output) if t.requires_grad]
    except TypeError:
        return None
    waiting = [edge_of(t)[0] for t in tensors]
    seen: set[Any] = set(waiting)
    found: set[int] = set()
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                waiting.append(child)
    return found


def require_known(model: nn.Module) -> None:
    """Raise ValueError if some ranks' gradients of `model` would come out wrong."""
    fully_sharded = is_fully_sharded(model)
    for module in model.modules():
        kind = type(module)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(module, DistributedDataParallel):
            if module.static_graph:
                raise ValueError(
                    "DistributedDataParallel(static_graph=True) delays its reduction by a count of "
                    "the first backward pass, and gets that of a balanced one wrong: wrap the "
                    "model without it, and give the wrapped model to Balancer(model=)"
                )
            if module.mixed_precision is not None:
                raise ValueError(
                    "DistributedDataParallel(mixed_precision=) puts other tensors in place of the "
                    "parameters: wrap the model without it, and use torch.autocast"
                )
        elif name.startswith(REFUSED):
            raise ValueError(
                f"{name} exchanges gradients in a way that a balancer does not know: wrap the "
                "model in DistributedDataParallel and give it to Balancer(model=), or keep it "
                "plain, call `backward`, and name the ranks with Balancer(group=)"
            )
        shared_out = (type(p).__module__ for p in module._parameters.values())
        if not fully_sharded and any(m.startswith(DTENSORS) for m in shared_out):
            raise ValueError(SHARDED)


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was called on a part of this model."""
    return any(type(module).__module__.startswith(FULLY_SHARD) for module in model.modules())


def groups_of(module: Any) -> list[Any]:
    """The groups of parameters that `fully_shard` keeps for a module."""
    state = module._get_fsdp_state()
    several = getattr(state, "_fsdp_param_groups", None)
    if several is not None:
        return list(several)
    one = state._fsdp_param_group  # torch 2.11 and before: at most one
    return [] if one is None else [one]


def _is_root_of(other: Any, wanted: Mapping[int, Tensor]) -> bool:
    """Whether an object is the root module, under `fully_shard`, of one of these parameters."""
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(other, FSDPModule) or not other._get_fsdp_state()._is_root:
        return False
    modules = other.modules() if isinstance(other, nn.Module) else ()
    groups = [group for m in modules if isinstance(m, FSDPModule) for group in groups_of(m)]
    wholes = (getattr(part, "_unsharded_param", None) for g in groups for part in g.fsdp_params)
    return any(id(whole) in wanted for whole in wholes)


REFUSED = (
    "torch.distributed.fsdp.fully_sharded_data_parallel",
    "torch.distributed.pipelining",
    "deepspeed.",
    "horovod.",
    "fairscale.",
    "apex.parallel",
    "megatron.",
)
"""Modules that exchange gradients themselves, by the beginning of their names."""

DTENSORS = "torch.distributed.tensor"
FULLY_SHARD = "torch.distributed.fsdp._fully_shard"
SHARDED = (
    "a parameter of the model is shared out among ranks (tensor parallelism, a DTensor), and "
    "gradients per task cannot be taken of a part: call fully_shard on the root, or wrap the model "
    "in DistributedDataParallel, and give it to Balancer(model=); or keep it plain, call "
    "`backward`, and name the ranks with Balancer(group=)"
)
