"""What laws are held against: Jacobians of every kind, small networks, and small problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor, nn

from evenhand import Aggregator, Clock, MultiTaskNetwork, Phase, Running, TaskGradients, Weighting
from evenhand.autodiff.gradients import Place
from evenhand.data import Batch, Problem, Split, Stream, Task
from evenhand.schedules import Schedule, mixed_seed
from evenhand.weighting.base import Method

NAMES = tuple(f"t{i}" for i in range(40))


def chance(*words: int | str) -> torch.Generator:
    """A generator that depends on `words` alone."""
    flat = [w if isinstance(w, int) else sum(w.encode()) for w in words]
    return torch.Generator().manual_seed(mixed_seed(*flat))


# Jacobians ------------------------------------------------------------------------------------

Make = Callable[[int, int, torch.Generator], Tensor]


def _normal(*shape: int, at: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=at, device="cpu", dtype=torch.float64)


def _independent(m: int, n: int, at: torch.Generator) -> Tensor:
    return _normal(m, n, at=at)


def _low_rank(m: int, n: int, at: torch.Generator) -> Tensor:
    rank = max(1, m // 2)
    return _normal(m, rank, at=at) @ _normal(rank, n, at=at)


def _conflicting(m: int, n: int, at: torch.Generator) -> Tensor:
    """Every two gradients point apart, and their sum is almost zero."""
    rows = _normal(m, n, at=at)
    return rows - 0.95 * rows.mean(0) if m > 1 else rows


def _agreeing(m: int, n: int, at: torch.Generator) -> Tensor:
    return _normal(1, n, at=at) + 0.1 * _normal(m, n, at=at)


def _orthogonal(m: int, n: int, at: torch.Generator) -> Tensor:
    lengths = _normal(m, 1, at=at).exp()
    return lengths * torch.linalg.qr(_normal(n, m, at=at)).Q.T


def _spread(m: int, n: int, at: torch.Generator) -> Tensor:
    """Norms that span a factor of 1e6."""
    return torch.logspace(-3, 3, m, dtype=torch.float64).unsqueeze(1) * _normal(m, n, at=at)


def _zero_row(m: int, n: int, at: torch.Generator) -> Tensor:
    rows = _normal(m, n, at=at)
    rows[0] = 0
    return rows


def _duplicates(m: int, n: int, at: torch.Generator) -> Tensor:
    rows = _normal(m, n, at=at)
    rows[m // 2 :] = rows[: m - m // 2].clone()
    return rows


def _almost_duplicates(m: int, n: int, at: torch.Generator) -> Tensor:
    return _duplicates(m, n, at) * (1 + 1e-9 * _normal(m, n, at=at))


def _collinear(m: int, n: int, at: torch.Generator) -> Tensor:
    return _normal(m, 1, at=at).exp() * _normal(1, n, at=at)


def _opposed(m: int, n: int, at: torch.Generator) -> Tensor:
    """g, −g, g, …: as stationary as can be, of rank 1."""
    signs = torch.tensor([(-1.0) ** i for i in range(m)], dtype=torch.float64)
    return signs.unsqueeze(1) * _normal(1, n, at=at)


def _stationary(m: int, n: int, at: torch.Generator) -> Tensor:
    """A combination with positive weights of all gradients is zero."""
    rows = _normal(m, n, at=at)
    weights = _normal(m, at=at).exp()
    rows[-1] = -(weights[:-1] @ rows[:-1]) / weights[-1]
    return rows


def _stationary_face(m: int, n: int, at: torch.Generator) -> Tensor:
    """Two gradients oppose each other, the others are free."""
    rows = _normal(m, n, at=at)
    rows[1:2] = -2 * rows[:1]
    return rows


REGULAR: Mapping[str, Make] = {
    "independent": _independent,
    "conflicting": _conflicting,
    "agreeing": _agreeing,
    "orthogonal": _orthogonal,
    "spread": _spread,
    "huge": lambda m, n, at: 1e12 * _normal(m, n, at=at),
    "tiny": lambda m, n, at: 1e-12 * _normal(m, n, at=at),
}
"""Gradients that are linearly independent."""

STATIONARY: Mapping[str, Make] = {
    "zeros": lambda m, n, at: torch.zeros(m, n, dtype=torch.float64),
    "zero row": _zero_row,
    "opposed": _opposed,
    "stationary": _stationary,
    "stationary face": _stationary_face,
}
"""Pareto-stationary points, from two tasks on: zero is in the convex hull of the gradients."""

DEGENERATE: Mapping[str, Make] = {
    **STATIONARY,
    "low rank": _low_rank,
    "duplicates": _duplicates,
    "almost duplicates": _almost_duplicates,
    "collinear": _collinear,
    "huge and tiny": lambda m, n, at: (
        torch.logspace(-12, 12, m).double()[:, None] * _normal(m, n, at=at)
    ),
}

EVERY: Mapping[str, Make] = {**REGULAR, **DEGENERATE}


def jacobian(kind: str, m: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A Jacobian [m, m + 3] of that kind."""
    return EVERY[kind](m, m + 3, chance("jacobian", kind, m, seed)).to(dtype)


