"""Every method on a device against the same steps in float64 on the CPU, and what only a GPU shows.

    python benchmarks/on_device.py [--device cuda] [--out FILE.jsonl] [--parts PART …] [--every 1]

The parts, of checks that are independent of each other:

    steps        every method and slot, `backward` and `loss`, float64 and float32
    trainings    the loop: every method, slot and schedule, with phases, looks and stored features
    interruption a training that is resumed on the device
    precision    autocast in bfloat16, in float16 with a GradScaler, and a step that overflows
    places       gradients at the features, by hooks, replayed, accumulated, of sparse rows
    memory       the peak of `loss` beside that of `backward`
    waits        how often a step waits for the device
    compiled     trunks that torch.compile has compiled

A line of JSON for each check says whether it holds, by how much, and with which limit. A check that
raises is a line, too, and the next one is tried. An error is relative: the length of the difference
of all parameters over that of the path that they have gone in the reference, summed over steps.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from alternation import peak_bytes
from networks import resnet
from torch import Tensor, nn

import evenhand as eh
from evenhand import Balancer, MultiTaskNetwork, Weighting
from evenhand.comparison.folder import environment
from evenhand.data import Problem, Split, Task
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers
from evenhand.weighting.base import Method

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from cases import CASES, SCHEDULES, Case

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Where no limit is said beside a check."""
HALVES = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of the gradients of one step under autocast, where the method itself amplifies no rounding."""
STEPS, BATCH, INPUTS = 3, 32, 6
Found = tuple[float, float]
"""An error, and its limit."""
Check = Callable[[], Found | Mapping[str, Any]]


@dataclass(frozen=True)
class Where:
    """On which device, in which numbers."""

    device: str
    dtype: torch.dtype = torch.float64


CPU = Where("cpu")


# What is trained -------------------------------------------------------------------------------


def names(case: Case) -> tuple[str, ...]:
    """Three tasks, or as many as the case is made for."""
    number = min(case.tasks, key=lambda m: (m < 2, abs(m - 3)))
    return tuple(f"t{k}" for k in range(number))


def network(tasks: Sequence[str], where: Where, seed: int = 0, dropout: float = 0) -> Any:
    """Two layers and a head for each task, the same numbers everywhere."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        layers = nn.Linear(INPUTS, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 5), nn.Tanh()
        made = MultiTaskNetwork(nn.Sequential(*layers), {t: nn.Linear(5, 2) for t in tasks})
    return made.double().to(where.device, where.dtype)


def data(tasks: Sequence[str], count: int, where: Where) -> Split:
    """Inputs, and for each task two numbers that are a function of them, and noise."""
    chance = torch.Generator("cpu").manual_seed(1)
    drawn = partial(torch.randn, generator=chance, dtype=torch.float64, device="cpu")
    inputs = drawn(count, INPUTS)
    targets = {}
    for k, task in enumerate(tasks):
        weight, noise = drawn(INPUTS, 2), drawn(count, 2)
        targets[task] = (1 + k) * (inputs @ weight).tanh() + 0.3 * noise
    moved = {task: target.to(where.device, where.dtype) for task, target in targets.items()}
    return Split(inputs.to(where.device, where.dtype), moved)


def squares(output: Tensor, target: Tensor) -> Tensor:
    """The mean squared error."""
    return (output - target).square().mean()


