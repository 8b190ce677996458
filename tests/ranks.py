"""One training of a few steps, by one process or by several that share out every batch."""

from __future__ import annotations

import datetime
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cases import CASES
from evenhand import Balancer, MultiTaskNetwork, NonFiniteError
from evenhand.weighting.base import Method

TASKS = ("a", "b", "c")
STEPS = 3
DEADLINE = datetime.timedelta(seconds=60)
"""Of every collective: a rank that does not come is an error and no hang."""
SIZE = 12
"""Samples in a batch, of all ranks."""

ROUTES = ("plain backward", "plain loss", "ddp backward", "ddp loss", "ddp unused")
SHARES = ("even", "uneven", "missing", "gone", "nan")


@dataclass(frozen=True)
class Variation:
    """What is trained, and how a batch is shared out.

    Attributes:
        method: the name of a case.
        slot: "weighting" or "aggregator".
        at: a place; "" for the method's own.
        share: how samples and labels are shared out.
        route: what the model is wrapped in, and who calls backward.
    """

    method: str
    slot: str
    at: str
    share: str
    route: str

    def __str__(self) -> str:
        return " ".join((self.method, self.slot, self.at or "own", self.share, self.route))


@dataclass
class Trained:
    """What a training came to: gradients and parameters step by step, and the balancer's state."""

    gradients: list[dict[str, Tensor | None]]
    losses: list[Tensor]
    parameters: dict[str, Tensor]
    state: dict[str, Any]
    errors: list[str]


def network() -> MultiTaskNetwork:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh())
    heads = {
        "a": nn.Linear(3, 1),
        "b": nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)),
        "c": nn.Linear(3, 1),
    }
    return MultiTaskNetwork(trunk, heads).double()


def parts(share: str, world: int) -> list[slice]:
    """Which samples each rank has."""
    if share == "even" or world == 1:
        size = SIZE // world
        return [slice(k * size, (k + 1) * size) for k in range(world)]
    ends = {2: [0, 9, 12], 3: [0, 7, 11, 12]}[world]
    return [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]


def labelled(share: str, step: int) -> Tensor:
    """Which samples have a label of which task, [SIZE, 3]."""
    there = torch.ones(SIZE, 3, dtype=torch.bool)
    if share in ("missing", "gone"):
        there[5:, 1] = False  # b on the first rank alone
        there[:11, 2] = False  # c on the last alone
    if share == "gone" and step == 1:
        there[:, 0] = False
    return there


def put_at(method: Method, at: str) -> Method:
    for part in method.modules():
        if isinstance(part, Method):
            part.at = at
    return method


def balancer_of(variation: Variation, model: nn.Module | None) -> Balancer:
    slots: dict[str, Method] = {}
    if variation.method:
        case = next(case for case in CASES if case.name == variation.method)
        method = case.make(TASKS)
        slots[variation.slot] = put_at(method, variation.at) if variation.at else method
    return Balancer(**slots, tasks=TASKS, model=model, jacobian="looped", factored="never")


def train(variation: Variation, rank: int, world: int) -> Trained:
    model = network()
    route, _, call = variation.route.partition(" ")
    wrapped: nn.Module = model
    balancer = balancer_of(variation, model)  # given the plain model, which is wrapped afterwards
    if route == "ddp" and world > 1:
        wrapped = DistributedDataParallel(model, find_unused_parameters=call == "unused")
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.05)
    found = Trained([], [], {}, {}, [])
    part = parts(variation.share, world)[rank]
    further = max((m.traits.batches for m in balancer.methods), default=1) - 1
    for step in range(STEPS):
        optimizer.zero_grad()
        there = labelled(variation.share, step)[part]
        losses, outputs, counts = batch(wrapped, step, part, there)
        if variation.share == "nan" and step == 1 and rank == world - 1:
            losses["c"] = losses["c"] * torch.nan
        samples = [batch(wrapped, 100 * (k + 1) + step, part, there)[0] for k in range(further)]
        features = outputs if route == "plain" and not further else model.trunk
        options = {"features": features, "samples": samples, "counts": counts}
        try:
            if call == "backward":
                balancer.backward(losses, **options)
            else:
                balancer.loss(losses, **options).backward()
        except NonFiniteError as error:
            found.errors.append(str(error))
        else:
            found.errors.append("")
            if balancer.last is not None:
                found.losses.append(balancer.last.losses.clone())
        named = [*model.named_parameters(), *balancer.named_parameters()]
        found.gradients.append(
            {name: None if p.grad is None else p.grad.clone() for name, p in named}
        )
        if found.errors[-1] and route == "ddp":
            # A backward pass that has failed leaves the wrapper waiting.
            del losses, outputs
        else:
            optimizer.step()
        with torch.no_grad():
            after, _, _ = batch(model, step, part, there)
        balancer.updated(after, counts=counts)
    found.parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    found.state = {
        name: value.clone()
        for name, value in balancer.state_dict().items()
        if isinstance(value, Tensor)
    }
    return found


def batch(
    model: nn.Module, number: int, part: slice, there: Tensor
) -> tuple[dict[str, Tensor], Mapping[str, Tensor], dict[str, int]]:
    """The losses of the tasks that have a label here, the outputs, and how many labels each has."""
    chance = torch.Generator().manual_seed(7 + number)
    x = torch.randn(SIZE, 4, generator=chance, dtype=torch.float64)[part]
    y = torch.randn(SIZE, 3, generator=chance, dtype=torch.float64)[part]
    outputs = model(x)
    losses, counts = {}, {}
    for k, task in enumerate(TASKS):
        mine = there[:, k]
        if mine.any():
            error = outputs[task][mine, 0] - y[mine, k]
            losses[task] = 0.1 + 3.0**k * error.square().mean()
            counts[task] = int(mine.sum())
    return losses, outputs, counts


# Several processes ------------------------------------------------------------------------------


Job = Callable[[Any, int, int], Any]


def _work(rank: int, world: int, folder: str, job: Job, arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=DEADLINE
    )
    found: list[Any] = []
    for argument in arguments:
        try:
            found.append(job(argument, rank, world))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
            import traceback

            if os.environ.get("EVENHAND_TRACE"):
                traceback.print_exc()
        dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def spawned(world: int, job: Job, arguments: Sequence[Any]) -> list[list[Any]]:
    """What `job` gives on each rank, for each argument; an error is told in words.

    Raises:
        ProcessExitedException: a process ended by a signal.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _work, (world, folder, job, arguments), nprocs=world, start_method="spawn"
        )
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)
        ]
