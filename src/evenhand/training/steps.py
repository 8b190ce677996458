"""The steps of an epoch: the phases that a schedule asks for, each carried out as an update.

`Steps` counts steps and batches and asks the schedule. A `Stepper` carries a phase out:
`NetworkStepper` on one network, `EnsembleStepper` (`evenhand/ensemble/stepper.py`) on several side
by side. Neither knows a schedule, a method or an optimizer by name. What a method declares it needs
beyond one batch is supplied: further independent batches, and the losses after the update. Where a
phase lets the trunk rest for epochs, its features are read from memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from evenhand.balancer import Balancer
from evenhand.data.problem import Batch, Problem, Stream
from evenhand.network import Frozen, FrozenMode, MultiTaskNetwork, Outputs, leaves
from evenhand.schedules import Clock, Phase, Schedule, mixed_seed
from evenhand.text import quoted
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.feature_cache import FeatureMemory
from evenhand.training.flops import Meter
from evenhand.training.optimizers import Optimizers


@dataclass(frozen=True)
class Turn:
    """A phase that is to be carried out.

    Attributes:
        phase: what is active and what trains.
        number: of its batch, counted from 0 over all epochs.
        clock: when.
        draw: a batch by its number.
        observed: whether gradients and losses are looked at beside the update, see `Training`.
    """

    phase: Phase
    number: int
    clock: Clock
    draw: Callable[[int], Batch]
    observed: bool = False


@dataclass(frozen=True)
class Seen:
    """The batches that a phase sees: its own, and further independent ones.

    `memory` is where inputs are from that are features, which the heads alone read.
    """

    batch: Batch
    samples: Sequence[Batch]
    memory: FeatureMemory | None = None


class Stepper(Protocol):
    """Carries out phases.

    Attributes:
        network: what is trained.
        stream: the batches.
        optimizers: what steps.
        seeds: of the networks that are trained side by side; none where there is one.
        further: how many batches beside its own a phase that trains the trunk sees.
    """

    @property
    def network(self) -> MultiTaskNetwork: ...
    @property
    def stream(self) -> Stream: ...
    @property
    def optimizers(self) -> Optimizers: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def further(self) -> int: ...

    def begin_epoch(self) -> None:
        """Before the first step of an epoch."""

    def update(self, turn: Turn, statistics: EpochStatistics) -> None:
        """One phase: forward, backward, step."""


class Steps:
    """How far a training has come, and its steps.

    Args:
        stepper: what carries phases out.
        schedule: what asks for them.
        tasks: the tasks that are trained.
        seed: of all chance.
        observe_every: look at every n-th step; 0 for none.

    Attributes:
        drawn: batches so far.
        step: calls of the schedule so far.
        epoch: epochs so far.
    """

    def __init__(
        self,
        stepper: Stepper,
        schedule: Schedule,
        tasks: tuple[str, ...],
        seed: int,
        *,
        observe_every: int = 0,
    ) -> None:
        self.stepper = stepper
        self.schedule = schedule
        self.tasks = tasks
        self.seed = seed
        self.observe_every = observe_every
        self._apart = 1 + stepper.further
        self._trunkless = not stepper.network.blocks().shared
        self.drawn = self.step = self.epoch = 0

    def clock(self) -> Clock:
        """Now."""
        stepper = self.stepper
        return Clock(self.drawn // len(stepper.stream), self.step, self.seed, stepper.seeds)

    def train_epoch(self, count_flops: bool = False) -> EpochStatistics:
        """The steps of one epoch, and no more."""
        stepper = self.stepper
        stepper.begin_epoch()
        statistics = EpochStatistics(stepper.optimizers.rates(), count_flops)
        with _seeded(self.seed, self.epoch):
            while self.drawn < (self.epoch + 1) * len(stepper.stream):
                self.take(statistics)
        self.epoch += 1
        stepper.optimizers.end_epoch()
        return statistics

    def take(self, statistics: EpochStatistics) -> None:
        """One call of the schedule: its phases, in order.

        Raises:
            ValueError: a phase trains shared parameters alone, and the network has none.
        """
        stepper, clock = self.stepper, self.clock()
        phases = self.schedule(clock, self.tasks)
        loaded: dict[int, Batch] = {}  # a batch that several phases see is loaded once

        def draw(number: int) -> Batch:
            if number not in loaded:
                loaded[number] = stepper.stream.batch(number)
            return loaded[number]

        observed = self.observe_every > 0 and self.step % self.observe_every == 0
        statistics.step(observed)
        for phase in phases:
            if self._trunkless and "own" not in phase.trains:
                raise ValueError(
                    f"a phase of {self.schedule!r} trains the shared parameters alone, and this "
                    f"network ({type(stepper.network).__name__}) has none: all of it is its "
                    "tasks' own. Let tasks take turns instead (one_by_one, in_groups), or train "
                    "jointly"
                )
            number = self.drawn + phase.batch * self._apart
            stepper.update(Turn(phase, number, clock, draw, observed), statistics)
        self.drawn += self._apart * (1 + max(phase.batch for phase in phases))
        self.step += 1

    def state_dict(self) -> dict[str, int]:
        """How far it has come."""
        return {"drawn": self.drawn, "step": self.step, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.drawn, self.step, self.epoch = state["drawn"], state["step"], state["epoch"]


class NetworkStepper:
    """Phases on one network (or a stack of them, whose losses have a leading dimension).

    Args:
        problem: tasks and data.
        network: the network.
        optimizers: what steps.
        balancer: what fills the gradients. It is attached to the network and bound to the tasks.
        stream: the batches.
        tasks: the tasks that are trained.
        features: what a frozen trunk computes, kept; None to keep nothing.
        frozen: the mode of frozen modules.
        seeds: of the networks of a stack.

    Attributes:
        shares: whether several of the tasks can reach a parameter: by the network's structure, or
            because they read one head.
        flops: what each kind of phase takes, for those that were counted.
    """

    def __init__(
        self,
        problem: Problem,
        network: MultiTaskNetwork,
        optimizers: Optimizers,
        balancer: Balancer,
        stream: Stream,
        tasks: tuple[str, ...],
        *,
        features: FeatureMemory | None = None,
        frozen: FrozenMode = "eval",
        seeds: tuple[int, ...] = (),
    ) -> None:
        self.problem = problem
        self.network = network
        self.optimizers = optimizers
        self.balancer = balancer
        self.stream = stream
        self.tasks = tasks
        self.features = features
        self.frozen = frozen
        self.seeds = seeds
        self.flops: dict[str, int] = {}
        self._blocks = network.blocks()
        read = [head for task in tasks for head in problem.heads([task])]
        self.shares = bool(self._blocks.shared) or len(set(read)) < len(read)
        self._rests: dict[tuple[Any, ...], Frozen] = {}
        self._meter = Meter()
        self._refill = False

    @property
    def further(self) -> int:
        """How many batches beside its own a phase that trains the trunk sees."""
        return max((method.traits.batches for method in self.balancer.methods), default=1) - 1

    def begin_epoch(self) -> None:
        """Between epochs the user may freeze parameters, or let them move again."""
        self.network.train()
        self._rests.clear()

    def update(self, turn: Turn, statistics: EpochStatistics) -> None:
        """One phase: forward, backward, step; timed, counted, and observed where that is asked."""
        seen = self.seen(turn, self._stored(turn.phase, statistics))
        with self.watched(turn, seen, statistics):
            start = time.perf_counter()
            kind = kind_of(turn.phase, self.problem.active(turn.phase.tasks, seen.batch[1]))
            step = partial(self.balanced, turn, seen, statistics)
            self._counted(kind + (" from features" if seen.memory else ""), step, statistics)
            statistics.seconds += time.perf_counter() - start
        statistics.reused += len(leaves(seen.batch[0])[0]) if seen.memory else 0

    def seen(self, turn: Turn, memory: FeatureMemory | None = None) -> Seen:
        """The batches that a phase sees; its own from `memory`, where that is filled."""
        number = turn.number
        batch = turn.draw(number) if memory is None else memory.batch(number)
        further = self.further if "shared" in turn.phase.trains else 0
        return Seen(batch, [turn.draw(number + 1 + k) for k in range(further)], memory)

    def balanced(self, turn: Turn, seen: Seen, statistics: EpochStatistics) -> None:
        """What a phase costs: forward, backward, step, and what its method needs beyond that.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; nothing has changed then.
        """
        phase = turn.phase
        self.optimizers.zero_grad()
        part = self.network.heads if seen.memory else self.network
        rest = self._rest(phase, part)
        with rest.held(self.frozen):
            outputs, losses = self._forward(seen, seen.batch, phase)
            sampled = [self._forward(seen, sample, phase)[1] for sample in seen.samples]
        # A method that looks at several batches hears the tasks that have labels in all of them.
        losses = {task: losses[task] for task in losses if all(task in s for s in sampled)}
        if not losses:
            return
        if turn.observed and "shared" in phase.trains and self.shares:
            self._observe(outputs, losses, statistics)
        balance = self.balancer.backward(
            losses,
            features=outputs,
            plus=self._penalty(),
            samples=sampled,
            phase=phase,
            clock=turn.clock,
        )
        self.optimizers.step(self._by_head(phase))
        if any(method.traits.after for method in self.balancer.methods):
            unwritten = Frozen((), tuple(part.modules()))  # looking back changes no statistics
            with torch.no_grad(), rest.held(self.frozen), unwritten.held("train"):
                losses = self._forward(seen, seen.batch, phase)[1]
            self.balancer.updated(losses, turn.clock)
        statistics.add(balance, phase)

    def _penalty(self) -> Tensor | None:
        """What is nobody's task: the penalties of the problem and of the network."""
        penalty = self.problem.penalty
        terms = (None if penalty is None else penalty(self.network), self.network.penalty())
        there = [term for term in terms if term is not None]
        if wrong := [term for term in there if not isinstance(term, Tensor)]:
            raise TypeError(f"penalty= gave {quoted(wrong[0])}: must give a scalar tensor")
        return sum(there[1:], start=there[0]) if there else None

    def _rest(self, phase: Phase, part: nn.Module) -> Frozen:
        """What of a part of the network is frozen in `phase`."""
        kind = part, phase.trains, phase.tasks
        if kind not in self._rests:
            self._rests[kind] = Frozen.of(part, self._by_head(phase), self._blocks)
        return self._rests[kind]

    def _by_head(self, phase: Phase) -> Phase:
        """A phase in the words of the network and the optimizers, which know heads, not tasks."""
        return replace(phase, tasks=self.problem.heads(phase.tasks))

    def _forward(self, seen: Seen, batch: Batch, phase: Phase) -> tuple[Outputs, dict[str, Tensor]]:
        """Outputs and losses of the tasks of `phase` that `batch` has labels of."""
        tasks = [task for task in phase.tasks if task in batch[1]]
        return self._outputs(seen, batch, tasks)

    def _outputs(
        self, seen: Seen, batch: Batch, tasks: Sequence[str]
    ) -> tuple[Outputs, dict[str, Tensor]]:
        inputs, targets = batch
        read: Callable[..., Outputs] = seen.memory.heads if seen.memory else self.network
        outputs = read(inputs, tasks=self.problem.heads(tasks))
        return outputs, self.problem.losses(outputs, targets, tasks)

    def _stored(self, phase: Phase, statistics: EpochStatistics) -> FeatureMemory | None:
        """The memory, if it has the features for `phase`; they are put there where that pays."""
        memory = self.features
        if memory is None:
            return None
        if "shared" in phase.trains:
            memory.drop()
            self._refill = False
        if not memory.wanted(phase):
            return None
        if not memory.filled:
            start = time.perf_counter()
            fill = partial(memory.fill, self._by_head(phase))
            if self._refill:  # the run that was killed had paid for them
                fill()
            else:
                self._counted("features", fill, statistics)
            statistics.seconds += time.perf_counter() - start
        return memory if memory.filled else None

    def _counted(self, kind: str, action: Callable[[], None], statistics: EpochStatistics) -> None:
        """Do it, and add the work that an action of this kind takes."""
        if statistics.flops is None:
            action()
            return
        if kind in self.flops:
            action()
        else:
            before = self._meter.total
            with self._meter:
                action()
            self.flops[kind] = self._meter.total - before
        statistics.flops += self.flops[kind]

    # Looking on -------------------------------------------------------------------------------

    def _observe(
        self, outputs: Outputs, losses: dict[str, Tensor], statistics: EpochStatistics
    ) -> None:
        """Look at the raw task gradients in a training trunk; neither timed nor counted as work."""
        start = time.perf_counter()
        look = Phase(tuple(losses), trains=("shared",))
        with self._meter.paused():
            g = self.balancer.gradients(losses, features=outputs, phase=look)
            statistics.observe(g)
        statistics.seconds -= time.perf_counter() - start

    @contextmanager
    def watched(self, turn: Turn, seen: Seen, statistics: EpochStatistics) -> Iterator[None]:
        """Look at what a phase does to each task's loss on its batch, and how far θ goes."""
        if not turn.observed:
            yield
            return
        phase = turn.phase
        trunk = self._blocks.shared if "shared" in phase.trains else ()
        there = [parameter.detach().clone() for parameter in trunk]
        before = self._losses_at_rest(seen)
        yield
        after = self._losses_at_rest(seen)
        leading = self.balancer.leading  # () but for a stack
        steps = [
            (p.detach() - q).reshape(*leading, -1).norm(dim=-1)
            for p, q in zip(trunk, there, strict=True)
        ]
        length = torch.stack(steps).norm(dim=0) if steps else torch.zeros(leading)
        mover = "+".join(phase.trains)
        if len(phase.tasks) < len(self.tasks):
            mover += f" of {'+'.join(phase.tasks)}"
        statistics.watch(mover, {task: after[task] - before[task] for task in before}, length)

    @torch.no_grad()
    def _losses_at_rest(self, seen: Seen) -> dict[str, Tensor]:
        """Each task's loss on a phase's batch, in eval mode."""
        tasks = [task for task in self.tasks if task in seen.batch[1]]
        with in_eval_mode(self.network):
            return self._outputs(seen, seen.batch, tasks)[1]

    # Resuming ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Whether features were kept, and what was counted."""
        return {"filled": self.features is not None and self.features.filled, "flops": self.flops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; features are made again when they are needed."""
        if self.features is not None:
            self.features.drop()
        self._refill, self.flops = state["filled"], dict(state["flops"])


def kind_of(phase: Phase, active: Sequence[str]) -> str:
    """What a phase's work depends on: what trains, and the tasks that have labels in its batch.

    Larger groups of equal size are taken to cost the same.
    """
    tasks = active[0] if len(active) == 1 else f"{len(active)} tasks"
    return f"{'+'.join(phase.trains)} of {tasks}"


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """All modules in eval mode, and afterwards each in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was in modes:
            module.training = was


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[None]:
    """Torch's global stream (dropout) as (seed, epoch) determine it, and as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(mixed_seed(seed, epoch, *b"epoch"))
        yield
