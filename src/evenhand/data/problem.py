"""What a problem is: tasks, data in three parts, and the network to train on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from evenhand import theirs
from evenhand.arguments import require_fields, several
from evenhand.data.labels import Gaps, LabelCount, Labelling, Loss
from evenhand.network import MultiTaskNetwork, leaves
from evenhand.schedules import mixed_seed
from evenhand.text import quoted

if TYPE_CHECKING:
    from evenhand.data.splits import Pool

PARTS = ("train", "validation", "test")
T = TypeVar("T")
Batch = tuple[Any, Mapping[str, Tensor]]
"""Inputs (a tensor or a nest of them) and the targets of the tasks that the batch has labels of."""


class Metric(Protocol):
    """What torchmetrics' metrics are to us."""

    def update(self, preds: Tensor, target: Tensor) -> Any: ...

    def compute(self) -> Tensor: ...


@dataclass(frozen=True)
class Task:
    """One task: its loss, and the metric people read.

    Attributes:
        loss: (outputs [b, ...], targets [b, ...]) -> scalar, the mean over the samples. What it
            gets as outputs, `heads` says.
        metric: makes a fresh metric; it is shown the same as the loss.
        metric_name: what tables call it, with its unit if it has one.
        higher_is_better: whether a larger metric is better.
        perfect: the metric of perfect predictions, for the scale of skill; 1 where higher is
            better and 0 where lower is, unless said.
        unit: where no value is perfect (a log-likelihood has no bound), the gain in the metric
            that counts as 100 points of skill.
        missing: the target that stands for no label, see `Labelling`. NaN always does.
        gaps: what becomes of a sample some of whose entries have no label, see `Labelling`.
        heads: which of the network's heads the loss reads. None: the head of the task's own name.
            The name of a head, which other tasks may read too: the loss gets its output. Several
            names: the loss gets a mapping {head: output}. An output is what the head returns, a
            tensor [b, ...] or a mapping or sequence of such tensors.
        bare: where the last column of a target is the weight of its sample: target [b, ...] ->
            what is compared with outputs, without it. Loss and metric get the target with it.

    Raises:
        ValueError: `heads` is empty, or names a head twice; or see `Labelling`.
        TypeError: something is of another kind; the message names it.
    """

    loss: Loss
    metric: Callable[[], Metric]
    metric_name: str
    higher_is_better: bool
    perfect: float | None = None
    unit: float | None = None
    missing: float | None = None
    gaps: Gaps = "sample"
    heads: str | Sequence[str] | None = None
    bare: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        Labelling(self.missing, self.gaps)
        require_fields(self)
        named = [] if self.heads is None or isinstance(self.heads, str) else list(self.heads)
        if self.heads is not None and (not self.heads or len(set(named)) < len(named)):
            raise ValueError(
                f"heads={self.heads!r}: must be the name of a head, or several different ones"
            )

    @property
    def labels(self) -> Labelling:
        """Which of its targets are labels."""
        return Labelling(self.missing, self.gaps)

    def measured(self, output: Any, target: Tensor) -> float:
        """The metric of these outputs and targets; NaN where there is no label."""
        taken = self.labels.taken(output, target)
        if taken is None:
            return math.nan
        metric = self.metric()
        metric.update(*taken)
        return float(metric.compute())


def gathered(samples: Tensor, index: Tensor) -> Tensor:
    """samples[index], for whole samples, which takes less time than indexing."""
    found = samples.index_select(0, index.flatten().to(samples.device))
    return found.view(*index.shape, *samples.shape[1:])


@runtime_checkable
class Preparation(Protocol):
    """What turns rows of a table into a network's inputs, and its outputs into cells.

    It is fitted to the training part of a problem, and kept beside the weights of the networks that
    were trained on it.
    """

    def to_json(self) -> str:
        """Everything that it knows."""
        ...


@runtime_checkable
class Samples(Protocol):
    """What networks are validated and tested on: as many samples as its length, in one order."""

    def __len__(self) -> int: ...

    def in_order(self, size: int) -> Iterator[Batch]:
        """All samples in order, `size` at a time or fewer."""
        ...


