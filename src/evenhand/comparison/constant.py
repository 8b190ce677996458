"""The best constant: what every network has to beat.

For each task, one output for all samples, fitted to the training part: the one with the lowest
training loss, and the plain candidates (mean, median, every class by itself, always yes, always
no). Which of them is best by the task's *metric* on the training rows stands; its metric on the
test part is the zero of the scale of skill.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from evenhand.data.problem import Batch, Problem, Samples, Split
from evenhand.network import MultiTaskNetwork, Nest, leaves
from evenhand.training.loop import evaluate

MOST = 20_000
"""Training samples to which a constant is fitted: more change nothing that is seen."""
CLASSES = 50
"""The most classes of which each is tried by itself; the commonest is tried always."""
SURE = 15.0
"""The logit of a constant that is certain of its answer."""


def constants(problem: Problem) -> dict[str, Tensor]:
    """Each task's best constant output, of the shape of a sample's output.

    Raises:
        ValueError: no candidate has a finite metric on the training part, or an output is no
            tensor.
    """
    train = _first(problem.train, MOST)
    shapes = output_shapes(problem)
    found = {}
    for name, task in problem.tasks.items():
        targets = labels(problem, train, name, shapes[name])
        candidates = [*_simple(shapes[name], targets), _fitted(problem, name, shapes[name], train)]
        scored = [
            (evaluated(constant_network({name: c}), problem, train, (name,))[name], c)
            for c in candidates
            if bool(c.isfinite().all())
        ]
        scored = [(score, c) for score, c in scored if math.isfinite(score)]
        if not scored:
            raise ValueError(f"no constant has a {task.metric_name} of {name!r} on training rows")
        best = max if task.higher_is_better else min
        found[name] = best(scored, key=lambda pair: pair[0])[1]
    return found


def lowest_losses(problem: Problem) -> dict[str, Tensor]:
    """Each task's constant output of the lowest training loss, of the shape of a sample's output.

    Raises:
        ValueError: an output is no tensor.
    """
    train = _first(problem.train, MOST)
    shapes = output_shapes(problem)
    return {name: _fitted(problem, name, shapes[name], train) for name in problem.tasks}


def constant_network(values: Mapping[str, Tensor]) -> MultiTaskNetwork:
    """A network whose head of each task says the same of every sample."""
    return MultiTaskNetwork(_Size(), {task: _Same(value) for task, value in values.items()})


class _Size(nn.Module):
    """Anything [b, …] -> zeros [b]: all that a constant sees of a sample is that it is there."""

    def forward(self, inputs: Nest) -> Tensor:
        return torch.zeros(len(leaves(inputs)[0]))


class _Same(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, there: Tensor) -> Tensor:
        # Metrics may look at it as if a network had written it.
        return self.value.expand(len(there), *self.value.shape).contiguous()


def evaluated(
    network: MultiTaskNetwork, problem: Problem, samples: Samples, tasks: Sequence[str]
) -> dict[str, float]:
    """Each task's metric, NaN where there is no label; quiet about metrics that are not defined.

    torchmetrics warns where a part has one class only. That is told in words elsewhere.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchmetrics")
        _, metrics = evaluate(network, problem, samples, tasks)
    return {task: metrics.get(task, math.nan) for task in tasks}


def output_shapes(problem: Problem) -> dict[str, torch.Size]:
    """The shape of one sample's output in each task, from a network that is made and dropped.

    Raises:
        ValueError: an output is no tensor.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = problem.network(tuple(problem.tasks))
        network.eval()
        inputs, _ = next(iter(problem.validation.in_order(2)))
        outputs = network(inputs, tasks=tuple(problem.tasks))
    wrong = [task for task in problem.tasks if not isinstance(outputs[task], Tensor)]
    if wrong:
        raise ValueError(f"the output of {wrong[0]!r} is no tensor: no constant can be fitted")
    return {task: outputs[task].shape[1:] for task in problem.tasks}


def labels(problem: Problem, samples: Samples, task: str, shape: torch.Size) -> Tensor:
    """The targets of a task that are labels: what its metric gets to see, [n, …].

    `shape` is that of the task's output of one sample.
    """
    seen = _Seen()
    collecting = replace(problem, tasks={task: replace(problem.tasks[task], metric=lambda: seen)})
    nothing = constant_network({task: torch.zeros(shape)})
    evaluate(nothing, collecting, samples, (task,))
    return torch.cat(seen.targets) if seen.targets else torch.zeros(0)


class _Seen:
    """A metric that keeps the targets it is shown."""

    def __init__(self) -> None:
        self.targets: list[Tensor] = []

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.targets.append(target.cpu())

    def compute(self) -> Tensor:
        return torch.zeros(())


def _simple(shape: torch.Size, targets: Tensor) -> Iterator[Tensor]:
    """Constants that can be told from the targets alone."""
    if not len(targets):
        return
    inner = targets.shape[1:]
    if shape == inner:  # a number for a number, or a logit for a yes or no
        values = targets.float()
        yield values.mean(dim=0)
        yield values.median(dim=0).values
        if set(torch.unique(values).tolist()) <= {0.0, 1.0}:
            yield torch.full(shape, SURE)
            yield torch.full(shape, -SURE)
    elif not targets.is_floating_point() and len(shape) and shape[1:] == inner:
        number = shape[0]
        counts = torch.bincount(targets.flatten().clamp(0, number - 1), minlength=number)
        commonest = counts.argsort(descending=True)[:CLASSES]
        for one in commonest.tolist():
            chosen = torch.zeros(shape)
            chosen[one] = SURE
            yield chosen


def _fitted(problem: Problem, task: str, shape: torch.Size, train: _Some) -> Tensor:
    """The constant of the lowest mean loss over the training samples (L-BFGS)."""
    value = torch.zeros(shape, requires_grad=True)
    optimizer = torch.optim.LBFGS([value], max_iter=60, line_search_fn="strong_wolfe")
    batches = [(len(leaves(x)[0]), y) for x, y in train.in_order(MOST) if task in y]

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for size, targets in batches:
            output = value.expand(size, *shape)
            losses = problem.losses({task: output}, {task: targets[task]})
            total = total + size * losses.get(task, torch.zeros(()))
        total = total / max(1, sum(size for size, _ in batches))
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it so
    return value.detach()


@dataclass(frozen=True)
class _Some:
    """The first samples of a training source, as they come."""

    batches: tuple[Batch, ...]

    def __len__(self) -> int:
        return sum(len(leaves(inputs)[0]) for inputs, _ in self.batches)

    def in_order(self, size: int) -> Iterator[Batch]:
        return iter(self.batches)


def _first(source: Split | Iterable[Batch], most: int) -> _Some:
    if isinstance(source, Split):
        return _Some((source.take(torch.arange(min(most, len(source)))),))
    found: list[Batch] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in source:
            found.append(batch)
            if sum(len(leaves(inputs)[0]) for inputs, _ in found) >= most:
                break
    return _Some(tuple(found))
