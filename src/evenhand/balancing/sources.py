"""Where a step's gradients come from: the passes of its batch, or the sums of micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evenhand.aggregation import Aggregator
from evenhand.autodiff.accumulation import Accumulated, Sums
from evenhand.autodiff.call import Call, values_of
from evenhand.autodiff.chunking import Chunking
from evenhand.autodiff.coordinates import Coordinates
from evenhand.autodiff.factors import Factored
from evenhand.autodiff.gradients import NonFiniteError, Source, TaskGradients
from evenhand.autodiff.owners import Owners
from evenhand.autodiff.ownership import Ownership
from evenhand.autodiff.passes import Passes
from evenhand.autodiff.reducer import Reducer
from evenhand.autodiff.replay import Kept, Trunk
from evenhand.balancing.request import Step
from evenhand.balancing.slots import Differentiated, Slots
from evenhand.schedules import Clock

if TYPE_CHECKING:
    from evenhand.distributed.fully_sharded import FullySharded, ShardedPasses


class Sources:
    """Makes what methods look at and updates are made of, and keeps the sums of micro-batches.

    Args:
        ownership: whose the parameters are.
        chunking: how many tasks' passes are taken at once.
        factored: whether gradients by layers' weights are kept as factors.

    Attributes:
        reducer: what ranks agree by.
        coordinates: where histories over coordinates stand.
        sharded: the model, if it is under `fully_shard`.
        spoiled: what was not finite in a micro-batch, so that the step is lost already.
    """

    def __init__(self, ownership: Ownership, chunking: Chunking, factored: Factored) -> None:
        self.reducer = Reducer()
        self.coordinates = Coordinates()
        self.chunking = chunking
        self.spoiled: NonFiniteError | None = None
        self.sharded: FullySharded | None = None
        self._ownership = ownership
        self._factored = factored
        self._sums: list[Sums] | None = None  # the first of the losses, others of samples=

    @property
    def summing(self) -> bool:
        """Whether micro-batches wait for the last one of their step."""
        return self._sums is not None

    @property
    def waiting(self) -> list[Tensor]:
        """The leaves that micro-batches so far have a gradient for."""
        return [leaf for sums in self._sums or () for leaf in sums.leaves.values()]

    def forget(self) -> None:
        """Drop all micro-batches so far."""
        self._sums = self.spoiled = None

    def add(self, step: Step, slots: Slots) -> None:
        """Add a micro-batch to those before it.

        Raises:
            NonFiniteError: a gradient is not finite; nothing was added.
        """
        self._sums = self._with(step, slots, step.trunk)

    def of(self, step: Step, slots: Slots) -> tuple[Differentiated, TaskGradients]:
        """Where the update of a step comes from, and the view that methods get of it."""
        if self._sums is not None:
            trunk: Trunk | None = None if step.trunk is None else Kept(step.features)
            return self._of_sums(step, self._with(step, slots, trunk))
        looked_at = [self._looked_at(step, sample) for sample in _further(step, slots)]
        samples = [self._source(*sample, slots) for sample in looked_at]
        # Losses on further batches may share a part of the graph.
        call = replace(step.call, retain=True) if samples else step.call
        passes = self._source(call, step.owners, slots)
        total = len(step.tasks)
        views = [self.view(other, other.call, step.clock, total) for other in samples]
        return passes, self.view(passes, step.call, step.clock, total, views)

    def view(
        self,
        source: Source,
        call: Call,
        clock: Clock,
        total: int,
        samples: Sequence[TaskGradients] = (),
    ) -> TaskGradients:
        """What methods see of a call; `total` is the number of all tasks."""
        values = call.values
        every = len(call.index) == total
        return TaskGradients(
            source,
            values,
            tasks=call.tasks,
            index=None if every else torch.tensor(call.index, device=values.device),
            total=total,
            clock=clock,
            samples=samples,
        )

    def _source(self, call: Call, owners: Owners, slots: Slots) -> Passes | ShardedPasses:
        if self.sharded is None:
            return self._passes(call, owners, slots, self.reducer)
        names = self._ownership.names
        return self.sharded.passes(call, owners, self.reducer, self.coordinates, names)

    def _passes(self, call: Call, owners: Owners, slots: Slots, reducer: Reducer) -> Passes:
        carries = bool(owners.carried) and isinstance(slots.aggregator, Aggregator)
        return Passes(
            call,
            owners,
            reducer=reducer,
            chunk=self.chunking,
            factored=self._factored,
            retain_trunk=slots.merges_features or carries,
            coordinates=self.coordinates,
            names=self._ownership.names,
        )

    def _looked_at(self, step: Step, sample: Mapping[str, Tensor]) -> tuple[Call, Owners]:
        """The call of a further batch, and what is looked at of it: nothing else is done."""
        losses = {task: sample[task] for task in step.call.tasks}
        call = replace(
            step.call,
            losses=tuple(losses.values()),
            values=values_of(losses),
            plus=None,
            retain=True,
        )
        known = step.owners
        alone: list[list[Tensor]] = [[] for _ in call.tasks]
        looked_at = Owners(balanced=known.balanced, alone=alone, last_layer=known.last_layer)
        return call, looked_at

    # Micro-batches ----------------------------------------------------------------------------

    def _with(self, step: Step, slots: Slots, trunk: Trunk | None) -> list[Sums]:
        """The sums of the micro-batches so far and of this one; those kept stay as they are.

        They are this rank's own: ranks speak to each other when the last one is there. `trunk` is
        a way to this one's features that may still be taken when the weights are known.
        """
        further = _further(step, slots)
        before = self._sums or [Sums(len(step.tasks)) for _ in range(1 + len(further))]
        if len(before) != 1 + len(further):
            raise ValueError("samples= must have as many batches in every micro-batch")
        here = Reducer()
        passes = [self._passes(step.call, step.owners, slots, here)]
        for sample in further:
            passes.append(self._passes(*self._looked_at(step, sample), slots, here))
        found = []
        guilty: tuple[str, ...] = ()
        try:
            for sums, there in zip(before, passes, strict=True):
                found.append(sums.copied())
                found[-1].add(
                    there,
                    step.counts,
                    at_features=slots.looks_at_features,
                    keeps_features=slots.keeps_features,
                    later=trunk if self._waits(step, slots) and there is passes[0] else None,
                )
        except NonFiniteError as error:
            guilty = error.tasks
        flags = self.reducer.anywhere([task in guilty for task in step.tasks])
        if any(flags):
            named = [task for task, flag in zip(step.tasks, flags, strict=True) if flag]
            raise NonFiniteError("gradient", named)
        return found

    def _waits(self, step: Step, slots: Slots) -> bool:
        """Whether the pass through the trunk can wait until the weights are known."""
        behind = step.owners.features is not None and not step.owners.carried
        alone = self.reducer.alone and not step.owners.beyond
        return behind and alone and slots.looks_nowhere_else

    def _of_sums(self, step: Step, found: list[Sums]) -> tuple[Accumulated, TaskGradients]:
        """What `of` gives, where the update comes from the sums of several micro-batches."""
        for sums in found:
            sums.divide()
        sources = []
        for sums in found:
            index = tuple(k for k in sums.index if step.tasks[k] not in step.call.left_out)
            call = replace(
                step.call,
                tasks=tuple(step.tasks[k] for k in index),
                index=index,
                losses=(),
                values=torch.stack([sums.losses[k] for k in index], dim=-1),
                plus=None,
            )
            owners = self._ownership.of_sums(call, step.tasks, sums.masks())
            names = self._ownership.names
            sources.append(Accumulated(sums, call, owners, self.coordinates, names, self.reducer))
        main, *further = sources
        total = len(step.tasks)
        views = [self.view(other, main.call, step.clock, total) for other in further]
        return main, self.view(main, main.call, step.clock, total, views)


def _further(step: Step, slots: Slots) -> Sequence[Mapping[str, Tensor]]:
    """The further batches that some method declares.

    Raises:
        ValueError: there are too few, or one lacks an active task.
    """
    call, samples, wanted = step.call, step.samples, slots.further_batches
    if samples is None:
        return []
    if "shared" in call.trains and len(samples) < wanted:
        raise ValueError(
            f"this method wants {wanted} further independent batch(es) per step: pass their "
            f"losses as samples=[{{task: loss, …}}, …]"
        )
    for sample in samples[:wanted]:
        silent = [task for task in call.tasks if task not in sample]
        if silent:
            raise ValueError(
                f"{silent[0]!r} is active in this call, but has no loss on a further batch: "
                "the tasks of samples= must be those of the losses"
            )
    return samples[:wanted]