def losses(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """That of each task."""
    return {task: squares(outputs[task], targets[task]) for task in outputs}


def slots(method: Method) -> tuple[str, ...]:
    """Where a method may stand."""
    return ("weighting", "aggregator") if isinstance(method, Weighting) else ("aggregator",)


def balancer(case: Case, slot: str, tasks: Sequence[str]) -> Balancer:
    """The case's method in a slot."""
    parts: dict[str, Any] = {slot: case.make(tuple(tasks))}
    return Balancer(**parts, tasks=tasks)


def every_slot() -> Iterator[tuple[Case, str]]:
    """All cases, in all slots that they fit."""
    for case in CASES:
        for slot in slots(case.make(names(case))):
            yield case, slot


Path64 = list[Tensor]
"""All parameters in float64 on the CPU, before and after every step."""


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """The same numbers, a copy."""
    return torch.cat([p.detach().cpu().double().flatten() for p in parameters])


def stepped(case: Case, slot: str, where: Where, by: str = "backward") -> Path64:
    """Three steps of a user's loop."""
    tasks = names(case)
    net, method = network(tasks, where), balancer(case, slot, tasks)
    net64 = list(net.parameters())
    method.attach(net)
    method.to(where.device)
    learned = list(method.parameters())
    optimizer = torch.optim.SGD([*net64, *learned], lr=0.02, momentum=0.9)
    further = max(one.traits.batches for one in method.methods) - 1
    parts = iter(data(tasks, 1000, where).in_order(BATCH))
    path = [flat([*net64, *learned])]
    for _ in range(STEPS):
        optimizer.zero_grad()
        inputs, targets = next(parts)
        outputs = net(inputs)
        given: dict[str, Any] = {"features": outputs}
        given["samples"] = [losses(net(x), y) for x, y in (next(parts) for _ in range(further))]
        if by == "loss":
            method.loss(losses(outputs, targets), **given).backward()
        else:
            method.backward(losses(outputs, targets), **given)
        optimizer.step()
        with torch.no_grad():
            method.updated(losses(net(inputs), targets))
        path.append(flat([*net64, *learned]))
    return path


def error(path: Path64, true: Path64) -> float:
    """How far apart two paths are at their ends, over the length of the second."""
    length = math.fsum((b - a).norm().item() for a, b in pairwise(true))
    return ((path[-1] - true[-1]).norm() / max(length, 1e-300)).item()


@cache
def reference(name: str, slot: str) -> Path64:
    """The same steps on the CPU in float64."""
    return stepped(next(case for case in CASES if case.name == name), slot, CPU)


@cache
def rounding(name: str, slot: str) -> float:
    """What float32 alone does to these steps, on the CPU."""
    case = next(case for case in CASES if case.name == name)
    return error(stepped(case, slot, Where("cpu", torch.float32)), reference(name, slot))


def limit(case: Case, slot: str, dtype: torch.dtype) -> float:
    """The limit; where a method amplifies rounding, ten times what it does on the CPU."""
    if dtype == torch.float64:
        learned = case.make(names(case)).traits.learned  # parameters, in single precision
        return 1e-6 if learned else LIMITS[dtype]
    return max(LIMITS[dtype], 10 * rounding(case.name, slot))


# The parts -------------------------------------------------------------------------------------


def steps(device: str) -> Iterator[tuple[str, Check]]:
    """Every method, slot, precision and way."""

    def check(case: Case, slot: str, where: Where, by: str) -> Found:
        found = error(stepped(case, slot, where, by), reference(case.name, slot))
        return found, limit(case, slot, where.dtype)

    for case, slot in every_slot():
        for dtype in LIMITS:
            for by in ("backward", "loss"):
                told = f"{case.name}, {slot}, {_short(dtype)}, {by}"
                yield told, partial(check, case, slot, Where(device, dtype), by)


def problem(tasks: Sequence[str], where: Where) -> Problem:
    """Ten batches to train on."""
    whole = data(tasks, 500, where)
    parts = [Split(*whole.take(index)) for index in torch.arange(500).split([320, 90, 90])]
    metric: Any = _Mean
    task = Task(squares, metric, "MSE", higher_is_better=False)
    return Problem(
        "device",
        "",
        "",
        dict.fromkeys(tasks, task),
        lambda names: network(names, where),
        *parts,
        batch_size=BATCH,
    )


class _Mean:
    """The mean squared error, as a metric."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self.sum += float((output - target).square().sum())
        self.count += output.numel()

    def compute(self) -> float:
        return self.sum / self.count


def training(case: Case, slot: str, schedule: str, where: Where) -> Training:
    """Four epochs, with looks."""
    tasks = names(case)
    net = network(tasks, where)
    made = balancer(case, slot, tasks)
    factory = partial(torch.optim.AdamW, lr=0.01)
    return Training(
        problem(tasks, where),
        net,
        Optimizers(net.blocks(), factory, learned=made.parameters()),
        made,
        SCHEDULES[schedule](),
        epochs=4,
        observe_every=7,
        count_flops=True,
    )


def trained(case: Case, slot: str, schedule: str, where: Where) -> Path64:
    """All parameters at the beginning, and at the end of the training; the losses' means."""
    run = training(case, slot, schedule, where)
    begun = flat(list(run.network.parameters()))
    records = list(run.run())
    seen = [value for record in records for value in record.validation.values()]
    ended = flat([*run.network.parameters(), *run.balancer.parameters()])
    told = torch.tensor(seen, dtype=torch.float64, device="cpu")
    return [torch.cat([begun, 0 * ended[len(begun) :], 0 * told]), torch.cat([ended, told])]


def trainings(device: str) -> Iterator[tuple[str, Check]]:
    """Every method and slot jointly, and some in every schedule."""

    def check(case: Case, slot: str, schedule: str) -> Found:
        true = trained(case, slot, schedule, CPU)
        return error(trained(case, slot, schedule, Where(device)), true), 1e-7

    for case, slot in every_slot():
        yield f"{case.name}, {slot}, jointly", partial(check, case, slot, "jointly")
    for case in CASES:
        if case.name in ("mgda", "gradnorm", "uncertainty", "dwa", "graddrop"):
            slot = slots(case.make(names(case)))[-1]
            for schedule in SCHEDULES:
                yield f"{case.name}, {slot}, {schedule}", partial(check, case, slot, schedule)


def interruption(device: str) -> Iterator[tuple[str, Check]]:
    """A training that is stopped after two epochs and resumed, against the same in one go."""

    def check(case: Case, slot: str) -> Found:
        whole = training(case, slot, "alternate-epochs", Where(device))
        list(whole.run())
        with TemporaryDirectory() as folder:
            first = training(case, slot, "alternate-epochs", Where(device))
            for record in first.run(Path(folder), checkpoint_every=1):
                if record.epoch == 2:
                    break
            del first
            again = training(case, slot, "alternate-epochs", Where(device))
            list(again.run(Path(folder), checkpoint_every=1))
        pair = [flat(list(run.network.parameters())) for run in (again, whole)]
        return (pair[0] - pair[1]).abs().max().item(), 1e-12

    for case in CASES:
        if case.name in ("mgda", "gradnorm", "famo", "moco", "pcgrad", "mgda-online", "db-mtl"):
            slot = slots(case.make(names(case)))[-1]
            yield f"{case.name}, {slot}", partial(check, case, slot)


MIXED = (
    *("equal", "mgda", "mgda-l2", "central", "min-norm+tension", "uncertainty", "gradnorm", "dwa"),
    *("pcgrad", "cagrad", "imtl-g", "nash-mtl", "upgrad", "graddrop", "famo", "aligned-mtl"),
)


def precision(device: str) -> Iterator[tuple[str, Check]]:
    """A step under autocast against float64 on the CPU; a step that overflows."""
    kind = torch.device(device).type

    def one(case: Case, slot: str, by: str, half: torch.dtype | None, first: float | None) -> Any:
        """A step's gradients, without the scale; the scaler; whether it stepped."""
        where = CPU if half is None else Where(device, torch.float32)
        tasks = names(case)
        net, method = network(tasks, where), balancer(case, slot, tasks)
        method.attach(net)
        method.to(where.device)
        scaler = torch.amp.GradScaler(kind, init_scale=first or 1.0, enabled=first is not None)
        inputs, targets = next(data(tasks, BATCH, where).in_order(BATCH))
        mixed: AbstractContextManager[Any] = nullcontext()
        if half is not None:
            mixed = torch.autocast(kind, half)
        parameters = list(net.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        begun = flat(parameters)
        with mixed:
            outputs = net(inputs)
            found = {t: squares(y.to(where.dtype), targets[t]) for t, y in outputs.items()}
        if by == "loss":
            scaler.scale(method.loss(found, features=outputs)).backward()
        else:
            scale = None if first is None else scaler.scale(torch.ones((), device=where.device))
            method.backward(found, features=outputs, scale=scale)
        if first is not None:
            scaler.unscale_(optimizer)
        gradients = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        if first is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        moved = not torch.equal(flat(parameters), begun)
        return gradients, scaler.get_scale(), moved

    def check(case: Case, slot: str, by: str, half: torch.dtype, first: float | None) -> Any:
        true = one(case, slot, by, None, None)[0]
        found, _, moved = one(case, slot, by, half, first)
        if not moved:
            return {"holds": False, "says": "the step was skipped"}
        return ((found - true).norm() / true.norm()).item(), HALVES[half]

    def overflow(case: Case, slot: str, by: str) -> Any:
        _, scale, moved = one(case, slot, by, torch.float16, 2.0**38)
        return {"holds": not moved and scale == 2.0**37, "scale": scale, "moved": moved}

    for case, slot in every_slot():
        if case.name in MIXED:
            for by in ("backward", "loss"):
                told = f"{case.name}, {slot}, {by}"
                yield f"{told}, bfloat16", partial(check, case, slot, by, torch.bfloat16, None)
                yield f"{told}, float16", partial(check, case, slot, by, torch.float16, 2.0**10)
                yield f"{told}, overflow", partial(overflow, case, slot, by)


def places(device: str) -> Iterator[tuple[str, Check]]:
    """Where gradients are taken, and how."""
    tasks = ("a", "b", "c")

    def run(how: str, where: Where) -> Path64:
        net = network(tasks, where)
        at = "representation" if "features" in how else "parameters"
        jacobian: Any = "batched" if how == "batched" else "looped"
        method = Balancer(aggregator=eh.MGDA(at=at), tasks=tasks, jacobian=jacobian)
        if "hook" in how or "replay" in how:
            method.catch(net.trunk, replay="replay" in how)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        parts = iter(data(tasks, 1000, where).in_order(BATCH))
        path = [flat(list(net.parameters()))]
        for _ in range(STEPS):
            optimizer.zero_grad()
            for micro in range(2 if "accumulated" in how or "replay" in how else 1):
                inputs, targets = next(parts)
                outputs = net(inputs)
                features: Any = net.trunk if "hook" in how or "replay" in how else outputs
                made = losses(outputs, targets)
                if "accumulated" in how or "replay" in how:
                    made = {task: loss / 2 for task, loss in made.items()}
                    if micro == 0:
                        method.accumulate(made, features=features)
                        continue
                given = None if how == "graph" else features
                if "loss" in how:  # its passes run in the device's own thread
                    method.loss(made, features=given).backward()
                else:
                    method.backward(made, features=given)
            optimizer.step()
            path.append(flat(list(net.parameters())))
        return path

    def check(how: str) -> Found:
        return error(run(how, Where(device)), run(how, CPU)), LIMITS[torch.float64]

    def replayed() -> Found:
        """With dropout: what is run again draws the same."""
        found = []
        for replay in (False, True):
            net = network(tasks, Where(device), dropout=0.5)
            method = Balancer(aggregator=eh.MGDA(at="representation"), tasks=tasks)
            method.catch(net.trunk, replay=replay)
            torch.manual_seed(5)
            parts = iter(data(tasks, 1000, Where(device)).in_order(BATCH))
            for last in (False, False, True):
                inputs, targets = next(parts)
                made = {t: v / 3 for t, v in losses(net(inputs), targets).items()}
                (method.backward if last else method.accumulate)(made, features=net.trunk)
            found.append(flat([p.grad for p in net.parameters()]))
        return ((found[1] - found[0]).norm() / found[0].norm()).item(), 1e-12

    def sparse(where: Where) -> Path64:
        torch.manual_seed(0)
        rows = nn.Embedding(20, 5, sparse=True)
        net = MultiTaskNetwork(nn.Sequential(rows), {t: nn.Linear(5, 1) for t in tasks})
        net = net.double().to(where.device)
        method = Balancer(aggregator=eh.MGDA(), tasks=tasks)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        chance = torch.Generator().manual_seed(2)
        path = [flat(list(net.parameters()))]
        for _ in range(STEPS):
            optimizer.zero_grad()
            inputs = torch.randint(20, (BATCH,), generator=chance).to(where.device)
            outputs = net(inputs)
            made = {t: (y - k).square().mean() for k, (t, y) in enumerate(outputs.items())}
            method.backward(made, features=outputs)
            optimizer.step()
            path.append(flat(list(net.parameters())))
        return path

    def diagnosed() -> Found:
        values = []
        for where in (CPU, Where(device)):
            net = network(tasks, where)
            batches = list(data(tasks, 8 * BATCH, where).in_order(BATCH))

            def measured(model: Any, batch: Any) -> dict[str, Tensor]:
                return losses(model(batch[0]), batch[1])

            found = eh.diagnose(net, measured, batches)
            seen = found.looks[-1].whole.cosines
            values.append({pair: cosine.mean for pair, cosine in seen.items()})
        return max(abs(values[1][pair] - values[0][pair]) for pair in values[0]), 1e-9

    def by_default(case: Case, slot: str) -> Found:
        """Where tensors are made on the device unless they say where."""
        with torch.device(device):
            found = stepped(case, slot, Where(device))
        return error(found, reference(case.name, slot)), limit(case, slot, torch.float64)

    def trained_by_default(case: Case, slot: str) -> Found:
        true = trained(case, slot, "groups", CPU)
        with torch.device(device):
            found = trained(case, slot, "groups", Where(device))
        return error(found, true), 1e-7

    for how in ("graph", "looped", "batched", "features", "hook", "features hook"):
        yield how, partial(check, how)
    for how in ("accumulated", "features accumulated", "features replay", "features replay, loss"):
        yield how, partial(check, how)
    yield "replay with dropout", replayed
    yield "sparse rows", lambda: (error(sparse(Where(device)), sparse(CPU)), 1e-9)
    yield "diagnose", diagnosed
    for case, slot in every_slot():
        yield f"default device, {case.name}, {slot}", partial(by_default, case, slot)
        if case.name in ("mgda", "gradnorm"):
            yield f"default device, training, {slot}", partial(trained_by_default, case, slot)


def memory(device: str) -> Iterator[tuple[str, Check]]:
    """Peak bytes of a step by `loss` and by `backward`, beyond what is there before it."""
    cuda = device.startswith("cuda")

    def peak(step: Callable[[], None]) -> int:
        if not cuda:
            return peak_bytes(step)
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)

    def taking(by: str, at: Any, jacobian: Any) -> Callable[[], None]:
        with torch.device(device):
            case = resnet(256, 8) if cuda else resnet(4, 3, 8)
            net = case.network()
        method = Balancer(aggregator=eh.MGDA(at=at), model=net, jacobian=jacobian)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            outputs = net(case.inputs)
            if by == "loss":
                method.loss(case.losses(outputs), features=outputs).backward()
            elif by == "sum":
                torch.stack(list(case.losses(outputs).values())).sum().backward()
            else:
                method.backward(case.losses(outputs), features=outputs)
            optimizer.step()

        return step

    def check(at: str, jacobian: str) -> dict[str, Any]:
        found = {by: peak(taking(by, at, jacobian)) for by in ("sum", "backward", "loss")}
        ratio = found["loss"] / found["backward"]
        return {"holds": ratio <= 1.02, "loss / backward": ratio, "peak bytes": found}

    for at in ("parameters", "representation"):
        yield f"MGDA at the {at}", partial(check, at, "looped")


def waits(device: str) -> Iterator[tuple[str, Check]]:
    """How often the process waits for the device in a step, which torch warns of where it can."""
    if not device.startswith("cuda"):
        return

    def check(case: Case, slot: str) -> dict[str, Any]:
        tasks, where = names(case), Where(device, torch.float32)
        net, method = network(tasks, where), balancer(case, slot, tasks)
        method.attach(net)
        method.to(device)
        further = max(one.traits.batches for one in method.methods) - 1
        parts = list(data(tasks, 200, where).in_order(BATCH))

        def step() -> None:
            outputs = net(parts[0][0])
            made = losses(outputs, parts[0][1])
            others = [losses(net(x), y) for x, y in parts[1 : 1 + further]]
            method.backward(made, features=outputs, samples=others)

        step()
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in heard)
        return {"holds": True, "waits": sum(places.values()), "where": dict(places)}

    for case, slot in every_slot():
        yield f"{case.name}, {slot}", partial(check, case, slot)


