"""How sure a difference is: intervals and probabilities from a handful of dependent splits.

Splits of one table overlap, so their results are not independent, and a t interval over them is
too narrow. Nadeau & Bengio (Machine Learning 52, 2003, section 3) correct the variance of the mean
of K differences d_1 … d_K by the correlation that the overlap brings, taken to be
ρ = n_test / n:

    Var(d̄) ≈ S² (1/K + ρ / (1 − ρ)) = S² (1/K + n_test / (n − n_test)),
    S² = Σ (d_k − d̄)² / (K−1)

and d̄ / √Var is compared with Student's t of K − 1 degrees of freedom. With the same numbers,
Benavoli, Corani, Demšar & Zaffalon (JMLR 18:77, 2017, equation 7) give the posterior of the true
difference under a flat prior: Student's t of K − 1 degrees of freedom around d̄ with that variance.
Every statement here is such a t distribution, an `Estimate`; they differ in where its scale is
from. Nothing is tested by permuting five splits: the smallest p that exists there is 1/16.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

LEVEL = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float | int) and self.low <= value <= self.high


@dataclass(frozen=True)
class Chances:
    """The probabilities that a difference is below −margin, within it, and above it; sum 1."""

    worse: float
    same: float
    better: float


@dataclass(frozen=True)
class Estimate:
    """A difference as Student's t: around `mean`, of standard error `scale`, with `freedom`.

    A scale of zero is certainty: every split gave the same.

    Attributes:
        mean: the mean of the differences.
        scale: standard error of the mean, >= 0.
        freedom: degrees of freedom, > 0; infinite for a normal distribution.
    """

    mean: float
    scale: float
    freedom: float

    def interval(self, comparisons: int = 1, level: float = LEVEL) -> Interval:
        """The central interval; of several comparisons all hold at once with at least `level`.

        Bonferroni's inequality: each is given 1 − (1 − level) / comparisons. It holds whatever
        the comparisons have to do with each other.
        """
        half = self.half_width(comparisons, level)
        return Interval(self.mean - half, self.mean + half)

    def half_width(self, comparisons: int = 1, level: float = LEVEL) -> float:
        """Half the interval's length: the smallest difference that would be visible."""
        if self.scale == 0:
            return 0.0
        return _quantile(1 - (1 - level) / comparisons / 2, self.freedom) * self.scale

    def chances(self, margin: float) -> Chances:
        """Probabilities of worse, no difference that matters, better (Benavoli et al. 2017).

        Args:
            margin: half-width of the region of practical equivalence, >= 0.
        """
        if self.scale == 0:
            worse, better = float(self.mean < -margin), float(self.mean > margin)
        else:
            worse = _below((-margin - self.mean) / self.scale, self.freedom)
            better = _below((self.mean - margin) / self.scale, self.freedom)
        return Chances(worse, max(0.0, 1 - worse - better), better)


def _below(value: float, freedom: float) -> float:
    """P(T < value) for Student's t; the normal distribution for infinite freedom."""
    from scipy.special import ndtr, stdtr

    return float(ndtr(value) if math.isinf(freedom) else stdtr(freedom, value))


