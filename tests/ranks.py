"""One training of a few steps, by one process or by several that share out every batch."""

from __future__ import annotations

import datetime
import faulthandler
import math
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cases import CASES, Case
from evenhand import Aggregator, Balancer, Clock, MultiTaskNetwork, NonFiniteError
from evenhand.weighting.base import Method

STEPS = 3
DEADLINE = datetime.timedelta(seconds=60)
"""Of every collective: a rank that does not come is an error and no hang."""
SIZE = 12
"""Samples in a batch, of all ranks."""

ROUTES = (
    "plain backward",
    "plain loss",
    "ddp backward",
    "ddp loss",
    "ddp unused",
    "sharded loss",
    "sharded backward",
    "blocks loss",
)
SHARES = ("even", "uneven", "missing", "gone", "nan", "empty")
IN_TURN = (
    ("even", 0),
    ("uneven", 1),
    ("missing", 0),
    ("gone", 1),
    ("nan", 1),
    ("nan", 2),
    ("empty", 0),
)
"""Ways to share out a batch, each with its most telling step, for a training that takes all."""


@dataclass(frozen=True)
class Variation:
    """What is trained, and how a batch is shared out.

    Attributes:
        method: the name of a case.
        slot: "weighting" or "aggregator".
        at: a place; "" for the method's own.
        share: how samples and labels are shared out in all steps, one of `SHARES`; or "in turn from
            k", every step in the next of the ways `IN_TURN`.
        route: what the model is wrapped in, and who calls backward.
    """

    method: str
    slot: str
    at: str
    share: str
    route: str

    def __str__(self) -> str:
        return ", ".join((self.method, self.slot, self.at or "own", self.share, self.route))

    @property
    def case(self) -> Case:
        return next(case for case in CASES if case.name == self.method)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple("abcdefgh"[: 3 if 3 in self.case.tasks else 8])

    @property
    def alone(self) -> Variation:
        """The same training in one process."""
        call = "backward" if self.route.endswith("backward") else "loss"
        return replace(self, route=f"plain {call}")

    @property
    def steps(self) -> list[tuple[str, int]]:
        """For each step, how its batch is shared out, and as which of the steps of that way."""
        turn, _, first = self.share.partition(" from ")
        if turn == "in turn":
            return [*IN_TURN[int(first) :], *IN_TURN[: int(first)]]
        return [(self.share, step) for step in range(STEPS)]


@dataclass
class Trained:
    """What a training came to: gradients and parameters step by step, and the balancer's state."""

    gradients: list[dict[str, Tensor | None]]
    losses: list[Tensor]
    norms: list[Tensor | None]
    parameters: dict[str, Tensor]
    state: dict[str, Any]
    errors: list[str]


def network(tasks: Sequence[str]) -> MultiTaskNetwork:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh())
    heads: dict[str, nn.Module] = {task: nn.Linear(3, 1) for task in tasks}
    heads["b"] = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    return MultiTaskNetwork(trunk, heads).double()


def rounded(model: nn.Module, draw: int) -> None:
    """Move every parameter by a relative 2.2e-16 or not at all, as rounding might have."""
    chance = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for p in model.parameters():
            ulps = torch.randint(-1, 2, p.shape, generator=chance).to(p)
            p *= 1 + torch.finfo(p.dtype).eps * ulps


def parts(share: str, world: int) -> list[slice]:
    """Which samples each rank has."""
    if share == "even" or world == 1:
        size = SIZE // world
        return [slice(k * size, (k + 1) * size) for k in range(world)]
    ends = {2: [0, 9, 12], 3: [0, 7, 11, 12]}[world]
    return [slice(*pair) for pair in pairwise(ends)]


def labelled(share: str, step: int, m: int) -> Tensor:
    """Which samples have a label of which task, [SIZE, m]."""
    there = torch.ones(SIZE, m, dtype=torch.bool)
    if share in ("missing", "gone"):
        there[5:, 1] = False  # b on the first rank alone
        there[:11, 2] = False  # c on the last alone
    if share == "empty" and step != 1:
        there[11:] = False  # nothing at all on the last rank of three, little on that of two
        there[9:, :1] = False
        there[9:, 2:] = False
    if share == "gone" and step == 1:
        there[:, 0] = False
    return there


