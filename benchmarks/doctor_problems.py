"""Problems of six causes, drawn at random, for `benchmarks/doctor.py`.

Each draw has a kind, which says how it is meant, and knobs. What it *is* gets measured, since a
problem that is meant to have a conflict may have none.

    harmless   an ample network, tasks that share some of what they need, or nothing
    conflict   one number, or few, is all that passes from the trunk to the heads, at any width;
               the tasks want different numbers there
    capacity   the same tasks as harmless in a network that is too narrow for them together
    scale      one loss is larger than the others by orders of magnitude
    noise      labels with more noise than signal, the noise shared between tasks, equal or opposite
    few        a task has a few dozen labels, the others have all

Two families differ in everything else:

    smooth     Gaussian inputs; targets are sums of tanh; squared errors; tanh networks; Adam
    rough      signs, uniform numbers and dependent columns; targets are products, absolute values
               and waves; logistic, absolute and Huber losses; ReLU networks; SGD with momentum
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand.data import Problem, Split, Task
from evenhand.data.splits import Parts, Pool
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import mixed_seed

KINDS = ("harmless", "conflict", "capacity", "scale", "noise", "few")
FAMILIES = ("smooth", "rough")
Signal = Callable[[Tensor], Tensor]


class MeanLoss:
    """A metric that nobody reads: the doctor looks at losses."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        pass

    def compute(self) -> Tensor:
        return torch.zeros(())


class Numbers:
    """Random numbers of one draw, in the order asked for."""

    def __init__(self, *seed: int) -> None:
        self.generator = torch.Generator().manual_seed(mixed_seed(*seed))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def log_uniform(self, low: float, high: float) -> float:
        return low * (high / low) ** torch.rand((), generator=self.generator).item()

    def integer(self, low: int, high: int) -> int:
        """Both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.integer(0, len(values) - 1)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


# Inputs, signals, losses ----------------------------------------------------------------------


def smooth_inputs(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def rough_inputs(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """A third of the columns are signs, a third uniform, the rest depend on those."""
    third = columns // 3
    signs = torch.randint(0, 2, (rows, third), generator=generator) * 2.0 - 1
    flat = math.sqrt(3) * (2 * torch.rand(rows, third, generator=generator) - 1)
    rest = columns - 2 * third
    fresh = torch.randn(rows, rest, generator=generator)
    base = torch.cat([signs, flat], 1)[:, :rest]
    return torch.cat([signs, flat, 0.6 * base + 0.8 * fresh], 1)


def smooth_unit(numbers: Numbers, columns: int) -> Signal:
    direction = numbers.normal(columns)
    direction = direction / direction.norm() * numbers.uniform(1.0, 1.8)
    shift = numbers.uniform(-0.5, 0.5)
    return lambda x: torch.tanh(x @ direction + shift)


def rough_unit(numbers: Numbers, columns: int) -> Signal:
    direction = numbers.normal(columns)
    direction = direction / direction.norm()
    other = numbers.normal(columns)
    other = other / other.norm()
    kind = numbers.one_of(("product", "absolute", "wave", "hinge"))
    if kind == "product":
        return lambda x: ((x @ direction) * (x @ other)).clamp(-2, 2)
    if kind == "absolute":
        return lambda x: (x @ direction).abs()
    if kind == "wave":
        return lambda x: torch.sin(1.3 * (x @ direction) + 0.4)
    return lambda x: (x @ direction).clamp_min(0)


def summed(units: Sequence[Signal], factors: Tensor) -> Signal:
    return lambda x: torch.stack([unit(x) for unit in units], -1) @ factors


def squared(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda said, true: scale * functional.mse_loss(said, true)


def absolute(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda said, true: scale * functional.l1_loss(said, true)


def huber(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda said, true: scale * functional.huber_loss(said, true)


def logistic(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda said, true: scale * functional.binary_cross_entropy_with_logits(said, true)


@dataclass(frozen=True)
class Family:
    """What all draws of a family have in common."""

    inputs: Callable[[torch.Generator, int, int], Tensor]
    unit: Callable[[Numbers, int], Signal]
    losses: tuple[Callable[[float], Callable[[Tensor, Tensor], Tensor]], ...]
    activation: Callable[[], nn.Module]
    layers: tuple[int, ...]
    optimizer: str
    rates: tuple[float, ...]
    columns: tuple[int, int]
    batch: int
    width: tuple[int, int]
    narrow: tuple[int, int]
    rows: tuple[int, int]


FAMILY = {
    "smooth": Family(
        smooth_inputs,
        smooth_unit,
        (squared,),
        nn.Tanh,
        (1, 2),
        "adam",
        (1e-2,),
        (6, 10),
        64,
        (16, 28),
        (1, 3),
        (1000, 2500),
    ),
    "rough": Family(
        rough_inputs,
        rough_unit,
        (logistic, absolute, huber),
        nn.ReLU,
        (1, 2),
        "sgd",
        (5e-2,),
        (6, 9),
        64,
        (40, 56),
        (2, 5),
        (1500, 3000),
    ),
}


# Draws ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One task of a draw.

    Attributes:
        signal: x -> [n], mean 0 and deviation 1 on fresh inputs.
        noise: its deviation.
        shared: the share of the noise's variance that all tasks have in common, with its sign.
        yes_no: whether labels are whether signal and noise are above 0.
        loss: of outputs and targets [n].
        labels: how many training rows have a label; None for all.
    """

    signal: Signal
    noise: float
    shared: float
    yes_no: bool
    loss: Callable[[Tensor, Tensor], Tensor]
    labels: int | None = None


