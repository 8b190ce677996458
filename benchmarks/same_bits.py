"""Whether every recipe still trains to the same bits: digests of records and final weights.

    python benchmarks/same_bits.py [RECIPE …]           # compare with results/same_bits.json
    python benchmarks/same_bits.py --write [RECIPE …]   # renew it, or the lines of these recipes

Every recipe trains two small problems with three seeds, in four ways:

- single: each run by itself;
- single, resumed: the same runs, left an epoch after a checkpoint and made again from it;
- stacked: the three runs of the first problem as one `StackedTraining`, or the reason why they
  cannot be one;
- stacked, resumed: the same, left and made again from its checkpoint.

A line of the file has three digests (SHA-256 of the exact bits, its first 16 digits): of the
weights after the last epoch and of the best epoch, of what the records say of training, and of
what they say of its cost (operations, features reused, bytes of the optimizers' state). Wall time
is left out. Numbers are hashed in an order that is stated here, and no name is hashed, so a field
or parameter that is renamed changes nothing. The commit is that of the library that made the line.

A difference is an error (exit status 1) unless EXCEPTIONS has a reason for it. So is a resumed run
that differs from the one without a break.

Bits hold for one kind of processor and one version of torch and its libraries. The file says which
made it, and a comparison with others says so first. One thread is used, and the libraries are
asked for the instructions that every x86-64 processor has, so the file may hold on other
processors too; nobody promises it. Where it does not, renew it from the older commit, then compare
(if modules have moved in between, adapt the imports of a copy of this script):

    git worktree add ../before COMMIT
    PYTHONPATH=../before/src python benchmarks/same_bits.py --write
    python benchmarks/same_bits.py
"""

from __future__ import annotations

import os

# Read when torch and numpy are loaded. More threads or wider instructions sum in another order.
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    OPENBLAS_CORETYPE="Prescott",
    MKL_CBWR="COMPATIBLE",
    ATEN_CPU_CAPABILITY="default",
)

import argparse
import hashlib
import itertools
import json
import platform
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# What of the library is used; what is renamed there is renamed here ----------------------------
import evenhand
from evenhand import MultiTaskNetwork
from evenhand.comparison.folder import environment
from evenhand.comparison.job import Job
from evenhand.comparison.plan import training
from evenhand.comparison.request import Settings
from evenhand.data import Problem, Split, Task
from evenhand.ensemble.training import StackedTraining, obstacle
from evenhand.recipes import RECIPES
from evenhand.schedules.clock import BLOCKS
from evenhand.training.loop import Training
from evenhand.training.records import Record, RecordFile, write_atomically

COMPOSE = {recipe.name: recipe.compose for recipe in RECIPES}


def made(recipe: str, label: str, seed: int, case: Case) -> Training:
    """The training of one of a recipe's networks."""
    return training(Job(recipe, label, seed, case.rate), case.problem, case.settings)


def told(record: Record, tasks: Sequence[str]) -> Iterator[Any]:
    """What a record says of training, in this order."""
    yield from (record.epoch, record.step, len(record.trains))
    yield from (BLOCKS.index(block) for block in record.trains)
    of_tasks = (record.losses, record.validation, record.metrics, record.weights, record.norms)
    for values in (*of_tasks, record.oscillation):
        yield from (values.get(task) for task in tasks)
    yield from (record.cosines.get(f"{i}|{j}") for i, j in itertools.combinations(tasks, 2))
    for task in tasks:  # of each phase, in the order in which they were met
        changes = [v for name, v in record.changes.items() if name.rpartition("|")[2] == task]
        yield from (len(changes), *changes)
    yield from (record.path, len(record.rates), *record.rates.values())
    yield from (record.monitored, record.best)


def cost(record: Record) -> Iterator[Any]:
    """What a record says of the cost, without the time."""
    yield from (record.flops, record.reused, record.state_bytes)


# Differences that are meant --------------------------------------------------------------------

