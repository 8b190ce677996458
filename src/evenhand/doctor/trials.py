"""Small experiments: networks trained on weighted sums of losses, as many at once as will go.

A `Trial` is one training: which split of the data, which weights the losses have (a weight of 0
leaves a task out, so a network on its own is one, too), which rate, width and share of the training
rows. Nothing is chosen here; a trial gives `Curves`, the held-out losses at several times.

Trials whose networks have one architecture are trained as one stack (`ensemble/network.py`), over
splits, weights and rates alike, since each member may have data of its own. Their losses are taken
sample by sample, so missing labels are left out member by member. What cannot be stacked is
trained one by one, with the same initial weights and the same batches: the numbers agree to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from evenhand.comparison.request import optimizer
from evenhand.data.problem import Problem, Samples, Split, Stream, Task
from evenhand.ensemble.network import Stack
from evenhand.ensemble.optimizers import stacked
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import mixed_seed

ROWS = 4096
"""Samples that are evaluated at a time."""
ROWS_OF_STACK, NUMBERS_OF_STACK = 2**18, 2**24
"""Samples that a stack evaluates at a time, over all members, and numbers in their inputs."""
PARAMETERS = 2**25
"""The most parameters of a stack; beyond that it is several."""
HELD = 2**28
"""The most numbers in the training inputs of all splits together, which a stack holds at once."""


@dataclass(frozen=True)
class Trial:
    """One small experiment.

    Attributes:
        split: which of the problems it is trained on; also the seed of weights and batches, so
            trials of a split differ in nothing but what they say.
        weights: of the losses, in the order of the problem's tasks; 0 leaves a task out.
        rate: learning rate.
        width: of the hidden layers, relative to the problem's network.
        share: of the training rows, in (0, 1].
        own: the positions in the trunk, a `torch.nn.Sequential`, of the layers that every task has
            a copy of; the others are shared.
    """

    split: int
    weights: tuple[float, ...]
    rate: float
    width: float = 1.0
    share: float = 1.0
    own: tuple[int, ...] = ()


@dataclass(frozen=True)
class Curves:
    """Held-out losses of one trial at several times in training.

    Attributes:
        validation: mean loss of each task, [times, m]; NaN where it has no label.
        test: the same by blocks of the test rows, [times, blocks, m].
    """

    validation: Tensor
    test: Tensor


def run(
    problems: Mapping[int, Problem], trials: Sequence[Trial], times: Sequence[int], blocks: int = 1
) -> dict[Trial, Curves]:
    """Train every trial, and look at its held-out losses after so many steps.

    Args:
        problems: by the number of the split; alike but for their samples.
        trials: what to train.
        times: numbers of steps, ascending.
        blocks: into how many blocks the test rows are cut.

    Raises:
        ValueError: a width is asked for that the problem's network does not have, or a share of
            training rows that are not in memory.
    """
    found: dict[Trial, Curves] = {}
    for alike in _groups(problems, trials):
        if obstacle(problems, alike):
            for trial in alike:
                found[trial] = _alone(problems[trial.split], trial, times, blocks)
            continue
        network = _network(problems[alike[0].split], alike[0])
        most = max(1, PARAMETERS // max(1, sum(p.numel() for p in network.parameters())))
        for start in range(0, len(alike), most):
            found |= _as_one(problems, alike[start : start + most], times, blocks)
    return {trial: found[trial] for trial in dict.fromkeys(trials)}


def _groups(problems: Mapping[int, Problem], trials: Sequence[Trial]) -> list[list[Trial]]:
    """Those of one architecture and size of batch."""
    found: dict[tuple[float, int, tuple[int, ...]], list[Trial]] = {}
    for trial in dict.fromkeys(trials):
        source = problems[trial.split].train
        size = problems[trial.split].batch_size
        if isinstance(source, Split):
            size = min(size, _rows(len(source), trial.share))
        found.setdefault((trial.width, size, trial.own), []).append(trial)
    return list(found.values())


def _rows(count: int, share: float) -> int:
    return max(1, round(share * count))


def obstacle(problems: Mapping[int, Problem], trials: Sequence[Trial]) -> str:
    """Why these trials cannot be trained as one, or ""."""
    for split in {trial.split for trial in trials}:
        problem = problems[split]
        parts = (problem.train, problem.validation, problem.test)
        if not all(isinstance(part, Split) for part in parts):
            return "the data are not held in memory"
        if problem.penalty is not None:
            return "the problem has a penalty"
        if any(task.gaps != "sample" for task in problem.tasks.values()):
            return "labels are missing entry by entry"
    kinds = {(trial.split, trial.share) for trial in trials}
    sources = [(cast(Split, problems[split].train), share) for split, share in kinds]
    if sum(source.inputs.numel() * share for source, share in sources) > HELD:
        return "the training parts of all splits are too large to be held at once"
    problem = problems[trials[0].split]
    networks = [_network(problem, trials[0]) for _ in range(2)]
    if any(parameter.device.type != "cpu" for parameter in networks[0].parameters()):
        return "the network is not on the CPU"
    if any(getattr(module, "p", 0) for module in networks[0].modules()):
        return "the network has dropout"
    try:
        stacked([_optimizer(problem, trials[0].rate)])([{"params": []}])
    except ValueError as error:
        return str(error)
    try:
        _losses_of(problem, Stack(networks), *_tried(problem))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first, *_ = str(error).splitlines() or [""]
        return f"torch.func.vmap cannot evaluate the network or a loss: {first}"
    return ""


def _tried(problem: Problem) -> tuple[Tensor, dict[str, Tensor]]:
    """Three training samples for each of two members."""
    inputs, targets = cast(Split, problem.train).take(torch.tensor([[0, 0, 0], [0, 0, 0]]))
    return inputs, dict(targets)


def _network(problem: Problem, trial: Trial) -> MultiTaskNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(trial.split, *b"doctor"))
        if trial.width == 1:
            network = problem.network(tuple(problem.tasks))
        elif problem.scaled is None:
            raise ValueError(f"{problem.name}: its network has no width (Problem.scaled)")
        else:
            network = problem.scaled(tuple(problem.tasks), trial.width)
    return with_own_layers(network, trial.own) if trial.own else network


def layers(network: MultiTaskNetwork) -> dict[int, str]:
    """The parts of a trunk that can be split: positions and names of those with parameters.

    Empty where the trunk is no `torch.nn.Sequential`.
    """
    if type(network.trunk) is not nn.Sequential:
        return {}
    return {
        position: f"trunk.{name}"
        for position, (name, part) in enumerate(network.trunk.named_children())
        if any(True for _ in part.parameters())
    }


def with_own_layers(network: MultiTaskNetwork, own: Sequence[int]) -> MultiTaskNetwork:
    """The same network, in which every task has a copy of the trunk's parts at these positions.

    Raises:
        ValueError: the trunk is no `torch.nn.Sequential`, or has no such part.
    """
    known = layers(network)
    if any(position not in known for position in own):
        raise ValueError(f"own={tuple(own)}: the trunk's layers stand at {sorted(known)}")
    parts = list(network.trunk.children())

    def trunk_of_a_task() -> nn.Sequential:
        return nn.Sequential(*(deepcopy(p) if k in own else p for k, p in enumerate(parts)))

    return MultiTaskNetwork(
        nn.Identity(),
        {task: nn.Sequential(trunk_of_a_task(), network.head(task)) for task in network.tasks},
    )


def _optimizer(problem: Problem, rate: float) -> Callable[..., torch.optim.Optimizer]:
    return partial(optimizer(problem.optimizer), lr=rate)


def _stream(problem: Problem, trial: Trial) -> Stream:
    """The batches of a trial: of the whole training part, or of a random share of it."""
    seed = mixed_seed(trial.split, *b"doctor-data")
    source = problem.train
    if not isinstance(source, Split):
        if trial.share != 1:
            raise ValueError(f"share={trial.share}: the training part is not held in memory")
        return Stream(source, problem.batch_size, seed)
    if trial.share != 1:
        generator = torch.Generator().manual_seed(mixed_seed(trial.split, *b"doctor-share"))
        order = torch.randperm(len(source), generator=generator)
        kept = order[: _rows(len(source), trial.share)]
        inputs, targets = source.take(kept)
        source = Split(inputs, targets)
    return Stream(source, min(problem.batch_size, len(source)), seed, drop_last=True)


# One by one -----------------------------------------------------------------------------------


def _alone(problem: Problem, trial: Trial, times: Sequence[int], blocks: int) -> Curves:
    network = _network(problem, trial)
    own = _optimizer(problem, trial.rate)(network.parameters())
    stream = _stream(problem, trial)
    weight = dict(zip(problem.tasks, trial.weights, strict=True))
    wanted = [task for task in problem.tasks if weight[task]]
    curves: list[tuple[Tensor, Tensor]] = []
    step = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(trial.split, *b"doctor-chance"))
        for time in times:
            network.train()
            while step < time:
                _step(problem, network, own, stream.batch(step), weight, wanted)
                step += 1
            network.eval()
            curves.append(
                (
                    _held_out(problem, network, problem.validation, 1)[0],
                    _held_out(problem, network, problem.test, blocks),
                )
            )
    return Curves(*(torch.stack(each) for each in zip(*curves, strict=True)))


def _step(
    problem: Problem,
    network: MultiTaskNetwork,
    own: torch.optim.Optimizer,
    batch: tuple[Any, Mapping[str, Tensor]],
    weight: Mapping[str, float],
    wanted: Sequence[str],
) -> None:
    inputs, targets = batch
    present = problem.active(wanted, targets)
    if not present:
        return
    losses = problem.losses(network(inputs, tasks=present), targets)
    total = torch.stack([weight[task] * loss for task, loss in losses.items()]).sum()
    if problem.penalty is not None:
        total = total + problem.penalty(network)
    own.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    own.step()


@torch.no_grad()
def _held_out(problem: Problem, network: MultiTaskNetwork, samples: Samples, blocks: int) -> Tensor:
    """The mean loss of each task in each block of the samples, [blocks, m]."""
    names = list(problem.tasks)
    sums = torch.zeros(blocks, len(names), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    size = min(ROWS, -(-len(samples) // blocks))
    seen = 0
    for inputs, targets in samples.in_order(size):
        block = min(blocks - 1, seen * blocks // len(samples))
        seen += size
        present = problem.active(names, targets)
        if not present:
            continue
        for name, output in network(inputs, tasks=present).items():
            task = problem.tasks[name]
            taken = task.labels.taken(output, targets[name])
            if taken is None:
                continue
            count, where = task.labels.weight(taken[1]), (block, names.index(name))
            sums[where] += float(task.loss(*taken)) * count
            counts[where] += count
    return sums / counts


# As one ---------------------------------------------------------------------------------------


def _as_one(
    problems: Mapping[int, Problem], trials: Sequence[Trial], times: Sequence[int], blocks: int
) -> dict[Trial, Curves]:
    first = problems[trials[0].split]
    drawn = {
        split: _network(problems[split], next(t for t in trials if t.split == split))
        for split in {trial.split for trial in trials}
    }
    stack = Stack([drawn[trial.split] for trial in trials])  # which copies their parameters
    make = stacked([_optimizer(first, trial.rate) for trial in trials])
    own = make([{"params": list(stack.parameters())}])
    weights = torch.tensor([trial.weights for trial in trials])
    batches = _Batches(problems, trials)
    validation = _Parts([cast(Split, problems[t.split].validation) for t in trials])
    test = _Parts([cast(Split, problems[t.split].test) for t in trials])
    curves: list[tuple[Tensor, Tensor]] = []
    step = 0
    for time in times:
        stack.train()
        while step < time:
            losses, labelled = _losses_of(first, stack, *batches(step))
            means = (losses * labelled).sum(-1) / labelled.sum(-1).clamp_min(1)
            # A task of weight 0 may have a loss that is not finite; it is not in the sum.
            total = torch.where(weights > 0, weights * means.mT, torch.zeros(())).sum()
            own.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
            own.step()
            step += 1
        stack.eval()
        curves.append((validation.means(first, stack, 1)[:, 0], test.means(first, stack, blocks)))
    held, tested = (torch.stack(each, 1) for each in zip(*curves, strict=True))
    return {trial: Curves(held[k], tested[k]) for k, trial in enumerate(trials)}


class _Batches:
    """The members' batches, [E, b, …]: those of one split and share see the same samples."""

    def __init__(self, problems: Mapping[int, Problem], trials: Sequence[Trial]) -> None:
        kinds = list(dict.fromkeys((trial.split, trial.share) for trial in trials))
        self.which = torch.tensor([kinds.index((t.split, t.share)) for t in trials])
        self.streams = [
            _stream(
                problems[split], next(t for t in trials if (t.split, t.share) == (split, share))
            )
            for split, share in kinds
        ]
        sources = [cast(Split, stream.source) for stream in self.streams]
        self.offsets = torch.tensor([0, *(len(source) for source in sources)]).cumsum(0)[:-1]
        self.whole = Split(
            torch.cat([source.inputs for source in sources]),
            {
                task: torch.cat([source.targets[task] for source in sources])
                for task in problems[trials[0].split].tasks
            },
        )

    def __call__(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.stack([stream.index(step) for stream in self.streams])
        inputs, targets = self.whole.take((index + self.offsets.unsqueeze(1))[self.which])
        return inputs, dict(targets)


class _Parts:
    """A held-out part for each member; the parts may differ in length."""

    def __init__(self, parts: Sequence[Split]) -> None:
        self.parts = list({id(part): part for part in parts}.values())
        places = {id(part): k for k, part in enumerate(self.parts)}
        self.which = torch.tensor([places[id(part)] for part in parts])
        longest = max(map(len, self.parts))
        # Shorter parts are filled up with their last sample, which then counts for nothing.
        self.index = [
            torch.arange(longest).clamp_max(len(part) - 1).reshape(1, -1) for part in self.parts
        ]
        self.real = torch.stack([torch.arange(longest) < len(part) for part in self.parts])

    @torch.no_grad()
    def means(self, problem: Problem, stack: Stack, blocks: int) -> Tensor:
        """The mean loss of each member in each block and task, [E, blocks, m]."""
        longest = self.real.shape[1]
        members, tasks = len(self.which), len(problem.tasks)
        sums = torch.zeros(members, blocks, tasks, dtype=torch.float64)
        counts = torch.zeros_like(sums)
        numbers = max(1, self.parts[0].inputs[0].numel())
        most = min(ROWS_OF_STACK, NUMBERS_OF_STACK // numbers)
        size = max(1, min(longest, most // members))
        for start in range(0, longest, size):
            window = slice(start, start + size)
            taken = [
                part.take(index[0, window])
                for part, index in zip(self.parts, self.index, strict=True)
            ]
            inputs = torch.stack([x for x, _ in taken])[self.which]
            targets = {t: torch.stack([y[t] for _, y in taken])[self.which] for t in problem.tasks}
            losses, labelled = _losses_of(problem, stack, inputs, targets)
            counted = labelled & self.real[self.which, window].unsqueeze(0)
            number = torch.arange(start, start + losses.shape[-1])
            place = torch.stack(
                [(number * blocks // len(part)).clamp_max(blocks - 1) for part in self.parts]
            )[self.which]
            for into, values in ((sums, losses * counted), (counts, counted)):
                if blocks == 1:
                    into += values.sum(-1).mT.unsqueeze(1)
                    continue
                for task in range(tasks):
                    into[..., task].scatter_add_(1, place, values[task].double())
        return sums / counts


def _losses_of(
    problem: Problem, stack: Stack, inputs: Tensor, targets: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Each sample's loss and whether it has a label, both [m, E, b]."""
    outputs = stack(inputs, tasks=tuple(problem.tasks))
    found = [_each(task, outputs[name], targets[name]) for name, task in problem.tasks.items()]
    losses, labelled = zip(*found, strict=True)
    return torch.stack(losses), torch.stack(labelled)


def _each(task: Task, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A task's loss of every sample by itself, zero where there is no label, and where one is."""
    if task.labels.complete(target):
        labelled = torch.ones(target.shape[:2], dtype=torch.bool)
        return _sample_losses(task, output, target), labelled
    labelled = (
        task.labels.entries(target).flatten(2).all(-1)
        if target.ndim > 2
        else (task.labels.entries(target))
    )
    inside = labelled.reshape(*labelled.shape, *(1,) * (target.ndim - 2))
    losses = _sample_losses(task, output, torch.where(inside, target, torch.zeros_like(target)))
    return torch.where(labelled, losses, torch.zeros_like(losses)), labelled


def _sample_losses(task: Task, output: Tensor, target: Tensor) -> Tensor:
    """[E, b]: a loss is a mean over samples, so that of one sample is the sample's."""

    def one(said: Tensor, true: Tensor) -> Tensor:
        return task.loss(said.unsqueeze(0), true.unsqueeze(0))

    flat: Tensor = torch.func.vmap(one)(output.flatten(0, 1), target.flatten(0, 1))
    return flat.reshape(output.shape[:2])


def times_until(steps: int, number: int = 20) -> list[int]:
    """At most so many numbers of steps, evenly spread, the last being `steps`."""
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    return sorted({max(1, round(steps * (k + 1) / number)) for k in range(number)})
