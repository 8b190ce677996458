"""A module's forward pass, kept so that it can be run again exactly as it was.

Micro-batches that are balanced at the representation need each task's gradient by the features
alone, and one pass through the trunk when the weights are known. Until then nothing of the trunk's
graph has to stay alive: the inputs are kept, and the pass is run again (what activation
checkpointing does, with one more pass forward). Chance (dropout) is drawn again as it was; buffers
(the running means of batch normalisation) are those of that time, and what is run again changes
none of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from evenhand.network import leaves

SAME = 1e-3
"""How far the mean of what is run again may be from before, relative to the mean size: between
rounding on a GPU, and another draw of chance."""


_again: ContextVar[bool] = ContextVar("again", default=False)


def running_again() -> bool:
    """Whether the forward pass that is under way is one that is run again."""
    return _again.get()


class Trunk(Protocol):
    """A way from one micro-batch's features to the leaves behind them.

    Attributes:
        like: tensors of the features' shapes, dtypes and devices.
    """

    like: Sequence[Tensor]

    def features(self) -> list[Tensor]:
        """The features with their graph."""
        ...


@dataclass(eq=False)
class Kept:
    """Features whose graph is still there."""

    like: Sequence[Tensor]

    def features(self) -> list[Tensor]:
        return list(self.like)


@dataclass(eq=False)
class Recording:
    """One forward pass of a module.

    Attributes:
        module: what was run.
        inputs, keywords: what it was given.
        buffers: its buffers before, by name.
        training: the mode of each of its modules.
        chance: the states of the generators: that of the CPU, and of each device in use.
        autocast: for each kind of device in use, whether it computed in mixed precision, in which
            type.
        versions: tensors that must not have changed in between, each with its version then.
        outputs: what it returned, held weakly.
        means: of what it returned: mean and mean size of each tensor.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any]
    buffers: dict[str, Tensor]
    training: list[bool]
    chance: dict[torch.device, Tensor]
    autocast: dict[str, tuple[bool, torch.dtype]]
    versions: list[tuple[Tensor, int]]
    outputs: list[weakref.ref[Tensor]] = field(default_factory=list)
    means: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def before(
        cls, module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> Recording | None:
        """What is to be kept before `module` runs; None where its inputs have a graph themselves.

        What lies behind them would be out of the reach of a pass that is run again.
        """
        given = [t for t in tree_leaves((inputs, dict(keywords))) if isinstance(t, Tensor)]
        if any(t.grad_fn is not None for t in given):
            return None
        there = [*given, *module.parameters(), *module.buffers()]
        devices = dict.fromkeys(t.device for t in there)
        kinds = dict.fromkeys(["cpu", *(device.type for device in devices)])
        return cls(
            module,
            inputs,
            keywords,
            buffers={name: b.clone() for name, b in module.named_buffers()},
            training=[m.training for m in module.modules()],
            chance={torch.device("cpu"): torch.get_rng_state()}
            | {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"},
            autocast={
                k: (torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in kinds
            },
            versions=[(t, t._version) for t in [*given, *module.parameters()]],
        )

    @property
    def alive(self) -> bool:
        """Whether anything that it returned is still held, by somebody or by a graph."""
        return any(ref() is not None for ref in self.outputs)

    def returned(self, tensors: Sequence[Tensor]) -> None:
        """Note what the pass has returned."""
        self.outputs = [weakref.ref(z) for z in tensors]
        self.means = [_means(z) for z in tensors]

    def again(self) -> list[Tensor]:
        """What the pass returns, with a new graph.

        Raises:
            RuntimeError: an input or a parameter was changed in between, or the pass does not come
                out as before.
        """
        if any(t._version != version for t, version in self.versions):
            raise RuntimeError(
                f"{type(self.module).__name__} cannot be run again for accumulate: an input or a "
                "parameter was changed in place since. Give each micro-batch tensors of its own, "
                "and step after the last one; or catch the module without replay=True"
            )
        with self._as_it_was(), torch.enable_grad():
            buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
            found = leaves(functional_call(self.module, buffers, self.inputs, dict(self.keywords)))
        for z, (mean, size) in zip(found, self.means, strict=True):
            if not abs(_means(z)[0] - mean) <= SAME * size:
                raise RuntimeError(
                    f"{type(self.module).__name__} returns something else when it is run again: "
                    "does it draw chance from elsewhere than torch's generators, or keep a state "
                    "that is no buffer? Catch the module without replay=True then"
                )
        return found

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Inside, modes, chance and precision are those of the pass that was recorded."""
        modules = list(self.module.modules())
        modes = [m.training for m in modules]
        cuda = [d for d in self.chance if d.type == "cuda"]
        with ExitStack() as entered:
            entered.enter_context(torch.random.fork_rng(devices=cuda))
            for device, state in self.chance.items():
                if device.type == "cuda":
                    torch.cuda.set_rng_state(state, device)
                else:
                    torch.set_rng_state(state)
            for kind, (enabled, dtype) in self.autocast.items():
                entered.enter_context(torch.autocast(kind, dtype, enabled))
            token = _again.set(True)
            try:
                _set(modules, self.training)
                yield
            finally:
                _set(modules, modes)
                _again.reset(token)


class Tape:
    """The hooks of one module that record its forward passes.

    A copy of a module takes copies of its hooks along; they record nothing, since nobody asks them.
    """

    def __init__(self, records: bool = True) -> None:
        self.recordings: list[Recording] = []
        self._records = records
        self._open: list[Recording | None] = []

    def on(self, module: nn.Module) -> None:
        """Record `module` from now on, from before any other hook has changed its inputs."""
        module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True)
        module.register_forward_hook(self._after)

    def forget(self) -> None:
        """Forget all passes so far."""
        self.recordings.clear()
        self._open.clear()

    def _before(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self._skips():
            return
        self._open.append(Recording.before(module, inputs, keywords))

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._skips() or not self._open:
            return
        recording = self._open.pop()
        try:
            tensors = leaves(output)
        except TypeError:
            return
        if recording is not None and any(z.requires_grad for z in tensors):
            recording.returned(tensors)
            self.recordings = [r for r in self.recordings if r.alive] + [recording]

    def _skips(self) -> bool:
        seen = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return not self._records or not seen or running_again()

    def __reduce__(self) -> tuple[type[Tape], tuple[bool]]:
        return Tape, (False,)


@dataclass(eq=False)
class Replayed:
    """Features that recordings can make again.

    Attributes:
        like: tensors of their shapes that take no memory.
        places: for each of them, which recording makes it, and its position there.
    """

    like: Sequence[Tensor]
    places: Sequence[tuple[Recording, int]]

    @classmethod
    def of(cls, features: Sequence[Tensor], recordings: Sequence[Recording]) -> Replayed | None:
        """A way to make `features` again; None if some of them were not recorded."""
        made = {
            id(z): (r, at)
            for r in recordings
            for at, ref in enumerate(r.outputs)
            if (z := ref()) is not None
        }
        if not features or any(id(z) not in made for z in features):
            return None
        like = [z.new_empty(()).expand(z.shape) for z in features]
        return cls(like, [made[id(z)] for z in features])

    def features(self) -> list[Tensor]:
        """The features with a new graph."""
        again = {id(r): r.again() for r, _ in self.places}
        return [again[id(r)][at] for r, at in self.places]


def _means(z: Tensor) -> tuple[float, float]:
    seen = z.detach()
    if not seen.numel():
        return 0.0, 0.0
    size = float(seen.abs().mean(dtype=torch.float64))
    parts = torch.view_as_real(seen.resolve_conj()) if seen.is_complex() else seen
    return float(parts.mean(dtype=torch.float64)), size


def _set(modules: Sequence[nn.Module], training: Sequence[bool]) -> None:
    for module, mode in zip(modules, training, strict=True):
        module.training = mode
