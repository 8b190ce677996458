"""The ladder: what the difference between together and apart is due to, by small experiments.

Gradients cannot say whether tasks conflict: what opposes on this batch may be noise, and what
opposes now may not matter in the end. So a conflict is claimed only of held-out losses. The first
question is whether some task is better apart; each further one repeats it after a change that would
cure another cause:

    rung             the joint network                                   if that cures it
    standardised     losses divided by those of the best constant        scale
    tuned            fixed weights chosen on validation                  scale
    own epochs       each task at the epoch that is best for it          own epochs
    longer           twice the steps, as the networks apart              time
    wider            as large as all networks apart, twice               capacity
    all of these     wider, longer, weighted, own epochs                 several of them

and one repeats it on half of the training rows: a difference that falls with more labels is one of
too few, or too noisy, labels. What is left on every rung is conflict.

The harm to a task is

    100 · (loss together − loss apart) / loss of the best constant

on test rows, in points: 0 is no difference, 100 is all there is to learn. Each split chooses rate,
epoch and weights on its validation part, apart and together alike, as a comparison does; intervals
are those of `comparison/inference.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evenhand.asking import option
from evenhand.comparison.constant import constant_network, lowest_losses
from evenhand.comparison.inference import Estimate, over_splits, over_trainings
from evenhand.data.problem import Problem, Split
from evenhand.doctor.trials import Curves, Trial, run, times_until
from evenhand.schedules import mixed_seed
from evenhand.sharing.base import parameters, width_for
from evenhand.training.loop import evaluate

TOGETHER, STANDARDISED, TUNED = "together", "standardised", "tuned"
OWN, LONGER, WIDER, ALL, HALF = "own epochs", "longer", "wider", "all of these", "half the labels"
RUNGS = (TUNED, STANDARDISED, OWN, LONGER, WIDER, ALL)
"""What must all leave the harm in place before it is called conflict."""
CAUSES = {
    STANDARDISED: "scale",
    TUNED: "scale",
    OWN: "own epochs",
    LONGER: "time",
    WIDER: "capacity",
    ALL: "several",
}
"""What the harm is due to, if that rung cures it."""
SPAN = 10.0
"""Tuned weights lie between 1 / SPAN and SPAN times the standardised ones."""


@dataclass(frozen=True)
class Thresholds:
    """What counts as shown. Frozen on one family of problems, scored on another.

    Attributes:
        margin: the smallest harm that matters, in points of the constant's loss.
        sure: the probability that is asked of a harm above the margin, for one task; of several
            tasks all are asked at once (Bonferroni).
        none: below this probability of a harm above the margin there is none.
        cured: a rung has cured the harm if what is left is below this share of it, or the margin,
            with the probability 1 − `none`.
    """

    margin: float = 3.0
    sure: float = 0.95
    none: float = 0.1
    cured: float = 0.5


@dataclass(frozen=True)
class Effort:
    """How much is trained.

    Attributes:
        splits: of the data.
        epochs: of a normal training.
        rates: learning rates to choose from.
        tries: how many weights are tried on the rung of tuned weights.
        longer: how many times as long the longer rung trains.
        larger: how many times the parameters of all networks apart the wider one has.
        looks: at how many times in training the held-out losses are read.
    """

    splits: int
    epochs: int
    rates: tuple[float, ...]
    tries: int = 3
    longer: int = 2
    larger: float = 2.0
    looks: int = 10

    def __post_init__(self) -> None:
        if self.longer < 2:
            raise ValueError(f"longer={self.longer}: must be at least 2 times as long")
        if self.splits < 2 or self.epochs < 1 or not self.rates:
            raise ValueError(
                f"splits={self.splits}, epochs={self.epochs}, {len(self.rates)} rates: "
                "at least two splits, one epoch and one rate are needed"
            )


@dataclass(frozen=True)
class Rung:
    """What one experiment left of the harm.

    Attributes:
        name: of the rung.
        harm: to each task, in points.
        average: its mean over the tasks. Weights move harm from task to task, this way in one split
            and that way in another, which the average sees through.
    """

    name: str
    harm: Mapping[str, Estimate]
    average: Estimate

    @property
    def worst(self) -> float:
        """The harm to the task that is worst off."""
        return max(estimate.mean for estimate in self.harm.values())


@dataclass(frozen=True)
class Ladder:
    """The rungs that were climbed.

    Attributes:
        rungs: by name; further ones than the first are there only if the first found harm.
        learned: how much of the constant's loss each task's own network takes away, in points.
        untested: rungs that this problem does not allow, and why.
        thresholds: what was asked of them.
    """

    rungs: Mapping[str, Rung]
    learned: Mapping[str, Estimate]
    untested: Mapping[str, str] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def harmed(self) -> tuple[str, ...]:
        """The tasks that are better apart, surely and by more than the margin."""
        return self._surely_harmed(self.rungs[TOGETHER])

    @property
    def harmful(self) -> bool:
        """Whether some task is surely better apart; it may be this one in one split and that one in
        another, so the average over tasks is asked as well.
        """
        return self.survives(TOGETHER)

    @property
    def harmless(self) -> bool:
        """Whether no task is likely to be better apart by more than the margin."""
        t = self.thresholds
        harm = self.rungs[TOGETHER].harm.values()
        return all(estimate.chances(t.margin).better < t.none for estimate in harm)

    def survives(self, name: str) -> bool:
        """Whether a task, or all of them on average, are still better apart on that rung."""
        rung = self.rungs[name]
        average = rung.average.chances(self.thresholds.margin).better
        return bool(self._surely_harmed(rung)) or average >= self.thresholds.sure

    def cures(self, name: str) -> bool:
        """Whether that rung leaves no task with much of the harm."""
        t = self.thresholds
        bar = max(t.margin, t.cured * self.rungs[TOGETHER].worst)
        rung = self.rungs[name]
        left = [estimate.chances(bar).better for estimate in rung.harm.values()]
        return all(chance < t.none for chance in left)

    @property
    def fades(self) -> bool:
        """Whether the harm on half of the labels is surely more than twice that on all of them."""
        if HALF not in self.rungs:
            return False
        whole, half = self.rungs[TOGETHER], self.rungs[HALF]
        pairs = [(half.harm[task], whole.harm[task]) for task in self.harmed]
        pairs = pairs or [(half.average, whole.average)]
        return all(
            h.mean - 2 * max(0.0, w.mean) > 2 * math.hypot(h.scale, 2 * w.scale) for h, w in pairs
        )

    @property
    def cause(self) -> str:
        """What the harm is due to.

        One of "none", "conflict", "scale", "own epochs", "time", "capacity", "several", "labels"
        and "cannot tell".
        """
        if self.harmless:
            return "none"
        if not self.harmful:
            return "cannot tell"
        climbed = [name for name in RUNGS if name in self.rungs]
        cured = [name for name in climbed if self.cures(name)]
        if cured:
            return CAUSES[cured[0]]
        if self.fades:
            return "labels"
        complete = not self.untested and climbed
        return "conflict" if complete and all(map(self.survives, climbed)) else "cannot tell"

    def _surely_harmed(self, rung: Rung) -> tuple[str, ...]:
        t = self.thresholds
        asked = 1 - (1 - t.sure) / len(rung.harm)
        return tuple(task for task, e in rung.harm.items() if e.chances(t.margin).better >= asked)


Maker = Callable[[int], Problem]
Weights = Callable[[int], tuple[float, ...]]
"""The number of a split -> weights of the losses."""


def climb(
    problem_of: Maker,
    effort: Effort,
    thresholds: Thresholds | None = None,
    *,
    ratio: float | None,
    say: Callable[[str], None] = lambda text: None,
) -> Ladder:
    """Ask whether tasks are better apart, and if so, what that is due to.

    Args:
        problem_of: the problem of each split.
        effort: how much to train.
        thresholds: what counts as shown.
        ratio: n_test / (n − n_test) of the splits, see `over_splits`; None if the test rows are
            the same in all of them; infinite if the splits cannot tell chance, as those by time.
        say: is told of each stage before it begins.

    Raises:
        ValueError: there are fewer than two tasks, or a task has no label in a part.
    """
    return climbed(Experiments(problem_of, effort, ratio), thresholds, say)


def climbed(
    experiments: Experiments,
    thresholds: Thresholds | None = None,
    say: Callable[[str], None] = lambda text: None,
    left: Callable[[], float] = lambda: math.inf,
) -> Ladder:
    """As `climb`, with experiments that may be asked for more afterwards.

    `left` says how many seconds there are: a rung that takes longer is not tested.
    """
    say("together and apart")
    ladder = Ladder(
        {TOGETHER: experiments.rung(TOGETHER)},
        experiments.learned(),
        thresholds=thresholds or Thresholds(),
    )
    if not ladder.harmful:
        return ladder
    rungs, untested = dict(ladder.rungs), {}
    for name, why in experiments.stages():
        if not why and experiments.seconds(name) > left():
            why = f"there is no time left for it ({option('budget')})"
        if why:
            untested[name] = why
            continue
        say(name)
        rungs[name] = experiments.rung(name)
    return Ladder(rungs, ladder.learned, untested, ladder.thresholds)


@dataclass(frozen=True)
class _Change:
    """What a rung changes about the joint network, and what is changed apart as well."""

    weights: Sequence[Weights]
    widths: tuple[float, ...] = (1.0,)
    own: bool = False
    longer: bool = False
    share: float = 1.0


class Experiments:
    """The trials of one ladder; each is trained when a rung first asks for it.

    Args:
        problem_of, effort, ratio: as for `climb`.
    """

    def __init__(self, problem_of: Maker, effort: Effort, ratio: float | None) -> None:
        self.problems = {split: problem_of(split) for split in range(effort.splits)}
        self.effort, self.ratio = effort, ratio
        self.problem = self.problems[0]
        self.tasks = tuple(self.problem.tasks)
        if len(self.tasks) < 2:
            raise ValueError("there is only one task: nothing is trained together")
        for problem in self.problems.values():
            problem.check_labels()
        self.blocks = 20 if ratio is None else 1
        self.constant = {
            split: tuple(_constant_losses(problem)) for split, problem in self.problems.items()
        }
        per_epoch = max(1, samples(self.problem) // self.problem.batch_size)
        self.steps = effort.epochs * per_epoch
        self.curves: dict[Trial, Curves] = {}
        self.growth = 1.0
        self.wide = self._width() if self.problem.scaled is not None else 1.0
        self._spent = self._work = 0.0

    def _width(self) -> float:
        """At which the joint network is `larger` times as large as all networks apart."""
        with torch.random.fork_rng(devices=[]):
            size = sum(parameters(self.problem.network((task,))) for task in self.tasks)
            self.growth = self.effort.larger * size / parameters(self.problem.network(self.tasks))
        wanted = round(self.effort.larger * size)
        return float(f"{width_for(self.problem, self.tasks, wanted):.3g}")

    # What is trained --------------------------------------------------------------------------

    def trained(self, trials: Sequence[Trial], longer: bool) -> None:
        """See that there are curves; a longer training begins as a normal one."""
        missing = self._missing(trials, longer)
        if missing:
            begun = time.perf_counter()
            self.curves |= run(self.problems, missing, self._times(longer), self.blocks)
            self._spent += time.perf_counter() - begun
            self._work += self._work_of(missing, longer)

    def _missing(self, trials: Sequence[Trial], longer: bool) -> list[Trial]:
        until = len(self._times(longer))
        return [
            trial
            for trial in trials
            if trial not in self.curves or len(self.curves[trial].validation) < until
        ]

    def _work_of(self, trials: Sequence[Trial], longer: bool) -> float:
        """Steps of the problem's own network; those of a wider one count for more."""
        steps = self._times(longer)[-1]
        return steps * math.fsum(1.0 if t.width == 1 else self.growth for t in trials)

    def seconds(self, name: str) -> float:
        """About what a rung will take, by what has been trained so far."""
        if not self._work:
            return 0.0
        together, longer = self._together(name)
        work = self._work_of(self._missing(together, longer), longer)
        change = self._change(name)
        apart = self._apart(change.share)
        work += self._work_of(self._missing(apart, change.longer), change.longer)
        return work * self._spent / self._work

    def seconds_of(self, networks: int) -> float:
        """About what so many networks take, in every split at every rate."""
        if not self._work:
            return 0.0
        work = networks * len(self.problems) * len(self.effort.rates) * self.steps
        return work * self._spent / self._work

    def _times(self, longer: bool) -> list[int]:
        normal = times_until(self.steps, self.effort.looks)
        if not longer:
            return normal
        more = self.steps * self.effort.longer - self.steps
        after = times_until(more, self.effort.looks * (self.effort.longer - 1))
        return normal + [self.steps + time for time in after]

    def of(self, trial: Trial, longer: bool) -> Curves:
        """The curves of a trained trial, of the normal or of the longer training."""
        curves, until = self.curves[trial], len(self._times(longer))
        return Curves(curves.validation[:until], curves.test[:until])

    def ones(self, split: int) -> tuple[float, ...]:
        """The plain sum's weights."""
        return (1.0,) * len(self.tasks)

    def _standard(self, split: int) -> tuple[float, ...]:
        """1 / loss of the constant, scaled so that the mean is 1."""
        return _of_mean_one([1 / max(c, 1e-30) for c in self.constant[split][0]])

    def _drawn(self, number: int) -> Weights:
        def weights(split: int) -> tuple[float, ...]:
            seed = mixed_seed(split, number, *b"doctor-weights")
            generator = torch.Generator().manual_seed(seed)
            place = 2 * torch.rand(len(self.tasks), generator=generator, dtype=torch.float64) - 1
            factors = (SPAN**place).tolist()
            standard = self._standard(split)
            return _of_mean_one([s * f for s, f in zip(standard, factors, strict=True)])

        return weights

    def only(self, *kept: int) -> Weights:
        """Weights of a network for these tasks alone."""
        return lambda split: tuple(float(k in kept) for k in range(len(self.tasks)))

    def each(
        self,
        kinds: Sequence[Weights],
        width: float = 1.0,
        share: float = 1.0,
        own: tuple[int, ...] = (),
    ) -> list[Trial]:
        """A trial for each split, kind of weights and rate."""
        return [
            Trial(split, weights(split), rate, width, share, own)
            for split in self.problems
            for weights in kinds
            for rate in self.effort.rates
        ]

    def stages(self) -> list[tuple[str, str]]:
        """The rungs beyond the first, and why one cannot be tested, or ""."""
        no_width = "" if self.problem.scaled is not None else "its network has no width"
        in_memory = all(isinstance(p.train, Split) for p in self.problems.values())
        why = {
            WIDER: no_width,
            ALL: no_width,
            HALF: "" if in_memory else "the training part is not held in memory",
        }
        return [(name, why.get(name, "")) for name in (*RUNGS, HALF)]

    # The rungs --------------------------------------------------------------------------------

    def rung(self, name: str) -> Rung:
        """Train what a rung takes, and estimate the harm that it leaves."""
        change = self._change(name)
        asked = self._of_change(change)
        self.trained(*self._together(name))
        values = {}
        for split in self.problems:
            of_split = [trial for trial in asked if trial.split == split]
            said = self.chosen(split, of_split, longer=change.longer, own=change.own)
            values[split] = self.points(split, said, longer=change.longer, share=change.share)
        average = self.estimate(torch.stack(list(values.values())).mean(-1))
        return Rung(name, self._estimates(values), average)

    def _together(self, name: str) -> tuple[list[Trial], bool]:
        """The joint networks that a rung trains, and whether longer.

        All that the last rung needs of a wider network is trained when it is first met.
        """
        change = self._change(name)
        ahead = self.each(self._change(ALL).weights, self.wide) if name == WIDER else []
        return [*self._of_change(change), *ahead], change.longer or name == WIDER

    def _of_change(self, change: _Change) -> list[Trial]:
        return [
            trial
            for width in change.widths
            for trial in self.each(change.weights, width, change.share)
        ]

    def _apart(self, share: float) -> list[Trial]:
        """Each task's own network."""
        return self.each([self.only(k) for k in range(len(self.tasks))], share=share)

    def _change(self, name: str) -> _Change:
        """What a rung changes about the joint network."""
        ones, standard = self.ones, self._standard
        drawn = [self._drawn(number) for number in range(self.effort.tries)]
        changes = {
            TOGETHER: _Change([ones]),
            STANDARDISED: _Change([standard]),
            TUNED: _Change([ones, standard, *drawn]),
            OWN: _Change([ones], own=True),
            LONGER: _Change([ones], longer=True),
            WIDER: _Change([ones], widths=(self.wide,)),
            ALL: _Change([ones, standard], widths=(1.0, self.wide), longer=True, own=True),
            HALF: _Change([ones], share=0.5),
        }
        return changes[name]

    def learned(self) -> dict[str, Estimate]:
        """Points of the constant's loss that the networks apart take away."""
        return self._estimates(
            {
                split: 100 * (1 - self.apart(split) / self._constant_of(split))
                for split in self.problems
            }
        )

    def points(
        self, split: int, said: Tensor, *, longer: bool = False, share: float = 1.0
    ) -> Tensor:
        """How many points of the constant's loss test losses lie above those apart, [blocks, m]."""
        return 100 * (said - self.apart(split, longer, share)) / self._constant_of(split)

    def _constant_of(self, split: int) -> Tensor:
        return torch.tensor(self.constant[split][1], dtype=torch.float64)

    # What is chosen ---------------------------------------------------------------------------

    def chosen(
        self,
        split: int,
        trials: Sequence[Trial],
        *,
        longer: bool = False,
        own: bool = False,
        tasks: Sequence[int] | None = None,
    ) -> Tensor:
        """Test losses [blocks, m] of one joint network at its best epoch, by its tasks' mean.

        Args:
            split: the trials'.
            trials: trained ones.
            longer: look at the longer training.
            own: take each task at the epoch that is best for it.
            tasks: that the network is for; all by default.
        """
        asked = list(range(len(self.tasks))) if tasks is None else list(tasks)
        constant = torch.tensor(self.constant[split][0], dtype=torch.float64)
        found: list[tuple[float, Tensor]] = []
        for trial in trials:
            curves = self.of(trial, longer)
            relative = (curves.validation / constant).nan_to_num(nan=math.inf)
            if own:
                value = float(relative.min(0).values[asked].mean())
                at = relative.argmin(0)
                found.append((value, curves.test[at, :, torch.arange(len(at))].mT))
            else:
                mean = relative[:, asked].mean(1)
                found.append((float(mean.min()), curves.test[mean.argmin()]))
        return min(found, key=lambda pair: pair[0])[1]

    def apart(self, split: int, longer: bool = False, share: float = 1.0) -> Tensor:
        """Test losses [blocks, m], each task's from its own network at its best rate and epoch."""
        self.trained(self._apart(share), longer)
        columns = []
        for k in range(len(self.tasks)):
            of_task = [t for t in self.each([self.only(k)], share=share) if t.split == split]
            curves = [self.of(trial, longer) for trial in of_task]
            held = [one.validation[:, k].nan_to_num(nan=math.inf) for one in curves]
            best = min(range(len(held)), key=lambda n: float(held[n].min()))
            columns.append(curves[best].test[held[best].argmin(), :, k])
        return torch.stack(columns, -1)

    def _estimates(self, values: Mapping[int, Tensor]) -> dict[str, Estimate]:
        """From points [blocks, m] of each split."""
        stacked = torch.stack(list(values.values()))
        return {task: self.estimate(stacked[..., k]) for k, task in enumerate(self.tasks)}

    def estimate(self, points: Tensor) -> Estimate:
        """From points [splits, blocks]; infinite where a joint network has diverged."""
        means = points.nanmean(1).tolist()
        if not all(map(math.isfinite, means)):
            return Estimate(math.inf, 0.0, len(means) - 1)
        if self.ratio == math.inf:
            return Estimate(math.fsum(means) / len(means), math.inf, len(means) - 1)
        if self.ratio is not None:
            return over_splits(means, self.ratio)
        over = points.nanmean(0)
        return over_trainings(means, 0.0, float(over.var()) / len(over))


def _of_mean_one(values: Sequence[float]) -> tuple[float, ...]:
    mean = math.fsum(values) / len(values)
    return tuple(float(f"{value / mean:.6g}") for value in values)


def samples(problem: Problem) -> int:
    """How many training samples there are, about."""
    if isinstance(problem.train, Split):
        return len(problem.train)
    return len(problem.train) * problem.batch_size  # type: ignore[arg-type]


def _constant_losses(problem: Problem) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean losses of the best constant on the validation and on the test part."""
    problem, network = problem.with_own_heads(), constant_network(lowest_losses(problem))
    tasks = tuple(problem.tasks)
    held = evaluate(network, problem, problem.validation, tasks)[0]
    tested = evaluate(network, problem, problem.test, tasks)[0]
    return tuple(held[t] for t in tasks), tuple(tested[t] for t in tasks)
