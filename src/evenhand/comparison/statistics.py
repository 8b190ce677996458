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
        chosen: the runs that stand for it, one per seed and network. Tasks for which some seed
            diverged at every rate have none, and are missing in `test`.
        test: each task's metric on the test set, one value per seed.
        rates: the learning rate chosen, by network label.
        delta: Δm in per cent, one value per seed: the mean over tasks of the relative gain over
            single-task networks, positive is better. Empty without those of every task.
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


def rows(results: Sequence[Result], recipes: Sequence[str], problem: Problem) -> tuple[Row, ...]:
    """A row per recipe: validation chooses, the test set is read once."""
    found = [_row([r for r in results if r.job.recipe == name], name) for name in recipes]
    by_name = {row.recipe: row for row in found}
    signs = {t: 1.0 if task.higher_is_better else -1.0 for t, task in problem.tasks.items()}
    complete = {row.recipe: row for row in found if set(row.test) == set(signs)}
    reference, baseline = complete.get(REFERENCE), by_name.get(BASELINE)
    ranks = _ranks(complete, signs)
    return tuple(
        replace(
            row,
            delta=_delta(row, reference, signs) if reference and row.recipe in complete else (),
            rank=ranks.get(row.recipe, math.nan),
            relative_time=_seconds(row) / _seconds(baseline) if baseline else math.nan,
        )
        for row in found
    )


def _row(results: Sequence[Result], name: str) -> Row:
    """Per set of tasks, the network label and rate with the lowest mean monitored value."""
    scores: dict[tuple[str, ...], dict[tuple[str, float], list[Result]]] = {}
    for result in results:
        candidates = scores.setdefault(result.tasks, defaultdict(list))
        candidates[result.job.label, result.job.rate].append(result)
    diverged = tuple(r for r in results if r.status != "finished")
    chosen: list[Result] = []
    rates: dict[str, float] = {}
    for candidates in scores.values():
        means = {c: statistics.mean(r.monitored for r in runs) for c, runs in candidates.items()}
        label, rate = min(means, key=means.__getitem__)
        if math.isfinite(means[label, rate]):
            rates[label] = rate
            chosen.extend(candidates[label, rate])
    test: dict[str, list[float]] = defaultdict(list)
    for result in chosen:
        for task, value in result.test.items():
            test[task].append(value)
    return Row(
        name, tuple(chosen), {t: tuple(v) for t, v in test.items()}, rates, diverged=diverged
    )


def _seconds(row: Row) -> float:
    """Seconds per epoch; networks that complete each other add up. NaN if there is none."""
    by_label: dict[str, list[float]] = defaultdict(list)
    for result in row.chosen:
        by_label[result.job.label].append(result.seconds)
    return math.fsum(map(statistics.median, by_label.values())) if by_label else math.nan


def _delta(row: Row, reference: Row, signs: Mapping[str, float]) -> tuple[float, ...]:
    """Δm per seed: 100/m Σ_i ± (M_i − M_i^single) / M_i^single (Maninis et al., CVPR 2019)."""
    means = {task: statistics.mean(values) for task, values in reference.test.items()}
    return tuple(
        100
        * statistics.mean(
            signs[task] * (value - means[task]) / (abs(means[task]) or math.nan)
            for task, value in zip(row.test, values, strict=True)
        )
        for values in zip(*row.test.values(), strict=True)
    )


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
