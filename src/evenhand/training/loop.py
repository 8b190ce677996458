"""One step, and the loop as a generator of Records.

The loop carries out phases; it knows no schedule, no method and no optimizer by name. It supplies
what a method declares it needs beyond one batch: further independent batches, and the losses after
the update. Where a phase lets the trunk rest for epochs, it reads features from memory.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.arguments import require_fields, require_kind
from evenhand.autodiff.gradients import NonFiniteError
from evenhand.balancer import Balancer
from evenhand.data.problem import Batch, Problem, Samples, Stream
from evenhand.files import held, sweep
from evenhand.network import Frozen, FrozenMode, MultiTaskNetwork, Outputs, leaves
from evenhand.schedules import (
    Clock,
    Phase,
    Phases,
    Schedule,
    as_schedule,
    jointly,
    mixed_seed,
)
from evenhand.text import steady, unknown
from evenhand.training import checkpoint
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.feature_cache import GIBIBYTE, FeatureMemory
from evenhand.training.flops import Meter
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import Record, RecordFile
from evenhand.training.stopping import EarlyStopping, Monitor, Plateau, relative
from evenhand.training.unmoved import require_moving, require_trunk, shares

Forward = Callable[..., Outputs]
"""(inputs, tasks=) -> outputs: the network's, or the heads' where the features are in memory."""


@dataclass
class Training:
    """One network's training on a problem: everything that changes, and how far it has come.

    Iterate over ``run()`` for a `Record` per epoch; afterwards `network` has the weights of the
    best epoch. Two trainings with equal arguments give equal records, bit for bit, apart from
    `seconds`; so do one that ran through and one that was killed and resumed from `directory`.

    Args:
        problem: tasks and data.
        network: the network, its weights drawn already.
        optimizers: what steps.
        balancer: what fills the gradients; the plain sum by default.
        schedule: which tasks are active and what trains; everything jointly by default.
        tasks: the tasks to train; all of the network's by default.
        epochs: the most epochs of either kind to train.
        seed: of the order of the data, of dropout and of all chance in the methods.
        monitor: (record, first record) -> the quantity to minimise.
        stopping: when to stop; by default never, keeping the best epoch's weights.
        plateau: when to reduce the learning rates; by default never.
        replacement, drop_last: how batches are drawn, see `Stream`.
        observe_every: measure norms and cosines of the tasks' gradients, the path of the shared
            parameters and what each phase does to each loss at every n-th step, outside the
            timing; 0 never does.
        frozen: the mode of frozen modules, "eval" or "train".
        feature_memory: the most bytes of features to keep while the trunk is frozen for two epochs
            or more and cannot vary (see `FeatureMemory`); 0 keeps none.
        stable_loader: whether a `DataLoader` gives the same sample whenever it is asked for it, so
            that its features may be kept. Augmentation cannot be detected.
        count_flops: count the floating-point operations of the steps: once for each kind of phase
            (what trains; which task has labels, or how many), in its first step.
    """

    problem: Problem
    network: MultiTaskNetwork
    optimizers: Optimizers
    balancer: Balancer = field(default_factory=Balancer)
    schedule: Schedule | Phases = field(default_factory=jointly)
    tasks: tuple[str, ...] = ()
    epochs: int = 50
    seed: int = 0
    monitor: Monitor = relative
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    plateau: Plateau | None = None
    replacement: bool = False
    drop_last: bool = False
    observe_every: int = 0
    frozen: FrozenMode = "eval"
    feature_memory: int = GIBIBYTE
    stable_loader: bool = False
    count_flops: bool = False

    def __post_init__(self) -> None:
        require_fields(self)
        for name in ("epochs", "seed", "observe_every", "feature_memory"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        self.tasks = self.tasks or tuple(self.problem.tasks)
        self.phases = as_schedule(self.schedule)
        for task in self.tasks:
            if task not in self.problem.tasks:
                raise ValueError(unknown(task, self.problem.tasks, "task", "tasks"))
        self.stream = Stream(
            self.problem.train,
            self.problem.batch_size,
            mixed_seed(self.seed, *b"data"),
            self.replacement,
            self.drop_last,
        )
        self._blocks = self.network.blocks()
        self._shares = shares(self)
        self._require_heads()
        self.balancer.attach(self.network)
        self.balancer.bind(self.tasks)
        self._further = max((m.traits.batches for m in self.balancer.methods), default=1) - 1
        self._after = any(method.traits.after for method in self.balancer.methods)
        self._features = FeatureMemory(
            self.network,
            self.stream,
            budget=self.feature_memory,
            stable_loader=self.stable_loader,
            mode=self.frozen,
        )
        self._refill = False
        self._rests: dict[tuple[Any, ...], Frozen] = {}
        self._meter = Meter()
        self._flops: dict[str, int] = {}
        self.drawn = 0
        self.step = 0
        self.epoch = 0
        self.first: Record | None = None
        self.best_weights: dict[str, Tensor] = {}

    def _require_heads(self) -> None:
        """See that the network has what the tasks read."""
        for task in self.tasks:
            missing = [h for h in self.problem.heads([task]) if h not in self.network.tasks]
            if missing:
                raise ValueError(
                    f"task {task!r} reads the head {missing[0]!r}, which this network does not "
                    f"have; its heads are {', '.join(self.network.tasks)}"
                )

    def run(self, directory: Path | None = None, checkpoint_every: int = 10) -> Iterator[Record]:
        """Train, one `Record` per epoch; the first (epoch 0) is of the untrained network.

        Args:
            directory: where to keep records.jsonl and the checkpoint; a checkpoint that is there
                is resumed, and its records are yielded first.
            checkpoint_every: epochs between checkpoints.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; it names the task.
            ValueError: something would silently not be trained (`require_moving`); a sample's
                target or output is not finite (by task and count, where data are held in memory);
                a task has no label in the training part (likewise), or in the validation part; or
                `directory` is another process's at this time, or holds a checkpoint that is
                damaged or another run's.
            OSError: `directory` cannot be read or written.
        """
        require_kind("checkpoint_every", checkpoint_every, int)
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every={checkpoint_every}: must be at least 1 epoch")
        if directory is None:
            yield from self._run(None)
            return
        with held(directory):
            sweep(directory)
            kept = _Kept(directory, self.identity(), checkpoint_every)
            kept.resume(self)
            yield from kept.log
            yield from self._run(kept)

    def _run(self, kept: _Kept | None) -> Iterator[Record]:
        if self.first is None:
            require_moving(self)
            self.problem.check_labels(self.tasks, parts=("train",))
            self.problem.check_finite(self.tasks, parts=("train", "validation"))
            record = self._finish(EpochStatistics())
            spoilt = [t for t, loss in record.validation.items() if not math.isfinite(loss)]
            if spoilt:
                raise NonFiniteError("validation loss before training", spoilt)
            self.phases.observe(record)
            if kept is not None:
                kept.log.append(record)
            yield record
        while not self.finished:
            record = self._run_epoch()
            if kept is not None:
                kept.add(self, record)
            yield record
        self.network.load_state_dict(self.best_weights)

    @property
    def finished(self) -> bool:
        """Whether the last epoch is trained, or stopping has had enough."""
        return self.epoch >= self.epochs or self.stopping.exhausted

    # One epoch --------------------------------------------------------------------------------

    def _run_epoch(self) -> Record:
        record = self._finish(self.train_epoch())
        self.phases.observe(record)
        if self.plateau is not None and self.plateau.reduces(record.monitored):
            self.optimizers.scale_rates(self.plateau.factor, self.plateau.floor)
        return record

    def train_epoch(self) -> EpochStatistics:
        """The steps of one epoch, and no more."""
        self.network.train()
        self._rests.clear()  # between epochs the user may freeze, or let move again
        statistics = EpochStatistics(self.optimizers.rates(), self.count_flops)
        with _seeded(self.seed, self.epoch):
            while self.drawn < (self.epoch + 1) * len(self.stream):
                self._step(statistics)
        self.epoch += 1
        self.optimizers.end_epoch()
        return statistics

    def clock(self) -> Clock:
        """Now."""
        return Clock(self.drawn // len(self.stream), self.step, self.seed)

    def _step(self, statistics: EpochStatistics) -> None:
        """One call of the schedule: its phases, in order."""
        clock = self.clock()
        phases = self.phases(clock, self.tasks)
        loaded: dict[int, Batch] = {}  # a batch that several phases see is loaded once

        def draw(number: int) -> Batch:
            if number not in loaded:
                loaded[number] = self.stream.batch(number)
            return loaded[number]

        apart = 1 + self._further
        statistics.step(self._observed)
        for phase in phases:
            self._update(phase, self.drawn + phase.batch * apart, draw, clock, statistics)
        self.drawn += apart * (1 + max(phase.batch for phase in phases))
        self.step += 1

    def _update(
        self,
        phase: Phase,
        number: int,
        draw: Callable[[int], Batch],
        clock: Clock,
        statistics: EpochStatistics,
    ) -> None:
        """One phase on batch `number`: forward, backward, step."""
        require_trunk(phase, self._blocks, self)
        stored = self._stored(phase, statistics)
        batch = self._features.batch(number) if stored else draw(number)
        forward: Forward = self._features.heads if stored else self.network
        samples = [draw(number + 1 + k) for k in range(self._further) if "shared" in phase.trains]
        step = partial(self._balanced_step, forward, batch, samples, phase, clock, statistics)
        with self._watched(forward, batch, phase, statistics):
            start = time.perf_counter()
            kind = kind_of(phase, self.problem.active(phase.tasks, batch[1]))
            self._counted(f"{kind}{' from features' if stored else ''}", step, statistics)
            statistics.seconds += time.perf_counter() - start
        statistics.reused += len(leaves(batch[0])[0]) if stored else 0

    def _balanced_step(
        self,
        forward: Forward,
        batch: Batch,
        samples: Sequence[Batch],
        phase: Phase,
        clock: Clock,
        statistics: EpochStatistics,
    ) -> None:
        """What a phase costs: forward, backward, step, and what its method needs beyond that."""
        self.optimizers.zero_grad()
        part = self.network if forward is self.network else self.network.heads
        rest = self._rest(phase, part)
        with rest.held(self.frozen):
            outputs, losses = self._forward(forward, batch, phase)
            sampled = [self._forward(forward, sample, phase)[1] for sample in samples]
        # A method that looks at several batches hears the tasks that have labels in all of them.
        losses = {task: losses[task] for task in losses if all(task in s for s in sampled)}
        if not losses:
            return
        self._observe(outputs, losses, phase, statistics)
        balance = self.balancer.backward(
            losses,
            features=outputs,
            plus=self._plus(),
            samples=sampled,
            phase=phase,
            clock=clock,
        )
        self.optimizers.step(self._by_head(phase))
        if self._after:
            unwritten = Frozen((), tuple(part.modules()))  # looking back changes no statistics
            with torch.no_grad(), rest.held(self.frozen), unwritten.held("train"):
                losses = self._forward(forward, batch, phase)[1]
            self.balancer.updated(losses, clock)
        statistics.add(balance, phase)

    def _plus(self) -> Tensor | None:
        """What is nobody's task: the penalties of the problem and of the network."""
        penalty = self.problem.penalty
        terms = (None if penalty is None else penalty(self.network), self.network.penalty())
        there = [term for term in terms if term is not None]
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

    def _forward(
        self, forward: Forward, batch: Batch, phase: Phase
    ) -> tuple[Outputs, dict[str, Tensor]]:
        """Outputs and losses of the tasks of `phase` that `batch` has labels of."""
        inputs, targets = batch
        tasks = [task for task in phase.tasks if task in targets]
        outputs = forward(inputs, tasks=self.problem.heads(tasks))
        return outputs, self.problem.losses(outputs, targets, tasks)

    def _stored(self, phase: Phase, statistics: EpochStatistics) -> bool:
        """Whether the features for `phase` are in memory; they are put there where that pays."""
        if "shared" in phase.trains:
            self._features.drop()
            self._refill = False
        if not self._features.wanted(phase):
            return False
        if not self._features.filled:
            start = time.perf_counter()
            fill = partial(self._features.fill, self._by_head(phase))
            if self._refill:  # the run that was killed had paid for them
                fill()
            else:
                self._counted("features", fill, statistics)
            statistics.seconds += time.perf_counter() - start
        return self._features.filled

    def _counted(self, kind: str, action: Callable[[], None], statistics: EpochStatistics) -> None:
        """Do it, and add the work that an action of this kind takes."""
        if statistics.flops is None:
            action()
            return
        if kind in self._flops:
            action()
        else:
            before = self._meter.total
            with self._meter:
                action()
            self._flops[kind] = self._meter.total - before
        statistics.flops += self._flops[kind]

    # Looking on -------------------------------------------------------------------------------

    @property
    def _observed(self) -> bool:
        return self.observe_every > 0 and self.step % self.observe_every == 0

    def _observe(
        self, outputs: Outputs, losses: dict[str, Tensor], phase: Phase, statistics: EpochStatistics
    ) -> None:
        """Look at the raw task gradients in a training trunk; neither timed nor counted as work."""
        if not self._observed or "shared" not in phase.trains or not self._shares:
            return
        start = time.perf_counter()
        look = Phase(tuple(losses), trains=("shared",))
        with self._meter.paused():
            g = self.balancer.gradients(losses, features=outputs, phase=look)
            statistics.observe(g)
        statistics.seconds -= time.perf_counter() - start

    @contextmanager
    def _watched(
        self, forward: Forward, batch: Batch, phase: Phase, statistics: EpochStatistics
    ) -> Iterator[None]:
        """Look at what a phase does to each task's loss on its batch, and how far θ goes."""
        if not self._observed:
            yield
            return
        trunk = self._blocks.shared if "shared" in phase.trains else ()
        there = [parameter.detach().clone() for parameter in trunk]
        before = self._losses_at_rest(forward, batch)
        yield
        after = self._losses_at_rest(forward, batch)
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
    def _losses_at_rest(self, forward: Forward, batch: Batch) -> dict[str, Tensor]:
        """Each task's loss on `batch` in eval mode."""
        inputs, targets = batch
        tasks = [task for task in self.tasks if task in targets]
        with _in_eval_mode(self.network):
            outputs = forward(inputs, tasks=self.problem.heads(tasks))
        return self.problem.losses(outputs, targets, tasks)

    # Between epochs ---------------------------------------------------------------------------

    def _finish(self, statistics: EpochStatistics) -> Record:
        """Evaluate, and sum the epoch up."""
        return self.judged(statistics, sum(self.optimizers.state_bytes().values()))

    def judged(self, statistics: EpochStatistics, state_bytes: int) -> Record:
        """Evaluate the network, and say what the epoch's steps and its weights are worth."""
        validation, metrics = evaluate(
            self.network, self.problem, self.problem.validation, self.tasks
        )
        record = Record(
            epoch=self.epoch,
            step=self.step,
            validation=validation,
            metrics=metrics,
            state_bytes=state_bytes,
            **statistics.means(),
        )
        first = self.first or record
        if unseen := [task for task in self.tasks if task not in validation]:
            raise ValueError(
                f"no label of {', '.join(unseen)} in the validation part: neither an epoch nor a "
                "rate could be chosen for it; leave the task out, or split the data otherwise"
            )
        value = self.monitor(record, first)
        best = self.stopping.improved(value if math.isfinite(value) else math.inf)
        if best or self.first is None:
            self.best_weights = checkpoint.copied(self.network.state_dict())
        self.first = first
        return replace(record, monitored=value, best=best)

    # Resuming ---------------------------------------------------------------------------------

    def identity(self) -> dict[str, str]:
        """What tells this run from others, by name: what a checkpoint of it is held against."""
        shapes = [(n, tuple(p.shape), str(p.dtype)) for n, p in self.network.named_parameters()]
        drawing = (self.stream.batch_size, self.replacement, self.drop_last)
        beside = self.network.extra_repr()
        return {
            "problem": self.problem.name,
            "tasks": ", ".join(self.tasks),
            "network": hashlib.sha256(repr(shapes).encode()).hexdigest()[:12],
            **({"network's penalty": beside} if beside else {}),
            "weighting": steady(self.balancer.weighting),
            "aggregator": steady(self.balancer.aggregator),
            "schedule": steady(self.phases),
            "optimizers": ", ".join(self._optimizers_told()),
            "batches (size, replacement, drop_last)": repr(drawing),
            "seed": str(self.seed),
        }

    def _optimizers_told(self) -> Iterator[str]:
        rates = self.optimizers.initial_rates
        for name, optimizer in self.optimizers.named().items():
            yield f"{name} {type(optimizer).__name__} at {rates[name]:g}"

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "network": self.network.state_dict(),
            "best_weights": self.best_weights,
            "balancer": self.balancer.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "schedule": self.phases.state_dict(),
            "stopping": self.stopping.state_dict(),
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
            "drawn": self.drawn,
            "step": self.step,
            "epoch": self.epoch,
            "first": None if self.first is None else self.first.to_json(),
            "filled": self._features.filled,
            "flops": self._flops,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.network.load_state_dict(state["network"])
        self.best_weights = state["best_weights"]
        self.balancer.load_state_dict(state["balancer"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.phases.load_state_dict(state["schedule"])
        self.stopping.load_state_dict(state["stopping"])
        if self.plateau is not None:
            self.plateau.load_state_dict(state["plateau"])
        self.drawn, self.step, self.epoch = state["drawn"], state["step"], state["epoch"]
        self.first = None if state["first"] is None else Record.from_json(state["first"])
        self._features.drop()
        self._refill, self._flops = state["filled"], dict(state["flops"])


class _Kept:
    """A run's folder: its records, and the checkpoint that they belong to."""

    def __init__(self, directory: Path, run: Mapping[str, str], every: int) -> None:
        self.log = RecordFile(directory / RECORDS)
        self._saved = directory / "checkpoint.safetensors"
        self._run = run
        self._every = every

    def resume(self, training: Training) -> None:
        """Go on where the checkpoint was taken, if there is one; later records are dropped."""
        mark = None
        if self._saved.exists():
            state, about = checkpoint.read(self._saved)
            about.require(self._run, self._saved)
            mark = about.records.get(RECORDS)
            training.load_state_dict(state)
        try:
            self.log.rewind(mark)
        except ValueError as error:
            raise ValueError(
                f"{error} that {self._saved.name} was taken after: delete both, and the run "
                "begins anew, to the same numbers"
            ) from error

    def add(self, training: Training, record: Record) -> None:
        """Keep the record of an epoch, and now and then where the training stands."""
        self.log.append(record)
        if training.finished or training.epoch % self._every == 0:
            about = checkpoint.About(self._run, {RECORDS: self.log.mark()})
            checkpoint.save(training.state_dict(), self._saved, about)


RECORDS = "records.jsonl"


@torch.no_grad()
def evaluate(
    network: MultiTaskNetwork,
    problem: Problem,
    split: Samples,
    tasks: Sequence[str],
    batch_size: int = 1024,
) -> tuple[dict[str, float], dict[str, float]]:
    """Each task's mean loss over its labels in `split`, and its metric; without labels neither.

    A batch counts by its labels, so the numbers do not depend on `batch_size`. The network is in
    eval mode meanwhile and left in the mode it was in.
    """
    sums: dict[str, float] = dict.fromkeys(tasks, 0.0)
    counts: dict[str, int] = dict.fromkeys(tasks, 0)
    metrics = {task: problem.tasks[task].metric() for task in tasks}
    with _in_eval_mode(network):
        for inputs, targets in split.in_order(batch_size):
            present = [task for task in tasks if task in targets]
            if not present:
                continue
            outputs = network(inputs, tasks=problem.heads(present))
            for name in present:
                task = problem.tasks[name]
                taken = task.labels.taken(problem.read(name, outputs), targets[name])
                if taken is None:
                    continue
                count = task.labels.weight(taken[1])
                sums[name] += float(task.loss(*taken)) * count
                counts[name] += count
                metrics[name].update(*taken)
    seen = [task for task in tasks if counts[task]]
    return (
        {task: sums[task] / counts[task] for task in seen},
        {task: float(metrics[task].compute()) for task in seen},
    )


def kind_of(phase: Phase, active: Sequence[str]) -> str:
    """What a phase's work depends on: what trains, and the tasks that have labels in its batch.

    Larger groups of equal size are taken to cost the same.
    """
    tasks = active[0] if len(active) == 1 else f"{len(active)} tasks"
    return f"{'+'.join(phase.trains)} of {tasks}"


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
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
