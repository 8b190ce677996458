"""One update of several networks at once: each member its own, as far as it can see.

The steps are those of a `NetworkStepper` on the stack. Work and time are a single network's, which
goes along without moving; and a member whose loss or gradient is not finite is found, and leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields, replace
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from evenhand.autodiff.gradients import NonFiniteError
from evenhand.balancer import Balancer
from evenhand.data.problem import Batch, Problem, Stream
from evenhand.ensemble.network import Stack
from evenhand.ensemble.optimizers import StackedOptimizer, stacked
from evenhand.schedules import Clock
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.loop import Training
from evenhand.training.optimizers import Factory, Optimizers, Scheduled
from evenhand.training.steps import NetworkStepper, Seen, Turn, kind_of

TIMED = 50
"""In how many epochs the steps of one network by itself are timed, three of each kind."""


class EnsembleStepper:
    """Carries out phases on a stack; a `Stepper`, as `NetworkStepper` is.

    Args:
        together: the stack's.
        alone: a copy of one member's, whose rates are zero; it is timed and counted.
        seed: that member's.

    Attributes:
        fallen: position -> why a member's step failed in this epoch. Another's copy goes on in its
            place until it is dropped.
    """

    def __init__(self, together: NetworkStepper, alone: NetworkStepper, seed: int) -> None:
        self._together = together
        self._alone = alone
        self._began = Clock(seed=seed)
        self._seconds: dict[str, dict[int, float]] = {}
        self.fallen: dict[int, str] = {}

    @classmethod
    def of(cls, members: Sequence[Training]) -> EnsembleStepper:
        """That of trainings that have not begun."""
        first = members[0]
        stack = Stack([member.network for member in members])
        balancer = Balancer(
            first.balancer.weighting,
            first.balancer.aggregator,
            tasks=first.tasks,
            leading=(len(members),),
            jacobian=first.balancer.chunking.wanted,
            model=stack,
        )
        together = NetworkStepper(
            alike(first.problem),
            stack,
            optimizers_of(members, stack, balancer.parameters()),
            balancer,
            Streams([member.stream for member in members]),
            first.tasks,
            frozen=first.frozen,
            seeds=tuple(member.seed for member in members),
        )
        network, optimizers, single = deepcopy((first.network, first.optimizers, first.balancer))
        single.attach(network)
        optimizers.scale_rates(0.0)
        alone = NetworkStepper(
            *(first.problem, network, optimizers, single, first.stream, first.tasks),
            frozen=first.frozen,
        )
        return cls(together, alone, first.seed)

    @property
    def stream(self) -> Stream:
        """The members' batches."""
        return self._together.stream

    @property
    def optimizers(self) -> Optimizers:
        """The stack's."""
        return self._together.optimizers

    @property
    def seeds(self) -> tuple[int, ...]:
        """The members'."""
        return self._together.seeds

    @property
    def further(self) -> int:
        """How many batches beside its own a phase that trains the trunk sees."""
        return self._together.further

    @property
    def network(self) -> Stack:
        """The stack."""
        return cast(Stack, self._together.network)

    def select(self, index: Tensor) -> None:
        """Go on with the members at `index` alone, in this order."""
        _select(self._together, index)

    def begin_epoch(self) -> None:
        """Before the first step of an epoch."""
        self._together.begin_epoch()

    def update(self, turn: Turn, statistics: EpochStatistics) -> None:
        """One phase, at the time and work of a single network's.

        Raises:
            NonFiniteError: the step of every member failed.
        """
        seen = self._together.seen(turn)
        seconds = statistics.seconds
        with self._together.watched(turn, seen, statistics):
            self._update(turn, seen, statistics)
        kind = kind_of(turn.phase, turn.phase.tasks)  # every label is there
        statistics.seconds = seconds + self._time_alone(kind, turn, statistics.flops is not None)
        if statistics.flops is not None:
            statistics.flops += self._alone.flops.get(kind, 0)

    def _time_alone(self, kind: str, turn: Turn, count_flops: bool) -> float:
        """The median of the seconds that such a phase takes for one network by itself."""
        seconds, epoch = self._seconds.setdefault(kind, {}), turn.clock.epoch
        if epoch not in seconds and len(seconds) < TIMED:
            alone = [EpochStatistics(counts_flops=count_flops) for _ in range(3)]
            mine = Turn(turn.phase, 0, self._began, self._alone.stream.batch)
            with suppress(NonFiniteError):
                for each in alone:
                    self._alone.update(mine, each)
            seconds[epoch] = median(each.seconds for each in alone)
        return median(seconds.values())

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments and histories of all members."""
        mine = self._together
        return {
            "network": mine.network.state_dict(),
            "balancer": mine.balancer.state_dict(),
            "optimizers": mine.optimizers.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        mine = self._together
        mine.network.load_state_dict(state["network"])
        mine.balancer.load_state_dict(state["balancer"])
        mine.optimizers.load_state_dict(state["optimizers"])

    # A member that fails ----------------------------------------------------------------------

    def _update(self, turn: Turn, seen: Seen, statistics: EpochStatistics) -> None:
        looks = statistics.looks
        try:
            self._together.balanced(turn, seen, statistics)
            return
        except NonFiniteError:
            pass  # what failed has left no trace; its graph is gone when this block is left
        number = len(self.network)

        def attempt(at: Sequence[int]) -> str:
            return self._attempt(turn, seen, torch.tensor(at))

        found = _failing(list(range(number)), attempt)
        for at, why in found.items():
            self.fallen.setdefault(at, why)
        lasting = [at for at in range(number) if not {at} & (found.keys() | self.fallen)]
        if not lasting:
            raise NonFiniteError("step of every member", turn.phase.tasks)
        index = torch.arange(number)
        index[list(found)] = lasting[0]
        self.select(index)
        looked = statistics.looks > looks  # gradients are looked at once, before the step
        again = replace(_turn_of(turn, index), observed=turn.observed and not looked)
        self._together.balanced(again, _rows_of(seen, index), statistics)

    def _attempt(self, turn: Turn, seen: Seen, index: Tensor) -> str:
        """What goes wrong in this step with these members alone, tried on a copy; or ""."""
        mine = self._together
        network, optimizers, balancer = deepcopy((mine.network, mine.optimizers, mine.balancer))
        trial = NetworkStepper(
            *(mine.problem, network, optimizers, balancer, mine.stream, mine.tasks),
            frozen=mine.frozen,
            seeds=mine.seeds,
        )
        _select(trial, index)
        try:
            trial.balanced(_turn_of(turn, index), _rows_of(seen, index), EpochStatistics())
        except NonFiniteError as error:
            return str(error).partition(";")[0]
        return ""


def _select(stepper: NetworkStepper, index: Tensor) -> None:
    """Go on with the members at `index` of what a stepper has of a stack."""
    cast(Stack, stepper.network).select(index)
    stepper.balancer.select(index)
    for optimizer in stepper.optimizers.named().values():
        cast(StackedOptimizer, optimizer).select(index)
    stepper.stream = cast(Streams, stepper.stream).chosen(index)
    stepper.seeds = _taken(stepper.seeds, index)


def _failing(at: Sequence[int], attempt: Callable[[Sequence[int]], str]) -> dict[int, str]:
    """Which of the members at these positions fail, and how, found by halving."""
    why = attempt(at)
    if not why or len(at) == 1:
        return {at[0]: why} if why else {}
    half = len(at) // 2
    return {**_failing(at[:half], attempt), **_failing(at[half:], attempt)}


def _taken(seeds: tuple[int, ...], index: Tensor) -> tuple[int, ...]:
    return tuple(seeds[at] for at in index.tolist())


def _turn_of(turn: Turn, index: Tensor) -> Turn:
    """The same turn of the members at `index`."""
    return replace(turn, clock=replace(turn.clock, seeds=_taken(turn.clock.seeds, index)))


def _rows_of(seen: Seen, index: Tensor) -> Seen:
    """What the members at `index` see."""
    return Seen(_rows(seen.batch, index), [_rows(sample, index) for sample in seen.samples])


def _rows(batch: Batch, index: Tensor) -> Batch:
    inputs, targets = batch
    return inputs[index], {task: target[index] for task, target in targets.items()}


# What the steps are made with -------------------------------------------------------------------


class _StackedProblem(Problem):
    """A problem whose outputs and targets begin with the members, and so do its losses."""

    def losses(
        self,
        outputs: Mapping[str, Any],
        targets: Mapping[str, Tensor],
        tasks: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """Each task's loss of each member, [E]; every sample has a label."""
        names = tuple(self.readable(outputs) if tasks is None else tasks)

        def one(outputs: Mapping[str, Any], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: self.tasks[name].loss(
                    *self.tasks[name].labels.arranged(self.read(name, outputs), targets[name])
                )
                for name in names
            }

        found: dict[str, Tensor] = torch.func.vmap(one, randomness="error")(
            dict(outputs), {name: targets[name] for name in names}
        )
        return found


