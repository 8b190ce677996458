"""Who is shared: the parameters all tasks move, and those that belong to one task.

Being shared is a property of the model, not of a batch. `MultiTaskNetwork` knows it by
construction; for any other model it is read off the autograd graph (`autodiff/ownership.py`).
`frozen` is the context in which a forward pass costs only what its phase trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand.arguments import checked, several
from evenhand.schedules import Phase

Nest = Any
"""A tensor, or lists, tuples, mappings and dataclasses of tensors (a feature pyramid)."""


def leaves(nest: Nest) -> list[Tensor]:
    """The tensors of a nest, in order. None stands for nothing.

    Raises:
        TypeError: something in the nest is neither a tensor nor a container of tensors.
    """
    if nest is None:
        return []
    if isinstance(nest, Tensor):
        return [nest]
    if is_dataclass(nest) and not isinstance(nest, type):
        return [leaf for f in fields(nest) for leaf in leaves(getattr(nest, f.name))]
    if isinstance(nest, Mapping):
        return [leaf for value in nest.values() for leaf in leaves(value)]
    if isinstance(nest, Sequence) and not isinstance(nest, str):
        return [leaf for value in nest for leaf in leaves(value)]
    raise TypeError(f"features must be tensors or nests of tensors, found {type(nest).__name__}")


@dataclass(frozen=True, eq=False)
class Blocks:
    """Whose each parameter is.

    Attributes:
        shared: parameters that several tasks reach.
        own: for each task, the parameters that it alone reaches.
        last_layer: the parameters of the last shared layer, where that is known.
    """

    shared: tuple[Tensor, ...]
    own: Mapping[str, tuple[Tensor, ...]]
    last_layer: tuple[Tensor, ...] = ()

    def training(self, phase: Phase) -> list[Tensor]:
        """The parameters that `phase` trains: the trunk, and the heads of the active tasks."""
        trunk = list(self.shared) if "shared" in phase.trains else []
        heads = self.own_of(phase.tasks) if "own" in phase.trains else []
        return trunk + heads

    def frozen(self, phase: Phase) -> list[Tensor]:
        """All the others."""
        trunk = [] if "shared" in phase.trains else list(self.shared)
        moving = phase.tasks if "own" in phase.trains else ()
        return trunk + self.own_of(task for task in self.own if task not in moving)

    def own_of(self, tasks: Iterable[str]) -> list[Tensor]:
        return [parameter for task in tasks for parameter in self.own.get(task, ())]

    @property
    def all(self) -> list[Tensor]:
        return [*self.shared, *self.own_of(self.own)]


@dataclass(slots=True, eq=False)
class Reading:
    """How one head reads the features Z, a tensor: through `probe`, which no other head sees.

    Attributes:
        probe: an alias of Z; or Y = Z Wᵀ + b, the output of a head that is linear.
        weight: W [o, k], in the second case.
        parameters: W and b, likewise.
        version: how often the probe had been written to when it was made.
    """

    probe: Tensor
    weight: Tensor | None
    parameters: tuple[Tensor, ...]
    version: int

    @classmethod
    def through(cls, probe: Tensor, head: nn.Linear | None = None) -> Reading:
        """Through an alias of the features, or through the output of a linear head."""
        if head is None:
            return cls(probe, None, (), probe._version)
        weight, bias = head.weight, head.bias
        return cls(probe, weight, (weight,) if bias is None else (weight, bias), probe._version)

    @property
    def intact(self) -> bool:
        """Whether the probe is what the head saw, or what it said: nobody has written to it, and
        no hook changes the gradient that arrives there.
        """
        return self.probe._version == self.version and not self.probe._backward_hooks


class Outputs(dict[str, Any]):
    """The outputs of a `MultiTaskNetwork` by head.

    Wrappers that cast or move outputs make new ones from a mapping, ``Outputs({...})``; those know
    neither features nor readings nor network.

    Attributes:
        features: the representation Z that they came from; None where that is not known.
        readings: how each head read it, where that is known.
        network: the network that they are of.
    """

    def __init__(
        self,
        outputs: Mapping[str, Any],
        features: Nest = None,
        readings: Mapping[str, Reading] | None = None,
        network: MultiTaskNetwork | None = None,
    ) -> None:
        super().__init__(outputs)
        self.features = features
        self.readings = readings or {}
        self.network = network


class MultiTaskNetwork(nn.Module):
    """Hard parameter sharing: one trunk, one head per task.

    ``network(x)`` returns `Outputs`, a dict of each task's output whose attribute `features`
    is the shared representation Z = trunk(x), a tensor or a nest of tensors. A parameter that
    stands in several heads, or in the trunk and a head (tied weights), is shared.

    Args:
        trunk: maps the input to Z.
        heads: for each task, a module that maps Z to its output.
        fused: evaluate the heads, which must then be `nn.Linear`, as one product with all their
            weights, so that a hundred cost what one does. The outputs are views of one tensor,
            which autograd lets nobody write to. Everything else stays as it is.

    Raises:
        ValueError: there is no head, or one is not linear and they are to be fused.

    Example:
        >>> trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> network = MultiTaskNetwork(trunk, {"a": nn.Linear(8, 2), "b": nn.Linear(8, 1)})
        >>> {task: tuple(y.shape) for task, y in network(torch.zeros(5, 4)).items()}
        {'a': (5, 2), 'b': (5, 1)}
    """

    @checked
    def __init__(
        self, trunk: nn.Module, heads: Mapping[str, nn.Module], *, fused: bool = False
    ) -> None:
        super().__init__()
        if not heads:
            raise ValueError("a MultiTaskNetwork needs at least one head")
        if fused and (bent := [task for task in heads if type(heads[task]) is not nn.Linear]):
            raise ValueError(f"only heads that are nn.Linear can be fused, not that of {bent[0]!r}")
        self.fused = fused
        self.trunk = trunk
        self.tasks = tuple(heads)
        # ModuleDict refuses names with dots and those of its own methods; the index never clashes.
        self.heads = nn.ModuleList(heads.values())

    def head(self, task: str) -> nn.Module:
        """The head of `task`."""
        return self.heads[self.tasks.index(task)]

    def forward(self, *inputs: Any, tasks: Sequence[str] | None = None, **named: Any) -> Outputs:
        """Outputs of the heads `tasks` (all by default); the other heads are not evaluated.

        Args:
            inputs, named: handed to the trunk as they are. A head that needs more than one tensor
                gets it from a trunk that returns a nest.
            tasks: the heads to evaluate.

        Raises:
            ValueError: `tasks` names a head that is not there.
            TypeError: `tasks` is a single text.
        """
        heads = dict(zip(self.tasks, self.heads, strict=True))
        wanted = self.tasks if tasks is None else several("tasks", tasks, self.tasks, "head")
        features = self.features_of(wanted, inputs, named)
        readings: dict[str, Reading] = {}
        if self.fused and isinstance(features, Tensor):
            return self._read_at_once(wanted, features)
        outputs = {task: self._read(task, heads[task], features, readings) for task in wanted}
        return Outputs(outputs, features, readings, self)

    def features_of(
        self, tasks: Sequence[str], inputs: Sequence[Any], named: Mapping[str, Any]
    ) -> Nest:
        """The representation Z that the heads `tasks` read, of the trunk's arguments."""
        return self.trunk(*inputs, **named)

    def penalty(self) -> Tensor | None:
        """A term of the parameters that is nobody's task, for ``plus=``; None: there is none."""
        return None

    def _read(
        self, task: str, head: nn.Module, features: Nest, readings: dict[str, Reading]
    ) -> Any:
        """The output of `task`, and how its head came to it."""
        if not isinstance(features, Tensor) or not features.requires_grad:
            return head(features)
        if _is_plainly_linear(head):
            output = head(features)
            readings[task] = Reading.through(output, cast(nn.Linear, head))
            return output
        alias = features.view_as(features)
        readings[task] = Reading.through(alias)
        return head(alias)

    def _read_at_once(self, tasks: Sequence[str], features: Tensor) -> Outputs:
        """The outputs of linear heads, from one product with all their weights."""
        heads = [cast(nn.Linear, self.head(task)) for task in tasks]
        weights: list[Tensor] = [head.weight for head in heads]
        weight = torch.cat(weights)
        zero = weight.new_zeros(())
        biases: list[Tensor] = [
            zero.expand(h.out_features) if h.bias is None else h.bias for h in heads
        ]
        joint = functional.linear(features, weight, torch.cat(biases))
        pieces = torch.split(joint, [head.out_features for head in heads], dim=-1)
        outputs = dict(zip(tasks, pieces, strict=True))
        if not features.requires_grad:
            return Outputs(outputs, features, None, self)
        read = {t: Reading.through(outputs[t], h) for t, h in zip(tasks, heads, strict=True)}
        return Outputs(outputs, features, read, self)

    def blocks(self) -> Blocks:
        """Which parameters are shared, and whose the others are."""
        trunk = list(self.trunk.parameters())
        holders: dict[Tensor, list[str]] = {}
        for task, head in zip(self.tasks, self.heads, strict=True):
            for parameter in head.parameters():
                holders.setdefault(parameter, []).append(task)
        in_trunk = set(trunk)
        tied = [p for p, who in holders.items() if len(who) > 1 and p not in in_trunk]
        own: dict[str, tuple[Tensor, ...]] = {
            task: tuple(p for p, who in holders.items() if who == [task] and p not in in_trunk)
            for task in self.tasks
        }
        return Blocks(tuple(trunk + tied), own, _last_layer(self.trunk))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside its wrappers (DDP, FSDP, `torch.compile`, `AveragedModel`, …).

    A wrapper is a module without parameters of its own that holds one other, under the name that
    torch's wrappers have for it.
    """
    while not isinstance(model, MultiTaskNetwork):
        children = dict(model.named_children())
        inner = next((children[n] for n in WRAPPED if n in children), None)
        if inner is None or len(children) > 1 or model._parameters:
            return model
        model = inner
    return model


WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def _is_plainly_linear(head: nn.Module) -> bool:
    """Whether it computes Z Wᵀ + b and nothing beside it: no subclass, no hook."""
    return type(head) is nn.Linear and not (
        head._forward_hooks or head._forward_pre_hooks or head._backward_hooks
    )


def _last_layer(trunk: nn.Module) -> tuple[Tensor, ...]:
    layers = [m for m in trunk.modules() if any(True for _ in m.parameters(recurse=False))]
    return tuple(layers[-1].parameters(recurse=False)) if layers else ()


FrozenMode = Literal["eval", "train"]


@contextmanager
def frozen(
    model: nn.Module,
    phase: Phase,
    *,
    blocks: Blocks | None = None,
    mode: FrozenMode = "eval",
) -> Iterator[None]:
    """Freeze everything that `phase` does not train. Put it around the forward pass.

    Inside, frozen parameters do not require gradients: with a frozen trunk no graph is built
    for it, with frozen heads no gradient of their weights is taken. Modules all of whose
    parameters rest are in eval mode (``mode="eval"``); with ``mode="train"`` they use batch
    statistics and active dropout, and what they would write to their buffers (BatchNorm's running
    statistics) is dropped. Flags and buffers are restored exactly on the way out, also when an
    exception passes.

    Args:
        model: the network.
        phase: what trains.
        blocks: whose each parameter is; a `MultiTaskNetwork` knows it, for any other model pass
            ``balancer.blocks``.

    Raises:
        ValueError: `blocks` is missing for a model that does not know them, or `mode` is unknown;
            or the phase trains heads, and names one that a `MultiTaskNetwork` does not have.

    Example:
        >>> import torch
        >>> network = MultiTaskNetwork(nn.Linear(2, 3), {"a": nn.Linear(3, 1)})
        >>> with frozen(network, Phase(("a",), trains=("own",))):
        ...     network(torch.ones(1, 2)).features.requires_grad
        False
    """
    if blocks is None:
        if not isinstance(model, MultiTaskNetwork):
            raise ValueError(
                "frozen() cannot know what this model shares: pass blocks=, for example "
                "balancer.blocks after a first backward, or use a MultiTaskNetwork"
            )
        unknown = [task for task in phase.tasks if task not in model.tasks]
        if unknown and "own" in phase.trains:
            raise ValueError(
                f"no head is called {unknown[0]!r}, so it cannot be said what trains: there are "
                f"{', '.join(model.tasks)}. A phase for frozen() names heads"
            )
        blocks = model.blocks()
    with Frozen.of(model, phase, blocks).held(mode):
        yield


@dataclass(frozen=True, eq=False)
class Frozen:
    """What is frozen in a phase. `frozen` finds it anew each time; a loop may find it once.

    Attributes:
        parameters: those that could train and do not in this phase.
        modules: those in which something is frozen and nothing trains, with all that they contain.
    """

    parameters: Sequence[Tensor]
    modules: Sequence[nn.Module]

    @classmethod
    def of(cls, model: nn.Module, phase: Phase, blocks: Blocks) -> Frozen:
        """What is frozen while `phase` trains its part of `model`."""
        moving = set(blocks.training(phase))
        still = [p for p in model.parameters() if p.requires_grad and p not in moving]
        return cls(still, _frozen_modules(model, moving, set(still)) if still else [])

    @contextmanager
    def held(self, mode: FrozenMode = "eval") -> Iterator[None]:
        """Hold it frozen, as `frozen` says."""
        if mode not in ("eval", "train"):
            raise ValueError(f"mode={mode!r}: must be 'eval' or 'train'")
        training = [(module, module.training) for module in self.modules]
        buffers = [(module, dict(module._buffers)) for module in self.modules if module._buffers]
        try:
            for parameter in self.parameters:
                parameter.requires_grad_(False)
            for module, was in training:
                if was and mode == "eval":
                    _switch(module, False)
            # In training mode the forward writes to copies; the originals come back untouched, and
            # no version counter that autograd watches is bumped.
            for module, originals in buffers if mode == "train" else ():
                for name, buffer in originals.items():
                    module._buffers[name] = None if buffer is None else buffer.clone()
            yield
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            for module, was in training:
                if module.training != was:
                    _switch(module, was)
            for module, originals in buffers:
                module._buffers.update(originals)


def _switch(module: nn.Module, training: bool) -> None:
    """module.training = training, twice a step for every module that is frozen.

    A module asks of all that is assigned to it whether it is a parameter, a module or a buffer,
    which costs more than all else about freezing: where nobody has changed that, it is not asked.
    """
    if type(module).__setattr__ is nn.Module.__setattr__:
        vars(module)["training"] = training
    else:
        module.training = training


def _frozen_modules(model: nn.Module, moving: set[Tensor], still: set[Tensor]) -> list[nn.Module]:
    """Modules in which something is frozen and nothing trains, with all that they contain.

    A module whose parameters the user froze long ago is not frozen: its mode is the user's.
    """
    found: dict[nn.Module, None] = {}
    for module in model.modules():
        parameters = set(module.parameters())
        if parameters & still and not parameters & moving:
            found.update(dict.fromkeys(module.modules()))
    return list(found)
