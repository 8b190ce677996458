"""What alternate training costs per step, in time and memory, relative to plain training.

    python benchmarks/alternation.py [--rounds 41] [--out FILE]
    python benchmarks/alternation.py --table    writes the table of docs/schedules.md

The two networks of Bellavia, Della Santa & Papini (arXiv 2312.16340): the multilayer perceptron
of their synthetic experiment (batch 256) and the Conv1D network of their experiment on wireless
signals (batch 512; kernel size 3, our reading), on data of the right shape.

`plain` is a loop written by hand with nothing of this project in it and torch's optimizer as it
comes; all else is relative to it. Then come steps of the project's training loop, as a user of the
tool gets them (its optimizers are torch's fused ones): `joint` (everything moves), `shared`, `own`,
and `own, cached`, which reads the trunk's features from memory; `fill` is the pass through the data
set that puts them there, per batch. Per epoch, SAT-SG costs the mean of `shared` and `own`; ATE-SG
with E epochs of either kind the mean of `shared` and `own, cached`, and 1/(2E) of `fill`. Each of
these three phases is there by hand too: a loop that freezes what rests and has nothing around it,
with torch's optimizer as it comes (`by hand`) and with the tool's (`fused`). What lies between the
last and the project's own loop is the test of every gradient for NaN, and bookkeeping.

`products` is the same ratio in floating-point operations of matrix products and convolutions. In
the perceptron these are nearly all of a step's time, and no loop can bring them below shared 0.778,
own 0.667, and 0.556 with the features in memory, since two thirds of its parameters are the heads',
which an own phase passes forwards and backwards like any other step. The optimizer's time falls in
proportion to what trains, to a third in a shared phase.

Time is the processor time of the process on one thread, which a busy machine disturbs less than
the time on the wall (given too). The variants take turns in every round, in an order drawn for it,
and ratios are taken within a round: printed is the median over the rounds, in brackets the middle
half of them. Memory is the peak of what torch's allocator hands out during a step beyond what is
there before it (weights, moments, data, kept features), from the profiler's record of every
allocation. In a shared phase of the Conv1D network it cannot fall: it is the trunk's activations,
and they are all needed.

The C library is told to keep memory that was freed for the next step. Otherwise the pages of the
Conv1D network's large activations are given back and asked for again in steps that the heap's
history chooses, at up to half a step's time, which says nothing about a phase.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam
from torch.profiler import ProfilerActivity, profile

from evenhand.comparison.folder import environment
from evenhand.comparison.request import OPTIMIZERS
from evenhand.data import Problem, Split, Task, quadrants
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import Block, Phase, Stateless
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.feature_cache import FeatureMemory
from evenhand.training.flops import Meter
from evenhand.training.loop import Training
from evenhand.training.optimizers import Factory, Optimizers

OUT = Path(__file__).parent / "results" / "alternation.json"
PAGE = Path(__file__).parents[1] / "docs" / "schedules.md"
BY_HAND = {"sgd": partial(SGD, lr=1e-3, momentum=0.9), "adam": partial(Adam, lr=1e-3)}
IN_THE_TOOL = {name: partial(make, lr=1e-3) for name, make in OPTIMIZERS.items()}
BATCHES = 8
LENGTHS = (1, 10, 100)
SECONDS = 0.1  # of each variant in each round, at least

Step = Callable[[], None]


# The networks ----------------------------------------------------------------------------------


def perceptron() -> Problem:
    real = quadrants.load()
    assert isinstance(real.train, Split)
    index = torch.arange(BATCHES * real.batch_size)
    inputs, targets = real.train.take(index)
    return with_data(real.tasks, real.network, inputs, targets, real.batch_size)


class MaxPool(nn.Module):
    """Global max pooling over time."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=2)


CLASSES = {"modulation": 6, "signal": 8}