def compiled(device: str) -> Iterator[tuple[str, Check]]:
    """Trunks that are compiled, and networks that are compiled whole, against the CPU."""
    chosen = {case.name: case for case in CASES}

    def check(name: str, what: str, by: str) -> Found:
        case = chosen[name]
        slot = slots(case.make(names(case)))[-1]
        tasks, where = names(case), Where(device, torch.float32)
        net, method = network(tasks, where), balancer(case, slot, tasks)
        method.attach(net)
        method.to(device)
        optimizer = torch.optim.SGD([*net.parameters(), *method.parameters()], 0.02, momentum=0.9)
        trunk = torch.compile(net.trunk)
        whole = torch.compile(net)
        parts = iter(data(tasks, 1000, where).in_order(BATCH))
        path = [flat([*net.parameters(), *method.parameters()])]
        for _ in range(STEPS):
            optimizer.zero_grad()
            inputs, targets = next(parts)
            if what == "trunk":
                features = trunk(inputs)
                outputs = {t: net.head(t)(features) for t in tasks}
            else:
                outputs, features = whole(inputs), None
            made = losses(outputs, targets)
            if by == "loss":
                method.loss(made, features=features).backward()
            else:
                method.backward(made, features=features)
            optimizer.step()
            path.append(flat([*net.parameters(), *method.parameters()]))
        return error(path, reference(name, slot)), limit(case, slot, torch.float32)

    for what in ("trunk", "network"):
        for name in ("mgda", "uncertainty"):
            for by in ("backward", "loss"):
                yield f"{what}, {name}, {by}", partial(check, name, what, by)


