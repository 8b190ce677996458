"""Intervals and probabilities: values worked out by hand, scipy, and numbers from the issue."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evenhand.comparison.inference import (
    Estimate,
    half_width_with,
    holm,
    over_rows,
    over_splits,
    over_trainings,
    signed_rank,
)

FIVE = [3.0, 1.5, 2.5, 0.5, 3.5]  # mean 2.2, S² = 1.45


def test_the_corrected_variance_by_hand() -> None:
    found = over_splits(FIVE, 0.25)
    assert found.mean == pytest.approx(2.2)
    assert found.scale**2 == pytest.approx(1.45 * (1 / 5 + 1 / 4))
    assert found.freedom == 4
    # t(0.975, 4) = 2.776445 from a printed table
    half = 2.776445 * math.sqrt(1.45 * 0.45)
    interval = found.interval()
    assert interval.low == pytest.approx(2.2 - half, abs=1e-6)
    assert interval.high == pytest.approx(2.2 + half, abs=1e-6)
    assert found.half_width() == pytest.approx(half, abs=1e-6)


def test_without_overlap_it_is_the_t_interval_of_scipy() -> None:
    low, high = stats.ttest_1samp(FIVE, 0.0).confidence_interval(0.95)
    assert over_splits(FIVE, 0.0).interval().low == pytest.approx(low)
    assert over_splits(FIVE, 0.0).interval().high == pytest.approx(high)


def test_simultaneous_intervals_share_the_error() -> None:
    found = over_splits(FIVE, 0.25)
    # t(1 − 0.05 / (2 · 5), 4) = t(0.995, 4) = 4.604095
    assert found.half_width(5) == pytest.approx(4.604095 * found.scale, abs=1e-5)
    assert found.half_width(1) < found.half_width(2) < found.half_width(5)


def test_probabilities_are_those_of_the_printout_in_mind() -> None:
    """+2.1 (−0.4 to +4.6) on 4 degrees of freedom: better 85 %, same 13 %, worse 1 %."""
    found = Estimate(2.1, 2.5 / 2.776445, 4)
    chances = found.chances(1.0)
    assert (round(100 * chances.worse), round(100 * chances.same)) == (1, 13)
    assert chances.better == pytest.approx(0.8556, abs=2e-3)
    assert chances.worse + chances.same + chances.better == pytest.approx(1)


def test_probabilities_are_the_integral_of_the_posterior() -> None:
    found = Estimate(0.7, 0.9, 3)
    grid = np.linspace(-200, 200, 2_000_001)
    density = stats.t.pdf(grid, 3, loc=0.7, scale=0.9)
    step = grid[1] - grid[0]
    chances = found.chances(0.5)
    assert chances.worse == pytest.approx(float(density[grid < -0.5].sum() * step), abs=5e-5)
    assert chances.better == pytest.approx(float(density[grid > 0.5].sum() * step), abs=5e-5)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.floats(0, 1), st.floats(0, 5))
def test_turned_round_worse_is_better(differences, ratio, margin) -> None:
    found = over_splits(differences, ratio).chances(margin)
    turned = over_splits([-d for d in differences], ratio).chances(margin)
    assert found.worse == pytest.approx(turned.better, abs=1e-9)
    assert found.same == pytest.approx(turned.same, abs=1e-9)


def test_the_same_in_every_split_is_certain() -> None:
    found = over_splits([2.0, 2.0, 2.0], 0.25)
    assert found.interval().low == found.interval().high == 2.0
    assert found.chances(1.0).better == 1.0
    assert found.chances(2.0).same == 1.0


def test_more_splits_as_the_printout_in_mind_says() -> None:
    """A half-width of 2.5 with five splits of a fifth is 1.8 with ten."""
    spread = 2.5 / (2.776445 * math.sqrt(0.45))
    differences = [-spread * math.sqrt(2), 0.0, 0.0, 0.0, spread * math.sqrt(2)]
    assert over_splits(differences, 0.25).half_width() == pytest.approx(2.5, abs=1e-5)
    assert half_width_with(differences, 0.25, 10) == pytest.approx(1.797, abs=2e-3)


def test_a_fixed_test_set_adds_what_its_rows_bring() -> None:
    alone = over_splits(FIVE, 0.1)
    found = over_trainings(FIVE, 0.1, 0.64)
    assert found.scale**2 == pytest.approx(alone.scale**2 + 0.64)
    assert (found.mean, found.freedom) == (alone.mean, 4)


def test_one_split_has_the_spread_of_its_rows() -> None:
    found = over_rows(1.0, [0.0, 2.0, math.nan, 4.0])
    assert (found.mean, found.scale) == (1.0, 2.0)
    assert found.half_width() == pytest.approx(1.959964 * 2, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: over_splits([1.0], 0.2), "needs two splits"),
        (lambda: over_splits([1.0, math.nan], 0.2), "must be finite"),
        (lambda: over_splits([1.0, 2.0], -0.2), "ratio=-0.2"),
        (lambda: over_trainings([1.0, 2.0], 0.2, -1.0), "test_variance=-1.0"),
        (lambda: over_rows(1.0, [1.0, math.nan]), "at least two"),
        (lambda: half_width_with([1.0, 2.0], 0.2, 1), "splits=1"),
        (lambda: signed_rank([math.inf]), "must be finite"),
    ],
)
def test_what_cannot_be_said_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=14, unique=True), st.randoms())
def test_signed_ranks_are_scipys_without_ties(sizes, random) -> None:
    differences = [size * random.choice((-1.0, 1.0)) for size in sizes]
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank(differences) == pytest.approx(expected)


def test_signed_ranks_with_ties_by_hand() -> None:
    """|1|, |1|, |2|: ranks 1.5, 1.5, 3. W⁻ = 1.5: of 8 signs, 0, 1.5 and 1.5 are as low."""
    assert signed_rank([-1.0, 1.0, 2.0]) == pytest.approx(2 * 3 / 8)
    assert signed_rank([-1.0, 1.0, 2.0, 0.0]) == pytest.approx(2 * 3 / 8)
    assert signed_rank([0.0, 0.0]) == 1.0


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .03, .04 become .04, .06, .06 and .06: never falling, never above 1."""
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert list(found) == ["d", "a", "c", "b"]
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
