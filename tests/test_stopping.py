"""The counters of early stopping and of rates that fall on a plateau, value by value."""

from __future__ import annotations

import math

import pytest

from evenhand.training.stopping import EarlyStopping, Plateau


def test_a_plateau_reduces_and_begins_to_count_again() -> None:
    """Patience 2: the third and fifth equal values reduce, and so would every second one."""
    plateau = Plateau(patience=2)
    assert [plateau.reduces(5.0) for _ in range(7)] == [False, False, True] + [False, True] * 2


def test_an_improvement_sets_the_counter_of_a_plateau_to_zero() -> None:
    plateau = Plateau(patience=2)
    values = (5.0, 5.0, 4.0, 4.0, 3.0, 3.0, 3.0)
    assert [plateau.reduces(value) for value in values] == [False] * 6 + [True]


def test_what_improves_by_less_than_min_delta_does_not_improve() -> None:
    """From 5: 4.8 and 4.6 are within half of it; 4.4 is not, and 3.9 is exactly half below."""
    stopping = EarlyStopping(patience=2, min_delta=0.5)
    assert [stopping.improved(value) for value in (5.0, 4.8)] == [True, False]
    assert not stopping.exhausted
    assert not stopping.improved(4.6)
    assert stopping.exhausted
    assert stopping.improved(4.375)
    assert not stopping.exhausted
    assert not stopping.improved(3.875)
    plateau = Plateau(patience=2, min_delta=0.5)
    assert [plateau.reduces(value) for value in (5.0, 4.8, 4.6)] == [False, False, True]


def test_stopping_waits_as_long_as_it_is_told() -> None:
    stopping, never = EarlyStopping(patience=3), EarlyStopping()
    for waited, value in enumerate((2.0, 2.0, 3.0, math.inf)):
        assert stopping.exhausted is False
        stopping.improved(value)
        never.improved(value)
        assert stopping.waited == waited
    assert stopping.exhausted
    assert not never.exhausted
    assert (stopping.best, never.best) == (2.0, 2.0)


def test_what_is_not_finite_from_the_start_is_waited_for_as_long() -> None:
    stopping = EarlyStopping(patience=2)
    assert not stopping.improved(math.nan)
    assert not stopping.exhausted
    assert not stopping.improved(math.inf)
    assert stopping.exhausted


def test_the_untrained_network_may_be_no_candidate() -> None:
    """The lowest value is the first, that of epoch 0."""
    values = (1.0, 3.0, 2.0, 2.5, 2.5)
    usual, trained = EarlyStopping(patience=2), EarlyStopping(patience=2, untrained=False)
    assert [usual.improved(v) for v in values] == [True, False, False, False, False]
    assert [trained.improved(v) for v in values] == [False, True, True, False, False]
    assert trained.best == 2.0
    assert trained.exhausted
    again = EarlyStopping(patience=2, untrained=False)
    assert not again.improved(1.0)
    later = EarlyStopping(patience=2, untrained=False)
    later.load_state_dict(again.state_dict())
    assert later.improved(3.0)


def test_counters_go_on_where_they_were_saved() -> None:
    first, again = EarlyStopping(patience=3), EarlyStopping(patience=3)
    for value in (2.0, 1.0, 4.0, 4.0):
        first.improved(value)
    again.load_state_dict(first.state_dict())
    assert (again.best, again.waited) == (1.0, 2)
    with pytest.raises(ValueError, match="patience=0"):
        EarlyStopping(patience=0)
