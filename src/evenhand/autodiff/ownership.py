"""What a balancer knows of whose each parameter is, and how it finds out.

A `MultiTaskNetwork` says it, or the user does. For any other model it is read off the autograd
graph: a parameter that several tasks reach is shared (it need not be all of them), a parameter
that one task reaches is that task's own. What was found is kept by parameter and, where the model
is known, saved by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from evenhand.network import Blocks, MultiTaskNetwork, Outputs, Reading
from evenhand.schedules import Phase


class Sharing:
    """Whose each parameter is, as far as a balancer knows.

    Attributes:
        ownership: what is known; None before the first call that tells.
    """

    def __init__(self) -> None:
        self.ownership: Ownership | None = None
        self._model: tuple[nn.Module, ...] = ()  # a tuple, so that nobody takes it for a submodule

    def know(self, model: nn.Module) -> None:
        """Learn what `model` shares, if it is a `MultiTaskNetwork`, and its parameters' names."""
        self._model = (model,)
        if isinstance(model, MultiTaskNetwork):
            self.ownership = Ownership.of(model.blocks())

    def name(
        self, shared: Iterable[Tensor] | None, own: Mapping[str, Iterable[Tensor]] | None
    ) -> None:
        """Take a user's word for it.

        Raises:
            ValueError: `own` is given without `shared`.
        """
        if own is not None and shared is None:
            raise ValueError("own= completes shared=: name the shared parameters too")
        if shared is not None:
            named = Blocks(tuple(shared), {t: tuple(p) for t, p in (own or {}).items()})
            if self.ownership is None or {*self.ownership.shared} != {*named.shared}:
                self.ownership = Ownership.of(named)

    def decide(
        self,
        losses: Mapping[str, Tensor],
        features: list[Tensor],
        phase: Phase,
        tasks: Sequence[str],
        needed: bool,
        readings: Mapping[str, Reading],
    ) -> tuple[Blocks, list[Tensor] | None]:
        """Whose each parameter is, and the features, if all sharing is behind them.

        Args:
            losses: of the tasks that speak.
            features: those that require gradients; may be empty.
            phase: what moves.
            tasks: all tasks.
            needed: whether anybody asks what is shared. If not, and it cannot be told, all that
                the losses reach is treated alike.
            readings: how each head read the features, where that is known.

        Raises:
            ValueError: it is needed and cannot be told.
        """
        ownership = self.ownership or Ownership()
        unread = [task for task in losses if task not in ownership.read_tasks]
        if unread and "shared" in phase.moves:
            if not (ownership.explicit or features or len(losses) == len(tasks)):
                if needed:
                    raise ValueError(
                        "what is shared cannot be told from this call, in which only "
                        f"{', '.join(losses)} speak: pass shared= or features=, or let all "
                        "tasks speak in the first call"
                    )
                return Blocks(tuple(_reached([v.grad_fn for v in losses.values()], ())), {}), None
            ownership.read(losses, features, readings)
            self.ownership = ownership
            if ownership.read_tasks == set(tasks):
                self._warn_unreached(phase)
        elif ownership.explicit and any(task not in ownership.own for task in losses):
            ownership.read_own(losses)
        if features and "shared" in phase.moves:
            ownership.follow(losses, features)
        blocks = ownership.blocks()
        idle = [task for task in losses if not blocks.own.get(task)]
        if "shared" not in phase.moves and idle:
            raise ValueError(
                f"this phase moves the tasks' own parameters, and {idle[0]!r} has none that are "
                "known: name the shared ones with shared=, or begin with a call in which "
                "everything moves"
            )
        if not blocks.moving(phase):
            raise ValueError(
                f"the losses of {', '.join(losses)} reach no parameter that moves: tensors that "
                "are no nn.Parameter must be named with shared="
            )
        return blocks, features if features and not ownership.beyond_features else None

    def readings(self, losses: Mapping[str, Tensor], outputs: Outputs) -> list[Reading]:
        """How the heads of the tasks that speak read the features, if each loss sees one alone.

        Nothing where a loss depends on what another head read, where a head's reading is unknown,
        or where somebody has written to it since. Each task's graph is looked at once.
        """
        found = [outputs.readings[task] for task in losses if task in outputs.readings]
        ownership = self.ownership
        if ownership is None or len(found) < len(losses):
            return []
        if not all(reading.intact for reading in found):
            return []
        for task, reading in zip(losses, found, strict=True):
            if task not in ownership.alone:
                others = [r.probe for t, r in outputs.readings.items() if t != task]
                beyond = _edges([*others, outputs.features])
                own = _edges([reading.probe])
                ownership.alone[task] = not _meets(losses[task].grad_fn, own, beyond)
        return found if all(ownership.alone[task] for task in losses) else []

    def _warn_unreached(self, phase: Phase) -> None:
        """One warning that names the trainable parameters that no task reaches."""
        known = self.ownership or Ownership()
        excused = {*known.reached, *known.blocks().resting(phase)}  # these could not be reached
        for model in self._model:
            trainable = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
            names = [name for name, parameter in trainable if parameter not in excused]
            if names:
                warnings.warn(
                    f"no task reaches {len(names)} parameter(s), which will not be trained: "
                    + ", ".join(names[:5])
                    + ("…" if len(names) > 5 else ""),
                    stacklevel=6,
                )

    def state(self) -> dict[str, Any]:
        """What was found in graphs, by parameter name, where the model is known."""
        known = None if self.ownership is None else self.ownership.blocks()
        for model in self._model:
            names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
            told = isinstance(model, MultiTaskNetwork)
            if known is not None and not told and names.keys() >= {*known.all}:
                return {
                    "shared": [names[p] for p in known.shared],
                    "own": {task: [names[p] for p in own] for task, own in known.own.items()},
                }
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        for model in self._model:
            if "shared" in state:
                parameters = dict(model.named_parameters())
                shared = tuple(parameters[name] for name in state["shared"])
                own = {t: tuple(parameters[n] for n in mine) for t, mine in state["own"].items()}
                self.ownership = Ownership.of(Blocks(shared, own))


