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
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from evenhand.data.problem import Batch, Problem, Samples, Split
from evenhand.network import MultiTaskNetwork, Nest, leaves
from evenhand.training.loop import evaluate

MOST = 20_000
"""Training samples to which a constant is fitted: more change nothing that is seen."""
CLASSES = 50
"""The most classes of which each is tried by itself; the commonest is tried always."""
SURE = 15.0
"""The logit of a constant that is certain of its answer."""


def constants(problem: Problem) -> dict[str, Nest]:
    """Each task's best constant output.

    A constant has the form of a sample's output: a tensor, or a mapping or sequence of tensors.
    `Problem.with_own_heads` reads it.

    Raises:
        ValueError: no candidate has a finite metric on the training part.
    """
    train = _first(problem.train, MOST)
    empty = empty_outputs(problem)
    apart = problem.with_own_heads()
    found = {}
    for name, task in apart.tasks.items():
        candidates = [_fitted(apart, name, empty[name], train)]
        if isinstance(empty[name], Tensor):
            targets = labels(apart, train, name, empty[name])
            candidates = [*_simple(empty[name].shape, targets), *candidates]
        scored = [
            (evaluated(constant_network({name: c}), apart, train, (name,))[name], c)
            for c in candidates
            if all(bool(leaf.isfinite().all()) for leaf in leaves(c))
        ]
        scored = [(score, c) for score, c in scored if math.isfinite(score)]
        if not scored:
            raise ValueError(f"no constant has a {task.metric_name} of {name!r} on training rows")
        best = max if task.higher_is_better else min
        found[name] = best(scored, key=lambda pair: pair[0])[1]
    return found


def lowest_losses(problem: Problem) -> dict[str, Nest]:
    """Each task's constant output of the lowest training loss, of the form of a sample's output.

    `Problem.with_own_heads` reads it.
    """
    train = _first(problem.train, MOST)
    empty, apart = empty_outputs(problem), problem.with_own_heads()
    return {name: _fitted(apart, name, empty[name], train) for name in apart.tasks}


def constant_network(values: Mapping[str, Nest]) -> MultiTaskNetwork:
    """A network with a head of each task's name, which says the same of every sample."""
    return MultiTaskNetwork(_Size(), {task: _Same(value) for task, value in values.items()})


class _Size(nn.Module):
    """Anything [b, …] -> zeros [b]: all that a constant sees of a sample is that it is there."""

    def forward(self, inputs: Nest) -> Tensor:
        return torch.zeros(len(leaves(inputs)[0]))


class _Same(nn.Module):
    def __init__(self, value: Nest) -> None:
        super().__init__()
        self.value = value

    def forward(self, there: Tensor) -> Nest:
        # Metrics may look at it as if a network had written it.
        return tree_map(lambda v: v.expand(len(there), *v.shape).contiguous(), self.value)


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


def empty_outputs(problem: Problem) -> dict[str, Nest]:
    """Zeros in the form of one sample's output in each task, by a network that is made and dropped.

    Raises:
        ValueError: an output holds nothing.
        TypeError: an output holds something that is no tensor.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = problem.network(tuple(problem.tasks))
        network.eval()
        inputs, _ = next(iter(problem.validation.in_order(2)))
        outputs = network(inputs, tasks=problem.heads(problem.tasks))
        said = {task: problem.read(task, outputs) for task in problem.tasks}
    if silent := [task for task, output in said.items() if not leaves(output)]:
        raise ValueError(f"the output of {silent[0]!r} holds no tensor")
    return {task: tree_map(_emptied, output) for task, output in said.items()}


def _emptied(output: Tensor) -> Tensor:
    return torch.zeros(output.shape[1:])


def labels(problem: Problem, samples: Samples, task: str, empty: Nest) -> Tensor:
    """The targets of a task that are labels: what its metric gets to see, [n, …], without weights.

    `empty` is of `empty_outputs`.
    """
    seen = _Seen()
    counting = replace(problem.tasks[task], metric=lambda: seen, heads=None)
    collecting = replace(problem, tasks={task: counting})
    nothing = constant_network({task: empty})
    evaluate(nothing, collecting, samples, (task,))
    if not seen.targets:
        return torch.zeros(0)
    found, bare = torch.cat(seen.targets), problem.tasks[task].bare
    return found if bare is None else bare(found)


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


def _fitted(problem: Problem, task: str, empty: Nest, train: _Some) -> Nest:
    """The constant of the lowest mean loss over the training samples (L-BFGS).

    Where a loss has kinks, the line search may divide by zero and end in NaN: the best constant
    that it met on the way is then taken.
    """
    value = tree_map(lambda leaf: leaf.clone().requires_grad_(), empty)
    optimizer = torch.optim.LBFGS(leaves(value), max_iter=60, line_search_fn="strong_wolfe")
    batches = [(len(leaves(x)[0]), y) for x, y in train.in_order(MOST) if task in y]
    lowest, met = math.inf, empty

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for size, targets in batches:
            output = tree_map(partial(_repeated, size=size), value)
            losses = problem.losses({task: output}, {task: targets[task]})
            total = total + size * losses.get(task, torch.zeros(()))
        total = total / max(1, sum(size for size, _ in batches))
        nonlocal lowest, met
        if total.item() < lowest:
            lowest, met = total.item(), tree_map(lambda leaf: leaf.detach().clone(), value)
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it so
    found = tree_map(Tensor.detach, value)
    return found if all(bool(leaf.isfinite().all()) for leaf in leaves(found)) else met


def _repeated(value: Tensor, size: int) -> Tensor:
    return value.expand(size, *value.shape)


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