def placed(method: Method, at: str) -> Method:
    """The same method, which looks elsewhere."""
    for part in method.modules() if at else ():
        if isinstance(part, Method):
            part.at = first_layer if at == "first layer" else at
    return method


def first_layer(shared: Sequence[Tensor]) -> Sequence[Tensor]:
    return shared[:2]


def balancer_of(variation: Variation, model: nn.Module) -> Balancer:
    method = placed(variation.case.make(variation.tasks), variation.at)
    return Balancer(
        **{variation.slot: method}, tasks=variation.tasks, model=model, factored="never"
    )


def variations() -> Iterator[Variation]:
    """Every method, slot and place; for each of them `Variation.share` and `route` are left out."""
    for case in CASES:
        method = case.make(tuple("abcdefgh"[: 3 if 3 in case.tasks else 8]))
        slots = ["aggregator"] if isinstance(method, Aggregator) else ["weighting", "aggregator"]
        places = [""]
        if method.traits.reads_gradients and not isinstance(method, Aggregator):
            sampled = ["representation"] if method.traits.batches == 1 else []
            places = ["parameters", "last_layer", "first layer", *sampled]
        if isinstance(method, Aggregator) and case.name.startswith(("graddrop", "trimmed")):
            places = ["parameters", "representation"]
        for slot in slots:
            for at in places:
                yield Variation(case.name, slot, at, "", "")


def train(variation: Variation, rank: int, world: int, draw: int | None = None) -> Trained:
    """What a rank's part of a training comes to.

    Args:
        draw: which disturbance the initial parameters begin with; None for none. See `rounded`.
    """
    tasks = variation.tasks
    model = network(tasks)
    if draw is not None:
        rounded(model, draw)
    route, _, call = variation.route.partition(" ")
    wrapped: nn.Module = model
    balancer = balancer_of(variation, model)  # given the plain model, which is wrapped afterwards
    if route == "ddp" and world > 1:
        wrapped = DistributedDataParallel(model, find_unused_parameters=call == "unused")
    every = route in ("sharded", "blocks") and world > 1
    if every:
        shard(model, blocks=route == "blocks")
    named = dict(model.named_parameters())  # under fully_shard the parts, as the optimizer has them
    optimizer = torch.optim.SGD([*named.values(), *balancer.parameters()], lr=0.05)
    found = Trained([], [], [], {}, {}, [])
    further = max((m.traits.batches for m in balancer.methods), default=1) - 1
    for number, (share, step) in enumerate(variation.steps):
        optimizer.zero_grad()
        part = parts(share, world)[rank]
        there = labelled(share, step, len(tasks))[part]
        losses, outputs, counts = batch(wrapped, number, part, there, every)
        if share == "nan" and step == 1 and rank == world - 1:
            losses["c"] = losses["c"] * torch.nan
        if share == "nan" and step == 2 and rank == world - 1:
            losses["c"] = losses["c"] + (0 * outputs["c"]).sum().sqrt()  # whose gradient is NaN
        samples = [
            batch(wrapped, 100 * (k + 1) + number, part, there, every)[0] for k in range(further)
        ]
        features = outputs if route == "plain" and not further else model.trunk
        clock = Clock(epoch=number, step=number)
        options = {"features": features, "samples": samples, "counts": counts, "clock": clock}
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
                found.norms.append(balancer.last.norms)
        every_named = [*named.items(), *balancer.named_parameters()]
        found.gradients.append({name: here(p.grad) for name, p in every_named})
        if not found.errors[-1]:
            optimizer.step()
        if any(method.traits.after for method in balancer.methods):
            with torch.no_grad():
                after, _, counts = batch(model, number, part, there, every)
            balancer.updated(after, clock, counts=counts)
    found.parameters = {name: here(p) for name, p in named.items()}
    found.state = {
        name: value.clone()
        for name, value in balancer.state_dict().items()
        if isinstance(value, Tensor)
    }
    if every:
        found.gradients = joined(found.gradients, named, world)
        (found.parameters,) = joined([found.parameters], named, world)
    return found


