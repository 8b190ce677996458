"""Several processes on one card: nccl and gloo, DDP and FSDP2, float32, bfloat16 and float16.

    python benchmarks/device_ranks.py                # on the machine's CUDA card
    python benchmarks/device_ranks.py --device cpu   # the same code with gloo, without a card

One card takes one rank of nccl, so two groups are at work beside each other: one rank by nccl (a
wrapper, a mesh and the collectives of one), and two ranks by gloo that share the card and every
batch. Each check is three steps of a method in a slot, under one wrapper and in one precision. The
gradients of every step and the weights must be those of one process on the same device to the
precision's tolerance (relative, in the norm of all gradients), and all ranks' the same bits.

Every collective has a deadline. A check that neither ends nor fails is killed with its group and
named, and the group is started again behind it; after --seconds the rest is told as not run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import evenhand as eh
from evenhand import Balancer, Clock, MultiTaskNetwork

OUT = Path(__file__).parent / "results" / "device_ranks.json"
DEADLINE = datetime.timedelta(seconds=15)
"""Of every collective."""
STARTING, STALLED = 60.0, 25.0
"""Seconds without news after which a group is taken to hang; at first it loads torch and CUDA."""
TASKS = ("a", "b", "c")
SIZE, STEPS = 24, 3
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
"""Relative. In half precision a rank's product is rounded before the ranks' sum is taken."""

METHODS: dict[str, Callable[[], dict[str, Any]]] = {
    "mgda": lambda: {"aggregator": eh.MGDA()},
    "mgda, representation": lambda: {"aggregator": eh.MGDA(at="representation")},
    "mgda, last layer": lambda: {"weighting": eh.MGDA(at="last_layer")},
    "mgda-online": lambda: {"aggregator": eh.OnlineMinNorm()},
    "upgrad": lambda: {"aggregator": eh.UPGrad()},
    "cagrad": lambda: {"weighting": eh.CAGrad(c=0.5)},
    "pcgrad": lambda: {"aggregator": eh.PCGrad()},
    "imtl-g": lambda: {"aggregator": eh.IMTLG()},
    "nash-mtl": lambda: {"weighting": eh.NashMTL()},
    "aligned-mtl": lambda: {"aggregator": eh.AlignedMTL()},
    "db-mtl": lambda: {"aggregator": eh.DBMTL()},
    "moco": lambda: {"aggregator": eh.MoCo()},
    "uncertainty": lambda: {"weighting": eh.Uncertainty()},
    "gradnorm, representation": lambda: {"weighting": eh.GradNorm(at="representation")},
    "graddrop": lambda: {"aggregator": eh.GradDrop()},
}
HALF_LEFT_OUT = ("graddrop",)
"""It compares signs with draws: what rounding moves across is another gradient altogether."""
ROUTES = ("ddp loss", "ddp backward", "plain backward", "fsdp2 torch", "fsdp2 loss")
BY_TORCH = "fsdp2 torch"
"""A plain sum of the losses, without a balancer: where that ends the process, nothing
can be said of ours."""


@dataclass(frozen=True)
class Check:
    """What is trained.

    Attributes:
        backend: of the group; "" for one process.
        world: its ranks.
    """

    backend: str
    world: int
    precision: str
    route: str
    method: str

    def __str__(self) -> str:
        return f"{self.backend} x{self.world}, {self.precision}, {self.route}, {self.method}"

    @property
    def alone(self) -> Check:
        """The same in one process."""
        call = self.route.partition(" ")[2]
        return replace(self, backend="", world=1, route=f"plain {call}")


@dataclass
class Found:
    """What came of a check; `told` is "" if all is well."""

    check: str
    told: str
    gradient: float | None = None
    weights: float | None = None
    tolerance: float | None = None


def checks(backend: str, world: int) -> list[Check]:
    return [
        Check(backend, world, precision, route, method)
        for route in ROUTES
        for precision in TOLERANCE
        for method in (("sum",) if route == BY_TORCH else METHODS)
        if precision == "float32" or method not in HALF_LEFT_OUT
    ]


# One training -----------------------------------------------------------------------------------

Steps = list[tuple[Tensor, Tensor]]
"""For each step all gradients, one behind the other, and the weights; float64, on the CPU."""


class Plain(nn.Module):
    """Its outputs in a dictionary: fully_shard of torch 2.11 reduces after nothing else."""

    def __init__(self, network: MultiTaskNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(self.network(x))


def train(check: Check, device: torch.device, rank: int) -> Steps:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh())
    network = MultiTaskNetwork(trunk, {task: nn.Linear(32, 1) for task in TASKS}).to(device)
    whole_model = Plain(network) if check.route == BY_TORCH else network
    wrapper, _, call = check.route.partition(" ")
    slots = {} if call == "torch" else METHODS[check.method]()
    balancer = Balancer(**slots, tasks=TASKS, model=network).to(device)
    model: nn.Module = network
    if wrapper == "ddp":
        model = DistributedDataParallel(network)
    elif wrapper == "fsdp2":
        fully_shard(whole_model, mesh=init_device_mesh(device.type, (check.world,)))
        model = whole_model
    optimizer = torch.optim.SGD([*network.parameters(), *balancer.parameters()], lr=0.05)
    # A product of gradients (`OnlineMinNorm`) grows by the square of the scale.
    scaler = torch.amp.GradScaler(device.type, 2.0**4, enabled=check.precision == "float16")
    part = slice(None) if check.world == 1 else (slice(0, 17), slice(17, SIZE))[rank]
    found = []
    for step in range(STEPS):
        chance = torch.Generator().manual_seed(step)
        x = torch.randn(SIZE, 32, generator=chance)[part].to(device)
        y = torch.randn(SIZE, len(TASKS), generator=chance)[part].to(device)
        optimizer.zero_grad()
        half = check.precision != "float32"
        with (
            torch.autocast(device.type, getattr(torch, check.precision)) if half else nullcontext()
        ):
            outputs = model(x)
        losses = {
            task: 0.1 + 3.0**k * (outputs[task][:, 0].float() - y[:, k]).square().mean()
            for k, task in enumerate(TASKS)
        }
        options: dict[str, Any] = {
            "features": network.trunk,
            "counts": dict.fromkeys(TASKS, len(x)),
            "clock": Clock(epoch=step, step=step),
        }
        if call == "torch":
            # The mean over ranks is that over samples where each rank counts by its own.
            mine = check.world * len(x) / SIZE
            scaler.scale(mine * sum(losses.values())).backward()
        elif call == "loss":
            scaler.scale(balancer.loss(losses, **options)).backward()
        else:
            one = torch.ones((), device=device)
            scale = scaler.scale(one) if scaler.is_enabled() else None
            balancer.backward(losses, scale=scale, **options)
        scaler.unscale_(optimizer)
        flat = [whole(p.grad).double().cpu().reshape(-1) for p in network.parameters()]
        told = balancer.last
        assert (told is None) == (call == "torch")
        weights = [] if told is None else [told.weights, told.trunk_weights]
        there = [w.detach().double().cpu() for w in weights if w is not None]
        assert told is None or told.applied
        found.append((torch.cat(flat), torch.cat([torch.ones(1), *there])))
        scaler.step(optimizer)
        scaler.update()
    return found


def whole(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    if not isinstance(gradient, DTensor):
        return gradient
    parts: list[Any] = [None] * dist.get_world_size()  # full_tensor: see gloo_names.py
    dist.all_gather_object(parts, gradient.to_local().cpu())
    return torch.cat(parts).to(gradient.device)


def compared(check: Check, ranks: list[Any], alone: Any) -> Found:
    failed = [f"rank {k}: {found}" for k, found in enumerate(ranks) if isinstance(found, str)]
    failed += [f"one process: {alone}"] if isinstance(alone, str) else []
    if failed:
        return Found(str(check), "; ".join(failed)[:600])
    gradient = max(
        float((g - h).norm() / h.norm()) for (g, _), (h, _) in zip(ranks[0], alone, strict=True)
    )
    weights = max(
        float((v - w).abs().max() / w.abs().max())
        for (_, v), (_, w) in zip(ranks[0], alone, strict=True)
    )
    tolerance = TOLERANCE[check.precision]
    told = [
        f"{name} {off:.1e} off"
        for name, off in (("gradients", gradient), ("weights", weights))
        if not off <= tolerance
    ]
    for found in ranks[1:]:
        steps = zip(found, ranks[0], strict=True)
        if not all(torch.equal(g, h) and torch.equal(v, w) for (g, v), (h, w) in steps):
            told.append("ranks differ")
    return Found(str(check), "; ".join(told), gradient, weights, tolerance)


# One group of ranks -----------------------------------------------------------------------------

EXPECTED = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError)
"""What a check may raise; it is told in its line."""


def attempt(check: Check, device: torch.device, rank: int) -> Any:
    try:
        return train(check, device, rank)
    except EXPECTED as error:
        return f"{type(error).__name__}: {error}"


def work(rank: int, todo: list[Check], kind: str, folder: str, news: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    alone = {check.alone: None for check in todo} if rank == 0 else {}
    references = {}
    for check in alone:  # no group yet: one process
        if rank == 0:
            tell(news, {"at": f"one process, {check.precision}, {check.route}, {check.method}"})
        references[check] = attempt(check, device, rank)
    first = todo[0]
    dist.init_process_group(
        first.backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=first.world,
        timeout=datetime.timedelta(seconds=60),  # the first rank has more to do
        **({"device_id": device} if first.backend == "nccl" else {}),
    )
    if first.world > 1:
        dist.barrier()
        torch.distributed.distributed_c10d._set_pg_timeout(DEADLINE, dist.group.WORLD)
    for check in todo:
        if rank == 0:
            tell(news, {"at": str(check)})
        mine = attempt(check, device, rank)
        ranks = [mine]
        if check.world > 1:
            ranks = [None] * check.world
            dist.all_gather_object(ranks, mine)  # after its deadline the group ends here
        if rank == 0:
            tell(news, asdict(compared(check, ranks, references[check.alone])))
    dist.destroy_process_group()
    os._exit(0)  # torch holds the group of a mesh, and its threads may abort the interpreter's end


def tell(news: str, what: dict[str, Any]) -> None:
    with Path(news).open("a") as file:
        file.write(json.dumps(what) + "\n")


class Group:
    """A group at work on its checks; it is started again behind one that ends it."""

    def __init__(self, todo: list[Check], device: str) -> None:
        self.todo, self.device = todo, device
        self.found: list[Found] = []
        self.processes: Any = None

    def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._news = Path(self._folder.name) / "news.jsonl"
        self._heard, self._at, self._since = 0, "the start", time.monotonic()
        arguments = (self.todo, self.device, self._folder.name, str(self._news))
        self.processes = mp.start_processes(
            work, arguments, nprocs=self.todo[0].world, join=False, start_method="spawn"
        )

    def look(self) -> Iterator[Found]:
        """What has come since the last look; the group is ended where it hangs."""
        ended, told = False, ""
        try:
            ended = self.processes.join(timeout=0.2)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            ended, told = True, str(error).strip().splitlines()[-1][:400]
        yield from self._new()
        silent = time.monotonic() - self._since
        if not ended and silent > (STALLED if self._heard else STARTING):
            ended, told = True, f"hangs: no news for {silent:.0f} s"
        if ended and told:
            broken = self.todo.pop(0) if self.todo and self._at == str(self.todo[0]) else None
            yield Found(self._at, told)
            if broken is not None and broken.route == BY_TORCH:
                yield from self._left_out(f"left out: torch's own fully_shard {told} too")
            if broken is None:
                self.todo.clear()  # it was no check that ended it: it would end again
        if ended:
            self.kill()
            if self.todo:
                self.start()

    def _left_out(self, why: str) -> Iterator[Found]:
        """The checks of fully_shard that are left, not run."""
        for check in [check for check in self.todo if check.route.startswith("fsdp2")]:
            self.todo.remove(check)
            yield Found(str(check), why)

    def _new(self) -> Iterator[Found]:
        text = self._news.read_text() if self._news.exists() else ""
        lines = text.split("\n")[:-1]
        for line in lines[self._heard :]:
            self._since = time.monotonic()
            entry = json.loads(line)
            if "at" in entry:
                self._at = entry["at"]
            else:
                self.todo = [check for check in self.todo if str(check) != entry["check"]]
                yield Found(**entry)
        self._heard = len(lines)

    def kill(self) -> None:
        for process in self.processes.processes:
            process.kill()
            process.join()
        self.processes = None
        self._folder.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--every", type=int, default=1, help="take every nth check")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    if "lo" in [name for _, name in socket.if_nameindex()]:  # the host may have no name
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    own = "nccl" if options.device == "cuda" else "gloo"
    groups = [
        Group(checks(b, w)[:: options.every], options.device) for b, w in ((own, 1), ("gloo", 2))
    ]
    planned = sum(len(group.todo) for group in groups)
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(f"{planned} checks on {card}, torch {torch.__version__}", flush=True)
    found: list[Found] = []
    for group in groups:
        group.start()
    while any(group.processes for group in groups) and time.monotonic() < until:
        for group in groups:
            for entry in group.look() if group.processes else ():
                found.append(entry)
                off = "" if entry.gradient is None else f" (gradients {entry.gradient:.1e} off)"
                print(f"{entry.check}: {entry.told or 'ok'}{off}", flush=True)
    for group in groups:
        if group.processes:
            group.kill()
        found += [Found(str(check), "not run: the time is over") for check in group.todo]
    good = sum(not entry.told for entry in found)
    missed = sum(entry.told.startswith(("not run", "left out")) for entry in found)
    print(f"{good} of {planned} checks are right; {missed} were not run")
    result = {
        "command": f"python benchmarks/device_ranks.py --device {options.device}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "card": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "right": good,
        "planned": planned,
        "checks": [asdict(entry) for entry in found],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(good < planned)


if __name__ == "__main__":
    sys.exit(main())
