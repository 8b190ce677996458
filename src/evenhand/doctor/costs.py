"""What each kind of method costs on this very model: time and memory of a step, measured.

Methods of one kind cost about the same, so one of each is measured, the forward pass included. The
memory is the most that is alive at one time of what the step allocates, beyond parameters and
batch.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from evenhand.balancer import Balancer
from evenhand.data.problem import Batch, Problem, Stream
from evenhand.network import MultiTaskNetwork
from evenhand.recipes import recipe

KINDS = (
    ("plain sum", "sg", "one backward pass"),
    ("looks at losses", "uncertainty", "weights from the losses alone"),
    ("looks at features", "mgda-ub", "each task's gradient by the features"),
    ("looks at gradients", "mgda", "each task's gradient by all shared parameters"),
)
"""What a kind is called, the recipe that stands for it, and what it does."""


@dataclass(frozen=True)
class Cost:
    """Of a step of one kind of method.

    Attributes:
        kind: of method.
        recipe: that stood for it.
        summary: what it does in a step.
        seconds: processor time of forward and backward pass, the least of several steps.
        memory: bytes.
    """

    kind: str
    recipe: str
    summary: str
    seconds: float
    memory: int


def costs(problem: Problem, repeats: int = 7, seconds: float = math.inf) -> tuple[Cost, ...]:
    """Measure each kind on a copy of the problem's network, with one thread.

    Steps are measured `repeats` times, or as often as `seconds` allow, which is at least once.

    The last entry is a step of every single-task network, one after the other.

    Raises:
        ValueError: no training batch has labels of every task.
    """
    tasks = tuple(problem.tasks)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for one another count as processor time
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            steps = _steps(problem, tasks)
            taken, memory = _measured(list(steps.values()), repeats, seconds)
    finally:
        torch.set_num_threads(threads)
    return tuple(
        Cost(*kind, least, peak) for kind, least, peak in zip(steps, taken, memory, strict=True)
    )


Step = Callable[[], None]


def _steps(problem: Problem, tasks: tuple[str, ...]) -> dict[tuple[str, str, str], Step]:
    network, batch = problem.network(tasks), _full_batch(problem)
    found: dict[tuple[str, str, str], Step] = {}
    for kind in KINDS:
        composition = recipe(kind[1]).compose(tasks)[""]
        balancer = Balancer(composition.weighting, composition.aggregator, tasks=tasks)
        found[kind] = _step(problem, deepcopy(network), balancer, batch, tasks)
    singles = [
        _step(problem, problem.network((task,)), Balancer(tasks=(task,)), batch, (task,))
        for task in tasks
    ]

    def every() -> None:
        for step in singles:
            step()

    found["single-task", "single-task", f"{len(tasks)} networks"] = every
    return found


def _full_batch(problem: Problem) -> Batch:
    stream = Stream(problem.train, problem.batch_size, 0)
    tasks = tuple(problem.tasks)
    for number in range(len(stream)):
        batch = stream.batch(number)
        if len(problem.active(tasks, batch[1])) == len(tasks):
            return batch
    raise ValueError("no training batch has labels of every task: take larger batches")


def _step(
    problem: Problem,
    network: MultiTaskNetwork,
    balancer: Balancer,
    batch: Batch,
    tasks: Sequence[str],
) -> Step:
    balancer.attach(network)
    network.train()
    inputs, targets = batch

    def step() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        outputs = network(inputs, tasks=tasks)
        balancer.backward(problem.losses(outputs, targets), features=outputs)

    return step


def _measured(steps: Sequence[Step], repeats: int, seconds: float) -> tuple[list[float], list[int]]:
    """Seconds, the least of several, and bytes of each; taken in turn, so that all are disturbed
    alike.
    """
    begun = time.perf_counter()
    peaks = []
    for step in steps:
        step()  # what is made once is made now
        with Memory() as memory:
            step()
        peaks.append(memory.peak)
    taken: list[list[float]] = [[] for _ in steps]
    for turn in range(repeats):
        if turn and time.perf_counter() - begun > seconds:
            break
        for number, step in enumerate(steps):
            start = time.process_time()
            step()
            taken[number].append(time.process_time() - start)
    return [min(each) for each in taken], peaks


class Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that are alive at one time of what is allocated inside.

    Example:
        >>> with Memory() as memory:
        ...     x = torch.zeros(1000)
        ...     y = x + 1
        ...     del x, y
        ...     z = torch.zeros(10)
        >>> memory.peak
        8000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.alive = 0
        self._seen = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(s) for s in map(_storage, tree_leaves((args, kwargs))) if s is not None}
        result = func(*args, **(kwargs or {}))
        for storage in map(_storage, tree_leaves(result)):
            if storage is None or id(storage) in given or storage in self._seen:
                continue
            size = storage.nbytes()
            self._seen[storage] = size
            self.alive += size
            weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.alive)
        return result

    def _freed(self, size: int) -> None:
        self.alive -= size


def _storage(value: Any) -> Any:
    return value.untyped_storage() if isinstance(value, Tensor) else None
