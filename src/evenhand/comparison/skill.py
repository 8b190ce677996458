"""The scale of skill: 0 is the best constant, 100 is perfect.

    skill = 100 · (constant − metric) / (constant − perfect)

on the test part, where the constant is fitted to the training rows (`constant`). It has the same
sense for metrics that should be high and for those that should be low. Where no value of a metric
is perfect, the task states a unit instead, the gain that counts as 100 points.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evenhand.comparison.facts import Facts
from evenhand.comparison.inference import Estimate, over_rows, over_splits, over_trainings
from evenhand.comparison.request import Settings
from evenhand.comparison.statistics import Row, mean
from evenhand.data.problem import Task


def skill(metric: float, constant: float, task: Task) -> float:
    """Points of skill; NaN where the constant is perfect, or a metric is not a finite number.

    Example:
        >>> task = Task(lambda outputs, targets: outputs, lambda: None, "RMSE", False)
        >>> skill(14.2, 18.4, task)
        22.8...
        >>> skill(18.4, 18.4, task), skill(0.0, 18.4, task)
        (0.0, 100.0)

    Raises:
        ValueError: the task's unit is not positive.
    """
    if not (math.isfinite(metric) and math.isfinite(constant)):
        return math.nan
    if task.unit is not None:
        if not task.unit > 0:
            raise ValueError(f"unit={task.unit}: the gain that is 100 points must be positive")
        sign = 1.0 if task.higher_is_better else -1.0
        return 100 * sign * (metric - constant) / task.unit
    span = constant - perfect(task)
    return 100 * (constant - metric) / span if span else math.nan


def perfect(task: Task) -> float:
    """The metric of perfect predictions: as the task says, else 1 where high is good, 0 if not."""
    if task.perfect is not None:
        return task.perfect
    return 1.0 if task.higher_is_better else 0.0


@dataclass(frozen=True)
class Points:
    """A quantity in points of skill: one value per split, and what other test rows would give.

    Attributes:
        values: by split, seeds averaged.
        draws: by split, on the resampled test rows; empty where they were not resampled.
    """

    values: Mapping[int, float]
    draws: Mapping[int, Sequence[float]]

    @property
    def mean(self) -> float:
        """Over the splits; NaN if there is none."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    def __sub__(self, other: Points) -> Points:
        """Paired: split by split, and draw by draw. Splits that one of them lacks are left out."""
        values = {
            split: value - other.values[split]
            for split, value in self.values.items()
            if split in other.values
        }
        draws = {
            split: [a - b for a, b in zip(drawn, other.draws[split], strict=True)]
            for split, drawn in self.draws.items()
            if split in other.draws
        }
        return Points(values, draws)


def average(several: Sequence[Points]) -> Points:
    """The mean over tasks, in the splits and draws that all of them have."""
    if not several:
        return Points({}, {})
    values = set.intersection(*(set(points.values) for points in several))
    draws = set.intersection(*(set(points.draws) for points in several))
    return Points(
        {split: statistics.fmean(p.values[split] for p in several) for split in sorted(values)},
        {
            split: [
                statistics.fmean(draw)
                for draw in zip(*(p.draws[split] for p in several), strict=True)
            ]
            for split in sorted(draws)
        },
    )


def points(row: Row, constant: Row, name: str, task: Task) -> Points:
    """A row's skill in a task, by split."""
    zero, own = constant.by_split(name), row.by_split(name)
    zero_drawn, own_drawn = _draws(constant, name), _draws(row, name)
    values = {split: skill(own[split], zero[split], task) for split in own if split in zero}
    draws = {
        split: [skill(m, c, task) for m, c in zip(drawn, zero_drawn[split], strict=True)]
        for split, drawn in own_drawn.items()
        if split in zero_drawn
    }
    return Points({split: value for split, value in values.items() if math.isfinite(value)}, draws)


def _draws(row: Row, task: str) -> dict[int, list[float]]:
    """A row's metric on the resampled rows of each split, the mean over the seeds."""
    found: dict[int, list[Sequence[float]]] = {}
    for result in row.chosen:
        if result.resampled.get(task):
            found.setdefault(result.job.split, []).append(result.resampled[task])
    return {
        split: [mean(values) for values in zip(*several, strict=True)]
        for split, several in found.items()
    }


@dataclass(frozen=True)
class Spread:
    """Where the spread of a difference is from: standard deviations in points of skill.

    Attributes:
        splits: between splits, without what the seeds bring into a split's mean.
        seeds: between the seeds of one split.
    """

    splits: float
    seeds: float