PARTS: Mapping[str, Callable[[str], Iterator[tuple[str, Check]]]] = {
    "steps": steps,
    "places": places,
    "precision": precision,
    "interruption": interruption,
    "memory": memory,
    "waits": waits,
    "trainings": trainings,
    "compiled": compiled,
}


# The lines -------------------------------------------------------------------------------------


def judged(check: Check) -> dict[str, Any]:
    """What a check comes to."""
    try:
        found = check()
    except Exception as raised:  # noqa: BLE001 - whatever a device does is a result of this program
        return {
            "holds": False,
            "raised": f"{type(raised).__name__}: {str(raised)[:600]}",
            "at": traceback.format_exception(raised)[-4:-1],
        }
    if isinstance(found, Mapping):
        return dict(found)
    size, most = found
    return {"holds": size <= most, "error": float(f"{size:.3g}"), "limit": float(f"{most:.3g}")}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def about(device: str) -> dict[str, Any]:
    """What the checks were made with."""
    cuda = device.startswith("cuda")
    card = torch.cuda.get_device_name(device) if cuda else device
    return {**environment(), "device": device, "card": card, "started": time.time()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu [cuda]")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--every", type=int, default=1, help="take every nth check of a part [1]")
    parser.add_argument("--out", type=Path, help="where to write the lines of JSON")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [about(asked.device)]
    wrong = 0
    for part in asked.parts:
        begun, holding, count = time.perf_counter(), 0, 0
        for number, (told, check) in enumerate(PARTS[part](asked.device)):
            if number % asked.every:
                continue
            line = {"part": part, "check": told, **judged(check)}
            lines.append(line)
            count, holding = count + 1, holding + line["holds"]
            if not line["holds"]:
                print(f"  {part}: {told}: {line.get('raised') or line}", flush=True)
            if asked.out:
                asked.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
        wrong += count - holding
        seconds = time.perf_counter() - begun
        print(f"{part}: {holding} of {count} hold ({seconds:.0f} s)", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
