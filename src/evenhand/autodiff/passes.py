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
and its tensors begin with it; since no member's loss depends on another's parameters, the pass of
a sum over members is every member's pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from evenhand.autodiff.factors import Factored, layers, may_pay
from evenhand.autodiff.gradients import Door, NonFiniteError, Place, Row, all_finite, norms, times
from evenhand.autodiff.rows import Filled, Heads, Rows, beside, fill, plain_column
from evenhand.network import Blocks, Reading
from evenhand.schedules import Phase


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
        stacked: the same as one tensor [..., m]. Where one task is differentiated by itself it
            will not do: zeros would be passed back through all the others' heads.
        phase: which tasks these are, and what moves.
        blocks: whose each parameter is.
        features: tensors that every path from a loss to a shared parameter passes; None when
            there are none, or when some path goes round them.
        readings: how each head reads the features, if its loss depends on no other reading.
        plus: a scalar that is nobody's task, added to what moves without any weight.
        scale: every loss is multiplied by it before differentiation (loss scaling for half
            precision); what methods see is divided by it again.
        chunk: (this graph) -> how many tasks' passes to take at once; one by one by default.
        factored: whether gradients by layers' weights are kept as factors.
        retain_graph: keep all of the graph; else it is freed as it is used up.
        retain_trunk: keep the trunk's for a pass after all tasks' gradients are known.
    """

    def __init__(
        self,
        losses: Sequence[Tensor],
        stacked: Tensor,
        phase: Phase,
        blocks: Blocks,
        features: Sequence[Tensor] | None,
        *,
        readings: Sequence[Reading] = (),
        plus: Tensor | None = None,
        scale: float | Tensor | None = None,
        door: Door | None = None,
        chunk: Callable[[Graph], int] = lambda graph: 1,
        factored: Factored = "auto",
        retain_graph: bool = False,
        retain_trunk: bool = False,
    ) -> None:
        self.tasks = phase.tasks
        self.blocks = blocks
        self.shared = [p for p in blocks.shared if p.requires_grad]
        self.own = [[p for p in blocks.own.get(t, ()) if p.requires_grad] for t in phase.tasks]
        self.moves = phase.moves
        self._each = list(losses) if scale is None else [loss * scale for loss in losses]
        self._losses = stacked if scale is None else stacked * scale
        self._members = stacked.shape[:-1]
        self._features = None if features is None else [z for z in features if z.requires_grad]
        self._readings = readings if self._features else ()
        self._plus = plus if plus is None or scale is None else plus * scale
        self._scale = scale
        self._door = door or Door()
        self._chunk = chunk
        self._factored = factored
        self._retain = retain_graph
        self._keep = retain_graph or retain_trunk or plus is not None
        self._heads: Rows | None = None
        self._own: list[Row] | None = None
        self._rows: dict[Place, Rows] = {}
        self._gramians: dict[Place, Tensor] = {}
        self._combination: tuple[Tensor, Row] | None = None

    # What methods ask for ---------------------------------------------------------------------

    def jacobian(self, place: Place) -> Tensor:
        """J at `place`, [m, n]."""
        jacobian = self.rows(place).jacobian()
        self._require_finite(jacobian.movedim(-2, -1))
        return jacobian if self._scale is None else jacobian / self._scale

    def gramian(self, place: Place) -> Tensor:
        """G at `place`, [m, m]."""
        if place not in self._gramians:
            gramian = self.rows(place).gramian()
            if place == "representation":
                gramian = self._door.gramian_of_features(gramian)
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
        if place != "parameters" or place in self._rows:
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

    def rows(self, place: Place) -> Rows:
        """g_i at `place` for every task."""
        if place in self._rows:
            return self._rows[place]
        known = self._rows.get("parameters")
        if place == "representation":
            rows = self.through_heads()
        elif known is not None:
            position = {id(p): k for k, p in enumerate(self.shared)}
            rows = known.among([position[id(p)] for p in self.targets(place)])
        else:
            chunk, keep = self._chunk(self), self._keep or place != "parameters"
            rows = self.taken(self.targets(place), chunk, keep)
            if not self._door.alone:
                rows = rows.map(self._door.mean)
        self._rows[place] = rows
        return rows

    # The passes -------------------------------------------------------------------------------

    def taken(self, targets: Sequence[Tensor], chunk: int, keep: bool = True) -> Rows:
        """g_i by `targets`, `chunk` tasks at a time, as each process has it.

        Unless the graph is to be kept, the last pass frees it: from all rows everything follows.
        """
        m = len(self.tasks)
        columns, inputs = self._empty_columns(targets)
        if chunk > 1 and m > 1:
            self._vectorised(columns, inputs, chunk)
        elif self._features is None:
            for i, row in enumerate(self._from_losses(inputs)):
                fill(columns, i, row)
        else:
            heads = self.through_heads()
            for i in range(m):
                row = self._through_trunk(heads.row(i), inputs, keep or i < m - 1)
                fill(columns, i, row)
        return Rows(columns, targets, self._members, m)

    def _empty_columns(
        self, targets: Sequence[Tensor]
    ) -> tuple[list[Filled], list[Tensor | GradientEdge]]:
        """Columns for gradients by `targets`, and what to differentiate by to fill them."""
        m = len(self.tasks)
        columns = [plain_column(m, self._members) for _ in targets]
        inputs: list[Tensor | GradientEdge] = list(targets)
        always = self._factored == "always"
        if self._factored == "never" or m == 1 or self._members or not self._door.alone:
            return columns, inputs
        outputs = self._each if self._features is None else self._features
        least = len(outputs[0]) if outputs[0].ndim else 1
        if always or may_pay(targets, m, least):
            for k, layer in layers((y.grad_fn for y in outputs), targets).items():
                if always or layer.pays(m):
                    columns[k], inputs[k] = layer.column(m), layer.edge
        return columns, inputs

    def _vectorised(
        self, columns: Sequence[Filled], inputs: Sequence[Tensor | GradientEdge], chunk: int
    ) -> None:
        """The passes of `chunk` tasks at a time, as one that runs on stacks."""
        m = len(self.tasks)
        if self._features is None:
            outputs: Sequence[Tensor] = [self._losses]
            each = torch.eye(m, dtype=outputs[0].dtype, device=outputs[0].device)
            stacks = [each.reshape(m, *(1,) * len(self._members), m).expand(m, *outputs[0].shape)]
        else:
            outputs, stacks = [], []
            for z, column in zip(self._features, self.through_heads().columns, strict=True):
                stack = column.stack()
                if stack is not None:
                    outputs.append(z)
                    stacks.append(stack)
        for i in range(0, m, chunk):
            part = slice(i, i + chunk)
            fill(columns, part, _batched(outputs, inputs, [stack[part] for stack in stacks]))

    def _representation(self) -> list[Tensor]:
        if not self._features:
            raise ValueError(
                "at='representation' needs the features that all tasks share, with their graph: "
                "pass features= to backward, and check that no shared parameter is reached "
                "beyond them"
            )
        return self._features

    def through_heads(self) -> Rows:
        """∂L_i/∂Z for every task; the heads' own gradients come along if they move."""
        if self._heads is None:
            features = self._representation()
            if self._readings:
                self._heads = self._through_readings(features)
            else:
                m = len(self.tasks)
                columns = [plain_column(m, self._members) for _ in features]
                with _cut(features):
                    for i, row in enumerate(self._from_losses(features)):
                        fill(columns, i, row)
                self._heads = Rows(columns, features, self._members, m)
        return self._heads

    def _through_readings(self, features: Sequence[Tensor]) -> Rows:
        """One pass for all heads."""
        probes = [reading.probe for reading in self._readings]
        own = self.own if self._takes_own else [[] for _ in self.tasks]
        keep = self._retain or self._plus is not None
        total = self._losses.sum()
        gradients = iter(_grad([total], [*probes, *chain(*own)], retain_graph=keep))
        heads = list(islice(gradients, len(probes)))
        if self._takes_own:
            self._own = [list(islice(gradients, len(mine))) for mine in own]
        (z,), m = features, len(self.tasks)
        weights = [reading.weight for reading in self._readings]
        deltas = [d.to(z.dtype) for d in heads if d is not None]
        matrices = [w.detach().to(z.dtype) for w in weights if w is not None]
        if len(deltas) == len(matrices) == m:
            return Rows([Heads(deltas, matrices, z)], features, self._members, m)
        column = plain_column(m, self._members)
        for i, (d, w) in enumerate(zip(heads, weights, strict=True)):
            column.put(i, d if d is None or w is None else d.to(z.dtype) @ w.detach().to(z.dtype))
        return Rows([column], features, self._members, m)

    @property
    def _takes_own(self) -> bool:
        return "own" in self.moves and self._own is None

    def _from_losses(self, targets: Sequence[Tensor | GradientEdge]) -> Iterator[Row]:
        """Each task's gradient, from its loss; own gradients come along with the last one."""
        own = self.own if self._takes_own else [[] for _ in self.tasks]
        kept: list[Row] = []
        for loss, mine in zip(self._each, own, strict=True):
            row = _grad([loss], [*targets, *mine])
            kept.append(row[len(targets) :])
            yield row[: len(targets)]
        if self._takes_own:
            self._own = kept

    def _through_trunk(
        self, head: Row, targets: Sequence[Tensor | GradientEdge], retain_graph: bool = True
    ) -> Row:
        """The gradient by `targets` that a gradient by Z brings."""
        pairs = [(z, d) for z, d in zip(self._representation(), head, strict=True) if d is not None]
        if not pairs:
            return [None] * len(targets)
        outputs, gradients = zip(*pairs, strict=True)
        return _grad(outputs, targets, gradients, retain_graph)

    def _differentiable(self, weights: Tensor) -> tuple[Row, Tensor]:
        """The direction d = Σ w_i g_i, and the products g_i·d, from two passes for any m."""
        mixed: Row = []
        if self._features is None:
            seeds = [weights.detach().to(self._losses.dtype).clone().requires_grad_()]
            outputs, gradients = [(self._losses * seeds[0]).sum()], None
        else:
            mixed = self.through_heads().combined(weights)
            pairs = zip(self._features, mixed, strict=True)
            outputs = [z for z, d in pairs if d is not None]
            gradients = seeds = [d.detach().requires_grad_() for d in mixed if d is not None]
        direction = _doubly(outputs, self.shared, gradients)
        agreed = self._agreed([None if d is None else d.detach() for d in direction])
        changes = iter(
            _along(
                [d for d in direction if d is not None], seeds, [d for d in agreed if d is not None]
            )
        )
        if self._features is None:
            product = cast(Tensor, next(changes))
        else:
            along = [None if d is None else next(changes) for d in mixed]
            product = self.through_heads().against(along)
        return agreed, self._door.mean(product)

    # What the update asks for -----------------------------------------------------------------

    def in_span(self, trunk: Tensor | None, heads: Tensor | None) -> Update:
        """Σ trunk_i g_i for the trunk and heads_i ∂L_i/∂θ_i for each head, plus `plus`'s share.

        `trunk` None means the same weights as `heads`, `heads` None means ones: then one backward
        pass of the weighted sum does for both, unless the passes per task are at hand already.
        """
        same = trunk is None or "shared" not in self.moves
        if same and self._heads is None and not self._rows and self._combination is None:
            return self._one_pass(heads)
        if self._features is not None and "shared" in self.moves:
            self.through_heads()  # which brings the heads' own gradients along
        extra = self._gradient_of_plus()
        own = self._own_scaled(heads)
        shared: Row = []
        if "shared" in self.moves:
            everywhere = torch.ones_like(self._losses) if heads is None else heads
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
        if self._combination is not None and torch.equal(weights, self._combination[0]):
            return self._combination[1]
        if "parameters" in self._rows:
            return self._rows["parameters"].combined(weights)
        if self._features is not None:
            through_heads = self.through_heads().combined(weights)
            return self._agreed(self._through_trunk(through_heads, self.shared, self._retain))
        total = _weighted_sum(self._losses, weights)
        return self._agreed(_grad([total], self.shared, None, self._retain))

    def _own_scaled(self, weights: Tensor | None) -> dict[str, Row]:
        if "own" not in self.moves:
            return {}
        if self._own is None:
            # No parameter is two tasks' own, so the gradient of the sum is every task's.
            gradients = iter(_grad([self._losses.sum()], [*chain(*self.own)]))
            self._own = [list(islice(gradients, len(mine))) for mine in self.own]
        own = dict(zip(self.tasks, map(self._agreed, self._own), strict=True))
        if weights is None:
            return own
        scale = dict(zip(self.tasks, weights.unbind(-1), strict=True))
        return {
            task: [None if g is None else g * beside(scale[task], g) for g in row]
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
        if _finite([*update.shared, *chain(*update.own.values())]):
            return
        guilty = [task for task, row in update.own.items() if not _finite(row)]
        if guilty:
            raise NonFiniteError("gradient", guilty)
        if not _finite(update.shared):
            raise NonFiniteError("shared gradient, summed over the tasks,", self.tasks)

    def _require_finite(self, values: Tensor) -> None:
        """Raises NonFiniteError, naming the tasks whose entries of values [..., m] are not."""
        if not all_finite(values):
            finite = values.isfinite().reshape(-1, len(self.tasks)).all(0)
            flags = zip(self.tasks, finite.tolist(), strict=True)
            raise NonFiniteError("gradient", [task for task, ok in flags if not ok])


# Small arithmetic on lists of tensors ---------------------------------------------------------


def _grad(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor | GradientEdge],
    gradients: Sequence[Tensor] | None = None,
    retain_graph: bool = True,
) -> Row:
    if not inputs:
        return []
    if gradients is None and outputs[0].ndim:
        gradients = [torch.ones_like(output) for output in outputs]
    targets = cast(Sequence[Tensor], inputs)  # it takes a mixture of both
    row = torch.autograd.grad(
        outputs, targets, gradients, retain_graph=retain_graph, allow_unused=True
    )
    return cast(Row, row)


