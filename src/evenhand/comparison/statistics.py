"""What the results of a comparison say: pure functions of them."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evenhand.comparison.job import Result
from evenhand.comparison.request import BASELINE, REFERENCE
from evenhand.data.problem import Problem


@dataclass(frozen=True)
class Row:
    """What a comparison says about one recipe.

    Attributes:
        recipe: its name.
        chosen: the runs that stand for it, one per split, network and seed, in this order. In
            a split where some seed diverged at every rate there is none.
        test: each task's metric on the test set, one value per split and seed, splits outermost.
            A task that some split has no run for is missing.
        rates: the learning rate chosen, by network label; of several splits, the one chosen most
            often.
        delta: Δm in per cent, one value per split and seed: the mean over tasks of the relative
            gain over the split's single-task networks, positive is better. Empty without those of
            every task.
        rank: mean rank over the tasks among the recipes that have all tasks, 1 is best; else NaN.
        relative_time: time per epoch relative to `sg`; NaN without that recipe.
        diverged: those of its runs that ended in a loss or gradient that is not finite.
    """

    recipe: str
    chosen: tuple[Result, ...]
    test: Mapping[str, tuple[float, ...]]
    rates: Mapping[str, float]
    delta: tuple[float, ...] = ()
    rank: float = math.nan
    relative_time: float = math.nan
    diverged: tuple[Result, ...] = ()

    def splits(self, task: str) -> tuple[int, ...]:
        """Of which split each of a task's values is."""
        return tuple(r.job.split for r in self.chosen if task in r.test)

    def by_split(self, task: str) -> dict[int, float]:
        """A task's test metric in each split, the mean over the seeds."""
        found: dict[int, list[float]] = defaultdict(list)
        for result in self.chosen:
            if task in result.test:
                found[result.job.split].append(result.test[task])
        return {split: mean(values) for split, values in found.items()}


def rows(results: Sequence[Result], recipes: Sequence[str], problem: Problem) -> tuple[Row, ...]:
    """A row per recipe: in each split validation chooses, and the test set is read once."""
    found = [_row([r for r in results if r.job.recipe == name], name) for name in recipes]
    by_name = {row.recipe: row for row in found}
    signs = {t: 1.0 if task.higher_is_better else -1.0 for t, task in problem.tasks.items()}
    complete = {row.recipe: row for row in found if set(row.test) == set(signs)}
    reference, baseline = complete.get(REFERENCE), by_name.get(BASELINE)
    clock = (_seconds(baseline) if baseline else math.nan) or math.nan
    ranks = _ranks(complete, signs)
    return tuple(
        replace(
            row,
            delta=_delta(row, reference, signs) if reference and row.recipe in complete else (),
            rank=ranks.get(row.recipe, math.nan),
            relative_time=_seconds(row) / clock,
        )
        for row in found
    )


def _row(results: Sequence[Result], name: str) -> Row:
    """Per split and set of tasks, the network label and rate of the lowest mean monitored value."""
    scores: dict[tuple[int, tuple[str, ...]], dict[tuple[str, float], list[Result]]] = {}
    for result in results:
        candidates = scores.setdefault((result.job.split, result.tasks), defaultdict(list))
        candidates[result.job.label, result.job.rate].append(result)
    diverged = tuple(r for r in results if r.status != "finished")
    chosen: list[Result] = []
    rates: dict[str, list[float]] = defaultdict(list)
    for candidates in scores.values():
        means = {c: statistics.mean(r.monitored for r in runs) for c, runs in candidates.items()}
        label, rate = min(means, key=means.__getitem__)
        if math.isfinite(means[label, rate]):
            rates[label].append(rate)
            chosen.extend(candidates[label, rate])
    test: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for result in chosen:
        for task, value in result.test.items():
            test[task].append((result.job.split, value))
    splits = {result.job.split for result in results}
    return Row(
        name,
        tuple(chosen),
        {t: tuple(v for _, v in pairs) for t, pairs in test.items() if splits == set(dict(pairs))},
        {label: statistics.mode(several) for label, several in rates.items()},
        diverged=diverged,
    )


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN where it is no number: infinities of both signs, an overflow."""
    try:
        return statistics.fmean(values)
    except (ValueError, OverflowError):
        if not values:
            raise
        return math.nan


def _seconds(row: Row) -> float:
    """Seconds per epoch; networks that complete each other add up. NaN if there is none."""
    by_tasks: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for result in row.chosen:
        by_tasks[result.tasks].append(result.seconds)
    return math.fsum(map(statistics.median, by_tasks.values())) if by_tasks else math.nan


def _delta(row: Row, reference: Row, signs: Mapping[str, float]) -> tuple[float, ...]:
    """Δm per run: 100/m Σ_i ± (M_i − M_i^single) / M_i^single (Maninis et al., CVPR 2019)."""
    means = {task: reference.by_split(task) for task in signs}
    gains = []
    for task, sign in signs.items():
        singles = [means[task][split] for split in row.splits(task)]
        gains.append(
            [
                100 * sign * (value - single) / (abs(single) or math.nan)
                for value, single in zip(row.test[task], singles, strict=True)
            ]
        )
    return tuple(statistics.mean(gain) for gain in zip(*gains, strict=True))


def _ranks(complete: Mapping[str, Row], signs: Mapping[str, float]) -> dict[str, float]:
    """Mean over tasks of a recipe's rank by its mean test metric; ties share the mean rank."""
    from scipy.stats import rankdata

    values = [
        [-sign * statistics.mean(row.test[task]) for task, sign in signs.items()]
        for row in complete.values()
    ]
    if not values:
        return {}
    return dict(zip(complete, rankdata(values, axis=0).mean(axis=1).tolist(), strict=True))
