"""Many runs of a small network, trained as one: each with its own seed, rate, end and records.

`StackedTraining` is given ordinary trainings that differ in seeds, initial weights and learning
rates, and gives for each of them the records that it would have given alone. Their networks are a
stack (`network.py`); a training loop over the stack carries out the phases, so it needs neither
methods nor schedules of its own. What lies between epochs (validation, early stopping, the best
weights) is each member's, as if it were alone: its network's parameters are views of the stack's.

Everything a member draws at random (initial weights, order of the data, its methods' chance) is
what its run draws. Sums are taken in another order, so numbers agree to rounding and not bit for
bit: to 1e-10 in double precision over some epochs. Training at a high rate amplifies rounding, and
losses in single precision may soon differ in their first digits, as they do between single runs
whose initial weights differ by one rounding. Which runs are trained together is therefore part of
what determines a result, and does not depend on which of them happen to be finished.

A member whose loss or gradient is not finite leaves, as if it had raised; until the end of the
epoch another member's copy keeps its place.

What cannot be stacked is told by `obstacle`: modules with buffers (BatchNorm) or active dropout,
parameters that trunk and heads share, data that are not in memory or lack labels, a penalty,
schedules whose phases depend on the seed or on what a run has met, rates that follow a schedule.

A stack pays while starting operations costs more than carrying them out: `drawback` tells, from
counts alone. The gain over single runs, as ``benchmarks/stack.py`` printed it on one core of a
server (CPU time of the steps, MGDA with SGD, single precision):

    operations of a member's forward pass           3 members   9 members   30 members
          72         (2-2-2, batch 4)                  2.2         5.5         24
        .065 million (two Conv1D of 4, batch 32)       1.8         4.7         10
        .56 million  (2-64-64, batch 64)               1.9         4.1          6.8
        1.4 million  (digits, batch 64)                1.7         3.1          5.2
        2.2 million  (2-128-128, batch 64)             1.5         2.5          3.2
        5.2 million  (two Conv1D of 32, batch 64)      1.3         2.1          2.5
        8.7 million  (2-128-128, batch 256)            1.2         1.7          1.9
         34 million  (2-256-256, batch 256)            1.1         1.2          1.1
        135 million  (2-512-512, batch 256)            0.9         0.9          0.8

Single runs can use as many cores as there are runs, a stack uses one: within the limits below it
wins on two or three cores, and where there are many, several recipes fill them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evenhand.autodiff.gradients import NonFiniteError
from evenhand.data.problem import Split
from evenhand.ensemble.network import Stack
from evenhand.ensemble.stepper import EnsembleStepper, Streams, alike, optimizers_of
from evenhand.schedules import in_step
from evenhand.training import checkpoint
from evenhand.training.epoch_statistics import EpochStatistics
from evenhand.training.flops import Meter
from evenhand.training.loop import Training
from evenhand.training.records import Mark, Record, RecordFile
from evenhand.training.steps import Steps

FINISHED = "finished"
FEWEST = 3
"""Fewer members are not worth a stack."""
LARGEST = 4_000_000
"""Floating-point operations of one member's forward pass on a batch, beyond which a stack does
not pay: two for each multiply-add."""


def obstacle(members: Sequence[Training]) -> str:
    """Why these trainings cannot be one stack, or ""; it is tried on a batch, training nothing."""
    if not members:
        return "a stack needs at least one run"
    first = members[0]
    source = first.problem.train
    if any(_kept_alike(member) != _kept_alike(first) for member in members):
        return "the runs differ in more than seeds, weights and rates"
    if any(member.first is not None or member.step for member in members):
        return "a run has begun already"
    if not isinstance(source, Split):
        return "its data are not held in memory"
    if any(parameter.device.type != "cpu" for parameter in first.network.parameters()):
        return "its network is not on the CPU"
    if first.problem.penalty is not None:
        return "its problem has a penalty"
    labels = {task: first.problem.tasks[task].labels for task in first.tasks}
    if not all(labels[task].complete(source.targets[task]) for task in first.tasks):
        return "some labels are missing"
    if not in_step(first.phases):
        return f"its phases depend on the seed, or on how training goes: {first.phases!r}"
    if any(member.plateau is not None for member in members):
        return "its rates are reduced on a plateau"
    try:
        stack = Stack([member.network for member in members[:2]])
        optimizers_of(members[:2], stack, first.balancer.parameters())
    except ValueError as error:
        return str(error)
    return _obstacle_of_trial(members[:2], stack)


def _kept_alike(member: Training) -> tuple[Any, ...]:
    balancer = member.balancer
    methods = map(repr, (balancer.weighting, balancer.aggregator, balancer.chunking.wanted))
    stream = member.stream
    drawing = (stream.batch_size, stream.replacement, stream.drop_last, member.observe_every)
    rest = (member.frozen, member.count_flops, repr(member.phases), member.optimizers.groups)
    return (id(member.problem), member.tasks, member.epochs, *drawing, *rest, *methods)


@torch.no_grad()
def _obstacle_of_trial(members: Sequence[Training], stack: Stack) -> str:
    """Whether the stack of two members says what they say, on their first batch."""
    tasks, problem = members[0].tasks, members[0].problem
    inputs, targets = Streams([member.stream for member in members]).batch(0)
    for network in (stack, *(member.network for member in members)):
        network.train()
    try:
        outputs = stack(inputs, tasks=problem.heads(tasks))
        losses = alike(problem).losses(outputs, targets, tasks)
    except (RuntimeError, ValueError) as error:
        first_line, *_ = str(error).splitlines() or [""]
        return f"torch.func.vmap cannot evaluate its network or losses: {first_line}"
    for k, member in enumerate(members):
        x, y = member.stream.batch(0)
        with torch.random.fork_rng(devices=[]):
            alone = problem.losses(member.network(x, tasks=problem.heads(tasks)), y, tasks)
        for task in tasks:
            one, other = losses[task][k], alone[task]
            near = torch.finfo(other.dtype).eps ** 0.5
            if not torch.isclose(one, other, rtol=near, atol=near, equal_nan=True):
                return f"the loss of {task!r} is another in a stack: the network draws at random?"
    return ""


def drawback(member: Training, number: int) -> str:
    """Why a stack of `number` such trainings would not pay, or "".

    The answer depends on counts alone, so it is the same on every machine.
    """
    if number < FEWEST:
        return f"a stack pays from {FEWEST} runs on, here are {number}"
    source = member.problem.train
    if not isinstance(source, Split):
        return ""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), Meter() as meter:
        member.network(source.inputs[:2], tasks=member.problem.heads(member.tasks))
    taken = meter.total * member.stream.batch_size / len(source.inputs[:2])
    if taken > LARGEST:
        return (
            f"a forward pass takes {taken / 1e6:.3g} million operations, and a stack pays up to "
            f"{LARGEST / 1e6:.3g}"
        )
    return ""


class StackedTraining:
    """Several trainings as one.

    Iterate over ``run()`` for the members' records. A member that has finished has the weights of
    its best epoch in its network. Two stacks of equal members give equal records, bit for bit,
    apart from `seconds`; so do one that ran through and one that was killed and resumed.

    Work and time are those of a single run, so that methods can be compared whether stacked or
    not: both are taken from one network by itself, which goes along, without moving, in a few
    steps of every epoch. Features are not kept while a trunk is frozen, so `reused` stays 0.

    Args:
        members: trainings that have not begun, and differ in seeds, initial weights and learning
            rates alone.

    Raises:
        ValueError: they cannot be stacked; the message says why.

    Attributes:
        members: these.
        alive: the positions of those that are still trained.
        ended: position -> "finished", or "diverged: " and the reason.
    """

    def __init__(self, members: Sequence[Training]) -> None:
        if reason := obstacle(members):
            raise ValueError(f"these runs cannot be trained as one: {reason}")
        self.members = list(members)
        self.alive = list(range(len(members)))
        self.ended: dict[int, str] = {}
        self._told: set[int] = set()
        self._stepper = EnsembleStepper.of(members)
        first = members[0]
        self._steps = Steps(
            self._stepper,
            first.phases,
            first.tasks,
            first.seed,
            observe_every=first.observe_every,
        )
        self._show()

    def run(
        self,
        saved: Path | None = None,
        files: Mapping[int, RecordFile] | None = None,
        checkpoint_every: int = 10,
    ) -> Iterator[tuple[int, Record | str]]:
        """Train; a member's position with each of its records, at last with its entry in `ended`.

        Args:
            saved: the checkpoint of all members. If it is there, it is resumed, and what was given
                before is given again, as far as it is in `files`.
            files: where to keep the records of the members at these positions. They are written
                when a checkpoint is, and when a member ends.
            checkpoint_every: epochs between checkpoints.

        Raises:
            ValueError: the checkpoint is damaged, or other runs'.
            OSError: a file cannot be read or written.
        """
        logs, marks = _Logs(files or {}), None
        if saved is not None and saved.exists():
            state, about = checkpoint.read(saved)
            about.require(self.identity(), saved)
            marks = about.records
            self.load_state_dict(state)
        begun = any(member.first is not None for member in self.members)
        yield from logs.so_far(marks, self.ended)
        if not begun:
            yield from logs.added(self._judged([EpochStatistics() for _ in self.alive]))
        yield from self._released()
        while self.alive:
            before = self.alive
            events = logs.added(self._judged(self._epoch()))
            due = self._steps.epoch % checkpoint_every == 0
            logs.write(k for k in before if due or k in self.ended or self.members[k].finished)
            if saved is not None and due:
                about = checkpoint.About(self.identity(), logs.marks())
                checkpoint.save(self.state_dict(), saved, about)
            yield from events
            yield from self._released()

    def _epoch(self) -> list[EpochStatistics]:
        """The steps of an epoch, for each member that lives through it; the others leave."""
        number = len(self.alive)
        try:
            statistics = self._steps.train_epoch(self.members[0].count_flops).members(number)
        except NonFiniteError:  # of every member
            statistics = [EpochStatistics()] * number
        fallen = self._stepper.fallen
        self.ended.update({self.alive[at]: f"diverged: {why}" for at, why in fallen.items()})
        lasting = [at for at in range(number) if at not in fallen]
        if fallen:
            self._go_on_with(lasting)
            fallen.clear()
        return [statistics[at] for at in lasting]

    def _judged(self, statistics: Sequence[EpochStatistics]) -> list[tuple[int, Record]]:
        """Each member's record of the epoch."""
        held = sum(self._stepper.optimizers.state_bytes().values()) // max(len(self.alive), 1)
        records = []
        for k, mine in zip(self.alive, statistics, strict=True):
            member = self.members[k]
            member.steps.load_state_dict(self._steps.state_dict())
            mine.rates = member.optimizers.rates() if mine.rates else {}
            records.append((k, member.judged(mine, held)))
        return records

    def _released(self) -> list[tuple[int, str]]:
        """Those that have ended since this was asked last; the finished ones leave."""
        going = [at for at, k in enumerate(self.alive) if not self.members[k].finished]
        if len(going) < len(self.alive):
            finished = [k for k in self.alive if self.members[k].finished]
            self._go_on_with(going)
            for k in finished:
                self.members[k].network.load_state_dict(self.members[k].best_weights)
                self.ended[k] = FINISHED
        fresh = [k for k in self.ended if k not in self._told]
        self._told.update(fresh)
        return [(k, self.ended[k]) for k in fresh]

    def _go_on_with(self, at: Sequence[int]) -> None:
        """Go on with the members at these positions among those alive."""
        self.alive = [self.alive[position] for position in at]
        self._stepper.select(torch.tensor(at, dtype=torch.int64))
        self._show()

    def _show(self) -> None:
        """Let the members' parameters be views of the stack's."""
        values = self._stepper.network.named_values()
        for at, k in enumerate(self.alive):
            for name, parameter in self.members[k].network.named_parameters():
                parameter.data = values[name].data[at]

    # Resuming ---------------------------------------------------------------------------------

    def identity(self) -> dict[str, str]:
        """What tells these runs from others: what their members' identities have in turn."""
        each = [member.identity() for member in self.members]
        return {name: "; ".join(dict.fromkeys(one[name] for one in each)) for name in each[0]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        states = [member.state_dict() for member in self.members]
        return {
            "steps": {**self._steps.state_dict(), **self._stepper.state_dict()},
            "alive": self.alive,
            "ended": self.ended,
            "members": [{name: state[name] for name in OWN} for state in states],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._go_on_with(state["alive"])
        self.ended = state["ended"]
        self._told = set(self.ended)
        self._steps.load_state_dict(state["steps"])
        self._stepper.load_state_dict(state["steps"])
        for k, own in enumerate(state["members"]):
            member = self.members[k]
            member.load_state_dict(
                {**member.state_dict(), **own}
            )  # what is not its own lies unused
            if self.ended.get(k) == FINISHED:
                member.network.load_state_dict(member.best_weights)


OWN = ("best_weights", "stopping", "first", "epoch", "step", "drawn")
"""What of a training's state is a member's own."""


class _Logs:
    """Record files that are written now and then."""

    def __init__(self, files: Mapping[int, RecordFile]) -> None:
        self._files = files
        self._waiting: dict[int, list[Record]] = {k: [] for k in files}

    def so_far(
        self, marks: Mapping[str, Mark] | None, ended: Mapping[int, str]
    ) -> Iterator[tuple[int, Record | str]]:
        """What there was at the checkpoint with these marks, which alone stays in the files."""
        for k, file in self._files.items():
            if marks is None:
                file.rewind(None)
            elif str(k) in marks:
                self._rewind(file, marks[str(k)])
            yield from ((k, record) for record in file)
            if k in ended:
                yield k, ended[k]

    def _rewind(self, file: RecordFile, mark: Mark) -> None:
        try:
            file.rewind(mark)
        except ValueError as error:
            raise ValueError(
                f"{error} that the checkpoint of these runs was taken after: delete it, and they "
                "begin anew, to the same numbers"
            ) from error

    def marks(self) -> dict[str, Mark]:
        """How far each member's file has come."""
        return {str(k): file.mark() for k, file in self._files.items()}

    def added(self, records: Sequence[tuple[int, Record]]) -> Sequence[tuple[int, Record]]:
        """The same, remembered until they are written."""
        for k, record in records:
            if k in self._files:
                self._waiting[k].append(record)
        return records

    def write(self, members: Iterable[int]) -> None:
        """Write what these members have waiting."""
        for k in members:
            if self._waiting.get(k):
                self._files[k].append(*self._waiting[k])
                self._waiting[k].clear()