def positive(m: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Losses [m] between about 0.1 and 10."""
    return _normal(m, at=chance("losses", m, seed)).exp().to(dtype)


@dataclass(frozen=True)
class Moment:
    """What the tasks' gradients and losses are in one call, on all independent batches."""

    jacobian: Tensor
    losses: Tensor
    further: tuple[Moment, ...] = ()
    after: Tensor | None = None

    def view(
        self,
        tasks: Sequence[str] = NAMES,
        speaking: Sequence[int] | None = None,
        clock: Clock | None = None,
        batches: int = 1,
    ) -> TaskGradients:
        """What a method sees, when of all `tasks` those at the places `speaking` speak."""
        if speaking is None:
            speaking = range(self.losses.shape[-1])
        return TaskGradients.of(
            jacobian=self.jacobian,
            losses=self.losses,
            tasks=[tasks[i] for i in speaking],
            index=torch.tensor(list(speaking)),
            total=len(tasks),
            clock=clock,
            samples=[x.view(tasks, speaking, clock) for x in self.further[: batches - 1]],
        )

    def map(self, rows: Callable[[Tensor], Tensor], entries: Callable[[Tensor], Tensor]) -> Moment:
        """`rows` of every Jacobian, `entries` of all losses."""
        return Moment(
            rows(self.jacobian),
            entries(self.losses),
            tuple(moment.map(rows, entries) for moment in self.further),
            None if self.after is None else entries(self.after),
        )

    def take(self, tasks: Sequence[int] | Tensor) -> Moment:
        """The moment of some of the tasks, in that order."""
        chosen = torch.as_tensor(tasks)
        return self.map(lambda j: j[..., chosen, :], lambda losses: losses[..., chosen])

    def scaled(self, factor: Tensor | float) -> Moment:
        """Losses (and so their gradients) multiplied, by one number or task by task."""
        by = torch.as_tensor(factor, dtype=self.losses.dtype)
        return self.map(lambda j: by.expand(j.shape[-2]).unsqueeze(-1) * j, lambda x: by * x)


def moment(
    kind: str, m: int, seed: int = 0, dtype: torch.dtype = torch.float64, batches: int = 3
) -> Moment:
    """Gradients of that kind, with those of further batches and the losses after the update."""
    further = [
        Moment(jacobian(kind, m, seed + 100 * k, dtype), positive(m, seed + 100 * k, dtype))
        for k in range(1, batches)
    ]
    losses = positive(m, seed, dtype)
    return Moment(
        jacobian(kind, m, seed, dtype), losses, tuple(further), 0.9 * losses * positive(m, seed + 1)
    )


def stacked(moments: Sequence[Moment]) -> Moment:
    """Independent networks: the moments along a new leading dimension."""
    return Moment(
        torch.stack([x.jacobian for x in moments]),
        torch.stack([x.losses for x in moments]),
        tuple(stacked(further) for further in zip(*(x.further for x in moments), strict=True)),
        torch.stack([x.after for x in moments if x.after is not None])
        if moments[0].after is not None
        else None,
    )


class SpyClock(Clock):
    """A clock that tells whether anybody drew; stream 0 of the call is `stream` of the run."""

    drawn: list[str]
    stream: int

    @classmethod
    def at(cls, step: int = 0, stream: int = 0) -> SpyClock:
        clock = cls(epoch=step // 2, step=step)
        object.__setattr__(clock, "drawn", [])
        object.__setattr__(clock, "stream", stream)
        return clock

    def generator(self, purpose: str, stream: int = 0, every: str = "step") -> torch.Generator:
        self.drawn.append(purpose)
        return super().generator(purpose, self.stream + stream, every)


# Small networks -------------------------------------------------------------------------------


def small_network(
    tasks: Iterable[str] = ("a", "b", "c"), *, norm: bool = False, dropout: float = 0.0
) -> MultiTaskNetwork:
    """A trunk of two layers, heads of two; float64, weights drawn from the global stream."""
    middle: list[nn.Module] = [nn.BatchNorm1d(5)] if norm else []
    middle += [nn.Tanh(), nn.Dropout(dropout)]
    trunk = nn.Sequential(nn.Linear(4, 5), *middle, nn.Linear(5, 3), nn.Tanh())

    def head() -> nn.Module:
        inner: list[nn.Module] = [nn.BatchNorm1d(3)] if norm else []
        return nn.Sequential(nn.Linear(3, 3), *inner, nn.Tanh(), nn.Linear(3, 1))

    return MultiTaskNetwork(trunk, {task: head() for task in tasks}).double()


def inputs(batch: int = 0, size: int = 6) -> Tensor:
    return _normal(size, 4, at=chance("inputs", batch))


def losses_of(outputs: Mapping[str, Tensor], batch: int = 0) -> dict[str, Tensor]:
    """Squared errors of different targets, their sizes a factor of 4 apart."""
    losses = {}
    for k, (task, output) in enumerate(outputs.items()):
        target = _normal(*output.shape, at=chance("targets", task, batch))
        losses[task] = 4.0**k * (output - target).square().mean()
    return losses


def plain_jacobian(losses: Iterable[Tensor], targets: Iterable[Tensor]) -> Tensor:
    """Rows ∂L_i/∂targets, one plain pass each, zeros where a loss does not reach."""
    targets = list(targets)
    rows = []
    for loss in losses:
        row = torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(t) if g is None else g for g, t in zip(row, targets, strict=True)
        ]
        rows.append(torch.cat([g.reshape(-1) for g in filled]))
    return torch.stack(rows)


def flat_grad(parameters: Iterable[Tensor]) -> Tensor:
    """`.grad` of the parameters, joined; zeros where it is None."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([g.reshape(-1) for g in grads])


def snapshot(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A copy to compare with later."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in tensors.items()
    }


def same(one: Any, other: Any) -> bool:
    """Equal bit for bit, through dicts, lists and tuples; NaN equals NaN."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            isinstance(one, Tensor)
            and isinstance(other, Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and torch.equal(one.isnan(), other.isnan())
            and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)


# Small problems -------------------------------------------------------------------------------


@dataclass
class MeanError:
    """A metric without torchmetrics: the mean absolute error, or that of the largest class."""

    total: float = 0.0
    count: int = field(default=0)

    def update(self, preds: Tensor, target: Tensor) -> None:
        if target.is_floating_point():
            error = (preds.reshape(target.shape) - target).abs()
        else:
            error = (preds.argmax(1) != target).double()
        self.total += float(error.sum())
        self.count += error.numel()

    def compute(self) -> Tensor:
        return torch.tensor(self.total / max(self.count, 1))


def _squared(output: Tensor, target: Tensor) -> Tensor:
    return (output.reshape(target.shape) - target).square().mean()


REGRESSION = Task(_squared, MeanError, "error", higher_is_better=False)
CLASSES = Task(nn.functional.cross_entropy, MeanError, "error rate", higher_is_better=False)


def _problem(
    name: str,
    tasks: Mapping[str, Task],
    targets: Callable[[Tensor], dict[str, Tensor]],
    middle: Callable[[], list[nn.Module]] = list,
    **more: Any,
) -> Problem:
    def split(part: int, size: int) -> Split:
        x = _normal(size, 4, at=chance(name, part)).float()
        return Split(x, targets(x))

    def network(chosen: Sequence[str]) -> MultiTaskNetwork:
        trunk = nn.Sequential(nn.Linear(4, 8), *middle(), nn.Tanh(), nn.Linear(8, 6), nn.Tanh())
        sizes = {task: 3 if tasks[task] is CLASSES else 1 for task in chosen}
        return MultiTaskNetwork(trunk, {task: nn.Linear(6, sizes[task]) for task in chosen})

    return Problem(
        name,
        "for tests",
        "made here",
        tasks,
        network,
        split(0, 48),
        split(1, 24),
        split(2, 24),
        batch_size=16,
        **more,
    )


def two_scales() -> Problem:
    """Two regressions that conflict, one with a hundred times the other's loss."""

    def targets(x: Tensor) -> dict[str, Tensor]:
        shared = x[:, 0].sin() + x[:, 1]
        return {"small": shared, "large": 10 * (x[:, 2] - shared)}

    return _problem("two scales", {"small": REGRESSION, "large": REGRESSION}, targets)


def mixed() -> Problem:
    """Classes, two regressions, and a penalty; the trunk has BatchNorm and dropout.

    Of one regression few samples have labels, so some batches lack it altogether.
    """

    def targets(x: Tensor) -> dict[str, Tensor]:
        rare = x.sum(1).tanh()
        rare[torch.arange(len(x)) % 8 > 0] = torch.nan
        return {
            "class": (x[:, 0] > 0).long() + (x[:, 1] > 0).long(),
            "rare": rare,
            "bent": x[:, 2].square(),
        }

    tasks = {"class": CLASSES, "rare": REGRESSION, "bent": REGRESSION}

    def penalty(network: nn.Module) -> Tensor:
        return 1e-3 * sum(p.square().sum() for p in network.parameters())

    def middle() -> list[nn.Module]:
        return [nn.BatchNorm1d(8), nn.Dropout(0.2)]

    return _problem("mixed", tasks, targets, middle, penalty=penalty)


def in_double() -> Problem:
    """Three regressions in float64; BatchNorm in the trunk, nothing left to chance."""

    def targets(x: Tensor) -> dict[str, Tensor]:
        return {"a": x[:, 0].sin(), "b": 3 * (x[:, 1] - x[:, 0]), "c": x[:, 2].square()}

    tasks = dict.fromkeys(("a", "b", "c"), REGRESSION)
    made = _problem("in double", tasks, targets, lambda: [nn.BatchNorm1d(8)])
    parts = {name: getattr(made, name) for name in ("train", "validation", "test")}
    double = {
        name: Split(part.inputs.double(), {t: y.double() for t, y in part.targets.items()})
        for name, part in parts.items()
    }
    return replace(made, network=lambda chosen: made.network(chosen).double(), **double)


PROBLEMS: Mapping[str, Callable[[], Problem]] = {"two scales": two_scales, "mixed": mixed}


# Coverings ------------------------------------------------------------------------------------


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few rows in which every two levels of every two factors meet; greedy, the same each time."""
    sizes = [range(len(factor)) for factor in factors]
    places = list(combinations(range(len(factors)), 2))
    missing = {(p, q, a, b) for p, q in places for a, b in product(sizes[p], sizes[q])}
    rows = []
    while missing:
        p, q, a, b = min(missing)
        row = {p: a, q: b}
        for r in range(len(factors)):
            if r not in row:
                row[r] = max(
                    sizes[r], key=lambda level, r=r, row=row: _gain({**row, r: level}, missing)
                )
        missing -= {(i, j, row[i], row[j]) for i, j in places}
        rows.append(tuple(factor[row[k]] for k, factor in enumerate(factors)))
    return rows


def _gain(row: Mapping[int, int], missing: set[tuple[int, int, int, int]]) -> int:
    return sum((p, q, row[p], row[q]) in missing for p, q in combinations(sorted(row), 2))


# The plain twin of training -------------------------------------------------------------------


class PlainTraining:
    """`Training` with nothing clever: every gradient by a pass of its own, as in a textbook.

    For methods that look at one batch and have no learned weights; BatchNorm but no dropout.
    """

    def __init__(
        self,
        problem: Problem,
        network: MultiTaskNetwork,
        weighting: Weighting | None,
        aggregator: Weighting | Aggregator | None,
        schedule: Schedule,
        optimizer: Callable[..., torch.optim.Optimizer],
    ) -> None:
        self.problem, self.network, self.schedule = problem, network, schedule
        self.weighting, self.aggregator = weighting, aggregator
        self.tasks = tuple(problem.tasks)
        self.blocks = network.blocks()
        self.slots = [optimizer(self.blocks.shared) for _ in schedule.groups(len(self.tasks))]
        self.heads = {task: optimizer(self.blocks.own[task]) for task in self.tasks}
        self.stream = Stream(problem.train, problem.batch_size, mixed_seed(0, *b"data"))
        self.last = dict.fromkeys(self.tasks, 1.0)
        slots = (self.weighting, self.aggregator)
        self.running = {m: Running(m, self.tasks) for m in slots if m is not None}

    def run(self, epochs: int) -> None:
        drawn = step = 0
        while drawn < epochs * len(self.stream):
            clock = Clock(epoch=drawn // len(self.stream), step=step)
            phases = self.schedule(clock, self.tasks)
            for phase in phases:
                self.update(phase, self.stream.batch(drawn + phase.batch), clock)
            drawn += 1 + max(phase.batch for phase in phases)
            step += 1

    def update(self, phase: Phase, batch: Batch, clock: Clock) -> None:
        self.network.eval()
        self.network.trunk.train("shared" in phase.trains)
        for task in phase.tasks:
            self.network.head(task).train("own" in phase.trains)
        outputs = self.network(batch[0], tasks=phase.tasks)
        losses = self.problem.losses(outputs, batch[1])
        weights, direction = self.balanced(losses, outputs.features, phase, clock)
        own = {t: plain_jacobian([loss], self.blocks.own[t])[0] for t, loss in losses.items()}
        if "shared" in phase.trains:
            put_grad(self.blocks.shared, direction)
            self.slots[phase.group].step()
        if "own" in phase.trains:
            for task, weight in zip(losses, weights, strict=True):
                put_grad(self.blocks.own[task], weight * own[task])
                self.heads[task].step()

    def balanced(
        self, losses: Mapping[str, Tensor], features: Tensor, phase: Phase, clock: Clock
    ) -> tuple[Tensor, Tensor]:
        """What multiplies each task's gradient in the heads, and the trunk's direction."""
        jacobian = plain_jacobian(losses.values(), self.blocks.shared)
        values = torch.stack([loss.detach() for loss in losses.values()])
        index = torch.tensor([self.tasks.index(task) for task in losses])

        def seen_by(method: Method, scale: Tensor) -> TaskGradients:
            rows = plain_jacobian(losses.values(), self.targets(method.at, features))
            return TaskGradients.of(
                jacobian=scale.unsqueeze(1) * rows,
                losses=scale * values,
                tasks=list(losses),
                index=index,
                total=len(self.tasks),
                clock=clock,
            )

        trunk_moves = "shared" in phase.trains
        weights = torch.ones_like(values)
        if self.weighting is not None:
            if trunk_moves or not self.weighting.traits.reads_gradients:
                seen = seen_by(self.weighting, weights)
                weights = self.running[self.weighting](seen).to(values)
            else:
                weights = values.new_tensor([self.last[task] for task in losses])
        self.last |= dict(zip(losses, weights.tolist(), strict=True))
        if self.aggregator is None or self.aggregator.traits.reads_gradients > trunk_moves:
            return weights, weights @ jacobian
        merged = self.running[self.aggregator](seen_by(self.aggregator, weights))
        if isinstance(self.aggregator, Aggregator):
            return weights, merged
        return weights, (weights * merged.to(values)) @ jacobian

    def targets(self, place: Place, features: Tensor) -> Sequence[Tensor]:
        if callable(place):
            return tuple(place(self.blocks.shared))
        return {
            "parameters": self.blocks.shared,
            "representation": (features,),
            "last_layer": self.blocks.last_layer,
        }[place]


def put_grad(parameters: Sequence[Tensor], gradient: Tensor) -> None:
    """Cut a flat gradient into `.grad`."""
    pieces = torch.split(gradient, [p.numel() for p in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.reshape(parameter.shape).clone()
