"""The doctor's round on a problem: count, look, measure, and on request verify."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evenhand.comparison.request import OPTIMIZERS, Maker, Settings
from evenhand.data.problem import Batch, Problem, Stream
from evenhand.doctor.agreement import FEWEST
from evenhand.doctor.costs import Cost, costs
from evenhand.doctor.describe import Description, describe
from evenhand.doctor.diagnose import BATCHES, Diagnosis, diagnose
from evenhand.doctor.ladder import Effort, Experiments, Ladder, climbed, samples
from evenhand.doctor.splitting import Splitting, splittings
from evenhand.network import MultiTaskNetwork

STEPS = 600
"""The most steps that the plain sum is trained between the first look and the last."""
GRADIENTS = 2**28
"""The most numbers in the gradients of a look; of large networks it takes fewer batches."""
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
        ladder: the small experiments; None unless they were asked for.
        effort: what these took.
        splittings: ways of sharing less, tried where there is a conflict.
    """

    source: str
    description: Description
    diagnosis: Diagnosis | None
    unseen: str
    costs: tuple[Cost, ...]
    ladder: Ladder | None
    effort: Effort | None
    splittings: tuple[Splitting, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(self.description.tasks)


def examine(
    asked: Settings | Problem | Maker | str,
    *,
    verify: bool = False,
    looks: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> Examination:
    """Do these tasks conflict, and what would help?

    Args:
        asked: settings, a problem, a function of the split's number, or the name of a data set.
        verify: climb the ladder of small experiments; without it there is evidence and no verdict.
        looks: at how many times in training gradients are looked at.
        say: is told of each stage before it begins.

    Raises:
        ValueError: there is one task only, a task has no label in a part, or the data are unknown.
    """
    settings = asked if isinstance(asked, Settings) else Settings.suggested(asked)
    problem = settings.problem()
    if len(problem.tasks) < 2:
        raise ValueError(f"{problem.name} has one task: a question between tasks needs two")
    problem.check_labels()
    say("counting labels")
    description = describe(problem)
    say("looking at gradients while the plain sum trains")
    diagnosis, unseen = _looked_at(problem, settings, looks)
    say("measuring what methods cost")
    measured = costs(problem)
    ladder, effort = None, None
    split: tuple[Splitting, ...] = ()
    if verify:
        effort = _effort(settings, problem)
        ratio = _ratio(settings, problem)
        again = settings.splits > 1
        experiments = Experiments(
            settings.problem if again else lambda split: problem, effort, ratio
        )

        def training(what: str) -> None:
            say(f"training: {what}")

        ladder = climbed(experiments, say=training)
        if ladder.cause == "conflict" and diagnosis is not None:
            split = splittings(experiments, diagnosis, training)
    return Examination(
        problem.name, description, diagnosis, unseen, measured, ladder, effort, split
    )


def _effort(settings: Settings, problem: Problem) -> Effort:
    splits = settings.splits if settings.splits > 1 else SEEDS
    return Effort(splits, settings.epochs or problem.epochs, settings.rates)


def _ratio(settings: Settings, problem: Problem) -> float | None:
    """n_test / (n − n_test) in independent units; None where the test rows are always the same."""
    if settings.splits == 1 or problem.official_test:
        return None
    if problem.units is not None:
        learning, testing = problem.units
    else:
        learning = samples(problem) + len(problem.validation)
        testing = len(problem.test)
    return testing / learning


def _looked_at(problem: Problem, settings: Settings, looks: int) -> tuple[Diagnosis | None, str]:
    rates = sorted(settings.rates)
    rate = rates[(len(rates) - 1) // 2]
    stream = Stream(problem.train, problem.batch_size, 0)
    steps = min(STEPS, (settings.epochs or problem.epochs) * len(stream))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = problem.network(tuple(problem.tasks))

    def losses(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return problem.losses(model(batch[0], tasks=tuple(problem.tasks)), batch[1])

    try:
        found = diagnose(
            network,
            losses,
            _Full(problem, stream),
            train=partial(OPTIMIZERS[settings.optimizer], lr=rate),
            steps=steps,
            looks=looks,
            number=_batches(network),
        )
    except ValueError as error:
        return None, str(error)
    return found, ""


def _batches(network: MultiTaskNetwork) -> int:
    """How many batches a look takes: 16, or as many gradients as are held at once."""
    shared = sum(parameter.numel() for parameter in network.blocks().shared)
    return max(FEWEST, min(BATCHES, GRADIENTS // max(1, shared * len(network.tasks))))


@dataclass(frozen=True)
class _Full:
    """Batches that have labels of every task: an epoch's, or several epochs' if these are short."""

    problem: Problem
    stream: Stream

    def __iter__(self) -> Any:
        tasks = tuple(self.problem.tasks)
        epochs = math.ceil(BATCHES / len(self.stream))
        for number in range(epochs * len(self.stream)):
            batch = self.stream.batch(number)
            if len(self.problem.active(tasks, batch[1])) == len(tasks):
                yield batch
