"""The loop: epochs of steps, and what lies between them, as a generator of Records.

What a step is, `steps.py` says. Here epochs are judged, the best weights kept, and all of it saved,
so that a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenhand.arguments import require_fields, require_kind
from evenhand.autodiff.gradients import NonFiniteError
from evenhand.balancer import Balancer
from evenhand.data.problem import Problem, Samples, Stream
from evenhand.files import held, sweep
from evenhand.network import FrozenMode, MultiTaskNetwork, Outputs
from evenhand.schedules import (
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
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import Record, RecordFile
from evenhand.training.steps import NetworkStepper, Steps, in_eval_mode
from evenhand.training.stopping import EarlyStopping, Monitor, Plateau, relative
from evenhand.training.unmoved import require_moving

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
        stream = Stream(
            self.problem.train,
            self.problem.batch_size,
            mixed_seed(self.seed, *b"data"),
            self.replacement,
            self.drop_last,
        )
        self._require_heads()
        self.balancer.attach(self.network)
        self.balancer.bind(self.tasks)
        self._stepper = NetworkStepper(
            self.problem,
            self.network,
            self.optimizers,
            self.balancer,
            stream,
            self.tasks,
            features=FeatureMemory(
                self.network,
                stream,
                budget=self.feature_memory,
                stable_loader=self.stable_loader,
                mode=self.frozen,
            ),
            frozen=self.frozen,
        )
        self.steps = Steps(
            self._stepper,
            self.phases,
            self.tasks,
            self.seed,
            observe_every=self.observe_every,
        )
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
            require_moving(self.steps, self._stepper)
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
        return self.steps.train_epoch(self.count_flops)

    @property
    def stream(self) -> Stream:
        """The batches."""
        return self.steps.stepper.stream

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return self.steps.epoch

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.steps.step

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
            **self.steps.state_dict(),
            "first": None if self.first is None else self.first.to_json(),
            **self._stepper.state_dict(),
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
        self.steps.load_state_dict(state)
        self.first = None if state["first"] is None else Record.from_json(state["first"])
        self._stepper.load_state_dict(state)


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
    with in_eval_mode(network):
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