FACTORS = (
    "the second problem keeps gradients as factors, and their inputs are no longer recorded by "
    "autograd: torch.matmul then multiplies the batch in another order, and products of gradients "
    "differ in the last bit. With inputs that require a gradient the bits are the old ones"
)
SAMPLES = "of further batches the trunk's gradients alone are taken, and no longer the heads'"
MEETINGS = "projections are multiplied out once for 64 of them"
SMALL = (
    "the products of small gradients are one matrix product, which sums in another order, and "
    "which counts as operations where their inner products did not"
)
FEW = (
    "the min-norm point of three to five tasks is found in Python's floats: its last bit differs; "
    "of recipes that have another reason, this may be one too"
)
EXCEPTIONS: Mapping[str, str] = {
    "mgda-ub, single*: weights": FEW,
    "cagrad, *": "noise is measured at the precision that the Gramian came in (decision 10)",
    "gradvac, *: weights": MEETINGS,
    "gradvac, *: cost": MEETINGS,
    "pcgrad, *: cost": MEETINGS,
    "modo, stacked*: cost": SAMPLES,
    "sdmgrad, stacked*: cost": SAMPLES,
    "mgda-online, stacked*": "the first direction has the same bits, and the second pass along it "
    "differs by one rounding in single precision; from where is not known",
    **{
        f"{recipe}, single*: weights": FACTORS
        for recipe in (
            *("mgda", "mgda-released", "mgda-l2", "mgda-loss", "central", "min-norm+tension"),
            *("central+tension", "ate-sg+tension", "cr-mogm", "imtl-g", "nash-mtl", "fairgrad"),
            *("aligned-mtl", "upgrad", "dualproj", "config"),
        )
    },
    **{
        f"{recipe}, single*: weights": SMALL
        for recipe in ("gradnorm", "mgda-loss+", "excess-mtl", "pcgrad", "multi-krum")
    },
    **{
        f"{recipe}, stacked*: cost": SMALL
        for recipe in (
            *("gradnorm", "mgda", "mgda-released", "mgda-l2", "mgda-loss", "mgda-loss+", "central"),
            *("min-norm+tension", "central+tension", "ate-sg+tension", "cr-mogm", "excess-mtl"),
            *("imtl-g", "nash-mtl", "fairgrad", "aligned-mtl", "upgrad", "dualproj", "config"),
            "multi-krum",
        )
    },
    "*, single*: records": FACTORS,
    "*, single*: cost": "in a step in which a task has no labels, no zeros are multiplied through "
    "its head",
}
"""Why a difference is meant: as it is printed -> the reason. A star stands for anything, so
"mgda, *: weights" is of all ways to train mgda, and "*: cost" of every line."""

# Two problems ----------------------------------------------------------------------------------

OUT = Path(__file__).parent / "results" / "same_bits.json"
SEEDS = (0, 1, 2)
EPOCHS = 7  # log-stch begins after the epoch 4, tension after 10 steps
CHECKPOINT = 3  # epochs between checkpoints; a run is left an epoch after the first


@dataclass(frozen=True)
class Case:
    """A problem, with what it is trained, and whether its runs are trained as one too."""

    problem: Problem
    settings: Settings
    rate: float
    stacks: bool


@dataclass
class MeanError:
    """The mean absolute error, or the share of wrong classes."""

    total: float = 0.0
    count: int = field(default=0)

    def update(self, preds: Tensor, target: Tensor) -> None:
        if target.is_floating_point():
            wrong = (preds.reshape(target.shape) - target).abs()
        else:
            wrong = (preds.argmax(1) != target).double()
        self.total += float(wrong.sum())
        self.count += wrong.numel()

    def compute(self) -> Tensor:
        return torch.tensor(self.total / self.count)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output, target)


def much(output: Tensor, target: Tensor) -> Tensor:
    return 5 * functional.mse_loss(output, target)