@dataclass(frozen=True)
class Split:
    """Samples held in memory: inputs [n, ...] and each task's targets [n, ...].

    Raises:
        ValueError: the number of samples differs between inputs and targets, or there is none.
        TypeError: they are no tensors.
    """

    inputs: Tensor
    targets: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        require_fields(self)
        if scalars := [t for t, target in self.targets.items() if not target.dim()]:
            raise ValueError(f"targets of {scalars[0]!r} are a single number: give [n, ...]")
        if not self.inputs.dim():
            raise ValueError("inputs= is a single number: give [n, ...]")
        sizes = {task: len(target) for task, target in self.targets.items()}
        wrong = {task: n for task, n in sizes.items() if n != len(self.inputs)}
        if wrong or not len(self.inputs):
            raise ValueError(f"{len(self.inputs)} inputs, but targets have {sizes} samples")

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Tensor) -> Batch:
        """The samples at `index`, gathered at once."""
        return gathered(self.inputs, index), self.labels(index)

    def labels(self, index: Tensor) -> dict[str, Tensor]:
        """The targets of the samples at `index`."""
        return {task: gathered(target, index) for task, target in self.targets.items()}

    def in_order(self, size: int) -> Iterator[Batch]:
        """All samples in order, `size` at a time."""
        for index in torch.split(torch.arange(len(self)), size):
            yield self.take(index)

    def to(self, device: torch.device | str) -> Split:
        """The same samples on `device`."""
        targets = {task: target.to(device) for task, target in self.targets.items()}
        return Split(self.inputs.to(device), targets)


