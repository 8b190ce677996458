"""The autograd graph of one backward call, and what has been taken from it so far.

With features Z (and nothing shared beyond them) the chain rule is used as the network is built:
passes through the heads give ∂L_i/∂Z and the heads' own gradients; from there a pass through the
trunk gives g_i, and a pass with Σ w_i ∂L_i/∂Z gives Σ w_i g_i for any number of tasks at once. A
`MultiTaskNetwork` tells how each head reads Z (`Reading`): then one pass serves all heads, since no
task's loss depends on what another head reads. Without features every pass runs from a loss to the
parameters. Each pass is taken once and kept for whoever asks next.

The m passes through the trunk are taken one by one or in chunks, vectorised (`chunk`); see
`chunking.py`. To weights of layers with few rows they need not go all the way (`factors.py`). One
product G w = J (Jᵀw) costs no m passes: Jᵀv is linear in v, so with the pass
that makes d = Jᵀw differentiable, one more gives ∂⟨Jᵀv, d⟩/∂v = J d. Z takes the place of v where
there are features: the pass gives the change of Z along d, and ∂L_i/∂Z turn it into all (J d)_i.

Leading dimensions are independent networks. The losses of a stacked ensemble have its shape [E]
and its tensors begin with it; since no network's loss depends on another's parameters, the pass of
a sum over them is each one's pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from evenhand.autodiff.arithmetic import (
    added,
    batched,
    chosen_targets,
    cut,
    differentiated_along,
    doubly,
    finite,
    gradient,
    shaped_like,
    spans_among,
    spans_of,
    weighted_sum,
)
from evenhand.autodiff.call import Call, require_finite
from evenhand.autodiff.coordinates import Coordinates
from evenhand.autodiff.factors import (
    Factored,
    Layer,
    changed,
    layers,
    may_pay,
    passing_gradients,
)
from evenhand.autodiff.gradients import (
    Columns,
    Gradient,
    NonFiniteError,
    Place,
    all_finite,
    norms,
    times,
)
from evenhand.autodiff.hooks import without_hooks
from evenhand.autodiff.jacobian import Column, Filled, Heads, Jacobian, beside, fill, plain_column
from evenhand.autodiff.owners import Owners
from evenhand.autodiff.reducer import Reducer


@dataclass
class Update:
    """The gradients of one step, leaf by leaf.

    Attributes:
        leaves, gradients: each leaf's gradient, None where it gets none.
        agreed: the leaves (by identity) whose gradient is the mean over ranks already.
    """

    leaves: list[Tensor]
    gradients: list[Tensor | None]
    agreed: frozenset[int] = frozenset()

    def given(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The leaves that get a gradient, and these."""
        found = list(self.items())
        return [leaf for leaf, _ in found], [g for _, g in found]

    def drop(self) -> None:
        """Let go of the gradients: autograd keeps a tensor that nobody else holds."""
        self.leaves, self.gradients = [], []

    def items(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The leaves that get a gradient, each with it."""
        for leaf, g in zip(self.leaves, self.gradients, strict=True):
            if g is not None:
                yield leaf, g


class Passes:
    """Gradients of the tasks' losses by balanced leaves, features and all other leaves.

    Args:
        call: the active tasks and their losses.
        owners: whose the leaves are.
        reducer: what ranks agree by.
        chunk: (these passes) -> how many tasks' passes to take at once; one by one by default.
        factored: whether gradients by layers' weights are kept as factors.
        retain_trunk: keep the trunk's graph for a pass after all tasks' gradients are known.
        coordinates: where histories over coordinates are kept; those of this call alone by default.
        names: of the parameters, where they are known.
    """

    def __init__(
        self,
        call: Call,
        owners: Owners,
        *,
        reducer: Reducer | None = None,
        chunk: Callable[[Passes], int] = lambda passes: 1,
        factored: Factored = "auto",
        retain_trunk: bool = False,
        coordinates: Coordinates | None = None,
        names: Mapping[Tensor, str] | None = None,
    ) -> None:
        self._coordinates = coordinates or Coordinates()
        self._names = names or {}
        self.call = call
        self.owners = owners
        self.tasks = call.tasks
        self.shared = owners.balanced
        alone = reducer is None or reducer.alone
        self.sharers = owners.sharers if alone else -1  # elsewhere a task may share more
        self._combined_leaves = [*owners.balanced, *owners.carried]
        scale, plus = call.scale, call.plus
        self._each = [loss if scale is None else loss * scale for loss in call.losses]
        self._leading = call.leading
        self._features = owners.features
        self._readings = owners.readings if self._features else []
        self._plus = None if plus is None or not plus.requires_grad else plus
        if self._plus is not None and scale is not None:
            self._plus = self._plus * scale
        self._scale = scale
        self._reducer = reducer or Reducer()
        self._chunk = chunk
        self._factored = factored
        self._retain = call.retain
        later = self._plus is not None or bool(owners.common)
        self._keep = call.retain or retain_trunk or later
        self._heads: Jacobian | None = None
        self._beyond: Jacobian | None = None
        self._alone: list[Gradient] | None = None
        self._jacobians: dict[Place, Jacobian] = {}
        self._gramians: dict[Place, Tensor] = {}
        self._combination: tuple[Tensor, Gradient] | None = None
        self._in_chunks = False

    @cached_property
    def _losses(self) -> Tensor:
        """All losses, [..., m], with their graphs. Where one task is differentiated by itself it
        will not do: zeros would be passed back through all the others' heads.
        """
        return torch.stack(self._each, dim=-1)

    @property
    def unfreed(self) -> tuple[bool, bool]:
        """Whether the passes so far have left a part of the graph: of heads, and of the trunk.

        Taken one by one, the last pass frees the trunk and the last task's head.
        """
        if self._heads is None and not self._jacobians and self._combination is None:
            kept = self._retain or self._alone is not None or bool(self._partly)
            return kept, kept  # a single pass of the sum, unless another followed it
        left = self._keep or self._in_chunks or len(self._features or ()) > 1
        return left or not self._readings, left

    # What methods ask for ---------------------------------------------------------------------

    def jacobian(self, place: Place) -> Tensor:
        """J at `place`, [m, n]."""
        jacobian = self.jacobian_at(place)
        matrix = jacobian.matrix()
        if place == "representation" and not self._reducer.alone:
            matrix = self._reducer.features_of_all(matrix, jacobian.sizes)
        self._require_finite(matrix.movedim(-2, -1))
        return matrix if self._scale is None else matrix / self._scale

    def gramian(self, place: Place) -> Tensor:
        """G at `place`, [m, m]."""
        if place not in self._gramians:
            jacobian = self.jacobian_at(place)
            if self._reducer.alone:
                gramian, finite = jacobian.gramian_at_any_size()
            else:  # ranks add up Gramians of one type
                gramian, finite = jacobian.gramian(), False
            if place == "representation":
                gramian = self._reducer.gramian_of_features(gramian)
            if not finite:
                self._require_finite(gramian.diagonal(dim1=-2, dim2=-1))
            if self._scale is not None:
                gramian = gramian / self._scale / self._scale
            self._gramians[place] = gramian
        return self._gramians[place]

    def norms(self, place: Place) -> Tensor:
        """‖g_i‖ at `place`, [m]."""
        return norms(self.gramian(place))

    def product(self, place: Place, weights: Tensor) -> Tensor:
        """G w at `place`, [m], in two passes for any number of tasks where G is not known yet."""
        apart = self.owners.beyond or self.owners.carried
        if place != "parameters" or place in self._jacobians or apart:
            return times(self.gramian(place), weights)
        direction, product = self._differentiable(weights)
        self._combination = weights, direction
        if not all_finite(product):
            self.gramian(place)  # whose passes tell the tasks apart
            raise NonFiniteError("product of the gradients with their weighted sum", self.tasks)
        return product if self._scale is None else product / self._scale / self._scale

    def known_gramian(self, *places: Place) -> Tensor | None:
        """The Gramian at the first of `places` at which somebody has asked for it."""
        return next((self._gramians[p] for p in places if p in self._gramians), None)

    def spans(self, place: Place) -> list[slice]:
        """Where the parameters of `place` stand among the columns of the Jacobian of all."""
        return spans_among(spans_of(place, self.targets, self.shared), self.shared, self._leading)

    def columns(self, place: Place) -> Columns:
        """Where the coordinates of `place` stand among all that were ever looked at."""
        found = self._coordinates.columns(place, self.targets(place), self._names, self._leading)
        if place == "representation":
            return replace(found, total=self._reducer.features_in_all(found.total))
        return found

    def targets(self, place: Place) -> list[Tensor]:
        """The tensors that `place` differentiates by."""
        if place == "representation":
            return self._representation()
        return chosen_targets(place, self.shared, self.owners.last_layer)

    def jacobian_at(self, place: Place) -> Jacobian:
        """g_i at `place` for every task."""
        if place in self._jacobians:
            return self._jacobians[place]
        known = self._jacobians.get("parameters")
        if place == "representation":
            jacobian = self.through_heads()
        elif known is not None:
            position = {id(p): k for k, p in enumerate(self.shared)}
            jacobian = known.among([position[id(p)] for p in self.targets(place)])
        else:
            chunk, keep = self._chunk(self), self._keep or place != "parameters"
            targets = self._combined_leaves if place == "parameters" else self.targets(place)
            jacobian = self.taken(targets, chunk, keep)
            jacobian = self._reducer.reduced(jacobian)
        self._jacobians[place] = jacobian
        return jacobian

    def nonzero(self, leaves: Sequence[Tensor]) -> list[int]:
        """For each leaf, the mask of the tasks (by position among all) whose gradient is not 0."""
        masks = [0] * len(leaves)
        for k, loss in zip(self.call.index, self._each, strict=True):
            for at, g in enumerate(gradient([loss], leaves)):
                if g is not None and bool((g.to_dense() != 0).any()):
                    masks[at] |= 1 << k
        return masks

    # The passes -------------------------------------------------------------------------------

    def taken(self, targets: Sequence[Tensor], chunk: int, keep: bool = True) -> Jacobian:
        """g_i by `targets`, `chunk` tasks at a time, as each process has it.

        Unless the graph is to be kept, the last pass frees it: all follows from the gradients.
        """
        beyond: dict[int, Column] = {}
        if self._features is not None and self.owners.beyond:
            self.through_heads()  # what lies round the features comes along
            assert self._beyond is not None
            beyond = {
                id(leaf): column
                for leaf, column in zip(self.owners.beyond, self._beyond.columns, strict=True)
            }
        behind = [target for target in targets if id(target) not in beyond]
        columns = iter(self._taken(behind, chunk, keep) if behind else [])
        ordered = [beyond[id(t)] if id(t) in beyond else next(columns) for t in targets]
        looked_at = len(targets) - (
            len(self.owners.carried) if len(targets) > len(self.shared) else 0
        )
        return Jacobian(
            ordered, targets, self._leading, len(self.tasks), self.call.values, looked_at
        )

    def _taken(self, targets: Sequence[Tensor], chunk: int, keep: bool) -> list[Filled]:
        """The columns of targets that lie behind the features, or anywhere without features."""
        found = self._layers(targets)
        while True:
            columns: list[Filled] = [plain_column(len(self.tasks), self._leading) for _ in targets]
            inputs: list[Tensor | GradientEdge] = list(targets)
            for k, layer in found.items():
                columns[k], inputs[k] = layer.column(len(self.tasks)), layer.edge
            hooked = self._fill(columns, inputs, found, chunk, keep)
            if not hooked:
                return columns
            found = {k: layer for k, layer in found.items() if k not in hooked}

    def _fill(
        self,
        columns: list[Filled],
        inputs: Sequence[Tensor | GradientEdge],
        found: Mapping[int, Layer],
        chunk: int,
        keep: bool,
    ) -> set[int]:
        """Take all passes; or, after the first one, tell the layers whose output has a hook."""
        m = len(self.tasks)
        parts = self._parts(inputs, chunk if m > 1 else 1, keep, apart=bool(found))
        with passing_gradients(found) as passed:
            where, row = next(parts)
        if hooked := {k for k, there in passed.items() if changed(row[k], there)}:
            parts.close()
            return hooked
        fill(columns, where, row)
        for where, row in parts:
            fill(columns, where, row)
        return set()

    def _parts(
        self, inputs: Sequence[Tensor | GradientEdge], chunk: int, keep: bool, apart: bool
    ) -> Generator[tuple[int | slice, Gradient], None, None]:
        """Pass by pass, which tasks it was of and what it found.

        `apart` takes the first task by itself, also where the others are vectorised: hooks are
        looked for in that pass.
        """
        m = len(self.tasks)
        if chunk > 1 and apart:
            if self._features is None:
                yield 0, gradient([self._each[0]], inputs)
            else:
                yield 0, self._through_trunk(self.through_heads().gradient(0), inputs)
            yield from self._vectorised(inputs, chunk, first=1)
        elif chunk > 1:
            yield from self._vectorised(inputs, chunk)
        elif self._features is None:
            yield from enumerate(self._from_losses(inputs, keep))
        else:
            heads = self.through_heads()
            for i in range(m):
                yield i, self._through_trunk(heads.gradient(i), inputs, keep or i < m - 1)

    def _layers(self, targets: Sequence[Tensor]) -> dict[int, Layer]:
        """By its position, each target whose gradients are kept as factors."""
        m = len(self.tasks)
        always = self._factored == "always"
        if self._factored == "never" or m == 1 or self._leading or not self._reducer.alone:
            return {}
        outputs = self._each if self._features is None else self._features
        least = len(outputs[0]) if outputs[0].ndim else 1
        if not (always or may_pay(targets, m, least)):
            return {}
        found = layers((y.grad_fn for y in outputs), targets)
        return {k: layer for k, layer in found.items() if always or layer.pays(m)}

    def _vectorised(
        self, inputs: Sequence[Tensor | GradientEdge], chunk: int, first: int = 0
    ) -> Iterator[tuple[slice, Gradient]]:
        """The passes of `chunk` tasks at a time, as one that runs on stacks."""
        self._in_chunks = True
        m = len(self.tasks)
        if self._features is None:
            outputs: Sequence[Tensor] = [self._losses]
            each = torch.eye(m, dtype=outputs[0].dtype, device=outputs[0].device)
            seeds = [each.reshape(m, *(1,) * len(self._leading), m).expand(m, *outputs[0].shape)]
        else:
            outputs, seeds = [], []
            for z, column in zip(self._features, self.through_heads().columns, strict=True):
                dense = column.dense()
                if dense is not None:
                    outputs.append(z)
                    seeds.append(dense)
        for i in range(first, m, chunk):
            part = slice(i, min(i + chunk, m))
            yield part, batched(outputs, inputs, [dense[part] for dense in seeds])

    def _representation(self) -> list[Tensor]:
        if not self._features:
            raise ValueError(
                "at='representation' needs the features that all tasks share, with their graph: "
                "pass features= to backward, and check that no shared parameter is reached "
                "beyond them"
            )
        return self._features

    def through_heads(self) -> Jacobian:
        """∂L_i/∂Z for every task; the gradients of what lies round Z come along."""
        if self._heads is None:
            features = self._representation()
            if self._readings:
                self._heads = self._through_readings(features)
            else:
                m, beyond = len(self.tasks), self.owners.beyond
                columns = [plain_column(m, self._leading) for _ in (*features, *beyond)]
                # Of two levels of a pyramid, the way from one to the other belongs to the trunk.
                keep = self._keep or len(features) > 1
                with cut(features), without_hooks(features):
                    for i, row in enumerate(self._from_losses([*features, *beyond], keep)):
                        fill(columns, i, row)
                z, further = columns[: len(features)], columns[len(features) :]
                self._heads = Jacobian(z, features, self._leading, m, self.call.values)
                self._beyond = Jacobian(further, beyond, self._leading, m, self.call.values)
        return self._heads

    def _through_readings(self, features: Sequence[Tensor]) -> Jacobian:
        """One pass for all heads."""
        probes = [reading.probe for reading in self._readings]
        alone = self.owners.alone if self._alone is None else [[] for _ in self.tasks]
        total = self._losses.sum()
        gradients = iter(gradient([total], [*probes, *chain(*alone)], retain_graph=self._keep))
        heads = list(islice(gradients, len(probes)))
        if self._alone is None:
            self._alone = [list(islice(gradients, len(mine))) for mine in alone]
        (z,), m = features, len(self.tasks)
        weights = [reading.weight for reading in self._readings]
        kind = z.dtype
        deltas = [d if d.dtype == kind else d.to(kind) for d in heads if d is not None]
        matrices = [w if w.dtype == kind else w.detach().to(kind) for w in weights if w is not None]
        if len(deltas) == len(matrices) == m:
            columns: list[Column] = [Heads(deltas, matrices, z)]
            return Jacobian(columns, features, self._leading, m, self.call.values)
        column = plain_column(m, self._leading)
        for i, (d, w) in enumerate(zip(heads, weights, strict=True)):
            column.put(i, d if d is None or w is None else d.to(z.dtype) @ w.detach().to(z.dtype))
        return Jacobian([column], features, self._leading, m, self.call.values)

    def _from_losses(
        self, targets: Sequence[Tensor | GradientEdge], keep: bool
    ) -> Iterator[Gradient]:
        """Each task's gradient, from its loss; what it alone reaches comes along.

        Unless the graph is to be kept, the last pass frees all that it meets.
        """
        alone = self.owners.alone if self._alone is None else [[] for _ in self.tasks]
        kept: list[Gradient] = []
        last = len(self.tasks) - 1
        for i, (loss, mine) in enumerate(zip(self._each, alone, strict=True)):
            row = gradient([loss], [*targets, *mine], retain_graph=keep or i < last)
            kept.append(row[len(targets) :])
            yield row[: len(targets)]
        if self._alone is None:
            self._alone = kept

    def _through_trunk(
        self, head: Gradient, targets: Sequence[Tensor | GradientEdge], retain_graph: bool = True
    ) -> Gradient:
        """The gradient by `targets` that a gradient by Z brings."""
        pairs = [(z, d) for z, d in zip(self._representation(), head, strict=True) if d is not None]
        if not pairs:
            return [None] * len(targets)
        outputs, gradients = zip(*pairs, strict=True)
        return gradient(outputs, targets, gradients, retain_graph)

    def _differentiable(self, weights: Tensor) -> tuple[Gradient, Tensor]:
        """The direction d = Σ w_i g_i, and the products g_i·d, from two passes for any m."""
        mixed: Gradient = []
        if self._features is None:
            seeds = [weights.detach().to(self._losses.dtype).clone().requires_grad_()]
            outputs, gradients = [(self._losses * seeds[0]).sum()], None
        else:
            mixed = self.through_heads().combined(weights)
            pairs = zip(self._features, mixed, strict=True)
            outputs = [z for z, d in pairs if d is not None]
            gradients = seeds = [d.detach().requires_grad_() for d in mixed if d is not None]
        direction = doubly(outputs, self.shared, gradients)
        agreed = self._reducer.gradient(
            [None if d is None else d.detach() for d in direction], self.shared
        )
        along = [a for d, a in zip(direction, agreed, strict=True) if d is not None]
        changes = iter(
            differentiated_along(
                [d for d in direction if d is not None], seeds, [a for a in along if a is not None]
            )
        )
        if self._features is None:
            product = cast(Tensor, next(changes))
        else:
            change = [None if d is None else next(changes) for d in mixed]
            product = self.through_heads().against(change)
        return agreed, self._reducer.mean(product)

    # What accumulation asks for ---------------------------------------------------------------

    def per_task(self, balanced: bool = True) -> Iterator[tuple[Tensor, int, Tensor]]:
        """Every leaf, task (by position among all) and gradient ∂L_i/∂θ.

        Those of balanced leaves are left out where they are not wanted.
        """
        common = [
            (leaf, k, g)
            for at, k in enumerate(self.call.index)
            for leaf, g in self._common_of(at, k)
        ]
        if self._features is not None and self._combined_leaves:
            self.through_heads()
        alone = self._through_alone()
        jacobian = self.jacobian_at("parameters") if balanced else None
        for at, k in enumerate(self.call.index):
            there = [*([] if jacobian is None else jacobian.targets), *self.owners.alone[at]]
            found = [*([] if jacobian is None else jacobian.gradient(at)), *alone[at]]
            for leaf, g in zip(there, found, strict=True):
                if g is not None:
                    yield leaf, k, g
        yield from common

    def _common_of(self, at: int, k: int) -> Iterator[tuple[Tensor, Tensor]]:
        leaves = [leaf for leaf, mask in self.owners.common if mask >> k & 1]
        for leaf, g in zip(leaves, gradient([self._each[at]], leaves), strict=True):
            if g is not None:
                yield leaf, g

    def gradient_of_plus(self) -> list[tuple[Tensor, Tensor]]:
        """The leaves that `plus` reaches, each with its gradient."""
        if self._plus is None:
            return []
        leaves = self.owners.trained
        found = gradient([self._plus], leaves, retain_graph=self._retain)
        return [(leaf, g) for leaf, g in zip(leaves, found, strict=True) if g is not None]

    # What the update asks for -----------------------------------------------------------------

    def in_span(self, trunk: Tensor | None, heads: Tensor | None) -> Update:
        """Σ trunk_i g_i for balanced leaves and Σ heads_i ∂L_i/∂θ for all others, and `plus`'s.

        `trunk` None means the same weights as `heads`, `heads` None means ones: then one backward
        pass of the weighted sum does for both, unless the passes per task are at hand already.
        """
        same = trunk is None or not self._combined_leaves
        if same and self._heads is None and not self._jacobians and self._combination is None:
            return self._one_pass(heads)
        if self._features is not None and self._combined_leaves:
            self.through_heads()  # what the heads' leaves get comes along
        self._through_alone()  # before the pass that frees the graph
        if trunk is None:
            trunk = torch.ones_like(self.call.values) if heads is None else heads
        balanced: Gradient = []
        agreed = False
        if self._combined_leaves:
            balanced, agreed = self._combined(trunk)
        return self._update(balanced, heads, self._combined_leaves if agreed else ())

    def off_span(self, direction: Tensor, place: Place, heads: Tensor | None) -> Update:
        """A direction [n] at `place` for balanced leaves; the others and `plus` as in `in_span`."""
        # A copy: the direction may be the method's own state, `.grad` is for others to write to.
        targets = self.targets(place)
        agreed: Sequence[Tensor] = self.shared
        direction = direction.clone()
        if place == "representation":
            agreed = ()
            sizes = self.jacobian_at(place).sizes
            direction = self._reducer.features_here(direction, sizes)
        row = shaped_like(direction, targets, self._leading, self._scale)
        if place == "representation":
            if self.owners.beyond:
                raise ValueError(
                    "at='representation': a direction there says nothing of a parameter of shape "
                    f"{tuple(self.owners.beyond[0].shape)}, which several tasks reach beyond the "
                    "features; take at='parameters'"
                )
            self._through_alone()
            row = list(self._through_trunk(row, self.shared, self._keep))
        carried = [g for _, g in self._common(self._all_of(self.owners.carried), heads)]
        return self._update([*row, *carried], heads, agreed)

    def _all_of(self, leaves: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
        everybody = sum(1 << k for k in self.call.index)
        return [(leaf, everybody) for leaf in leaves]

    def _one_pass(self, weights: Tensor | None) -> Update:
        """One pass of the weighted sum by every leaf that gets all of its tasks' gradients."""
        leaves = self.owners.trained
        whole = {id(leaf) for leaf, _ in self._partly}
        targets = [leaf for leaf in leaves if id(leaf) not in whole]
        total = weighted_sum(self._losses, weights)
        if self._plus is not None:
            total = total + self._plus
        row = gradient([total], targets, retain_graph=self._retain or bool(whole))
        found = {id(p): g for p, g in zip(targets, row, strict=True)}
        for leaf, g in self._common(self._partly, weights):
            extra = None if self._plus is None else gradient([self._plus], [leaf])[0]
            found[id(leaf)] = added(g, extra)
        return Update(leaves, [found[id(leaf)] for leaf in leaves])

    def _update(self, balanced: Gradient, heads: Tensor | None, agreed: Sequence[Tensor]) -> Update:
        """What balanced and carried leaves get, the gradients of all others, and `plus`'s.

        `agreed` are the leaves whose gradients are means over ranks; all others are this rank's.
        """
        owners = self.owners
        alone = self._alone_scaled(heads)
        common = [gradient for _, gradient in self._common(owners.common, heads)]
        row: list[Tensor | None] = [*balanced, *chain(*alone), *common]
        row += [None] * len(owners.extra)
        leaves = owners.trained
        if self._plus is not None:
            extra = gradient([self._plus], leaves, retain_graph=self._retain)
            row = [added(g, e) for g, e in zip(row, extra, strict=True)]
            agreed = ()  # the mean of what is agreed and of a rank's own is that of both
        return Update(leaves, row, frozenset(map(id, agreed)))

    @property
    def _partly(self) -> list[tuple[Tensor, int]]:
        """The common leaves that do not get the gradients of all active tasks."""
        everybody = sum(1 << k for k in self.call.index)
        return [(leaf, mask) for leaf, mask in self.owners.common if mask != everybody]

    def _common(
        self, common: Sequence[tuple[Tensor, int]], weights: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Σ weights_i ∂L_i/∂θ over the tasks of each leaf's mask; one pass for each mask."""
        by_mask: dict[int, list[Tensor]] = {}
        for leaf, mask in common:
            by_mask.setdefault(mask, []).append(leaf)
        found: dict[int, Tensor | None] = {}
        for mask, leaves in by_mask.items():
            among = [at for at, k in enumerate(self.call.index) if mask >> k & 1]
            losses = torch.stack([self._each[at] for at in among], dim=-1)
            total = weighted_sum(losses, None if weights is None else weights[..., among])
            row = gradient([total], leaves)
            found.update({id(leaf): g for leaf, g in zip(leaves, row, strict=True)})
        for leaf, _ in common:
            yield leaf, found[id(leaf)]

    def _combined(self, weights: Tensor) -> tuple[Gradient, bool]:
        """Σ weights_i g_i, and whether it is the mean over ranks already."""
        if self._combination is not None and torch.equal(weights, self._combination[0]):
            return self._combination[1], True
        if "parameters" in self._jacobians:
            return self._reducer.combined(self._jacobians["parameters"], weights)
        if self._features is not None:
            return self._combined_through(weights), False
        total = weighted_sum(self._losses, weights)
        # A pass that frees the half that it meets would leave the other half out of reach.
        keep = self._keep or self._alone is not None
        return gradient([total], self._combined_leaves, None, keep), False

    def _combined_through(self, weights: Tensor) -> Gradient:
        """Σ weights_i g_i by one pass through the trunk, and from each g_i what lies round it."""
        mixed = self.through_heads().combined(weights)
        beyond: dict[int, Tensor | None] = {}
        if self._beyond is not None and self.owners.beyond:
            row = self._beyond.combined(weights)
            beyond = {id(leaf): g for leaf, g in zip(self.owners.beyond, row, strict=True)}
        leaves = self._combined_leaves
        behind = [leaf for leaf in leaves if id(leaf) not in beyond]
        taken = iter(self._through_trunk(mixed, behind, self._keep))
        return [beyond[id(leaf)] if id(leaf) in beyond else next(taken) for leaf in leaves]

    def _through_alone(self) -> list[Gradient]:
        """The gradients of what each task alone reaches."""
        if self._alone is None:
            # No leaf of one task is another's, so the gradient of the sum is every task's.
            alone = self.owners.alone
            gradients = iter(gradient([self._losses.sum()], [*chain(*alone)]))
            self._alone = [list(islice(gradients, len(mine))) for mine in alone]
        return self._alone

    def _alone_scaled(self, weights: Tensor | None) -> Sequence[Gradient]:
        gradients = self._through_alone()
        if weights is None:
            return gradients
        return [
            [None if g is None else g * beside(weight, g) for g in row]
            for row, weight in zip(gradients, weights.unbind(-1), strict=True)
        ]

    def settled(self, update: Update) -> Update:
        """What leaves are to be handed so that all ranks end with the same gradients."""
        if self._reducer.alone:
            return update
        found = self._reducer.settled(update.leaves, update.gradients, update.agreed)
        return Update(update.leaves, found, update.agreed)

    def require_finite(self, update: Update) -> None:
        """Raises NonFiniteError, naming the tasks that an infinite or NaN gradient is of.

        A task is named where the gradient of what it alone reaches is not finite; where only a sum
        is not, all that were summed are named.
        """
        good = finite(update.gradients)
        if good and not self._reducer.hands_over:
            return
        position = {id(leaf): k for k, mine in enumerate(self.owners.alone) for leaf in mine}
        guilty = {
            position[id(leaf)]
            for leaf, gradient in (() if good else update.items())
            if id(leaf) in position and not finite([gradient])
        }
        flags = [k in guilty for k in range(len(self.tasks))]
        if self._reducer.hands_over:  # what a wrapper is to reduce differs from rank to rank
            bad, *flags = self._reducer.anywhere([not good, *flags])
            if not bad:
                return
        if any(flags):
            named = [task for task, flag in zip(self.tasks, flags, strict=True) if flag]
            raise NonFiniteError("gradient", named)
        raise NonFiniteError("shared gradient, summed over the tasks,", self.tasks)

    def _require_finite(self, values: Tensor) -> None:
        require_finite(values, self.tasks, "gradient")