def signs(output: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(output, target)


def task(loss: Callable[[Tensor, Tensor], Tensor]) -> Task:
    return Task(loss, MeanError, "error", higher_is_better=False)


def split(
    shape: tuple[int, ...], seed: int, targets: Callable[[Tensor], dict[str, Tensor]]
) -> Split:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Split(x.float(), targets(x))


def points() -> Problem:
    """Five tasks that pull apart, in single precision; its runs can be stacked.

    A batch is smaller than the trunk's second layer is wide, so its gradients are kept as factors.
    """

    def targets(x: Tensor) -> dict[str, Tensor]:
        sum_, difference = x[:, :1] + x[:, 1:2], x[:, :1] - x[:, 1:2]
        return {
            "octant": (x[:, 0] > 0).long() + (x[:, 1] > 0).long(),
            "sum": sum_.float(),
            "difference": (difference * x[:, 2:3]).float(),
            "outside": (x.square().sum(-1, keepdim=True) > 4).float(),
            "pair": torch.cat([-sum_, x[:, 3:].sin()], dim=1).float(),
        }

    heads: Mapping[str, Callable[[], nn.Module]] = {
        "octant": lambda: nn.Linear(12, 3),
        "sum": lambda: nn.Linear(12, 1),
        "difference": lambda: nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 1)),
        "outside": lambda: nn.Linear(12, 1),
        "pair": lambda: nn.Linear(12, 2),
    }

    def network(tasks: Sequence[str]) -> MultiTaskNetwork:
        trunk = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 12), nn.ReLU())
        return MultiTaskNetwork(trunk, {name: heads[name]() for name in tasks})

    return Problem(
        name="points",
        summary="points in four dimensions",
        citation="made here",
        tasks={
            "octant": task(functional.cross_entropy),
            "sum": task(squared),
            "difference": task(much),
            "outside": task(signs),
            "pair": task(squared),
        },
        network=network,
        train=split((28, 4), 0, targets),  # the last batch of an epoch is a small one
        validation=split((16, 4), 1, targets),
        test=split((16, 4), 2, targets),
        batch_size=8,
    )


def series() -> Problem:
    """Three tasks with all that keeps runs from being stacked, in double precision.

    The trunk has a convolution, BatchNorm and dropout; there is a penalty, and of one task few
    samples have labels, so some batches lack it.
    """

    def targets(x: Tensor) -> dict[str, Tensor]:
        mean = x.mean(2)
        rare = mean[:, :1].tanh()
        rare[torch.arange(len(x)) % 8 != 6] = torch.nan
        return {"sign": (mean[:, 0] > 0).long(), "rare": rare, "swing": x.std(2)}

    def network(tasks: Sequence[str]) -> MultiTaskNetwork:
        trunk = nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(24, 6), nn.Tanh(),
        )  # fmt: skip
        sizes = {"sign": 2, "rare": 1, "swing": 2}
        return MultiTaskNetwork(trunk, {name: nn.Linear(6, sizes[name]) for name in tasks}).double()

    def penalty(network: nn.Module) -> Tensor:
        return 1e-3 * sum(p.square().sum() for p in network.parameters())

    def part(size: int, seed: int) -> Split:
        single = split((size, 2, 8), seed, targets)
        return Split(single.inputs.double(), single.targets)

    return Problem(
        name="series",
        summary="short series",
        citation="made here",
        tasks={"sign": task(functional.cross_entropy), "rare": task(squared), "swing": task(much)},
        network=network,
        train=part(24, 3),
        validation=part(16, 4),
        test=part(16, 5),
        batch_size=8,
        penalty=penalty,
    )


def cases() -> list[Case]:
    """Gradients are taken task by task in one, all at once in the other.

    No step in which a batch has no label of `rare` is observed: for a network of that task alone
    this raises, so far.
    """
    of_points = Settings("points", epochs=EPOCHS, optimizer="sgd", observe_every=2)
    of_series = Settings(
        "series", epochs=EPOCHS, optimizer="adam", observe_every=5, jacobian="batched"
    )
    return [
        Case(points(), of_points, rate=0.003, stacks=True),
        Case(series(), of_series, rate=0.003, stacks=False),
    ]


# Digests ---------------------------------------------------------------------------------------


Line = dict[str, str]
"""Of a recipe and a way to train it: part -> its digest, or the reason why there is none."""
RESUMED = ", resumed"