def here(tensor: Tensor | None) -> Tensor | None:
    """A copy of what this rank has of it."""
    if tensor is None:
        return None
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def joined(
    found: Sequence[dict[str, Tensor | None]], parted: Collection[str], world: int
) -> list[dict[str, Tensor | None]]:
    """The whole tensors of what is parted by its first dimension; in one message.

    Raises:
        ValueError: some ranks have a tensor, and some have none.
    """
    told: list[Any] = [None] * world
    dist.all_gather_object(told, [{name: some[name] for name in parted} for some in found])
    wholes = []
    for some, *of_ranks in zip(found, *told, strict=True):
        whole = dict(some)
        for name in parted:
            pieces = [there[name] for there in of_ranks]
            none = [piece is None for piece in pieces]
            if any(none) and not all(none):
                raise ValueError(f"some ranks have {name!r}, and some have none")
            whole[name] = None if any(none) else torch.cat(pieces)
        wholes.append(whole)
    return wholes


def differences(
    ranks: Sequence[Any],
    alone: Trained,
    tolerance: float = 1e-10,
    floors: Mapping[str, float] | None = None,
) -> list[str]:
    """In what ranks differ from one process, or from each other by a single bit.

    Args:
        ranks: what the training came to on each rank, or an error in words.
        alone: what it came to in one process.
        tolerance: how far from it (see `distance`) a value of a rank may be.
        floors: by the name of a value, how far that one may be where it is more; see `moved`.
    """
    failed = [f"rank {rank}: {found}" for rank, found in enumerate(ranks) if isinstance(found, str)]
    if failed:
        return failed
    told = []
    for rank, found in enumerate(ranks):
        for name, one, other in compared(found, alone):
            if not distance(one, other) <= max(tolerance, (floors or {}).get(name, 0.0)):
                told.append(f"rank {rank} {name}")
        if found.errors != alone.errors:
            told.append(f"rank {rank}: errors {found.errors}, alone {alone.errors}")
    first, *others = ranks
    for other in others:
        for its, mine in ((other.parameters, first.parameters), (other.state, first.state)):
            told += [
                f"{name} differs between ranks"
                for name, *pair in _pairs(its, mine)
                if distance(*pair)
            ]
    return told


def moved(alone: Trained, again: Sequence[Trained]) -> dict[str, float]:
    """For each value of a training, by how much it differs most from those of the same again."""
    found: dict[str, float] = {}
    for other in again:
        for name, one, there in compared(other, alone):
            found[name] = max(found.get(name, 0.0), distance(one, there))
    return found


def compared(found: Trained, alone: Trained) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """What a training came to, beside what it came to in one process, each with a name."""
    for step, pair in enumerate(zip(found.gradients, alone.gradients, strict=True)):
        yield from ((f"step {step}: {name}", *both) for name, *both in _pairs(*pair))
    yield from _pairs(found.parameters, alone.parameters)
    yield from _pairs(found.state, alone.state)
    for step, both in enumerate(zip(found.losses, alone.losses, strict=False)):
        yield f"step {step}: losses", *both
    for step, both in enumerate(zip(found.norms, alone.norms, strict=False)):
        # Under fully_shard a product is taken of all rows, so norms are known there.
        if all(norms is not None for norms in both):
            yield f"step {step}: norms", *both


def _pairs(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]
) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    for name in [*expected, *(name for name in found if name not in expected)]:
        yield name, found.get(name), expected.get(name)


def distance(one: Tensor | None, other: Tensor | None) -> float:
    """The greatest |a - b| / (1 + |b|) of their numbers; infinite if they are of another kind.

    NaN beside NaN, and an infinity beside the same, is no distance.
    """
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    apart = (one.double() - other.double()).abs() / (1 + other.double().abs())
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0.0, apart).nan_to_num(nan=math.inf, posinf=math.inf)
    return float(apart.max()) if apart.numel() else 0.0


