"""How many numbers the collectives of one step send, counted at torch.distributed itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from evenhand import MGDA, Balancer, MultiTaskNetwork, OnlineMinNorm, Uncertainty

M = 4
ROUTES = ("plain", "wrapped", "sharded")
MODES = {
    "losses": lambda: {"weighting": Uncertainty()},
    "representation": lambda: {"aggregator": MGDA(at="representation")},
    "last layer": lambda: {"aggregator": MGDA(at="last_layer")},
    "online": lambda: {"aggregator": OnlineMinNorm()},
    "parameters": lambda: {"aggregator": MGDA()},
}


def network() -> MultiTaskNetwork:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh())
    return MultiTaskNetwork(trunk, {f"t{k}": nn.Linear(12, 1) for k in range(M)}).double()


class Counter:
    """What a rank sends, in numbers, if every collective goes round a ring."""

    def __init__(self, world: int) -> None:
        self.sent = 0.0
        self.calls = 0
        self._f = (world - 1) / world

    def all_reduce(self, size: int) -> None:
        self._add(2 * self._f * size)

    def one_way(self, size: int) -> None:
        """A reduce-scatter of so many numbers, or an all-gather of them."""
        self._add(self._f * size)

    def _add(self, sent: float) -> None:
        self.sent += sent
        self.calls += 1


@contextmanager
def counted(counter: Counter) -> Iterator[None]:
    """Inside, the collectives of this process are counted."""

    def first(tensor: Tensor, other: Any) -> None:
        counter.one_way(tensor.numel())

    def second(tensor: Tensor, other: Tensor) -> None:
        counter.one_way(other.numel())

    counts: dict[str, Callable[[Any, Any], None]] = {
        "all_reduce": lambda value, _: counter.all_reduce(value.numel()),
        "all_gather": lambda whole, _: counter.one_way(sum(part.numel() for part in whole)),
        "all_gather_into_tensor": first,
        "all_gather_single": first,  # since torch 2.13
        "reduce_scatter_tensor": second,
        "reduce_scatter_single": second,
    }
    plain = {name: getattr(dist, name) for name in counts if hasattr(dist, name)}

    def counting(name: str) -> Callable[..., Any]:
        arguments = inspect.signature(plain[name])

        def collective(*args: Any, **options: Any) -> Any:
            bound = arguments.bind(*args, **options)
            bound.apply_defaults()
            counts[name](*list(bound.arguments.values())[:2])
            return plain[name](*args, **options)

        return collective

    try:
        for name in plain:
            setattr(dist, name, counting(name))
        yield
    finally:
        for name, function in plain.items():
            setattr(dist, name, function)


def sent(mode: tuple[str, str], rank: int, world: int) -> tuple[float, int]:
    """The numbers that this rank sends in a step, and in how many calls; the second step's.

    In the first one ranks also meet, and tell each other who reaches what.
    """
    name, route = mode
    model = network()
    tasks = [f"t{k}" for k in range(M)]
    balancer = Balancer(**MODES[name](), tasks=tasks, model=model, factored="never")
    counter = Counter(world)
    wrapped: nn.Module = model
    if route == "sharded":
        fully_shard(model)
    if route == "wrapped":
        wrapped = DistributedDataParallel(model, bucket_cap_mb=0.01)

        def hook(state, bucket):  # it takes no annotation that is a string
            counter.all_reduce(bucket.buffer().numel())
            handle = plain_all_reduce(bucket.buffer().div_(world), async_op=True)
            return handle.get_future().then(lambda future: future.value()[0])

        wrapped.register_comm_hook(None, hook)
    plain_all_reduce = dist.all_reduce
    for step in range(2):
        chance = torch.Generator().manual_seed(world * step + rank)
        x = torch.randn(6, 8, generator=chance, dtype=torch.float64)
        model.zero_grad()
        counter.sent, counter.calls = 0.0, 0
        with counted(counter):
            outputs = wrapped(x)
            losses = {task: (outputs[task] - k).square().mean() for k, task in enumerate(tasks)}
            balancer.loss(losses, features=model.trunk).backward()
    return counter.sent, counter.calls


def table(mode: tuple[str, str], world: int) -> tuple[float, float]:
    """What docs/scaling.md says of a mode, and the small change that it leaves out, in numbers."""
    name, route = mode
    model = network()
    trunk, heads = model.trunk, model.heads
    leaves = len(list(model.parameters()))
    f, own = (world - 1) / world, route == "plain"
    of_trunk = len(list(trunk.parameters()))
    header = 2 * f * (3 * (M + 1) + 1)

    def padded(size: int) -> int:
        return -(-size // world) * world

    def numbers(module: nn.Module) -> int:
        """Under `fully_shard` every parameter is padded, by its first dimension."""
        if route == "sharded":
            return sum(padded(len(p)) * p[0].numel() for p in module.parameters())
        return sum(p.numel() for p in module.parameters())

    t, h, last = numbers(trunk), numbers(heads), numbers(trunk[-2])
    p = t + h
    if route == "sharded":
        sums = 0 if name == "losses" else M**2
        rows = 0 if name in ("losses", "representation") else f * (M - 1) * t
        # Whether some rank reaches less, and whether all is finite.
        return 2 * f * (p + sums) + rows, header + 2 * f * 2 * (M + 1)
    main = {
        "losses": 2 * f * p,
        "representation": 2 * f * (M**2 + p),
        "last layer": f * M * padded(last) + 2 * f * (M**2 + p),
        "online": 2 * f * (p + M) if own else 2 * f * (p + M + t),
        "parameters": f * (M + 1) * padded(t) + 2 * f * (h + M**2)
        if own
        else f * M * padded(t) + 2 * f * (p + M**2),
    }[name]
    # A reduction of one's own says of each leaf whether anybody has a gradient, dense or sparse.
    said = leaves - (of_trunk if name == "parameters" else 0) if own else 0
    said += of_trunk if name == "online" and not own else 0
    checked = 0 if own else M + 1  # of what a wrapper is to reduce: whether all is finite
    return main, header + 2 * f * (2 * said + checked)
