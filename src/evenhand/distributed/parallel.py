"""What a balancer keeps of the other processes: who they are, and what the model is wrapped in."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from evenhand.autodiff.ownership import Ownership, Probe
from evenhand.autodiff.walk import edge_of, walk
from evenhand.distributed.agreement import Agreed, Agreement, labels
from evenhand.distributed.header import Header
from evenhand.distributed.ranks import Ranks
from evenhand.distributed.reducing import RanksReducer
from evenhand.distributed.settings import difference, settings
from evenhand.distributed.wrappers import Wrappers
from evenhand.network import Outputs

if TYPE_CHECKING:
    from evenhand.distributed.fully_sharded import FullySharded

Group = dist.ProcessGroup | DeviceMesh | Literal[False] | None
"""Whom a balancer speaks to: a group; nobody; or the wrapper's group, else the world."""


class Parallel:
    """The other processes, as far as there are any.

    Args:
        group: whom to speak to.
        ownership: whose the parameters are.

    Raises:
        TypeError: `group` is no group.
    """

    def __init__(self, group: Group, ownership: Ownership) -> None:
        if group is not None and group is not False:
            if not isinstance(group, dist.ProcessGroup | DeviceMesh):
                raise TypeError(
                    f"group={group!r}: must be a process group, a device mesh of one dimension, "
                    "False (this process alone), or None (the model's own group, else the world)"
                )
            if isinstance(group, DeviceMesh) and group.ndim > 1:
                raise TypeError(
                    f"group= is a mesh of {group.ndim} dimensions: give the one over which the "
                    'batch is shared out, mesh["dp"]'
                )
        self._group = group
        self.agreement = Agreement(lambda: ownership.names)
        self.wrappers = Wrappers()
        self._ownership = ownership
        self._ranks: Ranks | None = None
        self._told: tuple[Ranks, Any] | None = None
        self._sharded: tuple[weakref.ref[nn.Module], FullySharded] | None = None
        self._warned = False

    def watch(self, model: nn.Module) -> None:
        """See what the forward passes of a model run in, once there are several processes."""
        self.wrappers.watch(model)

    def now(self) -> Ranks | None:
        """The ranks that this step is of; None where this process is alone."""
        if self._group is False:
            return None
        group = self._present_group()
        if dist.get_world_size(group) == 1 and self.sharded is None:
            return None
        if self._ranks is None or self._ranks.group is not group:
            self._ranks = Ranks(group)
        return self._ranks

    def _present_group(self) -> dist.ProcessGroup:
        named: dist.ProcessGroup | None = None
        if isinstance(self._group, DeviceMesh):
            named = self._group.get_group()
        elif isinstance(self._group, dist.ProcessGroup):
            named = self._group
        theirs: dist.ProcessGroup | None = None
        if (sharded := self.sharded) is not None:
            theirs = sharded.mesh.get_group()
        elif (wrapper := self.wrappers.found) is not None:
            theirs = wrapper.process_group
        if named is not None and theirs is not None and named is not theirs:
            mine, its = map(dist.get_process_group_ranks, (named, theirs))
            if mine != its:
                raise ValueError(
                    f"Balancer(group=) has the ranks {mine}, and what the model is wrapped in "
                    f"reduces over {its}: leave group= out, or wrap the model with the same group"
                )
        found = named or theirs or dist.group.WORLD
        assert found is not None
        return found

    def reducer(self) -> RanksReducer:
        """What the passes of a step agree by."""
        return RanksReducer(self._here, lambda: self.wrappers.managed)

    @property
    def _here(self) -> Ranks:
        ranks = self.now()
        assert ranks is not None
        return ranks

    @property
    def sharded(self) -> FullySharded | None:
        """The model, if it is under `fully_shard`."""
        model = self.wrappers.sharded
        if model is None:
            return None
        if self._sharded is None or self._sharded[0]() is not model:
            from evenhand.distributed.fully_sharded import FullySharded

            self._sharded = weakref.ref(model), FullySharded(model)
        return self._sharded[1]

    # What all ranks must agree on -------------------------------------------------------------

    def meet(self, told: Any, methods: Mapping[str, nn.Module]) -> None:
        """Begin a step: what is told must be the same on all ranks.

        They tell it in the first step and wherever it has changed, and with it what the methods are
        set to.

        Args:
            told: the tasks, and what the slots hold.
            methods: these, by their slots.

        Raises:
            ValueError: it is not, or the methods are set to other things.
        """
        if self._told is None or self._told[0] is not self._here or self._told[1] != told:
            self._require_alike(told, settings(methods))

    def look(self, losses: Mapping[str, Tensor], plus: Tensor | None) -> None:
        """Look for the wrapper of what these reach, where no forward pass has told of it.

        Raises:
            ValueError: the model is wrapped in a way that goes wrong.
        """
        self._require_shards_together()
        self._warn_of_parts()
        roots = [t for t in (*losses.values(), plus) if t is not None and t.requires_grad]
        if self.wrappers.heard or not roots:
            return
        wrapper = self.wrappers.look(roots, walk([(edge_of(t), 1) for t in roots]).leaves)
        if wrapper is not None:
            self._ownership.attach(wrapper, given=False)
        self._require_shards_together()
        self._warn_of_parts()

    def _require_shards_together(self) -> None:
        if self._group is False and self.wrappers.sharded is not None:
            raise ValueError(
                "Balancer(group=False) is one process alone, and under fully_shard each has a part "
                "of every parameter: leave group= out"
            )

    def _warn_of_parts(self) -> None:
        wrapper = self.wrappers.found if self._group is False and not self._warned else None
        if wrapper is None or dist.get_world_size(wrapper.process_group) == 1:
            return
        self._warned = True
        warnings.warn(
            "Balancer(group=False) under DistributedDataParallel: every process balances its own "
            "part of the batch, with weights of its own, and the wrapper takes the mean of what "
            "they chose. One process with the whole batch would do something else; leave group= "
            "out for that",
            stacklevel=4,
        )

    def agree(
        self,
        tasks: Sequence[str],
        losses: Mapping[str, Tensor],
        plus: Tensor | None,
        counts: Mapping[str, float] | None,
        features: Sequence[Tensor],
        outputs: Outputs | None,
        leading: torch.Size,
        kind: Hashable,
    ) -> Agreed:
        """See `Agreement.of`."""
        return self.agreement.of(
            self._here,
            tasks,
            losses,
            plus,
            counts,
            features=features,
            outputs=outputs,
            leading=leading,
            kind=kind,
            whole=self.sharded is not None,
        )

    def values(
        self,
        tasks: Sequence[str],
        losses: Mapping[str, Tensor],
        counts: Mapping[str, float] | None,
        leading: torch.Size,
    ) -> dict[str, Tensor]:
        """The mean of each loss over all labels; values alone."""
        terms = [losses.get(task) for task in tasks]
        n = [labels(task, term, counts) for task, term in zip(tasks, terms, strict=True)]
        header = Header.of(self._here, terms, n, leading, news=False)
        device = next((loss.device for loss in losses.values()), self._here.device)
        return {
            task: header.values[k].to(device, self.agreement.dtype(k))
            for k, task in enumerate(tasks)
            if header.counts[k]
        }

    def probed(self, probe: Probe, m: int) -> Probe:
        """Where gradients of m tasks are not zero on any rank."""
        if self.sharded is not None:
            return _refused
        return self.agreement.probed(self._here, probe, m)

    def _require_alike(self, told: Any, options: Mapping[str, str]) -> None:
        ranks = self._here
        (mine, its), *others = ranks.gathered((told, options))
        for rank, (there, set_to) in enumerate(others, 1):
            if there != mine:
                raise ValueError(
                    f"rank 0 balances {mine}, and rank {rank} balances {there}: all ranks "
                    "need the same balancer and the same tasks, Balancer(..., tasks=[...])"
                )
            if (apart := difference(its, set_to)) is not None:
                name, one, two = apart
                raise ValueError(
                    f"{name} is {one} on rank 0 and {two} on rank {rank}: all ranks need the same "
                    "balancer"
                )
        self._told = ranks, told

    def as_in_the_graph(self) -> AbstractContextManager[None]:
        """Inside, the model names the parameters that the graph leads to."""
        return nullcontext() if self.sharded is None else self.sharded.as_in_the_graph()

    # What is handed over ----------------------------------------------------------------------

    def receivers(self, reached: Sequence[Tensor]) -> list[Tensor]:
        """The leaves that a step hands gradients to.

        A wrapper waits for all that its forward pass has used, also for what gets no gradient, and
        must not be handed what it does not wait for.
        """
        if (sharded := self.sharded) is not None:
            return sharded.handed(reached)
        managed = self.wrappers.managed
        if not managed.all:
            return list(reached)
        found = [p for p in reached if id(p) not in managed.all or id(p) in managed.waiting]
        there = {id(p) for p in found}
        return [*found, *(p for p in self.wrappers.waiting if id(p) not in there)]

    def handed(self, reached: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that gradients by these leaves are handed to."""
        return list(reached) if self.sharded is None else self.sharded.handed(reached)

    def untouched(self, reached: Iterable[Tensor]) -> Callable[[], None]:
        """What is to be done when a step's backward pass has ended, the wrapper's part included.

        `DistributedDataParallel`, where it does not look for unused parameters, gives zeros to
        leaves that no rank has reached: they have none again. Under `fully_shard` a skipped step
        has no backward pass that puts whole parameters away, and would leave the next forward pass
        those of now.
        """
        there = {id(p) for p in reached}
        without = [p for p in self.wrappers.waiting if id(p) not in there and p.grad is None]
        sharded = self.sharded

        def restore() -> None:
            for leaf in without:
                leaf.grad = None
            if sharded is not None:
                sharded.put_away()

        return restore


def _refused(leaves: Sequence[Tensor]) -> list[int]:
    raise ValueError(
        "under fully_shard it cannot be looked up whose a parameter is that several losses reach "
        "through one node of the graph (torch.cat, a compiled function): give Balancer(model=) a "
        "MultiTaskNetwork, or say shared=trunk.parameters()"
    )