@lru_cache(maxsize=256)
def _quantile(probability: float, freedom: float) -> float:
    """Where P(T < value) is that probability."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(probability) if math.isinf(freedom) else stdtrit(freedom, probability))


def over_splits(differences: Sequence[float], ratio: float) -> Estimate:
    """The mean of one difference per split, its variance corrected (Nadeau & Bengio 2003).

    Args:
        differences: one per split, at least two; seeds are averaged before.
        ratio: n_test / (n − n_test), independent units of the test part over those of the rest
            (train and validation): rows, or groups where splits keep groups together.

    Example:
        By hand: mean 2, S² = (4 + 0 + 4) / 2 = 4, variance 4 (1/3 + 1/4) = 7/3.

        >>> found = over_splits([0.0, 2.0, 4.0], 0.25)
        >>> found.mean, round(found.scale**2, 6), found.freedom
        (2.0, 2.333333, 2)

    Raises:
        ValueError: there are fewer than two, one is not finite, or `ratio` is negative.
    """
    _check(differences, ratio)
    count = len(differences)
    variance = statistics.variance(differences) * (1 / count + ratio)
    return Estimate(statistics.fmean(differences), math.sqrt(variance), count - 1)


def over_trainings(differences: Sequence[float], ratio: float, test_variance: float) -> Estimate:
    """The mean over redrawn training parts when the test part is a fixed one.

    The redrawing shows the chance of training alone, S² (1/K + ratio) with `ratio` validation to
    training; that of the test rows is the same in every split, does not shrink with K, and is
    added: `test_variance`, by resampling the rows. K − 1 degrees of freedom, which is too few
    where the rows' chance is the larger one, so on the safe side. The sum is ours; it reduces to
    `over_splits` without test variance.

    Raises:
        ValueError: as `over_splits`; or `test_variance` is negative.
    """
    _check(differences, ratio)
    if not test_variance >= 0:
        raise ValueError(f"test_variance={test_variance}: must be >= 0")
    alone = over_splits(differences, ratio)
    return replace(alone, scale=math.hypot(alone.scale, math.sqrt(test_variance)))


def over_rows(difference: float, resampled: Sequence[float]) -> Estimate:
    """A difference on one split, its spread that of a paired bootstrap over the test rows.

    It speaks of new rows like these for the networks that were trained, not of another split.

    Args:
        difference: on the test rows as they are.
        resampled: on test rows drawn with replacement; those that are not finite (a draw without
            a positive has no average precision) are left out.

    Raises:
        ValueError: fewer than two of them are finite.
    """
    known = [value for value in resampled if math.isfinite(value)]
    if len(known) < 2:
        raise ValueError(f"{len(known)} resampled differences: at least two are needed")
    return Estimate(difference, statistics.stdev(known), math.inf)


def half_width_with(
    differences: Sequence[float], ratio: float, splits: int, units: float = math.inf
) -> float:
    """What the interval's half-width would be about with so many splits of the same shares.

    Args:
        differences: as for `over_splits`.
        ratio: as for `over_splits`.
        splits: how many there would be, at least two.
        units: independent things that are divided; degrees of freedom stay below their number.

    Raises:
        ValueError: as `over_splits`; or `splits` is less than two.
    """
    if splits < 2:
        raise ValueError(f"splits={splits}: must be at least 2")
    _check(differences, ratio)
    variance = statistics.variance(differences) * (1 / splits + ratio)
    return Estimate(0.0, math.sqrt(variance), max(1, min(splits, units) - 1)).half_width()


def _check(differences: Sequence[float], ratio: float) -> None:
    if len(differences) < 2:
        raise ValueError(f"{len(differences)} differences: an interval needs two splits at least")
    if not all(map(math.isfinite, differences)):
        raise ValueError(f"differences={list(differences)}: all must be finite")
    if not (math.isfinite(ratio) and ratio >= 0):
        raise ValueError(f"ratio={ratio}: must be finite and >= 0")


# Over many tables -----------------------------------------------------------------------------


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, exact also with ties.

    Zeros are left out (Wilcoxon 1945), ties share their mean rank, and the distribution is that of
    all 2^n signs of these very ranks. One difference per table, tables independent (Demšar, JMLR
    7, 2006, section 3.1.3).

    Example:
        All of five have the same sign: 2 of the 32 signs are as extreme.

        >>> signed_rank([1.0, 2.0, 3.0, 4.0, 5.0])
        0.0625
    """
    from scipy.stats import rankdata

    if not all(map(math.isfinite, differences)):
        raise ValueError(f"differences={list(differences)}: all must be finite")
    moved = [value for value in differences if value != 0]
    if not moved:
        return 1.0
    doubled = [round(2 * rank) for rank in rankdata([abs(value) for value in moved])]
    counts = [1]  # how many signs give each sum of doubled positive ranks
    for rank in doubled:
        longer = counts + [0] * rank
        for total, number in enumerate(counts):
            longer[total + rank] += number
        counts = longer
    positive = sum(rank for rank, value in zip(doubled, moved, strict=True) if value > 0)
    smaller = min(positive, sum(doubled) - positive)
    extreme: int = 2 * sum(counts[: smaller + 1])
    return min(1.0, extreme / 2.0 ** len(doubled))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number by Holm's step-down (Scand. J. Statist. 6, 1979).

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    ordered = sorted(p_values, key=p_values.__getitem__)
    found = {}
    for k, name in enumerate(ordered):
        found[name] = min(1.0, (len(ordered) - k) * p_values[name])
    for before, after in pairwise(ordered):
        found[after] = max(found[before], found[after])
    return {name: found[name] for name in p_values}