@dataclass
class Digests:
    """What the runs of a recipe hash to, in one way of training it."""

    weights: Any = field(default_factory=hashlib.sha256)
    records: Any = field(default_factory=hashlib.sha256)
    cost: Any = field(default_factory=hashlib.sha256)
    refused: list[str] = field(default_factory=list)
    runs: int = 0

    def add(self, run: Run) -> None:
        """One network's training."""
        self.runs += 1
        for tensor in itertools.chain(run.last, weights(run.training)):
            self.weights.update(str((tensor.dtype, tuple(tensor.shape))).encode())
            self.weights.update(tensor.numpy().tobytes())
        self.records.update(packed([len(run.records)]))
        for record in run.records:
            self.records.update(packed(told(record, run.training.tasks)))
            self.cost.update(packed(cost(record)))

    def line(self) -> Line:
        """What of it the file has."""
        parts = ("weights", "records", "cost") if self.runs else ()
        found: Line = {part: getattr(self, part).hexdigest()[:16] for part in parts}
        return found | {f"refused {k}": why for k, why in enumerate(self.refused)}


@dataclass
class Run:
    """A training, the records it gave, and its weights as it gave the last."""

    training: Training
    records: list[Record] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.records.append(record)
        self.last = weights(self.training)


def weights(run: Training) -> list[Tensor]:
    """A copy of the network's parameters, in order, and of its buffers."""
    tensors = itertools.chain(run.network.parameters(), run.network.buffers())
    return [tensor.detach().clone() for tensor in tensors]


def packed(values: Iterable[float | None]) -> bytes:
    """Numbers as they are in memory, in double precision; None is none of them."""
    return b"".join(b"-" if value is None else struct.pack("<d", value) for value in values)


# Four ways -------------------------------------------------------------------------------------


def alone(make: Callable[[], list[Training]], folder: Path | None = None) -> list[Run]:
    """Each by itself; in a `folder` they go on where they were left."""
    runs = [Run(member) for member in make()]
    for number, run in enumerate(runs):
        for record in run.training.run(
            folder and fresh(folder, number), checkpoint_every=CHECKPOINT
        ):
            run.add(record)
    return runs


def left_alone(make: Callable[[], list[Training]], folder: Path) -> list[Run]:
    """Each by itself, left and gone on with."""
    for number, member in enumerate(make()):
        for record in member.run(fresh(folder, number), checkpoint_every=CHECKPOINT):
            if record.epoch > CHECKPOINT:
                break
        else:
            raise ValueError(f"the run ended before epoch {CHECKPOINT + 1}")
    return alone(make, folder)


def together(make: Callable[[], list[Training]], folder: Path | None = None) -> list[Run]:
    """As one; in a `folder` they go on where they were left."""
    stack = StackedTraining(make())
    runs = [Run(member) for member in stack.members]
    for number, event in stack.run(*kept(folder, len(runs)), checkpoint_every=CHECKPOINT):
        if isinstance(event, Record):
            runs[number].add(event)
    if set(stack.ended.values()) != {"finished"}:
        raise ValueError(f"a run did not finish: {stack.ended}")
    return runs


def left_together(make: Callable[[], list[Training]], folder: Path) -> list[Run]:
    """As one, left and gone on with."""
    stack = StackedTraining(make())
    for _, event in stack.run(*kept(folder, len(SEEDS)), checkpoint_every=CHECKPOINT):
        if isinstance(event, Record) and event.epoch > CHECKPOINT:
            break
    else:
        raise ValueError(f"the runs ended before epoch {CHECKPOINT + 1}")
    return together(make, folder)


def fresh(folder: Path, number: int) -> Path:
    """The folder of a run."""
    path = folder / str(number)
    path.mkdir(exist_ok=True)
    return path


def kept(folder: Path | None, number: int) -> tuple[Any, ...]:
    """A stack's checkpoint and the files of its members' records."""
    if folder is None:
        return None, None
    files = {k: RecordFile(folder / f"{k}.jsonl") for k in range(number)}
    return folder / "stack.safetensors", files