def alike(problem: Problem) -> Problem:
    """The problem of a stack of its networks."""
    return _StackedProblem(
        **{entry.name: getattr(problem, entry.name) for entry in fields(problem)}
    )


class Streams(Stream):
    """The members' streams in step: batches [E, b, ...]. Members may share a stream."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        first = streams[0]
        super().__init__(
            first.source, first.batch_size, first.seed, first.replacement, first.drop_last
        )
        self._streams = streams
        by_seed = {stream.seed: stream for stream in streams}
        self._different = list(by_seed.values())
        self._which = torch.tensor([list(by_seed).index(stream.seed) for stream in streams])

    def index(self, number: int) -> Tensor:
        """Which samples each member's batch `number` has, [E, b]."""
        return torch.stack([stream.index(number) for stream in self._different])[self._which]

    def chosen(self, index: Tensor) -> Streams:
        """Those of the members at `index`; if there is none, all of them."""
        return Streams([self._streams[at] for at in index.tolist()] or self._streams)


def optimizers_of(
    members: Sequence[Training], stack: Stack, learned: Iterable[Tensor]
) -> Optimizers:
    """One for the stack where each member has its own."""
    each = [member.optimizers for member in members]
    own: Factory | dict[str, Factory]
    if isinstance(each[0].own, Mapping):
        own = {t: _factory([_of(o.own, t) for o in each]) for t in each[0].own}
    else:
        own = _factory([o.own for o in each])
    return Optimizers(
        stack.blocks(),
        _factory([o.shared for o in each]),
        own,
        weights=_factory([o.weights for o in each]),
        learned=learned,
        groups=each[0].groups,
    )


def _of(own: Any, task: str) -> Any:
    return own[task] if isinstance(own, Mapping) else own


def _factory(each: Sequence[Any]) -> Factory:
    if any(isinstance(make, Scheduled) for make in each):
        raise ValueError("its rates follow a schedule")
    return stacked(each)
