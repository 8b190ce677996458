"""The autograd graph of one backward call, and what has been taken from it so far.

With features Z (and nothing shared beyond them) the chain rule is used as the network is built:
one pass per task through its head gives ∂L_i/∂Z and the head's own gradient; from there a pass
through the trunk gives g_i, and a pass with Σ w_i ∂L_i/∂Z gives Σ w_i g_i for any number of tasks
at once. Without features every pass runs from a loss to the parameters. Each pass is taken once
and kept for whoever asks next.

Leading dimensions are independent networks. The losses of a stacked ensemble have its shape [E]
and its tensors begin with it; since no member's loss depends on another's parameters, the pass of
a sum over members is every member's pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from typing import Any, cast

import torch
from torch import Tensor

from evenhand.gradients import Door, NonFiniteError, Place, Row, norms
from evenhand.network import Blocks
from evenhand.schedule import Phase


@dataclass
class Update:
    """The gradients of one step: of the shared parameters, and of each task's own."""

    shared: Row
    own: dict[str, Row]


class Graph:
    """Gradients of the tasks' losses by shared parameters, features and own parameters.

    Args:
        losses: the losses of the m tasks that speak, with their graphs: scalars, or one entry
            for each member of a stacked ensemble, whose tensors all begin with that shape.
        phase: which tasks these are, and what moves.
        blocks: whose each parameter is.
        features: tensors that every path from a loss to a shared parameter passes; None when
            there are none, or when some path goes round them.
        plus: a scalar that is nobody's task, added to what moves without any weight.
        scale: every loss is multiplied by it before differentiation (loss scaling for half
            precision); what methods see is divided by it again.
    """

    def __init__(
        self,
        losses: Sequence[Tensor],
        phase: Phase,
        blocks: Blocks,
        features: Sequence[Tensor] | None,
        *,
        plus: Tensor | None = None,
        scale: float | Tensor | None = None,
        door: Door | None = None,
        retain_graph: bool = False,
    ) -> None:
        self.tasks = phase.tasks
        self.blocks = blocks
        self.shared = [p for p in blocks.shared if p.requires_grad]
        self.own = [[p for p in blocks.own.get(t, ()) if p.requires_grad] for t in phase.tasks]
        self.moves = phase.moves
        self._losses = list(losses) if scale is None else [loss * scale for loss in losses]
        self._members = losses[0].shape
        self._features = None if features is None else [z for z in features if z.requires_grad]
        self._plus = plus if plus is None or scale is None else plus * scale
        self._scale = scale
        self._door = door or Door()
        self._retain = retain_graph
        self._heads: list[Row] | None = None
        self._own: list[Row] | None = None
        self._rows: dict[Place, list[Row]] = {}
        self._gramians: dict[Place, Tensor] = {}

    # What methods ask for ---------------------------------------------------------------------

    def jacobian(self, place: Place) -> Tensor:
        """J at `place`, [m, n]."""
        targets = self.targets(place)
        rows = [_flat(row, targets, self._members) for row in self.rows(place)]
        jacobian = torch.stack(rows, dim=-2)
        self._require_finite("gradient", torch.tensor([_finite([row]) for row in rows]))
        return jacobian if self._scale is None else jacobian / self._scale

    def gramian(self, place: Place) -> Tensor:
        """G at `place`, [m, m]."""
        if place not in self._gramians:
            gramian = _gramian(self.rows(place), self.targets(place), self._members)
            if place == "representation":
                gramian = self._door.gramian_of_features(gramian)
            diagonal = gramian.diagonal(dim1=-2, dim2=-1)
            self._require_finite(
                "gradient", diagonal.isfinite().reshape(-1, len(self.tasks)).all(0)
            )
            if self._scale is not None:
                gramian = gramian / self._scale / self._scale
            self._gramians[place] = gramian
        return self._gramians[place]

    def norms(self, place: Place) -> Tensor:
        """‖g_i‖ at `place`, [m]."""
        return norms(self.gramian(place))

    def known_gramian(self, *places: Place) -> Tensor | None:
        """The Gramian at the first of `places` at which somebody has asked for it."""
        return next((self._gramians[p] for p in places if p in self._gramians), None)

    def spans(self, place: Place) -> list[slice]:
        """Where the parameters of `place` stand among the columns of the Jacobian of all."""
        sizes = [p.numel() // self._members.numel() for p in self.shared]
        ends = accumulate(sizes)
        columns = {
            id(p): slice(end - size, end)
            for p, size, end in zip(self.shared, sizes, ends, strict=True)
        }
        return [columns[id(target)] for target in self.targets(place)]

    def targets(self, place: Place) -> list[Tensor]:
        """The tensors that `place` differentiates by."""
        match place:
            case "parameters":
                return self.shared
            case "representation":
                return self._representation()
            case "last_layer":
                chosen = list(self.blocks.last_layer)
            case _ if callable(place):
                chosen = list(place(self.blocks.shared))
            case _:
                raise ValueError(f"at={place!r} is no place a gradient can be taken")
        if not chosen:
            raise ValueError(
                f"at={place!r}: the last shared layer of this model is not known; name it with "
                "at=lambda shared: model.layer.parameters(), or use a MultiTaskNetwork"
            )
        foreign = [p for p in chosen if not any(p is s for s in self.shared)]
        if foreign:
            raise ValueError(
                f"at={place!r} chose a parameter of shape {tuple(foreign[0].shape)} that is not "
                "shared (or frozen)"
            )
        return chosen

    def rows(self, place: Place) -> list[Row]:
        """g_i at `place` for every task, each a tensor per target."""
        if place in self._rows:
            return self._rows[place]
        if place == "representation":
            rows = self._through_heads()
        elif "parameters" in self._rows:
            position = {id(p): k for k, p in enumerate(self.shared)}
            chosen = [position[id(p)] for p in self.targets(place)]
            rows = [[row[k] for k in chosen] for row in self._rows["parameters"]]
        elif self._features is None:
            rows = [self._agreed(row) for row in self._from_losses(self.targets(place))]
        else:
            targets = self.targets(place)
            through_trunk = (self._through_trunk(d, targets) for d in self._through_heads())
            rows = [self._agreed(row) for row in through_trunk]
        self._rows[place] = rows
        return rows

    # The passes -------------------------------------------------------------------------------

    def _representation(self) -> list[Tensor]:
        if not self._features:
            raise ValueError(
                "at='representation' needs the features that all tasks share, with their graph: "
                "pass features= to backward, and check that no shared parameter is reached "
                "beyond them"
            )
        return self._features

    def _through_heads(self) -> list[Row]:
        """∂L_i/∂Z for every task; the heads' own gradients come along if they move."""
        if self._heads is None:
            features = self._representation()
            with _cut(features):
                self._heads = self._from_losses(features)
        return self._heads

    def _from_losses(self, targets: Sequence[Tensor]) -> list[Row]:
        take_own = "own" in self.moves and self._own is None
        own = self.own if take_own else [[] for _ in self.tasks]
        rows = [
            _grad([loss], [*targets, *mine]) for loss, mine in zip(self._losses, own, strict=True)
        ]
        if take_own:
            self._own = [row[len(targets) :] for row in rows]
        return [row[: len(targets)] for row in rows]

    def _through_trunk(
        self, head: Row, targets: Sequence[Tensor], retain_graph: bool = True
    ) -> Row:
        """The gradient by `targets` that a gradient by Z brings."""
        pairs = [(z, d) for z, d in zip(self._representation(), head, strict=True) if d is not None]
        if not pairs:
            return [None] * len(targets)
        outputs, gradients = zip(*pairs, strict=True)
        return _grad(outputs, targets, gradients, retain_graph)

    # What the update asks for -----------------------------------------------------------------

    def in_span(self, trunk: Tensor | None, heads: Tensor | None) -> Update:
        """Σ trunk_i g_i for the trunk and heads_i ∂L_i/∂θ_i for each head, plus `plus`'s share.

        `trunk` None means the same weights as `heads`, `heads` None means ones: then one backward
        pass of the weighted sum does for both, unless the passes per task are at hand already.
        """
        same = trunk is None or "shared" not in self.moves
        if same and self._heads is None and not self._rows:
            return self._one_pass(heads)
        if self._features is not None and "shared" in self.moves:
            self._through_heads()  # which brings the heads' own gradients along
        extra = self._gradient_of_plus()
        own = self._own_scaled(heads)
        shared: Row = []
        if "shared" in self.moves:
            everywhere = torch.ones_like(_stacked(self._losses)) if heads is None else heads
            shared = self._combined(everywhere if trunk is None else trunk)
        return _added(Update(shared, own), extra)

    def off_span(self, direction: Tensor, place: Place, heads: Tensor | None) -> Update:
        """A direction [n] at `place` for the trunk, heads and `plus` as in `in_span`."""
        extra = self._gradient_of_plus()
        own = self._own_scaled(heads)
        # A copy: the direction may be the method's own state, `.grad` is for others to write to.
        targets = self.targets(place)
        shared = _unflat(direction.clone(), targets, self._members, self._scale)
        if place == "representation":
            shared = self._agreed(self._through_trunk(shared, self.shared, self._retain))
        return _added(Update(shared, own), extra)

    def _one_pass(self, weights: Tensor | None) -> Update:
        total = _weighted_sum(self._losses, weights)
        if self._plus is not None:
            total = total + self._plus
        shared = self.shared if "shared" in self.moves else []
        own = self.own if "own" in self.moves else [[] for _ in self.tasks]
        row = _grad([total], [*shared, *chain(*own)], retain_graph=self._retain)
        return self._update(self._agreed(row), shared, own)

    def _gradient_of_plus(self) -> Update | None:
        if self._plus is None or not self._plus.requires_grad:
            return None
        shared = self.shared if "shared" in self.moves else []
        own = self.own if "own" in self.moves else [[] for _ in self.tasks]
        row = _grad([self._plus], [*shared, *chain(*own)])
        return self._update(self._agreed(row), shared, own)

    def _update(self, row: Row, shared: list[Tensor], own: list[list[Tensor]]) -> Update:
        entries = iter(row)
        trunk = list(islice(entries, len(shared)))
        heads: dict[str, Row] = {
            task: list(islice(entries, len(mine)))
            for task, mine in zip(self.tasks, own, strict=True)
        }
        return Update(trunk, heads if "own" in self.moves else {})

    def _combined(self, weights: Tensor) -> Row:
        if "parameters" in self._rows:
            return _combination(self._rows["parameters"], weights)
        if self._features is not None:
            through_heads = _combination(self._through_heads(), weights)
            return self._agreed(self._through_trunk(through_heads, self.shared, self._retain))
        total = _weighted_sum(self._losses, weights)
        return self._agreed(_grad([total], self.shared, None, self._retain))

    def _own_scaled(self, weights: Tensor | None) -> dict[str, Row]:
        if "own" not in self.moves:
            return {}
        if self._own is None:
            self._own = [
                _grad([loss], mine) for loss, mine in zip(self._losses, self.own, strict=True)
            ]
        own = dict(zip(self.tasks, map(self._agreed, self._own), strict=True))
        if weights is None:
            return own
        scale = dict(zip(self.tasks, weights.unbind(-1), strict=True))
        return {
            task: [None if g is None else g * _beside(scale[task], g) for g in row]
            for task, row in own.items()
        }

    def _agreed(self, row: Row) -> Row:
        """What all ranks agree this gradient is."""
        return [None if g is None else self._door.mean(g) for g in row]

    def pairs(self, update: Update) -> Iterator[tuple[Sequence[Tensor], Row]]:
        """Parameters beside their gradients, block by block."""
        if update.shared:
            yield self.shared, update.shared
        yield from zip(self.own, update.own.values(), strict=bool(update.own))

    def require_finite(self, update: Update) -> None:
        """Raises NonFiniteError, naming the tasks that an infinite or NaN gradient is of.

        A sum that is not finite is laid at the door of the tasks whose heads show it; where no
        head does (heads that rest, or have no parameters), all that were summed are named.
        """
        guilty = [task for task, row in update.own.items() if not _finite(row)]
        if guilty:
            raise NonFiniteError("gradient", guilty)
        if not _finite(update.shared):
            raise NonFiniteError("shared gradient, summed over the tasks,", self.tasks)

    def _require_finite(self, what: str, finite: Tensor) -> None:
        if not bool(finite.all()):
            flags = finite.tolist()
            raise NonFiniteError(
                what, [t for t, ok in zip(self.tasks, flags, strict=True) if not ok]
            )


# Rows: small arithmetic on lists of tensors ---------------------------------------------------


def _grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor] | None = None,
    retain_graph: bool = True,
) -> Row:
    if not inputs:
        return []
    if gradients is None and outputs[0].ndim:
        gradients = [torch.ones_like(output) for output in outputs]
    row = torch.autograd.grad(
        outputs, inputs, gradients, retain_graph=retain_graph, allow_unused=True
    )
    return cast(Row, row)