def convolutions(tasks: Sequence[str]) -> MultiTaskNetwork:
    def convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
        return nn.Conv1d(inputs, outputs, 3, padding="same"), nn.ReLU()

    def head(classes: int) -> nn.Module:
        dense = (nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        return nn.Sequential(*dense, nn.Linear(64, classes))

    layers = (*convolution(2, 64), *convolution(64, 32), *convolution(32, 32), MaxPool())
    return MultiTaskNetwork(nn.Sequential(*layers), {t: head(CLASSES[t]) for t in tasks})


def signals() -> Problem:
    batch = 512
    inputs = torch.randn(BATCHES * batch, 2, 128)
    targets = {task: torch.randint(n, (len(inputs),)) for task, n in CLASSES.items()}
    tasks = {
        task: Task(functional.cross_entropy, lambda: None, "", higher_is_better=True)
        for task in CLASSES
    }
    return with_data(tasks, convolutions, inputs, targets, batch)


def with_data(
    tasks: Mapping[str, Task],
    network: Callable[[Sequence[str]], MultiTaskNetwork],
    inputs: Tensor,
    targets: Mapping[str, Tensor],
    batch: int,
) -> Problem:
    data = Split(inputs, targets)
    return Problem("", "", "", tasks, network, data, data, data, batch_size=batch)


NETWORKS = {"MLP": perceptron, "Conv1D": signals}


# The variants ----------------------------------------------------------------------------------


def by_hand(problem: Problem, optimizer: Factory, *moves: Block, cached: bool = False) -> Step:
    """The loop that everybody writes; what does not move is frozen."""
    network = problem.network(tuple(problem.tasks)).train()
    network.trunk.requires_grad_("shared" in moves)
    network.heads.requires_grad_("own" in moves)
    stepper = optimizer([{"params": [p for p in network.parameters() if p.requires_grad]}])
    data, size = problem.train, problem.batch_size
    assert isinstance(data, Split)
    if cached:
        data = Split(network.trunk(data.inputs), data.targets)
    order: list[Tensor] = []

    def step() -> None:
        if not order:
            order.extend(torch.randperm(len(data)).split(size))
        index = order.pop()
        inputs, targets = data.inputs[index], {t: y[index] for t, y in data.targets.items()}
        stepper.zero_grad()
        features = inputs if cached else network.trunk(inputs)
        outputs = {name: network.head(name)(features) for name in problem.tasks}
        losses = [task.loss(outputs[name], targets[name]) for name, task in problem.tasks.items()]
        sum(losses[1:], losses[0]).backward()
        stepper.step()

    return step


def training(
    problem: Problem,
    optimizer: Factory,
    trains: tuple[Block, ...],
    lasts: int = 0,
    memory: int = 0,
) -> Training:
    network = problem.network(tuple(problem.tasks)).train()
    return Training(
        problem,
        network,
        Optimizers(network.blocks(), optimizer),
        schedule=Stateless(lambda clock, tasks: (Phase(tasks, trains, lasts=lasts),), "one phase"),
        feature_memory=memory,
    )


def phase(
    problem: Problem, optimizer: Factory, *moves: Block, lasts: int = 0, memory: int = 0
) -> Step:
    """A step of the training loop; nothing is evaluated."""
    run = training(problem, optimizer, moves, lasts, memory)
    return lambda: run.steps.take(EpochStatistics())


def fill(problem: Problem, optimizer: Factory) -> Step:
    """The pass through all batches that fills the memory for features."""
    run = training(problem, optimizer, ("own",))
    memory = FeatureMemory(run.network, run.stream)
    return lambda: memory.fill(Phase(tuple(problem.tasks), trains=("own",), lasts=2))


VARIANTS: Mapping[str, Callable[[Problem, str], Step]] = {
    "plain": lambda problem, name: by_hand(problem, BY_HAND[name], "shared", "own"),
    "joint": lambda problem, name: phase(problem, IN_THE_TOOL[name], "shared", "own"),
    "shared": lambda problem, name: phase(problem, IN_THE_TOOL[name], "shared"),
    "own": lambda problem, name: phase(problem, IN_THE_TOOL[name], "own"),
    "own, cached": lambda problem, name: phase(
        problem, IN_THE_TOOL[name], "own", lasts=2, memory=1 << 30
    ),
    "fill": lambda problem, name: fill(problem, IN_THE_TOOL[name]),
    "plain, fused": lambda problem, name: by_hand(problem, IN_THE_TOOL[name], "shared", "own"),
    "shared, by hand": lambda problem, name: by_hand(problem, BY_HAND[name], "shared"),
    "own, by hand": lambda problem, name: by_hand(problem, BY_HAND[name], "own"),
    "own, cached, by hand": lambda problem, name: by_hand(
        problem, BY_HAND[name], "own", cached=True
    ),
    "shared, fused": lambda problem, name: by_hand(problem, IN_THE_TOOL[name], "shared"),
    "own, fused": lambda problem, name: by_hand(problem, IN_THE_TOOL[name], "own"),
    "own, cached, fused": lambda problem, name: by_hand(
        problem, IN_THE_TOOL[name], "own", cached=True
    ),
}
PER = {"fill": BATCHES}  # how many batches a call covers


# Measuring -------------------------------------------------------------------------------------


def timed(step: Step, repeats: int) -> tuple[float, float]:
    """Processor and wall seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step()
    return (time.process_time() - processor) / repeats, (time.perf_counter() - wall) / repeats


def rounds(steps: Mapping[str, Step], count: int) -> dict[str, list[tuple[float, float]]]:
    """What each variant takes per batch, in every round."""
    repeats = {}
    for name, step in steps.items():
        timed(step, 3)  # warm-up: moments, features, the kernels' choices
        repeats[name] = max(1, round(SECONDS / timed(step, 3)[0]))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(count):
        for name, step in random.sample(list(steps.items()), len(steps)):
            processor, wall = timed(step, repeats[name])
            found[name].append((processor / PER.get(name, 1), wall / PER.get(name, 1)))
        print(f"  round {number + 1} of {count}", end="\r", file=sys.stderr, flush=True)
    return found


def peak_bytes(step: Step) -> int:
    """The most bytes allocated at once during a step, beyond what is allocated before it."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocations = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    return max(accumulate((size for _, size in allocations), initial=0))


def products(step: Step) -> int:
    """Floating-point operations of a step's matrix products and convolutions."""
    meter = Meter()
    with meter:
        step()
    return meter.total


def keep_freed_memory() -> bool:
    """Let the C library's heap keep what is freed, in blocks of up to 32 MiB; whether it can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not the GNU C library
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, 1 << 25) and mallopt(trim_threshold, 1 << 30))


def spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def measured(problem: Problem, optimizer: str, count: int) -> dict[str, Any]:
    """Everything about one network under one optimizer."""
    steps = {variant: make(problem, optimizer) for variant, make in VARIANTS.items()}
    times = rounds(steps, count)
    memory = {variant: peak_bytes(step) for variant, step in steps.items()}
    work = {variant: products(step) / PER.get(variant, 1) for variant, step in steps.items()}
    processor = {variant: [p for p, _ in pairs] for variant, pairs in times.items()}
    relative = {
        variant: [p / base for p, base in zip(values, processor["plain"], strict=True)]
        for variant, values in processor.items()
    }
    walls = {
        variant: [w / base for (_, w), (_, base) in zip(pairs, times["plain"], strict=True)]
        for variant, pairs in times.items()
    }
    return {
        "milliseconds": {v: spread([1e3 * p for p in values]) for v, values in processor.items()},
        "products": {v: count / work["plain"] for v, count in work.items()},
        "time": {v: spread(values) for v, values in relative.items()},
        "wall time": {v: spread(values) for v, values in walls.items()},
        "peak bytes": memory,
        "memory": {v: peak / memory["plain"] for v, peak in memory.items() if v != "fill"},
        "epoch": {label: spread(values) for label, values in per_epoch(relative).items()},
    }


def described(problem: Problem) -> dict[str, Any]:
    network = problem.network(tuple(problem.tasks))
    return {
        "parameters": {
            "shared": sum(p.numel() for p in network.blocks().shared),
            "all": sum(p.numel() for p in network.parameters()),
        },
        "batch": problem.batch_size,
    }


def per_epoch(relative: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The mean cost of a batch over the epochs of a cycle, in every round."""
    shared, own, cached, passed = (
        relative[variant] for variant in ("shared", "own", "own, cached", "fill")
    )
    epochs = {"SAT-SG": [(s + o) / 2 for s, o in zip(shared, own, strict=True)]}
    for length in LENGTHS:
        # In a single own epoch there is nothing to read again.
        heads = own if length == 1 else cached
        share = 0.0 if length == 1 else 1 / length
        epochs[f"ATE-SG {length}/{length}"] = [
            (s + h + share * f) / 2 for s, h, f in zip(shared, heads, passed, strict=True)
        ]
    return epochs


def table(name: str, batch: int, optimizer: str, result: Mapping[str, Any]) -> str:
    head = f"{'':21}{'ms':>9}{'products':>10}{'time':>24}{'memory':>8}"
    lines = [f"{name}, batches of {batch}, {optimizer}", head]
    for variant in VARIANTS:
        memory = result["memory"].get(variant)
        lines.append(
            f"{variant:21}{result['milliseconds'][variant]['median']:9.3f}"
            f"{result['products'][variant]:10.3f}{told(result['time'][variant]):>24}"
            + (f"{memory:8.3f}" if memory is not None else "")
        )
    lines += [f"{label:21}{'':19}{told(ratio):>24}" for label, ratio in result["epoch"].items()]
    return "\n".join(lines)


def told(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of alternate training.")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        fill_page()
        return
    torch.set_num_threads(1)
    kept = keep_freed_memory()
    load = os.getloadavg()[0]
    networks: dict[str, Any] = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        problem = make()
        networks[name] = {**described(problem), "optimizers": {}}
        for optimizer in BY_HAND:
            found = measured(problem, optimizer, arguments.rounds)
            networks[name]["optimizers"][optimizer] = found
            print(table(name, problem.batch_size, optimizer, found), end="\n\n", flush=True)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **environment(),
        "freed memory kept": kept,
        "load before": load,
        "rounds": arguments.rounds,
        "networks": networks,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(arguments.out)


# The page's table ------------------------------------------------------------------------------

BEGIN, END = "<!-- table of benchmarks/alternation.py -->", "<!-- end of the table -->"


def page_table(written: Mapping[str, Any]) -> str:
    """The phases as Markdown, a line each: products, time in the loop and by hand, memory."""
    columns = ["relative to a plain step", "products"]
    for name in BY_HAND:
        columns += [f"{name}: here", "by hand", "by hand, fused", "memory"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for network, result in written["networks"].items():
        for phase in ("shared", "own", "own, cached"):
            cells = [f"{network}, {phase}", f"{result['optimizers']['sgd']['products'][phase]:.3f}"]
            for name in BY_HAND:
                found = result["optimizers"][name]
                for variant in (phase, f"{phase}, by hand", f"{phase}, fused"):
                    cells.append(f"{found['time'][variant]['median']:.3f}")
                cells.append(f"{found['memory'][phase]:.2f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fill_page() -> None:
    """Write the committed results' table between the page's markers."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{PAGE.name} has no markers {BEGIN} and {END}")
    lines = page_table(json.loads(OUT.read_text()))
    PAGE.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")


if __name__ == "__main__":
    main()
