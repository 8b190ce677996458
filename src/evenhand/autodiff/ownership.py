"""Whose a parameter is: what is balanced, and which block it belongs to.

Two notions with two names. **Balanced** is a leaf that several tasks reach: by the graph of every
call so far, kept as a growing union. A **block** (the trunk, each head) is what phases freeze and
what optimizers belong to: the structure of the model, fixed for a run. A head that two losses use
is balanced like the trunk, and trains with the heads.

The graph of the call at hand says who reaches what (`walk`). Where it cannot tell two tasks apart,
because their losses pass a node that joins unrelated tensors (`torch.cat` of the heads' outputs, a
compiled function), the model's structure says what is a head, and gradients that are not zero say
which losses use it; where no structure is known, `Undecided` asks for it. A user's `shared=` says
what is balanced whatever the graph says.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.autodiff.call import Call
from evenhand.autodiff.found import Found
from evenhand.autodiff.owners import Decided, Owners
from evenhand.autodiff.structure import Structure
from evenhand.autodiff.union import Union
from evenhand.network import Blocks, MultiTaskNetwork, Outputs, unwrapped

MOST_DECIDED = 32
"""Decisions that are remembered: one for each phase and each set of active tasks."""
Probe = Callable[[Sequence[Tensor]], list[int]]
"""Tensors -> for each of them, the mask of the active tasks whose gradient there is not zero."""


class Undecided(ValueError):
    """The graph cannot tell whose a parameter is, and nobody has said it."""


class Ownership:
    """Whose each parameter is, as far as a balancer knows."""

    def __init__(self) -> None:
        self.union = Union()
        self._structure: Structure | None = None
        self._given = False  # whether the user attached the model
        self._named: tuple[tuple[Tensor, ...], dict[str, tuple[Tensor, ...]] | None] | None = None
        self._just_named = False
        self._saved: dict[str, list[str]] = {}  # by name, until the parameters are met
        self._heard = 0
        self._told: set[str] = set()
        self._original: tuple[Ownership, dict[int, Any]] | None = None
        self._decided: dict[tuple[Any, ...], Decided] = {}

    # What is told ----------------------------------------------------------------------------

    def attach(self, model: nn.Module, given: bool = True) -> None:
        """Learn the structure of `model`, whatever it is wrapped in, and its parameters' names."""
        self._settled()
        if self._structure is None or self._structure.model is not unwrapped(model):
            self._structure = Structure(model)
            self._decided.clear()
        self._given = self._given or given

    @property
    def watches(self) -> bool:
        """Whether parameters of a model that the user attached are still to be met."""
        self._settled()
        return self._given and "unreached" not in self._told

    @property
    def names(self) -> Mapping[Tensor, str]:
        """The names of the model's parameters, where it is known."""
        return {} if self._structure is None else self._structure.names

    @property
    def network(self) -> MultiTaskNetwork | None:
        """The network whose structure is known."""
        self._settled()
        return None if self._structure is None else self._structure.network

    @property
    def device(self) -> torch.device | None:
        """Where the model's first parameter is; None where there is no model, or it is nowhere."""
        model = None if self._structure is None else self._structure.model
        first = None if model is None else next(model.parameters(), None)
        return None if first is None or first.is_meta else first.device

    def name(
        self, shared: Iterable[Tensor] | None, own: Mapping[str, Iterable[Tensor]] | None
    ) -> None:
        """Take a user's word for what is balanced; it holds until another is given.

        Raises:
            TypeError: something in `shared` is no tensor.
            ValueError: `own` is given without `shared`; a tensor is no leaf, or stands in both.
        """
        self._settled()
        if own is not None and shared is None:
            raise ValueError("own= completes shared=: name the shared parameters too")
        if shared is None:
            return
        balanced = tuple(shared.parameters() if isinstance(shared, nn.Module) else shared)
        if foreign := [t for t in balanced if not isinstance(t, Tensor)]:
            raise TypeError(
                f"shared= holds a {type(foreign[0]).__name__}: name parameters, as in "
                "shared=trunk.parameters()"
            )
        mine = None if own is None else {task: tuple(its) for task, its in own.items()}
        if inner := [t for t in balanced if not t.is_leaf]:
            raise ValueError(
                f"shared= holds a tensor of shape {tuple(inner[0].shape)} that is computed from "
                "others: name the parameters; what they compute is features="
            )
        both = [(t, p) for t, its in (mine or {}).items() for p in its if _among(p, balanced)]
        if both:
            task, parameter = both[0]
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} stands in shared= and in "
                f"own= of {task!r}: it is either balanced or the task's own"
            )
        self._named = balanced, mine
        self._just_named = True

    # What is found ---------------------------------------------------------------------------

    def decide(
        self,
        call: Call,
        tasks: Sequence[str],
        features: Sequence[Tensor],
        outputs: Outputs | None,
        probe: Probe,
    ) -> Owners:
        """Whose the leaves are that the losses of `call` reach.

        Args:
            call: the call.
            tasks: all tasks.
            features: the representation that the user gave, those that require gradients.
            outputs: the outputs of a `MultiTaskNetwork`, if the user gave them.
            probe: asked where the graph cannot tell two tasks apart.

        Raises:
            ValueError: no loss depends on the features; nothing is reached that trains; or it
                cannot be told whose a parameter is (`Undecided`).
        """
        self._settled()
        if outputs is not None and outputs.network is not None and not self._given:
            self.attach(outputs.network, given=False)
        found = Found.of(call, tasks, features, outputs)
        # From step to step the answer is mostly the same: everything that it rests on is compared.
        if found.joint or self._named is not None:
            return self._newly_decided(call, tasks, found, probe)
        asked = self._asked(call, tasks, found)
        known = self._decided.get(asked)
        owners = None if known is None else known.again(found)
        if owners is not None:
            self._warn(call, tasks, owners.extra)
        else:
            owners = self._newly_decided(call, tasks, found, probe)
            if len(self._decided) > MOST_DECIDED:
                self._decided.clear()
            self._decided[self._asked(call, tasks, found)] = Decided(owners)
        return owners

    def _asked(self, call: Call, tasks: Sequence[str], found: Found) -> tuple[Any, ...]:
        """All that a decision rests on, where the graph tells the tasks apart."""
        return (
            self.union.changes,
            len(tasks),
            call.index,
            call.trains,
            call.phase,
            *found.told(),
        )

    def _newly_decided(
        self, call: Call, tasks: Sequence[str], found: Found, probe: Probe
    ) -> Owners:
        if self._structure is not None:
            for before, after in self._structure.refresh(found.reached):
                self.union.add(after, self.union.of(before), self.union.seen(before))
        self._forget_named(found.reached)
        masks, silent = self._told_apart(call, tasks, found, probe)
        for leaf, mask in masks.items():
            if id(leaf) not in silent:
                self.union.add(leaf, mask)
        self._heard |= sum(1 << k for k in call.index)
        self._meet_saved(tasks, masks)
        owners = self._sorted(call, tasks, masks, found)
        self._warn(call, tasks, owners.extra)
        return owners

    def of_sums(self, call: Call, tasks: Sequence[str], masks: dict[Tensor, int]) -> Owners:
        """Whose the leaves are of several micro-batches, each of which was decided on already.

        Args:
            call: the tasks of all of them.
            tasks: all tasks.
            masks: which tasks reach each leaf; none do where `plus` alone does.
        """
        reached = {leaf: mask for leaf, mask in masks.items() if mask}
        extra = [leaf for leaf, mask in masks.items() if not mask]
        found = Found(reached, set(), set(), set(), extra, (), [])
        return self._sorted(call, tasks, reached, found)

    def _forget_named(self, reached: Iterable[Tensor]) -> None:
        """Forget what an earlier call named, if these losses reach none of it.

        It was said of another model then.
        """
        if self._named is not None and not self._just_named:
            there = {id(leaf) for leaf in reached}
            if not any(id(leaf) in there for leaf in self._named[0]):
                self._named = None
        self._just_named = False

    def watch(self, call: Call, tasks: Sequence[str]) -> None:
        """Note who reaches what where nobody asks, for the warning of what no task reaches."""
        found = Found.of(call, tasks, (), None)
        if self._structure is not None:
            self._structure.refresh(found.reached)
        for leaf, mask in found.reached.items():
            self.union.add(leaf, mask)
        self._heard |= sum(1 << k for k in call.index)
        self._warn(call, tasks, found.extra)

    def _told_apart(
        self, call: Call, tasks: Sequence[str], found: Found, probe: Probe
    ) -> tuple[dict[Tensor, int], set[int]]:
        """Which tasks reach each leaf, also where the graph alone cannot tell.

        Also the leaves (by identity) at which every gradient is zero: of those this call says
        nothing that would be worth remembering.
        """
        masks = dict(found.reached)
        nothing: set[int] = set()
        if self._named is not None or len(tasks) == 1:
            return masks, nothing
        trunk = set() if self._structure is None else self._structure.trunk
        heads = set() if self._structure is None else self._structure.heads
        unsure = [
            leaf
            for leaf in masks
            if leaf in found.joint and leaf not in trunk and masks[leaf] & ~self.union.seen(leaf)
        ]
        if not unsure:
            return masks, nothing
        # A task whose gradient is zero at all that it surely has in common with others says nothing
        # of who reaches what: its head may begin at zero.
        open_ones = {id(leaf) for leaf in unsure}
        others = [leaf for leaf in masks if id(leaf) not in open_ones]
        common = [leaf for leaf in others if _several(masks[leaf])]
        witnesses = [*found.features] or common or others
        probed = probe([*unsure, *witnesses])
        seen = dict(zip(unsure, probed, strict=False))
        speaking = reduce(or_, probed)
        for leaf, mask in seen.items():
            self.union.add(leaf, 0, mask)
            silent = masks[leaf] & speaking & ~(mask | self.union.seen(leaf))
            if not mask:
                nothing.add(id(leaf))
                continue
            if not silent:
                continue
            if leaf not in heads:
                raise Undecided(self._undecided(leaf, masks[leaf], silent, tasks))
            masks[leaf] &= ~silent
        return masks, nothing

    def _undecided(self, leaf: Tensor, mask: int, silent: int, tasks: Sequence[str]) -> str:
        names = {} if self._structure is None else self._structure.names
        what = repr(names[leaf]) if leaf in names else f"a parameter of shape {tuple(leaf.shape)}"
        return (
            f"it cannot be told whose {what} is: the losses of {_listed(mask, tasks)} pass one "
            "node of the graph (torch.cat, torch.where, a compiled or scripted function) on the "
            f"way to it, and the gradient of {_listed(silent, tasks)} there is zero. Say what is "
            "balanced with shared=trunk.parameters(), or give Balancer(model=) a MultiTaskNetwork, "
            "or take the heads' outputs before they are joined and compile trunk and heads apart"
        )

    def _sorted(
        self, call: Call, tasks: Sequence[str], masks: Mapping[Tensor, int], found: Found
    ) -> Owners:
        """The reached leaves by what happens to each of them."""
        structure = self._structure
        trunk = set() if structure is None else structure.trunk
        heads = set() if structure is None else structure.heads
        named_own = {} if self._named is None else self._named[1] or {}
        own = {
            1 << tasks.index(task): {id(leaf) for leaf in its}
            for task, its in named_own.items()
            if task in tasks
        }
        position = {k: at for at, k in enumerate(call.index)}
        owners = Owners(alone=[[] for _ in call.tasks])
        if structure is not None and structure.blocks is not None:
            owners.last_layer = structure.blocks.last_layer
        parameters = any(isinstance(leaf, nn.Parameter) for leaf in masks)
        named = None if self._named is None else {id(leaf) for leaf in self._named[0]}
        for leaf in self._ordered(masks):
            known = call.phase and leaf in trunk  # the phase names the block
            balanced = known or self._is_balanced(leaf, heads, named, lone=len(tasks) == 1)
            in_trunk = leaf in trunk or (balanced and leaf not in heads)
            admitted = _admitted(leaf, masks.get(leaf, 0), own)
            if ("shared" if in_trunk else "own") not in call.trains:
                owners.frozen.append(leaf)
            elif balanced:
                counts = isinstance(leaf, nn.Parameter) or self._named is not None or not parameters
                (owners.balanced if counts else owners.carried).append(leaf)
                if leaf not in found.behind:
                    owners.beyond.append(leaf)
            elif admitted and admitted == masks[leaf] and not _several(admitted):
                owners.alone[position[admitted.bit_length() - 1]].append(leaf)
            elif admitted:
                owners.common.append((leaf, admitted))
        owners.sharers = reduce(or_, (masks.get(leaf, 0) for leaf in owners.balanced), 0)
        owners.extra = [leaf for leaf in found.extra if leaf not in masks]
        if call.phase:
            owners.extra = [leaf for leaf in owners.extra if self._trains(leaf, call)]
            owners.frozen += self._frozen_elsewhere(call, owners)
        if found.features and not any(leaf in found.round for leaf in owners.balanced):
            owners.features = list(found.features)
            if not owners.beyond and not owners.common:
                owners.readings = found.readings
        if not any((owners.balanced, owners.carried, owners.common, *owners.alone)):
            raise ValueError(_nothing_trains(call))
        return owners

    def _ordered(self, masks: Mapping[Tensor, int]) -> list[Tensor]:
        """The reached leaves, and those that were named: in the model's order, where it is known.

        What was named comes in the order in which it was.
        """
        found = list(masks)
        if self._structure is not None:
            places, last = self._structure.places, len(self._structure.places)
            found.sort(key=lambda leaf: places.get(leaf, last))
        if self._named is None:
            return found
        named = [leaf for leaf in self._named[0] if leaf.requires_grad]
        there = {id(leaf) for leaf in named}
        return named + [leaf for leaf in found if id(leaf) not in there]

    def _is_balanced(
        self, leaf: Tensor, heads: set[Tensor], named: set[int] | None, lone: bool
    ) -> bool:
        if named is not None:
            return id(leaf) in named
        return _several(self.union.of(leaf)) or (lone and leaf not in heads)

    def _trains(self, leaf: Tensor, call: Call) -> bool:
        """Whether a leaf that no active loss reaches trains in a named phase.

        The trunk does where it trains; the heads of absent tasks do not; what no task has ever
        reached, and is of no known block, does.
        """
        structure = self._structure
        if structure is not None and (leaf in structure.trunk or leaf in structure.heads):
            return leaf in structure.trunk and "shared" in call.trains
        mask = self.union.of(leaf)
        return not mask or (_several(mask) and "shared" in call.trains)

    def _frozen_elsewhere(self, call: Call, owners: Owners) -> list[Tensor]:
        """What a phase freezes beside what its losses reach: the heads of absent tasks; a trunk."""
        known = {leaf: _several(mask) for leaf, mask in self.union.items()}
        structure = self._structure
        if structure is not None and structure.blocks is not None:
            known.update(dict.fromkeys(structure.heads, False))
            known.update(dict.fromkeys(structure.trunk, True))
        elif self._named is not None:
            known.update(dict.fromkeys(self._named[0], True))
        there = {*owners.trained, *owners.frozen}
        return [
            leaf
            for leaf, in_trunk in known.items()
            if leaf not in there and not (in_trunk and "shared" in call.trains)
        ]

    # What is known ---------------------------------------------------------------------------

    def blocks(self, tasks: Sequence[str]) -> Blocks:
        """The blocks of the model; for one of unknown structure, as far as calls have told.

        Raises:
            ValueError: no call has told yet.
        """
        self._settled()
        if self._structure is not None and self._structure.blocks is not None:
            return self._structure.blocks
        met = self.union.items()
        if any(isinstance(leaf, nn.Parameter) for leaf, _ in met):
            met = [(leaf, mask) for leaf, mask in met if isinstance(leaf, nn.Parameter)]
        if self._named is not None:
            shared, own = self._named
            mine: dict[str, list[Tensor]] = {t: list(its) for t, its in (own or {}).items()}
        elif met:
            shared, mine = tuple(p for p, mask in met if _several(mask) or len(tasks) == 1), {}
        else:
            raise ValueError("what is shared is known only after the first backward, or by model=")
        for leaf, mask in met:
            if not _several(mask) and mask and not _among(leaf, shared):
                task = tasks[mask.bit_length() - 1]
                if self._named is None or task not in (self._named[1] or {}):
                    mine.setdefault(task, []).append(leaf)
        return Blocks(shared, {task: tuple(its) for task, its in mine.items()})

    def _warn(self, call: Call, tasks: Sequence[str], by_plus: Sequence[Tensor]) -> None:
        """Once: parameters that no task reaches, when every task has been heard."""
        structure = self._structure
        if structure is None or not self._given or "unreached" in self._told:
            return
        if self._heard != (1 << len(tasks)) - 1 or len(call.trains) < 2 or call.phase:
            return
        self._told.add("unreached")
        extra = set(by_plus)
        names = [
            name
            for leaf, name in structure.names.items()
            if leaf.requires_grad and not self.union.of(leaf) and leaf not in extra
        ]
        if names:
            warnings.warn(
                f"no task reaches {len(names)} parameter(s), which will not be trained: "
                + ", ".join(names[:5])
                + ("…" if len(names) > 5 else ""),
                stacklevel=6,
            )

    # Saving ----------------------------------------------------------------------------------

    def state(self, tasks: Sequence[str]) -> dict[str, Any]:
        """Which tasks have reached which parameter, by name, where the model is known."""
        self._settled()
        if self._structure is None:
            lost = "not saved: the model is not known (Balancer(model=…) or attach)"
            return {"reached": lost if len(self.union) else {}}
        names = self._structure.names
        found = {
            names[leaf]: _names(mask, tasks) for leaf, mask in self.union.items() if leaf in names
        }
        return {"reached": {**self._saved, **found}}

    def load_state(self, state: Mapping[str, Any], tasks: Sequence[str]) -> None:
        """Restore what `state` gave."""
        self._settled()
        self.union = Union()
        self._decided.clear()
        reached = state.get("reached", {})
        if isinstance(reached, str):
            warnings.warn(
                "this state was saved by a balancer that did not know its model, so which tasks "
                "had reached which parameter is lost, and found again call by call: give both "
                "balancers model=",
                stacklevel=2,
            )
            reached = {}
        self._saved = dict(reached)
        if self._structure is not None:
            self._meet_saved(tasks, self._structure.names)

    def _meet_saved(self, tasks: Sequence[str], met: Iterable[Tensor]) -> None:
        """Add what was saved by name, once the parameters of that name are there."""
        if not self._saved or self._structure is None:
            return
        for leaf in met:
            name = self._structure.names.get(leaf)
            if name is not None and name in self._saved:
                who = self._saved.pop(name)
                self.union.add(leaf, sum(1 << tasks.index(task) for task in who))

    def __deepcopy__(self, memo: dict[int, Any]) -> Ownership:
        # A model that is copied along may be copied after this: who its parameters are is looked
        # up when the copy is used.
        other = Ownership()
        other._original = self, memo
        return other

    def _settled(self) -> None:
        """Take over what the original of a copy knew, of the copies of its parameters."""
        if self._original is None:
            return
        (before, memo), self._original = self._original, None
        before._settled()
        for leaf, mask in before.union.items():
            self.union.add(memo.get(id(leaf), leaf), mask, before.union.seen(leaf))
        if before._structure is not None:
            model = before._structure.model
            self._structure = Structure(memo.get(id(model), model))
        if before._named is not None:
            shared, own = before._named
            there = tuple(memo.get(id(p), p) for p in shared)
            mine = own and {t: tuple(memo.get(id(p), p) for p in its) for t, its in own.items()}
            self._named = there, mine
        self._given, self._saved = before._given, dict(before._saved)
        self._heard, self._told = before._heard, set(before._told)

    def __getstate__(self) -> dict[str, Any]:
        # Parameters and models are other objects in another process; `state_dict` has the names.
        self._settled()
        return {**vars(Ownership()), "_heard": self._heard, "_told": self._told}


def _nothing_trains(call: Call) -> str:
    message = f"the losses of {', '.join(call.tasks)} reach no parameter that trains"
    if call.phase and len(call.trains) < 2:
        message += (
            f": this phase trains the block {call.trains[0]!r}, and what is shared is not known "
            "yet; name it with shared=, or give Balancer(model=) a MultiTaskNetwork"
        )
    return message


def _several(mask: int) -> bool:
    return bool(mask & (mask - 1))


def _among(leaf: Tensor, others: Iterable[Tensor]) -> bool:
    return any(leaf is other for other in others)


def _names(mask: int, tasks: Sequence[str]) -> list[str]:
    return [task for k, task in enumerate(tasks) if mask >> k & 1]


def _listed(mask: int, tasks: Sequence[str]) -> str:
    return ", ".join(map(repr, _names(mask, tasks)))


def _admitted(leaf: Tensor, mask: int, own: Mapping[int, set[int]]) -> int:
    """The tasks among `mask` whose gradients a leaf that is not balanced gets.

    `own` has, by the bit of a task, the leaves (by identity) that it may train.
    """
    for bit, its in own.items():
        if id(leaf) not in its:
            mask &= ~bit
    return mask