@dataclass
class Ownership:
    """What is known so far of whose each parameter is, read off the autograd graph and kept.

    With features, everything behind them is shared, and a task's own parameters are learned when
    it first speaks. Without, sharing can be decided only in a call in which all tasks speak.

    Attributes:
        explicit: `shared` was named by the user or the model and is not to be extended.
        beyond_features: some path from a loss to a shared parameter goes round the features.
        read_tasks: the tasks whose graphs were read.
        followed: the tasks whose ways to the features were looked at, for `beyond_features`.
        reached: all parameters that were found in a graph.
        alone: whether a task's loss sees its own head's reading of the features and no other.
    """

    shared: dict[Tensor, None] = field(default_factory=dict)
    own: dict[str, dict[Tensor, None]] = field(default_factory=dict)
    last_layer: tuple[Tensor, ...] = ()
    explicit: bool = False
    beyond_features: bool = False
    read_tasks: set[str] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)
    reached: dict[Tensor, None] = field(default_factory=dict)
    alone: dict[str, bool] = field(default_factory=dict)
    _blocks: Blocks | None = None

    @classmethod
    def of(cls, blocks: Blocks) -> Ownership:
        """What a model or a user says."""
        own = {task: dict.fromkeys(parameters) for task, parameters in blocks.own.items()}
        return cls(dict.fromkeys(blocks.shared), own, blocks.last_layer, explicit=True)

    def blocks(self) -> Blocks:
        if self._blocks is None:
            own = {task: tuple(parameters) for task, parameters in self.own.items()}
            self._blocks = Blocks(tuple(self.shared), own, self.last_layer)
        return self._blocks

    def read(
        self,
        losses: Mapping[str, Tensor],
        features: Sequence[Tensor],
        readings: Mapping[str, Reading],
    ) -> None:
        """Learn from the graphs of `losses`, whose paths may pass `features`.

        At the output of a linear head, whose parameters its reading names, a path ends: beyond it
        lie all heads that were evaluated with it as one.

        Raises:
            ValueError: a parameter thought to be one task's own is reached by another one.
        """
        self._blocks = None
        behind = _reached([z.grad_fn for z in features], ())
        linear = {task: r for task, r in readings.items() if r.parameters}
        stops = _edges([*features, *(reading.probe for reading in linear.values())])
        reach: dict[Tensor, list[str]] = {}
        for task, loss in losses.items():
            head = linear[task].parameters if task in linear else ()
            for parameter in (*_reached([loss.grad_fn], stops), *head):
                reach.setdefault(parameter, []).append(task)
        if not self.explicit:
            lone = len(losses) == 1 and not features  # one task in all: its whole network is trunk
            several = (p for p, who in reach.items() if len(who) > 1 or lone)
            self.shared.update(behind)
            self.shared.update(dict.fromkeys(several))
        for parameter, who in reach.items():
            if parameter not in self.shared:
                self._claim(parameter, who)
        for task in losses:
            self.own.setdefault(task, {})
        self.read_tasks.update(losses)
        self.reached.update(behind)
        self.reached.update(dict.fromkeys(reach))

    def follow(self, losses: Mapping[str, Tensor], features: Sequence[Tensor]) -> None:
        """Learn whether a task has a way to a shared parameter that goes round the features.

        Each task is followed once; whether it is first heard with or without features, and who
        said what is shared, does not matter.
        """
        fresh = [loss.grad_fn for task, loss in losses.items() if task not in self.followed]
        round_them = _reached(fresh, _edges(features))
        self.beyond_features |= any(parameter in self.shared for parameter in round_them)
        self.followed.update(losses)

    def read_own(self, losses: Mapping[str, Tensor]) -> None:
        """Learn the own parameters alone, from graphs in which the trunk may be at rest."""
        self._blocks = None
        for task, loss in losses.items():
            for parameter in _reached([loss.grad_fn], ()):
                if parameter not in self.shared:
                    self._claim(parameter, [task])

    def _claim(self, parameter: Tensor, who: Sequence[str]) -> None:
        holders = {task for task, own in self.own.items() if parameter in own} | set(who)
        if len(holders) > 1:
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} is reached by the tasks "
                f"{', '.join(sorted(holders))} but is not among the shared ones; "
                "name all shared parameters with shared="
            )
        self.own.setdefault(who[0], {})[parameter] = None