@contextmanager
def _cut(features: Sequence[Tensor]) -> Iterator[None]:
    """Inside, gradients by the features stop there.

    Of two levels of a pyramid, one made from the other, each then gets what reaches it directly;
    the way from one to the other belongs to the trunk.
    """
    numbers: dict[Any, set[int]] = {}
    for z in features if len(features) > 1 else ():
        if z.grad_fn is not None:
            numbers.setdefault(z.grad_fn, set()).add(z.output_nr)
    handles = [node.register_prehook(partial(_without, which)) for node, which in numbers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without(which: set[int], gradients: Row) -> tuple[Tensor | None, ...]:
    return tuple(None if k in which else g for k, g in enumerate(gradients))


def _stacked(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses), dim=-1)


def _weighted_sum(losses: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    stacked = _stacked(losses)
    return stacked.sum() if weights is None else (stacked * weights.to(stacked.dtype)).sum()


def _beside(weight: Tensor, gradient: Tensor) -> Tensor:
    """`weight`, one entry per member, ready to multiply the members' gradients."""
    trailing = (1,) * (gradient.ndim - weight.ndim)
    return weight.to(gradient.dtype).reshape(weight.shape + trailing)


def _combination(rows: Sequence[Row], weights: Tensor) -> Row:
    """Σ_i weights_i rows_i, None where every row is."""
    return [_sum_of(column, weights) for column in zip(*rows, strict=True)]


def _sum_of(column: Sequence[Tensor | None], weights: Tensor) -> Tensor | None:
    total: Tensor | None = None
    for entry, weight in zip(column, weights.unbind(-1), strict=True):
        if entry is not None:
            term = entry * _beside(weight, entry)
            total = term if total is None else total.add_(term)
    return total


def _added(update: Update, extra: Update | None) -> Update:
    if extra is None:
        return update
    own: dict[str, Row] = {task: _sum(row, extra.own[task]) for task, row in update.own.items()}
    return Update(_sum(update.shared, extra.shared), own)


def _sum(row: Row, other: Row) -> Row:
    return [b if a is None else a if b is None else a + b for a, b in zip(row, other, strict=True)]


def _flat(row: Row, targets: Sequence[Tensor], members: torch.Size) -> Tensor:
    filled = [torch.zeros_like(t) if g is None else g for g, t in zip(row, targets, strict=True)]
    return torch.cat([g.reshape(*members, -1) for g in filled], dim=-1)


def _unflat(
    vector: Tensor,
    targets: Sequence[Tensor],
    members: torch.Size,
    scale: float | Tensor | None,
) -> Row:
    if scale is not None:
        vector = vector * scale
    pieces = torch.split(vector, [t.numel() // members.numel() for t in targets], dim=-1)
    return [piece.reshape(t.shape).to(t.dtype) for piece, t in zip(pieces, targets, strict=True)]


def _gramian(rows: Sequence[Row], targets: Sequence[Tensor], members: torch.Size) -> Tensor:
    """Σ over targets of the inner products of their gradients; half precision is widened."""
    reference, m = targets[0], len(rows)
    dtype = torch.promote_types(reference.dtype, torch.float32)
    gramian = torch.zeros(*members, m, m, dtype=dtype, device=reference.device)
    for column in zip(*rows, strict=True):
        present = [i for i, entry in enumerate(column) if entry is not None]
        if not present:
            continue
        flat = [g.reshape(*members, -1) for g in column if g is not None]
        block = torch.stack(flat, dim=-2).to(dtype)
        product = block @ block.mT
        if len(present) == m:
            gramian += product
        else:
            where = torch.tensor(present, device=gramian.device)
            gramian[..., where.unsqueeze(1), where] += product
    return gramian


def _finite(row: Row) -> bool:
    present = [g for g in row if g is not None]
    if not present:
        return True
    device = present[0].device
    # A sum is NaN or infinite if an entry is, and some thirty times cheaper than testing each;
    # should finite entries overflow it, they are tested after all.
    sums = [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)) for g in present]
    if bool(torch.stack([total.to(device) for total in sums]).isfinite().all()):
        return True
    return all(bool(g.isfinite().all()) for g in present)