def shard(model: MultiTaskNetwork, blocks: bool) -> None:
    for block in (model.trunk, *model.heads) if blocks else ():
        fully_shard(block)
    fully_shard(model)


def whole(tensor: Tensor | None) -> Tensor | None:
    """A copy of what all ranks have of it."""
    if isinstance(tensor, DTensor):
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, here(tensor))
        return torch.cat(parts)
    return here(tensor)


def batch(
    model: nn.Module, number: int, part: slice, there: Tensor, every: bool = False
) -> tuple[dict[str, Tensor], Mapping[str, Tensor], dict[str, int]]:
    """The losses of the tasks that have a label here, the outputs, and how many labels each has.

    With `every`, tasks without a label have a loss of zero.
    """
    chance = torch.Generator().manual_seed(7 + number)
    x = torch.randn(SIZE, 4, generator=chance, dtype=torch.float64)[part]
    y = torch.randn(SIZE, there.shape[1], generator=chance, dtype=torch.float64)[part]
    outputs = model(x)
    losses, counts = {}, {}
    for k, task in enumerate(outputs):
        mine = there[:, k]
        if every and not mine.any():
            losses[task], counts[task] = 0 * outputs[task].sum(), 0
        if mine.any():
            error = outputs[task][mine, 0] - y[mine, k]
            losses[task] = 0.1 + 3.0 ** (k % 3) * error.square().mean()
            counts[task] = int(mine.sum())
    return losses, outputs, counts


# Several processes ------------------------------------------------------------------------------


Job = tuple[Callable[[Any, int, int], Any], Any]
"""A function of (argument, rank, world), and the argument."""


def _work(rank: int, world: int, folder: str, jobs: Sequence[Job]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    for name in ("all_gather_single", "all_gather_tensor"):  # the second one before torch 2.13
        setattr(funcol, name, _no_gather_of_a_long_name)
    faulthandler.enable((Path(folder) / f"{rank}.stack").open("w"))
    now = (Path(folder) / f"{rank}.job").open("w")
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=world, timeout=DEADLINE
    )
    found: list[Any] = []
    for job, argument in jobs:
        print(argument, file=now, flush=True)
        try:
            found.append(job(argument, rank, world))
        except (
            ValueError,
            TypeError,
            RuntimeError,
            ArithmeticError,
            LookupError,
            Warning,
        ) as error:
            found.append(f"{type(error).__name__}: {error}")
            if "EVENHAND_TRACE" in os.environ:
                traceback.print_exc()
        dist.barrier()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    leave()


def _no_gather_of_a_long_name(*_: Any, **options: Any) -> NoReturn:
    """Stands for what `DTensor.full_tensor` gathers by.

    Of each group gloo has two threads, and each notes the name of the operation that it has ended,
    without a lock, in a string of both (torch 2.13, `ProcessGroupGloo::runLoop`). A name of more
    than 15 letters ("ALLGATHER_COALESCED") is on the heap. Of two in a row now and then the same
    memory is freed twice, and the process ends by a signal at some later allocation.
    """
    raise TypeError("DTensor.full_tensor on gloo: gather the parts by all_gather_single")


def leave() -> NoReturn:
    """End this process at once, and not by way of the interpreter's end.

    A group that something still holds (torch itself holds that of a mesh for good) has threads
    then, and one that drops a tensor without an interpreter aborts the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def spawned(world: int, jobs: Sequence[Job]) -> list[list[Any]]:
    """What each job gives on each rank, in one group of processes; an error is told in words.

    Raises:
        ProcessExitedException: a process ended by a signal. A note says what each rank was at, and
            the stack of those that died.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.start_processes(_work, (world, folder, jobs), nprocs=world, start_method="spawn")
        except mp.ProcessExitedException as error:
            for file in sorted(Path(folder).glob("*.job")):
                error.add_note(f"rank {file.stem} was at: {file.read_text().splitlines()[-1:]}")
                error.add_note(file.with_suffix(".stack").read_text())
            raise
        found = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)
        ]
    return [list(of_ranks) for of_ranks in zip(*found, strict=True)]