def digests(recipe: str) -> dict[str, Line]:
    """The four lines of a recipe."""
    found = {way + how: Digests() for way in ("single", "stacked") for how in ("", RESUMED)}
    for case in cases():
        for label in COMPOSE[recipe](tuple(case.problem.tasks)):

            def make(label: str = label, case: Case = case) -> list[Training]:
                return [made(recipe, label, seed, case) for seed in SEEDS]

            with tempfile.TemporaryDirectory() as folder:
                runs = {"single": alone(make), "single" + RESUMED: left_alone(make, Path(folder))}
            why = obstacle(make()) if case.stacks else ""
            if why:
                for way in ("stacked", "stacked" + RESUMED):
                    found[way].refused.append(why)
            elif case.stacks:
                with tempfile.TemporaryDirectory() as folder:
                    runs["stacked"] = together(make)
                    runs["stacked" + RESUMED] = left_together(make, Path(folder))
            for way, members in runs.items():
                for run in members:
                    found[way].add(run)
    return {f"{recipe}, {way}": each.line() for way, each in found.items()}


# Comparing -------------------------------------------------------------------------------------


def differences(lines: Mapping[str, Line], expected: Mapping[str, Line]) -> list[str]:
    """What of each line is not what the file has, or not what it is without being resumed."""
    found = []
    for name, line in lines.items():
        there = {**expected.get(name, {})}
        there.pop("commit", None)
        if not there:
            found.append(f"{name}: not in the file")
        else:
            parts = dict.fromkeys((*line, *there))
            found += [f"{name}: {part}" for part in parts if line.get(part) != there.get(part)]
        if line != lines[name.removesuffix(RESUMED)]:
            found.append(f"{name}: not as without a break")
    return found


def excused(difference: str) -> str:
    """The reason why it may be, or ""."""
    fitting = (why for name, why in EXCEPTIONS.items() if fnmatchcase(difference, name))
    return next(fitting, "")


def commit() -> str:
    """The commit of the library that runs; with a + if the working tree differs from it."""
    folder = Path(evenhand.__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def place() -> dict[str, Any]:
    """What bits depend on besides the code."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    versions = {k: v for k, v in environment()["versions"].items() if k != "evenhand"}
    return {"versions": versions, "processor": (models or [platform.processor()])[0]}


def written(lines: Mapping[str, Line], made_with: Mapping[str, Any]) -> str:
    """The file: what it was made with, and a line per recipe and way."""
    each = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in lines.items())
    head = json.dumps(made_with, indent=1).removesuffix("\n}")
    return f'{head},\n "lines": {{\n{each}\n }}\n}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether every recipe trains to the same bits.")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="all of them by default")
    parser.add_argument("--write", action="store_true", help="renew the file instead")
    options = parser.parse_args()
    if unknown := set(options.recipes) - set(COMPOSE):
        parser.error(f"no recipe is called {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    chosen = options.recipes or list(COMPOSE)
    now = place()
    before = json.loads(OUT.read_text()) if OUT.exists() else {**now, "lines": {}}
    for key in now:
        if before[key] != now[key]:
            print(f"The file was made elsewhere: {key} {before[key]}, here {now[key]}")
    lines: dict[str, Line] = {}
    for number, recipe in enumerate(chosen, start=1):
        lines |= digests(recipe)
        print(f"{number} of {len(chosen)}", end="\r", file=sys.stderr, flush=True)
    if options.write:
        renewed = {name: {**line, "commit": commit()} for name, line in lines.items()}
        others = before["lines"] if options.recipes else {}
        write_atomically(OUT, written({**others, **renewed}, now))
        print(f"{len(lines)} lines written to {OUT}")
        return 0
    found = differences(lines, before["lines"])
    if not options.recipes:
        gone = before["lines"].keys() - lines.keys()
        found += [f"{name}: in the file alone" for name in sorted(gone)]
    return reported(found, len(lines))


def reported(found: Sequence[str], number: int) -> int:
    """Print the differences in that number of lines; the exit status."""
    reasons = {difference: excused(difference) for difference in found}
    for difference, reason in reasons.items():
        print(difference + (f" (meant: {reason})" if reason else ""))
    wrong = sum(not reason for reason in reasons.values())
    print(f"{number} lines compared: {len(found)} differences, {wrong} of them without a reason")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