@dataclass(frozen=True)
class Draw:
    """A problem of some kind with its knobs."""

    family: str
    kind: str
    seed: int
    rows: int
    columns: int
    epochs: int
    layers: int
    width: int
    passes: int
    own_heads: bool
    targets: dict[str, Target]
    knobs: dict[str, Any]

    def samples(self, rows: int, seed: int, clean: bool = False) -> Split:
        """Fresh samples; `clean` ones have no noise in their labels."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, seed, *b"samples"))
        x = FAMILY[self.family].inputs(generator, rows, self.columns)
        common = torch.randn(rows, generator=generator)
        found = {}
        for name, target in self.targets.items():
            own = torch.randn(rows, generator=generator)
            part = math.sqrt(abs(target.shared))
            mixed = math.copysign(part, target.shared) * common + math.sqrt(1 - part**2) * own
            y = target.signal(x) + (0 if clean else target.noise) * mixed
            found[name] = ((y > 0).float() if target.yes_no else y).unsqueeze(1)
        return Split(x, found)

    def network(self, tasks: Sequence[str], width: float = 1.0) -> MultiTaskNetwork:
        units = max(1, round(self.width * width))
        layers: list[nn.Module] = []
        before = self.columns
        for _ in range(self.layers):
            layers += [nn.Linear(before, units), FAMILY[self.family].activation()]
            before = units
        if self.passes:  # so many numbers pass, however wide the rest is
            layers.append(nn.Linear(before, self.passes))
            before = self.passes
        heads: dict[str, nn.Module] = {
            task: nn.Linear(before, 1) if self.own_heads else nn.Identity() for task in tasks
        }
        return MultiTaskNetwork(nn.Sequential(*layers), heads)

    def problem(self, train: Split, validation: Split, test: Split) -> Problem:
        family = FAMILY[self.family]
        return Problem(
            name=f"{self.family}-{self.kind}-{self.seed}",
            summary=self.kind,
            citation="made here",
            tasks={
                name: Task(target.loss, MeanLoss, "none", False)
                for name, target in self.targets.items()
            },
            network=self.network,
            scaled=self.network,
            train=train,
            validation=validation,
            test=test,
            batch_size=family.batch,
            epochs=self.epochs,
            optimizer=family.optimizer,
            rates=family.rates,
        )

    def table(self) -> Problem:
        """What a user has: so many rows once and for all."""
        whole = self.with_blanks(self.samples(self.rows, 0))

        def make(parts: Parts) -> Problem:
            return self.problem(
                *(Split(*whole.take(part)) for part in (parts.train, parts.validation, parts.test))
            )

        pool = Pool(self.rows, make)
        return pool.problem("hold-out", 1, 0)

    def fresh(self, seed: int, more: int = 1, clean: bool = False) -> Problem:
        """Another table, with `more` times as many rows to train, and 5,000 to test."""
        train, validation = round(0.6 * self.rows) * more, round(0.2 * self.rows)
        whole = self.samples(train + validation, 1000 + seed, clean)
        learning = self.with_blanks(whole, more)
        index = torch.arange(train + validation)
        parts = [Split(*learning.take(index[:train])), Split(*learning.take(index[train:]))]
        return self.problem(*parts, self.samples(5_000, 2000 + seed))

    def with_blanks(self, split: Split, more: int = 1) -> Split:
        """Labels are blank beyond so many of a task, spread evenly."""
        found = {}
        for name, y in split.targets.items():
            count = self.targets[name].labels
            if count is not None:
                kept = torch.arange(len(y)) * min(len(y), more * count) // len(y)
                first = torch.ones(len(y), dtype=torch.bool)
                first[1:] = kept[1:] != kept[:-1]
                y = torch.where(first.unsqueeze(1), y, torch.full_like(y, math.nan))
            found[name] = y
        return Split(split.inputs, found)


def draw(family: str, kind: str, seed: int) -> Draw:
    """A problem meant to be of a kind; its knobs are drawn by the seed."""
    numbers = Numbers(seed, *family.encode(), *kind.encode())
    common = FAMILY[family]
    columns = numbers.integer(*common.columns)
    tasks = numbers.one_of((2, 2, 3))
    pool = [common.unit(numbers, columns) for _ in range(3 * tasks)]
    related = numbers.uniform(0, 1)
    rows = round(numbers.log_uniform(*common.rows))
    width = numbers.integer(*common.width)
    layers = numbers.one_of(common.layers)
    noise = [numbers.uniform(0.05, 0.4)] * tasks
    shared, scales = [0.0] * tasks, [1.0] * tasks
    labels: list[int | None] = [None] * tasks
    passes, own_heads = 0, True
    knobs: dict[str, Any] = {"related": related}
    if kind == "conflict":
        own_heads = numbers.uniform(0, 1) < 0.5
        passes = 1
        related = numbers.uniform(0, 0.97)
        knobs = {"related": related, "own heads": own_heads}
    if kind == "capacity":
        width, related = numbers.integer(*common.narrow), numbers.uniform(0, 0.5)
        knobs = {"related": related, "width": width}
    if kind == "scale":
        large = numbers.log_uniform(30, 3e3)
        scales[0] = large
        related, width = numbers.uniform(0, 0.6), numbers.integer(6, 20)
        knobs = {"related": related, "scale": large}
    if kind == "noise":
        noise = [numbers.uniform(1.2, 3.0)] * tasks
        part = numbers.uniform(0, 0.95)
        signs = [numbers.one_of((-1.0, 1.0)) for _ in range(tasks)]
        shared = [part * sign for sign in signs]
        rows = round(numbers.log_uniform(300, rows))
        knobs = {"related": related, "noise": noise[0], "shared": shared}
    if kind == "few":
        for k in range(tasks - 1):
            labels[k] = numbers.integer(60, 150)
        knobs = {"related": related, "labels": labels}
    targets = {}
    loss = common.losses[0]
    for k in range(tasks):
        signal = _signal(numbers, common, pool, related, k, columns)
        if not (kind == "conflict" and not own_heads and k):  # one output, one loss
            loss = numbers.one_of(common.losses)
        targets[f"t{k}"] = Target(
            signal, noise[k], shared[k], loss is logistic, loss(scales[k]), labels[k]
        )
    return Draw(
        family,
        kind,
        seed,
        rows,
        columns,
        numbers.integer(20, 30),
        layers,
        width,
        passes,
        own_heads,
        targets,
        knobs,
    )


def _signal(
    numbers: Numbers,
    common: Family,
    pool: Sequence[Signal],
    related: float,
    task: int,
    columns: int,
) -> Signal:
    """√ρ of what all tasks need, √(1 − ρ) of what this one needs, mean 0 and deviation 1."""
    every = summed(pool[:3], numbers.normal(3))
    number = len(pool) // 3
    mine = pool[3 * task : 3 * task + 3] if task < number else pool[:3]
    own = summed(mine, numbers.normal(len(mine)))
    generator = torch.Generator().manual_seed(0)
    x = common.inputs(generator, 4000, columns)
    a, b = every(x), own(x)
    a_mean, a_std, b_mean, b_std = a.mean(), a.std(), b.mean(), b.std()

    def mixed(x: Tensor) -> Tensor:
        first, second = (every(x) - a_mean) / a_std, (own(x) - b_mean) / b_std
        return math.sqrt(related) * first + math.sqrt(1 - related) * second

    whole = mixed(common.inputs(generator, 4000, columns))
    mean, deviation = whole.mean(), whole.std()
    return lambda x: (mixed(x) - mean) / deviation