def spread(
    first: Row, second: Row, constant: Row, tasks: Mapping[str, Task], splits: int
) -> Spread | None:
    """The sources of the difference of mean skill, first − second; None without further seeds.

    One-way analysis of variance with random effects: within a split s² is pooled over the splits,
    and between them it is max(0, S² − s²/n) of the splits' means over n seeds.
    """
    mine, theirs = (_by_seed(row, constant, tasks) for row in (first, second))
    found: dict[int, list[float]] = {}
    for split, seed in sorted(mine.keys() & theirs.keys()):
        found.setdefault(split, []).append(mine[split, seed] - theirs[split, seed])
    seeds = min(map(len, found.values()), default=0)
    if len(found) < max(2, splits) or seeds < 2:
        return None
    within = statistics.fmean(statistics.variance(several) for several in found.values())
    means = statistics.variance(statistics.fmean(several) for several in found.values())
    return Spread(math.sqrt(max(0.0, means - within / seeds)), math.sqrt(within))


def _by_seed(row: Row, constant: Row, tasks: Mapping[str, Task]) -> dict[tuple[int, int], float]:
    """Mean skill over the tasks by split and seed; networks that complete each other together."""
    found: dict[tuple[int, int], list[float]] = {}
    for name, task in tasks.items():
        zero = constant.by_split(name)
        for result in row.chosen:
            if name in result.test and result.job.split in zero:
                at = result.job.split, result.job.seed
                points_of = skill(result.test[name], zero[result.job.split], task)
                found.setdefault(at, []).append(points_of)
    return {at: statistics.fmean(s) for at, s in found.items() if len(s) == len(tasks)}


NO_SPREAD = 1e-9
"""Standard errors below this share of the mean, or of a point, are rounding."""


@dataclass(frozen=True)
class Design:
    """What the splits can say about a difference.

    Attributes:
        splits: how many there are.
        kind: "splits" (test rows drawn anew), "trainings" (a fixed test set), "rows" (one split),
            or "origins" (by time: each is shown, and there is no interval).
        ratio: n_test / (n − n_test), in independent units.
        validation_ratio: validation rows for each training row.
        units: independent things that are divided: groups where there are groups, else rows.
    """

    splits: int
    kind: str
    ratio: float
    validation_ratio: float = 0.0
    units: float = math.inf

    @property
    def freedom(self) -> float:
        """Degrees of freedom of an interval over splits, at least 1.

        K − 1, but no more than the independent things say: three groups are three, however often
        they are divided. That bound is our own.
        """
        return max(1, min(self.splits, self.units) - 1)

    @classmethod
    def of(cls, settings: Settings, official_test: bool, facts: Sequence[Facts]) -> Design:
        """The design of a comparison."""
        ratio = statistics.fmean(f.ratio for f in facts) if facts else 0.0
        validation = statistics.fmean(f.validation_ratio for f in facts) if facts else 0.0
        units = min((sum(f.units) for f in facts), default=math.inf)
        if settings.design == "time":
            kind = "origins"
        elif settings.splits == 1:
            kind = "rows"
        else:
            kind = "trainings" if official_test else "splits"
        return cls(settings.splits, kind, ratio, validation, units)

    @property
    def too_few(self) -> bool:
        """Whether a spread over splits is wanted, and there are two of them, or of groups."""
        return self.kind in ("splits", "trainings") and self.freedom < 2

    def estimate(self, difference: Points) -> Estimate | None:
        """How sure the mean of a difference is; None where this design cannot tell.

        It cannot of two splits (or of two groups, divided however often): one degree of freedom
        estimates no spread, and small ones come by chance. Nor can it where all splits give the
        same: then the metric is too coarse to show a spread, or one network is compared with
        itself, and no certainty is in that.
        """
        values = list(difference.values.values())
        if len(values) < self.splits or self.kind == "origins" or self.too_few:
            return None
        found = self._estimated(values, difference)
        if found is None or found.scale <= NO_SPREAD * max(1.0, abs(found.mean)):
            return None
        return found

    def _estimated(self, values: Sequence[float], difference: Points) -> Estimate | None:
        if self.kind == "splits":
            return replace(over_splits(values, self.ratio), freedom=self.freedom)
        variances = []
        for split, value in difference.values.items():
            known = [x for x in difference.draws.get(split, ()) if math.isfinite(x)]
            if len(known) < 2:
                return None
            variances.append(over_rows(value, known).scale ** 2)
        if self.kind == "trainings":
            test_variance = statistics.fmean(variances)
            estimate = over_trainings(values, self.validation_ratio, test_variance)
            return replace(estimate, freedom=self.freedom)
        return Estimate(values[0], math.sqrt(variances[0]), math.inf)
