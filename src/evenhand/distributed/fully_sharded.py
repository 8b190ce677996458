"""The gradients of a model under `fully_shard`, of whose parameters each rank has a part.

The graph leads to whole parameters, which are there only while a pass needs them, so gradients
cannot be asked for by `torch.autograd.grad`: an ordinary backward pass leaves its mean over ranks,
each rank's part of it, in `.grad`. One such pass for each task gives the gradients in parts; the
Gramian is the sum over parts, and a combination needs nothing sent. At the representation every
rank has its own samples' gradients; one backward pass in which the features' gradient is replaced
by the combination then gives the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import get_backend_config
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from evenhand.autodiff.arithmetic import added, chosen_targets, finite, spans_among, spans_of
from evenhand.autodiff.call import Call, require_finite
from evenhand.autodiff.coordinates import Coordinates
from evenhand.autodiff.gradients import (
    Columns,
    Gradient,
    NonFiniteError,
    Place,
    norms,
    times,
)
from evenhand.autodiff.jacobian import Jacobian, beside, fill, plain_column, real
from evenhand.autodiff.owners import Owners
from evenhand.autodiff.passes import Update
from evenhand.autodiff.reducer import Reducer
from evenhand.distributed.reducing import RanksReducer
from evenhand.distributed.wrappers import groups_of


def require_reducing(device: str, config: str) -> None:
    """See that what sums parts on a device is no backend that ends the process there.

    Args:
        device: the mesh's kind, such as "cuda".
        config: the group's backend for each kind of device, such as "cpu:gloo,cuda:nccl".

    Raises:
        ValueError: it is gloo on a GPU. Two ranks that shared a card ended there by a segmentation
            fault (docs/scaling.md).
    """
    backends = dict(one.split(":") for one in config.split(",") if ":" in one)
    if device == "cuda" and backends.get(device, config) == "gloo":
        raise ValueError(
            "fully_shard on GPUs by gloo: this ended the process by a segmentation fault where it "
            "was tried; make the group with nccl, one process to a GPU, or wrap the model in "
            "DistributedDataParallel"
        )


class FullySharded:
    """A model under `fully_shard`: its parameters as the graph has them, and their parts.

    Args:
        model: the root.

    Raises:
        ValueError: only parts are sharded, a mesh has more than one dimension, or its GPUs are
            summed over by gloo.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, FSDPModule):
            raise ValueError(
                f"fully_shard was called on parts of this {type(model).__name__} and not on it: "
                "call fully_shard(model) too, after its parts"
            )
        self._root: Any = model
        self._parts: list[Any] = []
        self._groups: list[Any] = []
        for module in model.modules():
            if isinstance(module, FSDPModule):
                for group in groups_of(module):
                    self._groups.append(group)
                    self._parts += [part for part in group.fsdp_params if part not in self._parts]
        meshes = {part.sharded_param.device_mesh for part in self._parts}
        if len(meshes) != 1 or next(iter(meshes)).ndim > 1:
            raise ValueError(
                f"fully_shard with {len(meshes)} meshes, or one of several dimensions (replicas of "
                "shards, tensor parallelism): a balancer knows one mesh of one dimension"
            )
        (self.mesh,) = meshes
        config = get_backend_config(self.mesh.get_group())
        require_reducing(self.mesh.device_type, config)

    @property
    def by_whole(self) -> dict[int, nn.Parameter]:
        """The part of each parameter of the graph, by identity."""
        pairs = ((getattr(p, "_unsharded_param", None), p.sharded_param) for p in self._parts)
        return {id(whole): part for whole, part in pairs if whole is not None}

    def passes(
        self,
        call: Call,
        owners: Owners,
        reducer: Reducer,
        coordinates: Coordinates,
        names: Mapping[Tensor, str],
    ) -> ShardedPasses:
        """The passes of a call."""
        assert isinstance(reducer, RanksReducer)
        return ShardedPasses(self, call, owners, reducer, coordinates, names)

    def wake(self, terms: Sequence[Tensor]) -> None:
        """Let a backward pass from each of these gather and reduce, whatever the model's output is.

        torch hooks that to the tensors of the root's output. In versions up to 2.11 it looks for
        them in plain containers alone, not in a dict that is a class of its own, and would leave
        gradients unreduced without a word. Where it has found them, a second hook does nothing.
        """
        begin = self._root._get_fsdp_state()._pre_backward
        for term in terms:
            hooked: Any = term.register_hook
            hooked(begin)

    @contextmanager
    def kept_gathered(self) -> Iterator[None]:
        """Inside, what the forward pass has left gathered stays so between backward passes.

        That is what has `reshard_after_forward=False`, as a root has by default: it waits whole for
        the backward pass anyway, and is not gathered anew for each of several. It is left as it was
        found: what stayed whole when parameters move would be out of date in the next forward pass.
        """
        kept = [
            g for g in self._groups if g.reshard_after_backward and not g._reshard_after_forward
        ]
        apart = [group for group in kept if not group.is_unsharded]
        for group in kept:
            group.reshard_after_backward = False
        try:
            yield
        finally:
            for group in kept:
                group.reshard_after_backward = True
            for group in apart:
                group.reshard()

    def put_away(self) -> None:
        """Leave each rank its parts alone, also after a forward pass without a backward one."""
        for group in self._groups:
            group.reshard()

    @contextmanager
    def as_in_the_graph(self) -> Iterator[None]:
        """Inside, modules name the parameters that the graph leads to."""
        before: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        for part in self._parts:
            whole = getattr(part, "_unsharded_param", None)
            if whole is None:
                continue
            info = part._module_info
            shared = zip(info.shared_modules, info.shared_param_names, strict=True)
            for module, name in [(info.module, info.param_name), *shared]:
                before.append((module, name, module._parameters[name]))
                module._parameters[name] = whole
        try:
            yield
        finally:
            for module, name, parameter in before:
                module._parameters[name] = parameter

    def handed(self, reached: Sequence[Tensor]) -> list[Tensor]:
        """The parts of these leaves; leaves of another model are as they are."""
        known = self.by_whole
        return list(dict.fromkeys(known.get(id(leaf), leaf) for leaf in reached))

    def parts_of(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """The parts of parameters of the graph.

        Raises:
            ValueError: a leaf is no parameter of the sharded model.
        """
        known = self.by_whole
        parts = {id(part) for part in known.values()}
        found: list[Tensor] = []
        for leaf in wholes:
            if id(leaf) in known:
                found.append(known[id(leaf)])
            elif id(leaf) in parts:
                found.append(leaf)
            else:
                raise ValueError(
                    f"the losses reach a parameter of shape {tuple(leaf.shape)} outside of the "
                    "model under fully_shard: shard the root module too"
                )
        return found


class ShardedPasses:
    """What `Passes` is, for a model under `fully_shard`; everything is asked of every rank.

    Args:
        model: the model.
        call, owners, reducer, coordinates, names: see `Passes`.

    Raises:
        ValueError: features are several tensors.
    """

    def __init__(
        self,
        model: FullySharded,
        call: Call,
        owners: Owners,
        reducer: RanksReducer,
        coordinates: Coordinates,
        names: Mapping[Tensor, str],
    ) -> None:
        if owners.features is not None and len(owners.features) > 1:
            raise ValueError("under fully_shard features= must be one tensor")
        self.call = call
        self.owners = owners
        self.tasks = call.tasks
        self.shared = owners.balanced
        self.sharers = -1  # on another rank a task may share more
        self._model = model
        self._reducer = reducer
        self._coordinates = coordinates
        self._names = names
        scale, plus = call.scale, call.plus
        self._each = [loss if scale is None else loss * scale for loss in call.losses]
        self._plus = plus if plus is None or scale is None else plus * scale
        self._scale = scale
        model.wake(self._each if self._plus is None else [*self._each, self._plus])
        self._by_task: list[dict[int, Tensor]] | None = None
        self._heads: Jacobian | None = None
        self._gramians: dict[Place, Tensor] = {}

    # The passes -------------------------------------------------------------------------------

    @property
    def unfreed(self) -> tuple[bool, bool]:
        """Ordinary backward passes free the graph themselves."""
        return False, False

    def _passed(self, total: Tensor, keep: bool = True) -> dict[int, Tensor]:
        """The gradients of one backward pass by the parts, by identity; `.grad` is untouched."""
        parts = list(self._model.by_whole.values())
        before = [part.grad for part in parts]
        for part in parts:
            part.grad = None
        try:
            torch.autograd.backward(total, retain_graph=keep)
            return {id(part): part.grad for part in parts if part.grad is not None}
        finally:
            for part, grad in zip(parts, before, strict=True):
                part.grad = grad

    @property
    def _of_tasks(self) -> list[dict[int, Tensor]]:
        """Each task's gradients by all parts, from one backward pass each."""
        if self._by_task is None:
            *first, last = self._each
            with self._model.kept_gathered():
                rows = [self._passed(loss) for loss in first]
            self._by_task = [*rows, self._passed(last)]
        return self._by_task

    def _deltas(self) -> Jacobian:
        """∂L_i/∂Z of this rank's samples."""
        if self._heads is None:
            (z,) = self._features()
            column = [plain_column(len(self.tasks), self.call.leading)]
            with self._model.kept_gathered():
                for i, loss in enumerate(self._each):
                    fill(column, i, self._by_features(loss))
            m, leading = len(self.tasks), self.call.leading
            self._heads = Jacobian(column, [z], leading, m, self.call.values)
        return self._heads

    def _by_features(self, value: Tensor) -> Gradient:
        found: Gradient = torch.autograd.grad(
            value, self._features(), retain_graph=True, allow_unused=True
        )
        return found

    def _features(self) -> list[Tensor]:
        if not self.owners.features:
            raise ValueError(
                "at='representation' needs the features that all tasks share, with their graph: "
                "pass features= to backward"
            )
        return self.owners.features

    # What methods ask for ---------------------------------------------------------------------

    def targets(self, place: Place) -> list[Tensor]:
        """The tensors that `place` differentiates by."""
        if place == "representation":
            return self._features()
        return chosen_targets(place, self.shared, self.owners.last_layer)

    def gramian(self, place: Place) -> Tensor:
        """G at `place`, [m, m]."""
        if place not in self._gramians:
            if place == "representation":
                found = self._reducer.gramian_of_features(self._deltas().gramian())
            else:
                found = self._gramian_of_parts(self._model.parts_of(self.targets(place)))
            require_finite(found.diagonal(), self.tasks, "gradient")
            scale = self._scale
            self._gramians[place] = found if scale is None else found / scale / scale
        return self._gramians[place]

    def _gramian_of_parts(self, parts: Sequence[Tensor]) -> Tensor:
        m = len(self.tasks)
        total = self.call.values.new_zeros(m, m, dtype=torch.float64)
        for part in parts:
            there = [found.get(id(part)) for found in self._of_tasks]
            flat = [None if g is None else real(_local(g)).reshape(-1) for g in there]
            some = next((g for g in flat if g is not None), None)
            if some is not None:
                block = torch.stack([some.new_zeros(some.shape) if g is None else g for g in flat])
                total += (block @ block.mT).to(total)
        summed = self._reducer.sum(total)
        kinds = [torch.empty(0, dtype=part.dtype).real.dtype for part in parts]
        return summed.to(torch.promote_types(kinds[0], torch.float32)) if kinds else summed

    def jacobian(self, place: Place) -> Tensor:
        """J at `place`, [m, n]."""
        if place == "representation":
            deltas = self._deltas()
            found = self._reducer.features_of_all(deltas.matrix(), deltas.sizes)
        else:
            pieces = []
            for part in self._model.parts_of(self.targets(place)):
                zero = torch.zeros(part.shape, dtype=part.dtype, device=part.device)
                there = [found.get(id(part)) for found in self._of_tasks]
                whole = [zero if g is None else self._whole(g) for g in there]
                pieces.append(real(torch.stack(whole)).reshape(len(whole), -1))
            found = torch.cat(pieces, dim=-1)
        require_finite(found.mT, self.tasks, "gradient")
        return found if self._scale is None else found / self._scale

    def _whole(self, g: Tensor) -> Tensor:
        if not isinstance(g, DTensor):
            return g
        (placement,) = g.placements
        assert isinstance(placement, Shard)
        return self._reducer.whole(g.to_local(), g.shape, placement.dim)

    def norms(self, place: Place) -> Tensor:
        """‖g_i‖ at `place`, [m]."""
        return norms(self.gramian(place))

    def product(self, place: Place, weights: Tensor) -> Tensor:
        """G w at `place`, [m]; from all g_i, since no pass here can be differentiated again."""
        return times(self.gramian(place), weights)

    def known_gramian(self, *places: Place) -> Tensor | None:
        """The Gramian at the first of `places` at which somebody has asked for it."""
        return next((self._gramians[p] for p in places if p in self._gramians), None)

    def spans(self, place: Place) -> list[slice]:
        """Where the parameters of `place` stand among the columns of the Jacobian of all."""
        leading = self.call.leading
        return spans_among(spans_of(place, self.targets, self.shared), self.shared, leading)

    def columns(self, place: Place) -> Columns:
        """Where the coordinates of `place` stand among all that were ever looked at."""
        leading = self.call.leading
        found = self._coordinates.columns(place, self.targets(place), self._names, leading)
        if place == "representation":
            return Columns(self._reducer.features_in_all(found.total))
        return found

    # What the update asks for -----------------------------------------------------------------

    def in_span(self, trunk: Tensor | None, heads: Tensor | None) -> Update:
        """Σ trunk_i g_i for balanced leaves and Σ heads_i ∂L_i/∂θ for all others, and `plus`'s."""
        ones = torch.ones_like(self.call.values)
        heads = ones if heads is None else heads
        same = trunk is None or not self.shared or torch.equal(trunk, heads)
        trunk = heads if trunk is None else trunk
        if self._by_task is None and (same or self.owners.features):
            return self._by_one_pass(None if same else trunk, heads)
        return self._from_tasks(lambda part: self._sum(part, trunk), heads)

    def off_span(self, direction: Tensor, place: Place, heads: Tensor | None) -> Update:
        """A direction [n] at `place` for balanced leaves; the others and `plus` as in `in_span`."""
        heads = torch.ones_like(self.call.values) if heads is None else heads
        scale = 1 if self._scale is None else self._scale
        if place == "representation":
            (z,) = self._features()
            here = self._reducer.features_here(direction, [z.numel()]) * scale
            return self._replacing(here.to(z.dtype).view(z.shape), heads)
        sizes = [leaf.numel() for leaf in self.shared]
        pieces = torch.split(direction * scale, sizes, dim=-1)
        parts = self._model.parts_of(self.shared)
        cut = {id(part): _cut(piece, part) for piece, part in zip(pieces, parts, strict=True)}
        return self._from_tasks(lambda part: cut[id(part)], heads)

    def _by_one_pass(self, trunk: Tensor | None, heads: Tensor) -> Update:
        if trunk is None:
            return self._update(self._passed(self._total(heads), self.call.retain))
        mixed = self._deltas().combined(trunk)[0]
        return self._replacing(mixed, heads)

    def _replacing(self, mixed: Tensor | None, heads: Tensor) -> Update:
        """One backward pass in which the gradient by the features is replaced."""
        (z,) = self._features()
        if self._plus is not None:
            mixed = added(mixed, self._by_features(self._plus)[0])
        hooked: Any = z.register_hook
        handle = hooked(lambda g: torch.zeros_like(g) if mixed is None else mixed)
        try:
            return self._update(self._passed(self._total(heads), self.call.retain))
        finally:
            handle.remove()

    def _total(self, heads: Tensor) -> Tensor:
        terms = [loss * w for loss, w in zip(self._each, heads.to(self._each[0]), strict=True)]
        return torch.stack(terms if self._plus is None else [*terms, self._plus]).sum()

    def _from_tasks(self, balanced: Callable[[Tensor], Tensor | None], heads: Tensor) -> Update:
        """Gradients from those of all tasks; `balanced` says what a balanced part gets."""
        found: dict[int, Tensor] = {}
        there = {id(part) for part in self._model.parts_of(self.shared)}
        for part in self._model.parts_of(self.owners.trained):
            g = balanced(part) if id(part) in there else self._sum(part, heads)
            if g is not None:
                found[id(part)] = g
        if self._plus is not None:
            for part_id, g in self._passed(self._plus, self.call.retain).items():
                found[part_id] = found[part_id] + g if part_id in found else g
        return self._update(found)

    def _sum(self, part: Tensor, weights: Tensor) -> Tensor | None:
        total: Tensor | None = None
        for found, weight in zip(self._of_tasks, weights.unbind(-1), strict=True):
            g = found.get(id(part))
            if g is not None:
                total = added(total, g * beside(weight, _local(g)).item())
        return total

    def _update(self, found: Mapping[int, Tensor]) -> Update:
        parts = self._model.parts_of(self.owners.trained)
        return Update(parts, [found.get(id(part)) for part in parts])

    def settled(self, update: Update) -> Update:
        """What leaves are handed: the parts of means already."""
        return update

    def require_finite(self, update: Update) -> None:
        """Raises NonFiniteError, naming the tasks, where a part on any rank is not finite."""
        bad = [part for part, g in update.items() if not finite([_local(g)])]
        alone = [{id(part) for part in self._model.parts_of(mine)} for mine in self.owners.alone]
        guilty = [any(id(part) in mine for part in bad) for mine in alone]
        some, *flags = self._reducer.anywhere([bool(bad), *guilty])
        if some and any(flags):
            named = [task for task, flag in zip(self.tasks, flags, strict=True) if flag]
            raise NonFiniteError("gradient", named)
        if some:
            raise NonFiniteError("shared gradient, summed over the tasks,", self.tasks)


def _local(g: Tensor) -> Tensor:
    return g.to_local() if isinstance(g, DTensor) else g


def _cut(piece: Tensor, part: Tensor) -> Tensor:
    """This rank's part of a gradient that every rank has."""
    assert isinstance(part, DTensor)
    whole = piece.reshape(part.shape).to(part.dtype)
    return distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None)
