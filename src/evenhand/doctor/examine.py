"""The doctor's round on a problem: count, look, measure, and on request verify."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from evenhand.asking import option
from evenhand.autodiff.gradients import NonFiniteError
from evenhand.comparison.budget import duration
from evenhand.comparison.request import Maker, Settings, optimizer
from evenhand.data.problem import Batch, Problem, Split, Stream
from evenhand.doctor.agreement import FEWEST
from evenhand.doctor.budget import (
    COSTS,
    LOOKS,
    USUAL,
    VERIFYING,
    Clock,
    Extent,
    affordable,
    extent,
)
from evenhand.doctor.costs import KINDS, Cost, costs
from evenhand.doctor.describe import Description, describe
from evenhand.doctor.diagnose import BATCHES, Diagnosis, watched
from evenhand.doctor.ladder import Effort, Experiments, Ladder, climbed, samples
from evenhand.doctor.looks import look
from evenhand.doctor.splitting import Splitting, splittings
from evenhand.doctor.trials import Trial, obstacle, run
from evenhand.network import MultiTaskNetwork

STEPS = 600
"""The most steps that the plain sum is trained between the first look and the last."""
GRADIENTS = 2**28
"""The most numbers in the gradients of a look; of large networks it takes fewer batches."""
SHORT = 2**24
"""Parameters times samples of a batch, up to which a step is short."""
PROPOSALS = 12
"""About how many networks the ways of sharing less train, in each split at each rate."""
SEEDS = 5
"""How often a problem is trained that cannot be divided anew."""


@dataclass(frozen=True)
class Examination:
    """All that was found.

    Attributes:
        source: what was examined.
        description: what was counted.
        diagnosis: gradients at several times of training the plain sum; None where they could not
            be looked at.
        unseen: why they could not, or "".
        costs: of each kind of method on this model.
        ladder: the small experiments; None unless they were asked for, and there was time.
        effort: what these took.
        splittings: ways of sharing less, tried where there is a conflict.
        extent: how much was looked at.
        sampled: what was left out to keep within the time, in sentences.
        notes: what was decided about the columns of a table, in sentences.
    """

    source: str
    description: Description
    diagnosis: Diagnosis | None
    unseen: str
    costs: tuple[Cost, ...]
    ladder: Ladder | None
    effort: Effort | None
    splittings: tuple[Splitting, ...] = ()
    extent: Extent | None = None
    sampled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(self.description.tasks)


def examine(
    asked: Settings | Problem | Maker | str,
    *,
    verify: bool = False,
    looks: int = 3,
    budget: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Examination:
    """Do these tasks conflict, and what would help?

    Args:
        asked: settings, a problem, a function of the split's number, or the name of a data set.
        verify: climb the ladder of small experiments; without it there is evidence and no verdict.
        looks: at how many times in training gradients are looked at.
        budget: seconds of wall time that it should take; by default a minute, and half an hour
            with `verify`. What is left out to keep it is in `Examination.sampled`. Data that must
            be read to know what they are take their time beside it.
        say: is told what was decided of a table's columns, and of each stage before it begins.

    Raises:
        ValueError: there is one task only, a task has no label in a part, a piece of the problem
            fails, the data are unknown or not finite, or the budget is not positive.
    """
    settings = asked if isinstance(asked, Settings) else Settings.suggested(asked)
    seconds = budget if budget is not None else VERIFYING if verify else USUAL
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"budget={budget}: must be a positive number of seconds")
    problem = _problem(settings)
    if len(problem.tasks) < 2:
        raise ValueError(f"{problem.name} has one task: a question between tasks needs two")
    problem.check_labels()
    problem.check_pieces()
    problem.check_finite()
    clock, notes = Clock(seconds), _notes(settings)
    for note in notes:
        say(note)
    say("counting labels")
    description = describe(problem)
    say("looking at gradients while the plain sum trains")
    looking = _Looking(settings, problem, looks)
    with _threads(problem, looking.network):
        return _examined(settings, problem, looking, description, verify, clock, notes, say)


def _problem(settings: Settings, split: int = 0) -> Problem:
    """The problem of a split, with the optimizer that is asked for."""
    return replace(settings.problem(split), optimizer=settings.optimizer)


@contextmanager
def _threads(problem: Problem, network: nn.Module) -> Iterator[None]:
    """One thread for networks whose steps are short.

    They gain little by several, and lose much on a busy machine, where threads wait for each other:
    a verification of 25 seconds of one thread took 150 and more of two.
    """
    before = torch.get_num_threads()
    size = sum(p.numel() for p in network.parameters())
    if size * problem.batch_size <= SHORT:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _examined(
    settings: Settings,
    problem: Problem,
    looking: _Looking,
    description: Description,
    verify: bool,
    clock: Clock,
    notes: tuple[str, ...],
    say: Callable[[str], None],
) -> Examination:
    seconds = clock.seconds
    step = looking.step_seconds(0.02 * seconds)
    looked = min(seconds, USUAL)
    diagnosis, unseen, seen = looking.look(step, LOOKS * looked)
    sampled = list(_less(looking.wanted, seen, looked))
    say("measuring what methods cost")
    measured, why = _costs(problem, step, COSTS * looked)
    sampled += why
    found = Examination(
        problem.name, description, diagnosis, unseen, measured, None, None, extent=seen
    )
    if verify:
        found = _verified(found, settings, problem, clock, step, say, sampled)
    return replace(found, sampled=tuple(sampled), notes=notes)


def _notes(settings: Settings) -> tuple[str, ...]:
    from evenhand.tables.problem import TableProblem

    source = settings.resolved()
    return source.examined.notes if isinstance(source, TableProblem) else ()


def _less(wanted: Extent, seen: Extent | None, seconds: float) -> list[str]:
    """What was left out of the looks."""
    if seen is None or seen == wanted:
        return []
    parts = [
        f"{got} of {all_} {what}"
        for what, got, all_ in (
            ("steps of training", seen.steps, wanted.steps),
            ("looks", seen.looks, wanted.looks),
            ("batches a look", seen.batches, wanted.batches),
        )
        if got < all_
    ]
    return [f"To look for no longer than {duration(seconds)} it took {', '.join(parts)}."]


def _costs(problem: Problem, step: float, seconds: float) -> tuple[tuple[Cost, ...], list[str]]:
    """The costs of the kinds of methods, and why there are none."""
    tasks = len(problem.tasks)
    # Each kind steps three times at least; the last two take each task's gradient, and so do
    # the single-task networks.
    expected = 3 * step * (len(KINDS) - 1 + 2 * tasks)
    if expected > 2 * seconds:
        told = f"What methods cost was not measured: it takes about {duration(expected)}."
        return (), [told]
    return costs(problem, seconds=seconds), []


# The ladder -----------------------------------------------------------------------------------


def _verified(
    found: Examination,
    settings: Settings,
    problem: Problem,
    clock: Clock,
    step: float,
    say: Callable[[str], None],
    sampled: list[str],
) -> Examination:
    """With the ladder, as far as there is time for it; what there is none for is added."""
    wanted = _effort(settings, problem)
    seconds_of = partial(_first_rung, settings, problem, step)
    if seconds_of(wanted) > clock.left():  # only then is it worth being exact
        seconds_of = partial(_first_rung, settings, problem, _stacked_step(problem, wanted, step))
    effort, given_up = affordable(wanted, seconds_of, clock.left())
    if effort is None:
        least = affordable(wanted, seconds_of, math.inf)[0] or wanted
        sampled.append(
            f"Held-out losses were not asked: the first question alone takes about "
            f"{duration(seconds_of(least))} ({option('budget')})."
        )
        return found
    if given_up:
        sampled.append(f"To keep within {clock}, given up: {', '.join(given_up)}.")
    again = settings.splits > 1
    experiments = Experiments(
        partial(_problem, settings) if again else lambda split: problem,
        effort,
        _ratio(settings, problem),
    )

    def training(what: str) -> None:
        say(f"training: {what}")

    ladder = climbed(experiments, say=training, left=clock.left)
    split: tuple[Splitting, ...] = ()
    if ladder.cause == "conflict" and found.diagnosis is not None:
        if experiments.seconds_of(PROPOSALS) <= clock.left():
            split = splittings(experiments, found.diagnosis, training)
        else:
            untried = f"no time is left ({option('budget')})"
            sampled.append(f"Ways of sharing less were not tried: {untried}.")
    return replace(found, ladder=ladder, effort=effort, splittings=split)


def _effort(settings: Settings, problem: Problem) -> Effort:
    splits = settings.splits if settings.splits > 1 else SEEDS
    return Effort(splits, settings.epochs or problem.epochs, settings.rates)


def _first_rung(settings: Settings, problem: Problem, step: float, effort: Effort) -> float:
    """Seconds of together and apart, if one network's step takes `step`."""
    networks = effort.splits * len(effort.rates) * (1 + len(problem.tasks))
    steps = effort.epochs * max(1, samples(problem) // problem.batch_size)
    # A forward pass over the held-out rows, about a third of a step each, at every reading.
    held_out = (len(problem.validation) + len(problem.test)) / problem.batch_size / 3
    return networks * step * (steps + effort.looks * held_out)


def _ratio(settings: Settings, problem: Problem) -> float | None:
    """n_test / (n − n_test) in independent units; None where the test rows are always the same.

    Infinite for splits by time: they follow one another, and say nothing of chance.
    """
    if settings.design == "time":
        return math.inf
    if settings.splits == 1 or problem.official_test:
        return None
    if problem.units is not None:
        learning, testing = problem.units
    else:
        learning = samples(problem) + len(problem.validation)
        testing = len(problem.test)
    return testing / learning


def _stacked_step(problem: Problem, effort: Effort, step: float) -> float:
    """Seconds of a step of one among many networks; `step` where they are not trained as one."""
    if not (isinstance(problem.validation, Split) and isinstance(problem.test, Split)):
        return step
    first = torch.tensor([0])
    one, other = Split(*problem.validation.take(first)), Split(*problem.test.take(first))
    few = {0: replace(problem, validation=one, test=other)}
    tasks = range(len(problem.tasks))
    weights = [
        tuple(1.0 for _ in tasks),
        *(tuple(float(k == only) for k in tasks) for only in tasks),
    ]
    trials = [Trial(0, each, rate) for each in weights for rate in effort.rates]
    if obstacle(few, trials):
        return step
    taken = []
    for steps in (1, 5):
        start = time.perf_counter()
        run(few, trials, [steps])
        taken.append(time.perf_counter() - start)
    return max(0.0, taken[1] - taken[0]) / 4 / len(trials)


# The looks ------------------------------------------------------------------------------------


class _Looking:
    """The plain sum's training that is looked at."""

    def __init__(self, settings: Settings, problem: Problem, looks: int) -> None:
        rates = sorted(settings.rates)
        make, rate = optimizer(settings.optimizer), rates[(len(rates) - 1) // 2]
        self.problem, self.tasks = problem, tuple(problem.tasks)
        self.train = partial(make, lr=rate)
        self.stream = Stream(problem.train, problem.batch_size, 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = problem.network(self.tasks)
        steps = min(STEPS, (settings.epochs or problem.epochs) * len(self.stream))
        self.seen = self._seen(_batches(self.network))
        self.wanted = Extent(steps, looks, len(self.seen))

    def losses(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return self.problem.losses(model(batch[0], tasks=self.tasks), batch[1])

    def step_seconds(self, most: float) -> float:
        """Of a step of a copy, its batch being read; the least of up to four."""
        with torch.random.fork_rng():
            model = deepcopy(self.network)
            optimizer = self.train(model.parameters())
            taken: list[float] = []
            begun = time.perf_counter()
            for number in range(min(4, len(self.stream))):
                start = time.perf_counter()
                losses = self.losses(model, self.stream.batch(number))
                if losses:
                    optimizer.zero_grad()
                    total = torch.stack([*losses.values()]).sum()
                    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
                    optimizer.step()
                taken.append(time.perf_counter() - start)
                if time.perf_counter() - begun > most:
                    break
        return min(taken)

    def look(self, step: float, seconds: float) -> tuple[Diagnosis | None, str, Extent | None]:
        """What was seen, why nothing was, and how much was looked at."""
        if len(self.seen) < FEWEST:
            told = f"{len(self.seen)} batches without common samples have labels of every task"
            return None, f"{told}: at least {FEWEST} are needed", None
        asked = extent(self.wanted, step, len(self.tasks), seconds)
        if asked is None:
            least = Extent(0, 1, FEWEST).seconds(step, len(self.tasks))
            told = f"a single look takes about {duration(least)} ({option('budget')})"
            return None, told, None
        seen = self.seen[: asked.batches]
        try:
            found = (
                watched(
                    self.network,
                    self.losses,
                    seen,
                    _Full(self.problem, self.stream),
                    self.train,
                    asked.steps,
                    asked.looks,
                )
                if asked.steps
                else Diagnosis((look(self.network, self.losses, seen),))
            )
        except (ValueError, NonFiniteError) as error:
            return None, str(error), None
        return found, "", asked

    def _seen(self, most: int) -> list[Batch]:
        """Batches to look at, with labels of every task, which have no sample in common.

        Samples that two batches share would bring their noise into the products between them. Of a
        small training part batches are smaller than those of the training, so that there are four.

        """
        train = self.problem.train
        stream = self.stream
        if isinstance(train, Split):
            size = min(self.problem.batch_size, max(1, len(train) // FEWEST))
            stream = Stream(train, size, 0, drop_last=True)
        found: list[Batch] = []
        for number in range(len(stream)):
            batch = stream.batch(number)
            if len(self.problem.active(self.tasks, batch[1])) == len(self.tasks):
                found.append(batch)
            if len(found) == most:
                break
        return found


def _batches(network: MultiTaskNetwork) -> int:
    """How many batches a look takes: 16, or as many gradients as are held at once."""
    shared = sum(parameter.numel() for parameter in network.blocks().shared)
    return max(FEWEST, min(BATCHES, GRADIENTS // max(1, shared * len(network.tasks))))


@dataclass(frozen=True)
class _Full:
    """Batches that have labels of every task, without end."""

    problem: Problem
    stream: Stream

    def __iter__(self) -> Iterator[Batch]:
        tasks = tuple(self.problem.tasks)
        for number in count():
            batch = self.stream.batch(number)
            if len(self.problem.active(tasks, batch[1])) == len(tasks):
                yield batch