@dataclass(frozen=True)
class Problem:
    """Tasks that one network is to learn, and the data to learn them from.

    Attributes:
        name: what the user types.
        summary: one line.
        citation: where the data come from, and their licence.
        tasks: by name, in order.
        network: makes the network for some of the tasks, its weights drawn from torch's global
            stream (the caller seeds it). It has the heads that these tasks read.
        train, validation, test: no sample may stand on two sides. `train` may also be an iterable
            of batches with a length (a DataLoader).
        batch_size: samples per training batch.
        epochs: a sensible number to train.
        optimizer: one that suits it, "sgd" (momentum 0.9) or "adam".
        rates: learning rates to choose from.
        penalty: a term of the network's parameters that is nobody's task.
        official_test: whether the test part is given, and the same for every seed; train and
            validation may be drawn anew.
        units: how many independent things are in train and validation together, and in test:
            subjects or pictures where samples share them. None counts the samples.
        test_groups: which of them each test sample belongs to, int64 [n], if not one each.
        pool: all samples, from which the parts can be drawn in other ways than the loader's own.
        scaled: as `network`, its width multiplied by the number given.
        design: how the data are divided where nothing is said, see `data/splits.py`.
        preparation: what was fitted to the training part to make inputs and targets of a table.

    Raises:
        TypeError: something is of another kind; the message names it.
        ValueError: `batch_size` or `epochs` is below 1, there is no task, or `units` or
            `test_groups` do not fit.
    """

    name: str
    summary: str
    citation: str
    tasks: Mapping[str, Task]
    network: Callable[[Sequence[str]], MultiTaskNetwork]
    train: Split | Iterable[Batch]
    validation: Samples
    test: Samples
    batch_size: int = 64
    epochs: int = 50
    optimizer: str = "sgd"
    rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    penalty: Callable[[nn.Module], Tensor] | None = None
    official_test: bool = False
    units: tuple[int, int] | None = None
    test_groups: Tensor | None = None
    pool: Pool | None = None
    scaled: Callable[[Sequence[str], float], MultiTaskNetwork] | None = None
    design: str = "hold-out"
    preparation: Preparation | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        for name, value in (("batch_size", self.batch_size), ("epochs", self.epochs)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not self.tasks:
            raise ValueError("tasks= names none: a problem has one or more")
        if self.units is not None and (len(self.units) != 2 or min(self.units) < 1):
            raise ValueError(f"units={self.units}: must be two counts, each at least 1")
        groups, test = self.test_groups, self.test
        if groups is not None and isinstance(test, Split) and groups.shape != (len(test),):
            raise ValueError(
                f"test_groups has the shape {tuple(groups.shape)}: must be one for each of the "
                f"{len(test)} test samples"
            )

    def _named(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """Tasks of it.

        Raises:
            ValueError, TypeError: one is unknown; or a single text is given.
        """
        return several("tasks", tasks, self.tasks, "task")

    def heads(self, tasks: Iterable[str]) -> tuple[str, ...]:
        """The heads that these tasks read, each once, in their order."""
        return tuple(dict.fromkeys(head for task in tasks for head in self._heads_of(task)))

    def _heads_of(self, task: str) -> Sequence[str]:
        heads = self.tasks[task].heads
        if heads is None:
            return (task,)
        return (heads,) if isinstance(heads, str) else heads

    def read(self, task: str, outputs: Mapping[str, Any]) -> Any:
        """What the loss and the metric of `task` get of a network's outputs by head."""
        heads = self.tasks[task].heads
        if heads is None or isinstance(heads, str):
            return outputs[task if heads is None else heads]
        return {head: outputs[head] for head in heads}

    def readable(self, outputs: Mapping[str, Any]) -> tuple[str, ...]:
        """The tasks all of whose heads are among these outputs."""
        return tuple(t for t in self.tasks if all(head in outputs for head in self._heads_of(t)))

    def with_own_heads(self) -> Problem:
        """The same tasks for networks that have a head of each task's name, for it alone.

        Such networks say what is no network's: constants, the answers of other models.
        """
        return replace(self, tasks={t: replace(task, heads=None) for t, task in self.tasks.items()})

    def losses(
        self,
        outputs: Mapping[str, Any],
        targets: Mapping[str, Tensor],
        tasks: Iterable[str] | None = None,
    ) -> dict[str, Tensor]:
        """Each task's mean loss over its labels; a task without any is absent.

        Args:
            outputs: the network's, by head.
            targets: by task.
            tasks: whose losses; by default all tasks that can read what they need from `outputs`.
        """
        found = {}
        for name in self.readable(outputs) if tasks is None else self._named(tasks):
            if name in targets:
                task = self.tasks[name]
                taken = task.labels.taken(self.read(name, outputs), targets[name])
                if taken is not None:
                    found[name] = task.loss(*taken)
        return found

    def active(self, tasks: Iterable[str], targets: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Those of `tasks` that have a label in a batch with these targets."""
        return tuple(t for t in tasks if t in targets and self.tasks[t].labels.present(targets[t]))

    def label_counts(
        self, tasks: Iterable[str] | None = None, parts: Sequence[str] = PARTS
    ) -> dict[str, dict[str, LabelCount]]:
        """How many labels each task has in each part that is held in memory: {task: {part: …}}.

        Parts that are read from elsewhere are not read for it, and absent.
        """
        held = {name: part for name in parts if isinstance(part := getattr(self, name), Split)}
        return {
            name: {part: _counted(self.tasks[name], name, split) for part, split in held.items()}
            for name in (self.tasks if tasks is None else self._named(tasks))
        }

    def check_labels(
        self, tasks: Iterable[str] | None = None, parts: Sequence[str] = PARTS
    ) -> None:
        """See that every task can be trained, validated and tested.

        Raises:
            ValueError: a task has no label in a part that is held in memory.
        """
        for task, counts in self.label_counts(tasks, parts).items():
            for part, count in counts.items():
                if not count.used:
                    raise ValueError(
                        f"task {task!r} has no label in the {part} part ({count.samples} samples): "
                        "leave the task out, or split the data otherwise"
                    )

    def check_pieces(self) -> None:
        """See that network, losses and metrics take a few samples of each part before any work.

        Of a part that is read from elsewhere nothing is read for it.

        Raises:
            ValueError: one of them raises, or a loss is NaN; the message says which, of what task,
                and what.
        """
        held = {name: part for name in PARTS if isinstance(part := getattr(self, name), Split)}
        if not held:
            return
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            with _trying("the network"):
                network = self.network(tuple(self.tasks)).eval()
            for part, split in held.items():
                where = "" if part == "train" else f" ({part} part)"
                for name in split.targets:
                    if name in self.tasks:
                        self._try(network, name, split, where)

    def _try(self, network: nn.Module, name: str, split: Split, where: str) -> None:
        """A few samples of one part and task."""
        task = self.tasks[name]
        used = task.labels.samples(split.targets[name]).nonzero().flatten()[:FEW]
        if not len(used):
            return
        inputs, targets = split.take(used)
        with _trying(f"the network{where}"):
            outputs = network(inputs, tasks=self.heads((name,)))
        taken = task.labels.taken(self.read(name, outputs), targets[name])
        if taken is None:
            return
        with _trying(f"the loss of task {name!r}{where}"):
            loss = float(task.loss(*taken))
        if math.isnan(loss) and not _not_finite(inputs).any():  # of these `check_finite` tells
            raise ValueError(f"the loss of task {name!r}{where} is NaN with fresh weights")
        with _trying(f"the metric of task {name!r}{where}"):
            task.metric().update(*taken)

    def check_finite(
        self, tasks: Iterable[str] | None = None, parts: Sequence[str] = PARTS
    ) -> None:
        """See that no sample makes a loss NaN or infinite before anything is trained.

        A NaN among the inputs is no fault where the network makes a number of it: that is tried
        with a fresh network, on the samples concerned alone. NaN targets are missing labels.

        Raises:
            ValueError: a target is infinite, or an output is not finite, in a part that is held in
                memory; the message says of which task, and for how many samples.
        """
        names = tuple(self.tasks) if tasks is None else self._named(tasks)
        for part in parts:
            split = getattr(self, part)
            if not isinstance(split, Split):
                continue
            infinite = {
                t: _infinite(split.targets[t], self.tasks[t].labels)
                for t in names
                if t in split.targets
            }
            for what, counts in (("target", infinite), ("output", self._spoilt(names, split))):
                if told := [f"{task!r} ({count})" for task, count in counts.items() if count]:
                    raise ValueError(
                        f"the {part} part has samples whose {what} is not finite: of task "
                        f"{', '.join(told)}, of {len(split)} samples. Repair them or leave them out"
                    )

    def _spoilt(self, tasks: tuple[str, ...], split: Split) -> dict[str, int]:
        """For how many labelled samples each task's output is not finite, for want of an input."""
        rows = _not_finite(split.inputs).nonzero().flatten()
        if not len(rows):
            return {}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network = self.network(tasks).eval()
            counts = dict.fromkeys(tasks, 0)
            for index in torch.split(rows, 1024):
                inputs, targets = split.take(index)
                for task, output in network(inputs, tasks=tasks).items():
                    if task in targets:
                        bad = torch.stack([_not_finite(leaf) for leaf in leaves(output)]).any(dim=0)
                        used = self.tasks[task].labels.samples(targets[task])
                        counts[task] += int((bad.to(used.device) & used).sum())
        return counts


@contextmanager
def _trying(what: str) -> Iterator[None]:
    """Somebody else's code inside: whatever it raises is told.

    Raises:
        ValueError: `what` fails, and how.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} fails: {theirs.named(error)}") from error


FEW = 4
"""Samples by which a problem's pieces are tried."""


def _not_finite(values: Tensor) -> Tensor:
    """Which samples have an entry that is NaN or infinite, bool [b]."""
    return ~values.isfinite().reshape(len(values), -1).all(dim=1)


def _infinite(target: Tensor, labels: Labelling) -> int:
    found = target.isinf() & labels.entries(target)
    return int(found.reshape(len(target), -1).any(dim=1).sum())


def _counted(task: Task, name: str, split: Split) -> LabelCount:
    if name not in split.targets:
        return LabelCount(len(split), 0, 0)
    return task.labels.count(split.targets[name])


@dataclass
class Stream:
    """Training batches, one after the other for as long as asked, by their running number.

    Batch k is determined by (seed, k) for data in memory, so a resumed run draws what the killed
    one would have drawn. An epoch is `len(stream)` batches.

    Args:
        source: a `Split`, or an iterable of batches with a length.
        batch_size: samples per batch, for a `Split`.
        seed: of the order.
        replacement: every batch is drawn uniformly at random from the whole set (ATE-SG's
            Algorithm 3.2) instead of from a fresh permutation per epoch (its Algorithm A.1).
        drop_last: leave out the last batch of a permutation if it is smaller than the others.
    """

    source: Split | Iterable[Batch]
    batch_size: int
    seed: int
    replacement: bool = False
    drop_last: bool = False

    def __post_init__(self) -> None:
        require_fields(self)
        self._order: tuple[int, Tensor] | None = None
        self._batches: _Numbered[Batch] | None = None
        self._indices: _Numbered[Sequence[int]] | None = None
        if isinstance(self.source, Split):
            if self.batch_size < 1:
                raise ValueError(f"batch_size={self.batch_size}: must be at least 1")
        else:
            self._batches = _Numbered(self.source, self.seed)
            loader = self.source if isinstance(self.source, DataLoader) else None
            if self.numbered and loader is not None and loader.batch_sampler is not None:
                self._indices = _Numbered(loader.batch_sampler, self.seed)
        if len(self) == 0:
            raise ValueError("an epoch has no batch: the data set is smaller than one batch")

    def __len__(self) -> int:
        if not isinstance(self.source, Split):
            if not isinstance(self.source, Sized):
                told = type(self.source).__name__
                raise TypeError(f"source= is a {told} without a length: batches must be countable")
            return len(self.source)
        whole, rest = divmod(len(self.source), self.batch_size)
        return whole + bool(rest and not self.drop_last and not self.replacement)

    @property
    def numbered(self) -> bool:
        """Whether the samples have numbers, by which `index` can tell a batch."""
        match self.source:
            case Split():
                return True
            case DataLoader(dataset=dataset, batch_size=int()):
                return not isinstance(dataset, IterableDataset)
        return False

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0 over all epochs."""
        if self._batches is not None:
            found = self._batches.item(*divmod(number, len(self)))
            if not (isinstance(found, Sequence) and len(found) == 2):
                raise TypeError(
                    f"a batch of the data is {quoted(found)}: must be (inputs, targets by task)"
                )
            return found
        source = cast(Split, self.source)
        return source.take(self.index(number).to(source.inputs.device))

    def index(self, number: int) -> Tensor:
        """Which samples of the data set batch `number` has, int64 [b].

        A data loader's sampler is drawn from anew, so these need not be the samples that `batch`
        gives under that number; they are as good a draw, and the same one at every run.

        Raises:
            ValueError: the source is an iterable whose samples have no number.
        """
        epoch, position = divmod(number, len(self))
        if self._indices is not None:
            return torch.as_tensor(self._indices.item(epoch, position))
        if not isinstance(self.source, Split):
            raise ValueError("only data in memory and a DataLoader's data set number their samples")
        if self.replacement:
            generator = self._generator(number)
            size = (self.batch_size,)
            return torch.randint(len(self.source), size, generator=generator, device="cpu")
        start = position * self.batch_size
        return self._permutation(len(self.source), epoch)[start : start + self.batch_size]

    def _permutation(self, samples: int, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = self._generator(epoch)
            self._order = (epoch, torch.randperm(samples, generator=generator, device="cpu"))
        return self._order[1]

    def _generator(self, time: int) -> torch.Generator:
        return torch.Generator().manual_seed(mixed_seed(self.seed, time, *b"stream"))


class _Numbered(Generic[T]):
    """What an iterable gives, by (epoch, position); asked for in order, it is iterated once."""

    def __init__(self, source: Iterable[T], seed: int) -> None:
        self._source = source
        self._seed = seed
        self._epoch = self._drawn = -1
        self._items: Iterator[T] = iter(())

    def item(self, epoch: int, position: int) -> T:
        if epoch != self._epoch or position < self._drawn:
            self._epoch, self._drawn, self._items = epoch, 0, self._begin(epoch)
        for item in self._items:
            self._drawn += 1
            if self._drawn > position:
                return item
        raise ValueError(f"an epoch of the data promised more batches than its {self._drawn}")

    def _begin(self, epoch: int) -> Iterator[T]:
        # A loader draws its order from torch's global stream when its iterator is made, and its
        # sampler when the first batch is; the stream is set for that moment, so a resumed epoch
        # starts as the killed one did.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self._seed, epoch, *b"loader"))
            items = iter(self._source)
            return chain(list(islice(items, 1)), items)
