"""Divisions of a pool: disjoint, reproducible, of the shares told; groups whole, times in order."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from evenhand import MultiTaskNetwork
from evenhand.comparison.request import Settings
from evenhand.data import Problem, Split, Task, problem
from evenhand.data.splits import Parts, Pool, strata


def _made(x: torch.Tensor, y: torch.Tensor):
    def make(parts: Parts) -> Problem:
        train, validation, test = (
            Split(x[part], {"y": y[part]}) for part in (parts.train, parts.validation, parts.test)
        )
        return Problem(
            name="made",
            summary="",
            citation="",
            tasks={"y": Task(functional.mse_loss, lambda: None, "MSE", False)},
            network=lambda tasks: MultiTaskNetwork(nn.Linear(1, 1), {"y": nn.Linear(1, 1)}),
            train=train,
            validation=validation,
            test=test,
        )

    return make


def _pool(count: int, **columns) -> Pool:
    x = torch.arange(count, dtype=torch.float32)[:, None]
    return Pool(count, _made(x, x), **columns)


def _lists(parts: Parts) -> list[list[int]]:
    return [part.tolist() for part in (parts.train, parts.validation, parts.test)]


@given(st.integers(8, 60), st.integers(3, 6), st.sampled_from(["hold-out", "k-fold"]))
def test_every_sample_stands_on_one_side(count, splits, design) -> None:
    for number in range(splits):
        parts = _pool(count).parts(design, splits, number)
        assert sorted(chain(*_lists(parts))) == list(range(count))


def test_a_fifth_validates_and_a_fifth_tests() -> None:
    sizes = [len(part) for part in _lists(_pool(100).parts("hold-out", 5, 3))]
    assert sizes == [60, 20, 20]


def test_splits_differ_and_are_the_same_again() -> None:
    first, second, again = (_lists(_pool(50).parts("hold-out", 5, k)) for k in (0, 1, 0))
    assert first == again
    assert first[2] != second[2]


def test_every_fold_tests_once() -> None:
    folds = [_pool(23).parts("k-fold", 4, number).test.tolist() for number in range(4)]
    assert sorted(chain(*folds)) == list(range(23))


def test_each_part_has_its_share_of_a_class() -> None:
    strata = torch.tensor([1] * 20 + [0] * 180)[torch.randperm(200)]
    for number in range(5):
        for design in ("hold-out", "k-fold"):
            parts = _pool(200, strata=strata).parts(design, 5, number)
            rare = [int(strata[part].sum()) for part in (parts.train, parts.validation, parts.test)]
            assert rare[0] in (11, 12, 13)
            assert {rare[1], rare[2]} <= {3, 4, 5}


def test_a_group_is_never_divided_and_groups_are_counted() -> None:
    groups = torch.arange(60) // 3
    for number in range(5):
        made = _pool(60, groups=groups).problem("hold-out", 5, number)
        parts = _pool(60, groups=groups).parts("hold-out", 5, number)
        sides = [set(groups[part].tolist()) for part in (parts.train, parts.validation, parts.test)]
        assert not any(a & b for a, b in combinations(sides, 2))
        assert made.units == (16, 4)
        assert made.test_groups is not None
        assert made.test_groups.tolist() == groups[parts.test].tolist()


def test_the_future_tests_the_past() -> None:
    times = torch.randperm(40).float()
    pool = _pool(40, times=times)
    seen: list[int] = []
    for number in range(4):
        parts = pool.parts("time", 4, number)
        train, validation, test = (times[p] for p in (parts.train, parts.validation, parts.test))
        assert train.max() < validation.min()
        assert validation.max() < test.min()
        assert len(parts.test) == 5
        seen += parts.test.tolist()
    assert sorted(times[seen].tolist()) == list(range(20, 40))


def test_equal_times_are_not_divided() -> None:
    times = (torch.arange(40) // 4).float()
    for number in range(3):
        parts = _pool(40, times=times).parts("time", 3, number)
        sides = [set(times[p].tolist()) for p in (parts.train, parts.validation, parts.test)]
        assert not any(a & b for a, b in combinations(sides, 2))


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({}, ("thirds", 3, 0), "must be one of hold-out, k-fold, time"),
        ({}, ("time", 3, 0), "have no times"),
        ({"times": torch.arange(9), "groups": torch.arange(9)}, ("time", 3, 0), "one of the two"),
        ({}, ("k-fold", 2, 0), "at least 3"),
        ({}, ("k-fold", 3, 3), "no split 3 of 3"),
        ({"groups": torch.zeros(9, dtype=torch.int64)}, ("hold-out", 3, 0), "too few"),
    ],
)
def test_what_cannot_be_divided_is_refused(columns, asked, message) -> None:
    with pytest.raises(ValueError, match=message):
        _pool(9, **columns).parts(*asked)
    with pytest.raises(ValueError, match=r"strata is \(3,\), not \[9\]"):
        _pool(9, strata=torch.zeros(3))


def test_classes_of_several_columns_are_told_apart_while_they_are_not_too_small() -> None:
    sex, ward, name = torch.arange(60) % 2, torch.arange(60) // 30, torch.arange(60) % 30
    found = strata([sex, name, ward])  # sixty names would be one sample each: passed over
    assert found is not None
    assert found.tolist() == (2 * sex + ward).tolist()
    assert strata([]) is None
    assert strata([torch.arange(60)]) is None
    two = strata([torch.arange(4) % 2])  # two classes are always told apart
    assert two is not None
    assert two.tolist() == [0, 1, 0, 1]


def test_shares_are_the_pools_own() -> None:
    parts = _pool(50, shares=(0.3, 0.1)).parts("hold-out", 1, 0)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [30, 5, 15]
    with pytest.raises(ValueError, match="must be positive, their sum below 1"):
        _pool(50, shares=(0.5, 0.5))


def test_beside_an_official_test_set_classes_and_groups_keep_to_their_sides() -> None:
    rare = (torch.arange(50) % 5 == 0).long()
    official = torch.arange(50, 60)
    for number in range(4):
        parts = _pool(50, strata=rare).beside(official, number)
        assert sorted([*parts.train.tolist(), *parts.validation.tolist()]) == list(range(50))
        assert len(parts.validation) == 10
        assert int(rare[parts.validation].sum()) == 2
        assert parts.test.tolist() == official.tolist()
        groups = torch.arange(50) // 5
        parts = _pool(50, groups=groups).beside(official, number)
        assert not {*groups[parts.train].tolist()} & {*groups[parts.validation].tolist()}
        assert len(parts.validation) == 10
    first, second = (_pool(50).beside(official, k).validation.tolist() for k in (0, 1))
    assert first != second


SHIPPED = {
    "digits": (1_079, 359, 359),
    "quadrants": (5_600, 1_400, 3_000),
    "scans": (1_079, 359, 359),
    "signals": (5_040, 1_260, 2_700),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_comparison_gives_each_part_its_share_of_every_class_of_what_ships(name) -> None:
    """By default, without a word about designs: the classes of tasks that are classes."""
    settings = Settings(name, splits=3)
    pool = settings.problem(0).pool
    assert pool is not None
    assert pool.strata is not None
    whole = pool.strata.bincount()
    assert len(whole) == {"digits": 10, "quadrants": 8, "scans": 10, "signals": 9}[name]
    for split in range(3):
        parts = pool.parts("hold-out", 3, split)
        drawn = settings.problem(split).test
        assert torch.equal(drawn.inputs, pool.problem("hold-out", 3, split).test.inputs)
        for part, size in zip(_lists(parts), SHIPPED[name], strict=True):
            assert len(part) == pytest.approx(size, abs=1)
            share = pool.strata[part].bincount() / whole
            assert torch.allclose(share * whole, len(part) / pool.count * whole, atol=2)


def test_classes_of_targets_have_equal_shares_in_every_test_part_of_a_comparison() -> None:
    """As the metrics see them, not as the pool says."""
    for name, tasks in {"quadrants": ("quadrant", "circle"), "signals": ("signal",)}.items():
        settings = Settings(name, splits=2)
        counts = [
            torch.cat([settings.problem(k).test.targets[task].bincount() for task in tasks])
            for k in range(2)
        ]
        assert int((counts[0] - counts[1]).abs().max()) <= 4  # at random some would differ by 30


@pytest.mark.parametrize("name", ["digits", "quadrants", "scans", "signals"])
def test_what_ships_can_be_folded(name) -> None:
    first = problem(name, 0)
    assert first.pool is not None
    folded = first.pool.problem("k-fold", 5, 2)
    assert (folded.name, list(folded.tasks)) == (name, list(first.tasks))
    assert folded.test.inputs.shape[1:] == first.test.inputs.shape[1:]
    assert not torch.equal(folded.test.inputs[:5], first.test.inputs[:5])
    again = first.pool.problem("k-fold", 5, 2)
    assert torch.equal(folded.train.inputs, again.train.inputs)
