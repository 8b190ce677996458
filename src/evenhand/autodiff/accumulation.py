"""Exact gradient accumulation: the gradients of micro-batches, added up before anything is solved.

Each micro-batch leaves ∂L_i/∂θ for every leaf and task (m·T numbers for a trunk of T), and its part
of the Gramian at the representation, whose samples the micro-batches share out: G = Σ_k δ^k (δ^k)ᵀ.
`Accumulated` then stands where the passes of one large batch would: methods see the sums, and there
is one solve. Where a method wants the gradients by the representation themselves, or gives a
direction there, those of all micro-batches are kept, one behind the other, with the trunk's graphs.
Where all methods look there and the trunk can be run again (`replay.py`), they are all that is
kept: one more pass forward and one back for each micro-batch do when the weights are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from evenhand.autodiff.arithmetic import (
    added,
    chosen_targets,
    finite,
    gradient,
    shaped_like,
    spans_among,
    spans_of,
)
from evenhand.autodiff.call import Call
from evenhand.autodiff.coordinates import Coordinates
from evenhand.autodiff.gradients import (
    Columns,
    Gradient,
    NonFiniteError,
    Place,
    norms,
    times,
)
from evenhand.autodiff.jacobian import Column, Jacobian, fill, plain_column
from evenhand.autodiff.owners import Owners
from evenhand.autodiff.passes import Passes, Update
from evenhand.autodiff.reducer import Reducer
from evenhand.autodiff.replay import Kept, Trunk


@dataclass
class Sums:
    """What micro-batches have left so far.

    Attributes:
        total: the number of all tasks, M.
        losses: each task's loss, by its position among all tasks.
        counts: by how much each task's losses and gradients are to be divided: its labels, where
            they are counted; else absent.
        leaves: the leaves that were reached, by identity.
        gradients: (leaf, task) -> ∂L_i/∂θ.
        plus: leaf -> the gradient of what is nobody's task.
        gramian: at the representation, [M, M], where it was asked for.
        trunks, deltas: of micro-batches, a way to the features and the m gradients by them, where
            they were asked for.
        behind: leaf -> the tasks that reach it by a way that is taken when the weights are known.
    """

    total: int
    losses: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, float] = field(default_factory=dict)
    leaves: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    plus: dict[int, Tensor] = field(default_factory=dict)
    gramian: Tensor | None = None
    trunks: list[Trunk] = field(default_factory=list)
    deltas: list[dict[int, list[Tensor | None]]] = field(default_factory=list)
    behind: dict[int, int] = field(default_factory=dict)

    def add(
        self,
        passes: Passes,
        counts: Mapping[str, float] | None,
        *,
        at_features: bool,
        keeps_features: bool,
        later: Trunk | None = None,
    ) -> None:
        """Take the gradients of one micro-batch.

        Args:
            passes: its passes.
            counts: how many labels each of its losses is the mean of; None where losses are to be
                added as they are.
            at_features: whether somebody looks at the representation.
            keeps_features: whether gradients there are wanted themselves.
            later: a way to the balanced leaves that may wait until the weights are known.

        Raises:
            NonFiniteError: a gradient is NaN or infinite.
        """
        call = passes.call
        unscale = 1.0 if call.scale is None else 1 / float(call.scale)
        weight = {
            k: 1.0 if counts is None else float(counts[task])
            for k, task in zip(call.index, call.tasks, strict=True)
        }
        if at_features:
            self._add_gramian(passes, weight)
        if keeps_features or later is not None:
            heads = passes.through_heads()
            each = {k: list(heads.gradient(at)) for at, k in enumerate(call.index)}
            self.trunks.append(later or Kept(passes.targets("representation")))
            self.deltas.append({k: _times(row, weight[k] * unscale) for k, row in each.items()})
        if later is not None:
            self._wait_for(passes.shared, self.deltas[-1], call)
        for leaf, k, g in passes.per_task(balanced=later is None):
            if not finite([g]):
                raise NonFiniteError("gradient", [call.tasks[call.index.index(k)]])
            by = weight[k] * unscale
            self._add(leaf, k, g if by == 1 else g * by)
        for leaf, g in passes.gradient_of_plus():
            self.leaves[id(leaf)] = leaf
            so_far, g = self.plus.get(id(leaf)), g * unscale
            self.plus[id(leaf)] = g if so_far is None else so_far + g
        for k, loss in zip(call.index, call.values.unbind(-1), strict=True):
            value = loss * weight[k]
            self.losses[k] = value if k not in self.losses else self.losses[k] + value
            if counts is not None:
                self.counts[k] = self.counts.get(k, 0.0) + weight[k]

    def _wait_for(
        self, leaves: Sequence[Tensor], delta: Mapping[int, Gradient], call: Call
    ) -> None:
        """Note which tasks reach leaves whose gradients are found later."""
        reached = 0
        for task, (k, row) in zip(call.tasks, delta.items(), strict=True):
            if not finite(row):
                raise NonFiniteError("gradient", [task])
            reached |= (1 << k) * any(d is not None for d in row)
        for leaf in leaves:
            self.leaves[id(leaf)] = leaf
            self.behind[id(leaf)] = self.behind.get(id(leaf), 0) | reached

    def _add(self, leaf: Tensor, k: int, g: Tensor) -> None:
        self.leaves[id(leaf)] = leaf
        key = id(leaf), k
        self.gradients[key] = g if key not in self.gradients else self.gradients[key] + g

    def _add_gramian(self, passes: Passes, weight: Mapping[int, float]) -> None:
        part = passes.gramian("representation")
        index = torch.tensor(passes.call.index, device=part.device)
        by = part.new_tensor([weight[k] for k in passes.call.index])
        if self.gramian is None:
            self.gramian = part.new_zeros(*part.shape[:-2], self.total, self.total)
        block = by.unsqueeze(-1) * part * by
        self.gramian[..., index.unsqueeze(-1), index] += block

    def copied(self) -> Sums:
        """The same sums; adding to the copy leaves these as they are."""
        return replace(
            self,
            losses=dict(self.losses),
            counts=dict(self.counts),
            leaves=dict(self.leaves),
            gradients=dict(self.gradients),
            plus=dict(self.plus),
            gramian=None if self.gramian is None else self.gramian.clone(),
            trunks=list(self.trunks),
            behind=dict(self.behind),
            deltas=[dict(delta) for delta in self.deltas],
        )

    def divide(self) -> None:
        """Divide the sums of counted losses by their counts."""
        for k, count in self.counts.items():
            self.losses[k] = self.losses[k] / count
            for leaf in self.leaves:
                if (leaf, k) in self.gradients:
                    self.gradients[leaf, k] = self.gradients[leaf, k] / count
            for delta in self.deltas:
                if k in delta:
                    delta[k] = _times(delta[k], 1 / count)
            if self.gramian is not None:
                self.gramian[..., k, :] /= count
                self.gramian[..., :, k] /= count
        self.counts.clear()

    def masks(self) -> dict[Tensor, int]:
        """Which tasks have a gradient at each leaf."""
        found = {leaf: self.behind.get(key, 0) for key, leaf in self.leaves.items()}
        for leaf, k in self.gradients:
            found[self.leaves[leaf]] |= 1 << k
        return found

    @property
    def index(self) -> tuple[int, ...]:
        """The positions of the tasks that had a loss in any micro-batch."""
        return tuple(sorted(self.losses))


class Accumulated:
    """The passes of one large batch, from the sums of its micro-batches.

    Args:
        sums: of all micro-batches, the last one included.
        call: all their tasks, with the sums of their losses; without graphs.
        owners: whose the leaves are.
        coordinates, names, reducer: see `Passes`. Sums are this rank's own.
    """

    def __init__(
        self,
        sums: Sums,
        call: Call,
        owners: Owners,
        coordinates: Coordinates,
        names: Mapping[Tensor, str],
        reducer: Reducer,
    ) -> None:
        self._sums = sums
        self._reducer = reducer
        self._coordinates = coordinates
        self._names = names
        self.call = call
        self.owners = owners
        self.tasks = call.tasks
        self.shared = owners.balanced
        self.sharers = owners.sharers if reducer.alone else -1  # elsewhere a task may share more
        self._leaves = [*owners.balanced, *owners.carried]
        self._scale = call.scale
        self._jacobians: dict[Place, Jacobian] = {}
        self._gramians: dict[Place, Tensor] = {}

    @property
    def unfreed(self) -> tuple[bool, bool]:
        """Whether a part of the last graph is left: of heads, and of the trunk."""
        return True, True

    def jacobian_at(self, place: Place) -> Jacobian:
        """g_i at `place` for every task."""
        if place not in self._jacobians:
            if place == "representation":
                self._jacobians[place] = self._jacobian_of_features()
            elif place == "parameters":
                found = self._collected(self._leaves, len(self.shared))
                self._jacobians[place] = self._reducer.reduced(found)
            else:
                targets = self.targets(place)
                found = self._collected(targets, len(targets))
                self._jacobians[place] = self._reducer.reduced(found)
        return self._jacobians[place]

    def _collected(self, targets: Sequence[Tensor], looked_at: int) -> Jacobian:
        columns: list[Column] = []
        m, leading = len(self.tasks), self.call.leading
        for target in targets:
            column = [plain_column(m, leading)]
            for at, k in enumerate(self.call.index):
                fill(column, at, [self._sums.gradients.get((id(target), k))])
            columns += column
        return Jacobian(columns, targets, leading, m, self.call.values, looked_at)

    def _jacobian_of_features(self) -> Jacobian:
        """All micro-batches' features as if they were one tensor behind the other."""
        if not self._sums.trunks:
            raise ValueError("the gradients by the representation were not kept")
        columns: list[Column] = []
        targets: list[Tensor] = []
        m, leading = len(self.tasks), self.call.leading
        for number in range(max(len(trunk.like) for trunk in self._sums.trunks)):
            for trunk, delta in zip(self._sums.trunks, self._sums.deltas, strict=True):
                if number >= len(trunk.like):
                    continue
                column = [plain_column(m, leading)]
                for at, k in enumerate(self.call.index):
                    fill(column, at, [delta[k][number] if k in delta else None])
                columns += column
                targets.append(trunk.like[number])
        return Jacobian(columns, targets, leading, m, self.call.values)

    def targets(self, place: Place) -> list[Tensor]:
        """The tensors that `place` differentiates by."""
        if place == "representation":
            return list(self.jacobian_at(place).targets)
        return chosen_targets(place, self.shared, self.owners.last_layer)

    def spans(self, place: Place) -> list[slice]:
        """Where the parameters of `place` stand among the columns of the Jacobian of all."""
        return spans_among(
            spans_of(place, self.targets, self.shared), self.shared, self.call.leading
        )

    def columns(self, place: Place) -> Columns:
        """Where the coordinates of `place` stand among all that were ever looked at."""
        targets = self.targets(place)
        found = self._coordinates.columns(place, targets, self._names, self.call.leading)
        if place == "representation":
            return replace(found, total=self._reducer.features_in_all(found.total))
        return found

    def jacobian(self, place: Place) -> Tensor:
        """J at `place`, [m, n]."""
        jacobian = self.jacobian_at(place)
        if place == "representation" and not self._reducer.alone:
            return self._reducer.features_of_all(jacobian.matrix(), jacobian.sizes)
        return jacobian.matrix()

    def gramian(self, place: Place) -> Tensor:
        """G at `place`, [m, m]."""
        if place not in self._gramians:
            if place == "representation" and self._sums.gramian is not None:
                index = torch.tensor(self.call.index, device=self._sums.gramian.device)
                found = self._sums.gramian[..., index.unsqueeze(-1), index]
                found = self._reducer.gramian_of_features(found)
            else:
                jacobian, alone = self.jacobian_at(place), self._reducer.alone
                found = jacobian.gramian_at_any_size()[0] if alone else jacobian.gramian()
            self._gramians[place] = found
        return self._gramians[place]

    def norms(self, place: Place) -> Tensor:
        """‖g_i‖ at `place`, [m]."""
        return norms(self.gramian(place))

    def product(self, place: Place, weights: Tensor) -> Tensor:
        """G w at `place`, [m]."""
        return times(self.gramian(place), weights)

    def known_gramian(self, *places: Place) -> Tensor | None:
        """The Gramian at the first of `places` at which somebody has asked for it."""
        return next((self._gramians[p] for p in places if p in self._gramians), None)

    def in_span(self, trunk: Tensor | None, heads: Tensor | None) -> Update:
        """Σ trunk_i g_i for balanced leaves, Σ heads_i ∂L_i/∂θ_i for all others, and `plus`'s."""
        ones = torch.ones_like(self.call.values)
        heads = ones if heads is None else heads
        trunk = heads if trunk is None else trunk
        balanced: Gradient = []
        agreed = True
        if self._leaves:
            balanced, agreed = self._reducer.combined(self.jacobian_at("parameters"), trunk)
        if self._sums.behind:  # in one process
            later = self._through_trunks(self.jacobian_at("representation").combined(trunk))
            later += [None] * len(self.owners.carried)
            balanced = [added(a, b) for a, b in zip(balanced, later, strict=True)]
        return self._update(list(balanced), heads, self._leaves if agreed else ())

    def off_span(self, direction: Tensor, place: Place, heads: Tensor | None) -> Update:
        """A direction [n] at `place` for balanced leaves, the others as in `in_span`."""
        heads = torch.ones_like(self.call.values) if heads is None else heads
        direction, targets = direction.clone(), self.targets(place)
        if place == "representation":
            direction = self._reducer.features_here(direction, self.jacobian_at(place).sizes)
        row = shaped_like(direction, targets, self.call.leading, None)
        agreed: Sequence[Tensor] = self.shared
        if place == "representation":
            row, agreed = self._through_trunks(row), ()
        carried = self._collected(self.owners.carried, 0).combined(heads)
        return self._update([*row, *carried], heads, agreed)

    def _through_trunks(self, row: Sequence[Tensor | None]) -> list[Tensor | None]:
        """What a gradient by all micro-batches' features makes of the balanced leaves."""
        by_tensor = {id(z): d for z, d in zip(self.targets("representation"), row, strict=True)}
        total: list[Tensor | None] = [None] * len(self.shared)
        for trunk in self._sums.trunks:
            given = [
                (z, d)
                for z, like in zip(trunk.features(), trunk.like, strict=True)
                if (d := by_tensor[id(like)]) is not None
            ]
            part = gradient([z for z, _ in given], self.shared, [d for _, d in given])
            total = [added(a, b) for a, b in zip(total, part, strict=True)]
        return total

    def _update(
        self, balanced: list[Tensor | None], heads: Tensor, agreed: Sequence[Tensor]
    ) -> Update:
        owners = self.owners
        position = {k: at for at, k in enumerate(self.call.index)}
        rest = [*(leaf for mine in owners.alone for leaf in mine)]
        admitted = dict.fromkeys(map(id, rest), -1) | {id(p): mask for p, mask in owners.common}
        rest += [leaf for leaf, _ in owners.common]
        row = list(balanced)
        for leaf in rest:
            total: Tensor | None = None
            for k, at in position.items():
                g = self._sums.gradients.get((id(leaf), k))
                if g is not None and admitted[id(leaf)] >> k & 1:
                    total = added(total, g * heads[..., at].to(g.dtype))
            row.append(total)
        row += [None] * len(owners.extra)
        leaves = owners.trained
        row = [added(g, self._sums.plus.get(id(p))) for p, g in zip(leaves, row, strict=True)]
        if self._sums.plus:
            agreed = ()
        if self._scale is not None:
            row = [None if g is None else g * self._scale for g in row]
        return Update(leaves, row, frozenset(map(id, agreed)))

    def settled(self, update: Update) -> Update:
        """What leaves are to be handed so that all ranks end with the same gradients."""
        if self._reducer.alone:
            return update
        found = self._reducer.settled(update.leaves, update.gradients, update.agreed)
        return Update(update.leaves, found, update.agreed)

    def require_finite(self, update: Update) -> None:
        """Raises NonFiniteError where a gradient of the update is NaN or infinite."""
        bad = not finite(update.gradients)
        if self._reducer.hands_over:
            (bad,) = self._reducer.anywhere([bad])
        if bad:
            raise NonFiniteError("accumulated gradient, summed over the tasks,", self.tasks)


def _times(row: Iterable[Tensor | None], weight: float) -> list[Tensor | None]:
    return [None if g is None else g * weight for g in row]