def _edges(features: Sequence[Tensor]) -> list[tuple[Any, int]]:
    """Where the features hang in the graph."""
    return [(z.grad_fn, z.output_nr) for z in features if z.grad_fn is not None]


def _meets(root: Any, stops: Sequence[tuple[Any, int]], edges: Sequence[tuple[Any, int]]) -> bool:
    """Whether a walk of the autograd graph from `root`, not entering `stops`, meets `edges`."""
    stack, seen = [root], {root}
    while stack:
        for edge in stack.pop().next_functions:
            if edge in edges:
                return True
            if edge[0] is not None and edge[0] not in seen and edge not in stops:
                seen.add(edge[0])
                stack.append(edge[0])
    return False


def _reached(roots: Iterable[Any], stops: Sequence[tuple[Any, int]]) -> dict[Tensor, None]:
    """The parameters that a walk of the autograd graph from `roots` finds, in order.

    `stops` are edges (node, output number) that the walk does not enter. Leaves that are no
    `nn.Parameter` (inputs that a physics-informed loss differentiates by) are not parameters.
    """
    found: dict[Tensor, None] = {}
    stack = [root for root in roots if root is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)  # set on AccumulateGrad nodes only
        if isinstance(variable, nn.Parameter):
            found[variable] = None
        for child, number in node.next_functions:
            if child is None or child in seen or (child, number) in stops:
                continue
            seen.add(child)
            stack.append(child)
    return found
