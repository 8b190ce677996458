"""What a step of several ranks begins with: the same tasks, losses and leaves on every rank.

A rank may lack a task that another one has, and where the graph changes from step to step, one loss
may reach other leaves on each rank. After the agreement every rank has a loss for each task that is
present on some rank, with the same value everywhere, and every such loss reaches the same leaves: a
zero with a graph stands where this rank's own does not reach. Losses are multiplied by
R n_i^r / Σ_r n_i^r, so that the mean over ranks of their gradients is the gradient of the mean over
all labels.

Who reaches what travels only when some rank finds it changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evenhand.autodiff.call import Call
from evenhand.autodiff.found import Found
from evenhand.autodiff.ownership import Probe
from evenhand.autodiff.walk import edge_of, walk
from evenhand.distributed.header import Header
from evenhand.distributed.ranks import Ranks
from evenhand.network import Outputs

ONE = torch.Size()
"""The shape of a single network's losses."""
SAME = 1e-4
"""How far, relatively, a parameter's mean size may differ between ranks that begin alike."""


@dataclass
class _Reach:
    """Who reaches what: for each term, the keys of leaves; and the keys of joint leaves."""

    leaves: dict[int, frozenset[str]] = field(default_factory=dict)
    joint: frozenset[str] = frozenset()
    dtypes: dict[int, str] = field(default_factory=dict)

    def knows(self, other: _Reach) -> bool:
        """Whether nothing in `other` is news."""
        return (
            all(self.leaves.get(k) == keys for k, keys in other.leaves.items())
            and other.joint <= self.joint
            and all(self.dtypes.get(k) == dtype for k, dtype in other.dtypes.items())
        )


@dataclass(frozen=True)
class Agreed:
    """What all ranks agree a batch is.

    Attributes:
        losses: for each task that is present on some rank, its loss.
        plus: what is nobody's task, or None.
        counts: for each of these tasks, its labels on all ranks.
    """

    losses: dict[str, Tensor]
    plus: Tensor | None
    counts: dict[str, float]