def _batched(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor | GradientEdge],
    gradients: Sequence[Tensor],
) -> Row:
    """One pass on gradients [c, ...] by the outputs; what it returns is [c, ...] too."""
    if not outputs:
        return [None] * len(inputs)
    try:
        with warnings.catch_warnings():  # an operation without a rule of its own is looped over
            warnings.filterwarnings("ignore", "There is a performance drop")
            row = torch.autograd.grad(
                outputs,
                cast(Sequence[Tensor], inputs),
                gradients,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
    except RuntimeError as error:
        raise ValueError(
            "this network cannot be differentiated for several tasks at once; take "
            f"Balancer(jacobian='looped'): {error}"
        ) from error
    return cast(Row, row)


def _doubly(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], gradients: Sequence[Tensor] | None
) -> Row:
    """A pass that can be differentiated by `gradients`, or by what the outputs are made of."""
    return cast(
        Row,
        torch.autograd.grad(outputs, inputs, gradients, create_graph=True, allow_unused=True),
    )


def _along(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> Row:
    """Differentiates what `_doubly` made."""
    try:
        return cast(Row, torch.autograd.grad(outputs, inputs, vectors, allow_unused=True))
    except RuntimeError as error:
        raise ValueError(
            "the product J d needs operations whose backward pass can be differentiated, and one "
            "of this network's cannot; fused attention is one: run the forward pass inside "
            f"torch.nn.attention.sdpa_kernel(SDPBackend.MATH). Torch says: {error}"
        ) from error


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


def _weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.sum() if weights is None else (losses * weights.to(losses.dtype)).sum()


def _added(update: Update, extra: Update | None) -> Update:
    if extra is None:
        return update
    own: dict[str, Row] = {task: _sum(row, extra.own[task]) for task, row in update.own.items()}
    return Update(_sum(update.shared, extra.shared), own)


def _sum(row: Row, other: Row) -> Row:
    return [b if a is None else a if b is None else a + b for a, b in zip(row, other, strict=True)]


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


def _finite(row: Row) -> bool:
    present = [g for g in row if g is not None]
    if all(g.is_cpu for g in present):
        return all(map(all_finite, present))
    # Elsewhere one norm costs less than many sums. It is NaN or infinite if an entry is; should
    # finite entries overflow it, they are tested after all.
    if math.isfinite(nn.utils.get_total_norm(present).item()):
        return True
    return all(bool(g.isfinite().all()) for g in present)