class Agreement:
    """Makes ranks agree, and remembers on what.

    Args:
        names: of the model's parameters, where it is known.
    """

    def __init__(self, names: Callable[[], Mapping[Tensor, str]]) -> None:
        self._names = names
        self._reaches: dict[Hashable, _Reach] = {}
        self._met: list[weakref.ref[Tensor]] = []  # leaves without a name, in order
        self._checked: set[str] = set()

    def of(
        self,
        ranks: Ranks,
        tasks: Sequence[str],
        losses: Mapping[str, Tensor],
        plus: Tensor | None,
        counts: Mapping[str, float] | None,
        *,
        features: Sequence[Tensor] = (),
        outputs: Outputs | None = None,
        leading: torch.Size = ONE,
        kind: Hashable = None,
        whole: bool = False,
    ) -> Agreed:
        """What all ranks agree this batch is.

        Args:
            ranks: all of them.
            tasks: all tasks.
            losses: those of this rank, perhaps none.
            plus: what is nobody's task, here; or None.
            counts: how many labels each loss is the mean of; one each by default.
            features, outputs: the representation, as `Ownership.decide` gets it.
            leading: the shape of a loss.
            kind: batches of one kind reach the same leaves from step to step.
            whole: whether every rank must reach, by its own graph, what any reaches.

        Raises:
            ValueError: ranks begin with different parameters, or a leaf is reached on some rank and
                not known on another.
        """
        plus = None if plus is None or not plus.requires_grad else plus
        here = [losses.get(task) for task in tasks]
        own = [labels(task, term, counts) for task, term in zip(tasks, here, strict=True)]
        here.append(plus)
        own.append(float(plus is not None))
        call = Call.of(losses, tasks, plus=plus) if losses else None
        found = None if call is None else Found.of(call, tasks, features, outputs)
        masks, joint = self._masks(found, plus, len(tasks))
        mine = self._reach(masks, joint, here)
        known = self._reaches.setdefault(kind, _Reach())
        header = Header.of(ranks, here, own, leading, news=not known.knows(mine))
        if header.news:
            known = self._reaches[kind] = self._exchanged(ranks, mine, known, masks)
        if whole:
            self._require_whole(ranks, tasks, known, mine, header)
        behind = self._behind(features)
        agreed = [
            self._term(k, term, ranks.size * own[k], header, known, mine, features, behind)
            if header.counts[k] > 0
            else None
            for k, term in enumerate(here)
        ]
        present = {t: v for t, v in zip(tasks, agreed, strict=False) if v is not None}
        totals = {task: header.counts[k] for k, task in enumerate(tasks) if task in present}
        return Agreed(present, agreed[-1], totals)

    def dtype(self, k: int) -> torch.dtype:
        """The type of task k's losses on all ranks, as far as a step has told."""
        known = (reach.dtypes[k] for reach in self._reaches.values() if k in reach.dtypes)
        found: torch.dtype = getattr(torch, next(known, "float64"))
        return found

    # Who reaches what here --------------------------------------------------------------------

    def _masks(
        self, found: Found | None, plus: Tensor | None, m: int
    ) -> tuple[dict[Tensor, int], set[Tensor]]:
        """The leaves that terms of this rank reach, with masks; and the joint ones."""
        if found is None:
            if plus is None:
                return {}, set()
            reach = walk([(edge_of(plus), 1 << m)])
            return reach.leaves, set()
        masks = dict(found.reached)
        for leaf in found.extra:
            masks[leaf] = masks.get(leaf, 0) | 1 << m
        return masks, found.joint

    def _reach(
        self, masks: Mapping[Tensor, int], joint: set[Tensor], terms: Sequence[Tensor | None]
    ) -> _Reach:
        keys = self._keys(masks)
        leaves = {
            k: frozenset(keys[leaf] for leaf, mask in masks.items() if mask >> k & 1)
            for k, term in enumerate(terms)
            if term is not None
        }
        dtypes = {
            k: str(t.dtype).removeprefix("torch.") for k, t in enumerate(terms) if t is not None
        }
        return _Reach(leaves, frozenset(keys[leaf] for leaf in joint), dtypes)

    def _keys(self, leaves: Mapping[Tensor, int]) -> dict[Tensor, str]:
        """What leaves are called on every rank: by name, or by when they were met."""
        names = self._names()
        met = {id(leaf): k for k, ref in enumerate(self._met) if (leaf := ref()) is not None}
        found = {}
        for leaf in leaves:
            if leaf in names:
                found[leaf] = names[leaf]
                continue
            if id(leaf) not in met:
                met[id(leaf)] = self._numbered(leaf)
            found[leaf] = f"#{met[id(leaf)]}"
        return found

    def _numbered(self, leaf: Tensor) -> int:
        """A number for a leaf; inputs that are differentiated by are other tensors in every step,
        so one that is gone leaves its number to the next.

        Raises:
            ValueError: it is a part of the parameters under FSDP's first version.
        """
        if getattr(leaf, "_is_flat_param", False):
            raise ValueError(
                "FullyShardedDataParallel flattens parameters, so that it cannot be told whose "
                "they are: call torch.distributed.fsdp.fully_shard on the model instead, or wrap "
                "it in DistributedDataParallel, and give it to Balancer(model=)"
            )
        for k, ref in enumerate(self._met):
            if ref() is None:
                self._met[k] = weakref.ref(leaf)
                return k
        self._met.append(weakref.ref(leaf))
        return len(self._met) - 1

    def leaf(self, key: str) -> Tensor | None:
        """The leaf that is called so."""
        if key.startswith("#"):
            number = int(key[1:])
            return self._met[number]() if number < len(self._met) else None
        return next((leaf for leaf, name in self._names().items() if name == key), None)

    # Who reaches what anywhere ----------------------------------------------------------------

    def _exchanged(
        self, ranks: Ranks, mine: _Reach, known: _Reach, masks: Mapping[Tensor, int]
    ) -> _Reach:
        facts = {}
        for leaf, key in self._keys(masks).items():
            if key not in self._checked:
                held = leaf.numel() and leaf.untyped_storage().size()  # parts may be put away
                size = float(leaf.detach().abs().double().mean()) if held else 0.0
                facts[key] = tuple(leaf.shape), str(leaf.dtype), size
        told: list[dict[str, Any]] = ranks.gathered(
            {
                "leaves": mine.leaves,
                "joint": mine.joint,
                "dtypes": mine.dtypes,
                "facts": facts,
                "met": sum(ref() is not None for ref in self._met),
                "frozen": [n for leaf, n in self._names().items() if not leaf.requires_grad],
            }
        )
        self._require_alike(told)
        self._checked |= {key for there in told for key in there["facts"]}
        leaves: dict[int, frozenset[str]] = {}
        joint: frozenset[str] = frozenset()
        dtypes: dict[int, str] = {}
        for there in told:
            for k, keys in there["leaves"].items():
                leaves[k] = leaves.get(k, frozenset()) | keys
            joint |= there["joint"]
            dtypes |= there["dtypes"]
        # A term that is absent everywhere in this step is as it was.
        return _Reach({**known.leaves, **leaves}, joint, {**known.dtypes, **dtypes})

    def _require_alike(self, told: Sequence[dict[str, Any]]) -> None:
        if len({there["met"] for there in told}) > 1:
            raise ValueError(
                "the losses of some ranks reach parameters that others do not, and the model is "
                "not known, so that they cannot be told apart: give Balancer(model=)"
            )
        reached = {key for there in told for keys in there["leaves"].values() for key in keys}
        for rank, there in enumerate(told):
            if frozen := sorted(reached.intersection(there["frozen"])):
                raise ValueError(
                    f"rank {rank} does not train {frozen[0]!r}, which a loss of another rank "
                    "reaches: freeze the same parameters on all ranks"
                )
        seen: dict[str, tuple[tuple[int, ...], str, float]] = {}
        for rank, there in enumerate(told):
            for key, (shape, dtype, size) in there["facts"].items():
                first = seen.setdefault(key, (shape, dtype, size))
                if first[:2] != (shape, dtype) or abs(first[2] - size) > SAME * abs(first[2]):
                    raise ValueError(
                        f"rank {rank} has another parameter {key!r} than the ranks before it "
                        f"(shape {shape}, {dtype}, mean size {size:.6g}; they have {first[0]}, "
                        f"{first[1]}, {first[2]:.6g}): ranks must begin with the same model. Seed "
                        "them alike, or wrap the model in DistributedDataParallel; for ranks that "
                        "train models of their own, Balancer(group=False)"
                    )

    def _require_whole(
        self, ranks: Ranks, tasks: Sequence[str], known: _Reach, mine: _Reach, header: Header
    ) -> None:
        names = [*tasks, "plus="]
        less = [
            header.counts[k] > 0 and known.leaves.get(k) != mine.leaves.get(k)
            for k in range(len(names))
        ]
        found = ranks.anywhere(less)
        if any(found):
            name = names[found.index(True)]
            raise ValueError(
                f"under fully_shard every rank must run the same passes, and {name!r} is absent "
                "on some rank, or reaches less there: give it a loss of zero that has its graph, "
                "0 * output.sum(), and counts={…: 0} for it"
            )

    # The losses -------------------------------------------------------------------------------

    def _behind(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The leaves behind the features, by key."""
        if not features:
            return {}
        reach = walk([(edge_of(z), 1) for z in features])
        return {key: leaf for leaf, key in self._keys(reach.leaves).items()}

    def _term(
        self,
        k: int,
        term: Tensor | None,
        share: float,
        header: Header,
        known: _Reach,
        mine: _Reach,
        features: Sequence[Tensor],
        behind: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss that stands for term k here; its value is the same on all ranks."""
        missing = known.leaves.get(k, frozenset()) - mine.leaves.get(k, frozenset())
        value = header.values[k].to(getattr(torch, known.dtypes[k]))
        zeros: list[Tensor] = []
        if missing & behind.keys():
            zeros += [_zero(z) for z in features]
        for key in sorted(missing - behind.keys()):
            leaf = self.leaf(key)
            if leaf is None or not leaf.requires_grad:
                raise ValueError(
                    f"another rank's loss reaches the parameter {key!r}, which this rank does "
                    "not know or does not train: give Balancer(model=), and freeze the same "
                    "parameters on all ranks"
                )
            zero = _zero(leaf)
            joined = key in known.joint
            zeros.append(torch.cat([zero.view(1), zero.detach().view(1)]).sum() if joined else zero)
        parts = [zero.to(value.dtype) for zero in zeros]
        if term is not None:
            by = share / header.counts[k]
            scaled = term.to(value.dtype) if by == 1 else term.to(value.dtype) * by
            parts.append(scaled - scaled.detach())
            value = value.to(term.device)
        elif zeros:
            value = value.to(zeros[0].device)
        total = value
        for part in parts:
            total = total + part
        return total

    # What the graph cannot tell ---------------------------------------------------------------

    def probed(self, ranks: Ranks, probe: Probe, m: int) -> Probe:
        """Where gradients are not zero on any rank."""

        def anywhere(leaves: Sequence[Tensor]) -> list[int]:
            names = self._keys({leaf: 0 for leaf in leaves if leaf.is_leaf})
            # Features are the same on every rank, one after the other.
            order = sorted(range(len(leaves)), key=lambda at: names.get(leaves[at], "~"))
            masks = probe(leaves)
            flags = [bool(masks[at] >> k & 1) for at in order for k in range(m)]
            heard = ranks.anywhere(flags)
            found = [0] * len(leaves)
            for place, at in enumerate(order):
                found[at] = sum(1 << k for k in range(m) if heard[place * m + k])
            return found

        return anywhere


def labels(task: str, term: Tensor | None, counts: Mapping[str, float] | None) -> float:
    """How many labels a loss is the mean of on this rank; one where nobody says.

    Raises:
        ValueError: `counts` says nothing of it.
    """
    if term is None:
        return 0.0
    if counts is None:
        return 1.0
    if task not in counts:
        raise ValueError(f"counts= says nothing of {task!r}, which has a loss here")
    return float(counts[task])


def _zero(tensor: Tensor) -> Tensor:
    """Zero, with a graph that leads to `tensor` and reads nothing of it."""
    nothing = tensor.reshape(-1)[:0].sum()
    return nothing.real if nothing.is_complex() else nothing
