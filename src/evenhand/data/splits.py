"""Dividing samples into train, validation and test, again and again.

A `Pool` knows how many samples there are and what divides them: classes that every part should
have its share of, groups (subjects, pictures) that stand on one side only, times. Its `problem`
makes split `number` of a design:

    hold-out   test and validation are drawn anew for each split: a fifth of the units each, or
               the pool's own shares
    k-fold     the units are dealt once into as many folds as splits; fold k tests, the next
               validates
    time       split k learns from what came before its origin and tests on what comes next; the
               latest of the past validates

A unit is a group where there are groups, else a sample. Whatever is fitted to data (means,
scales) is fitted by `make`, which is told the parts, to the training part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evenhand.data.problem import Problem
from evenhand.schedules import mixed_seed
from evenhand.sources import DESIGNS

SHARE = 0.2
"""Of the units, those that test, and those that validate."""
ROWS = 10
"""The fewest samples of a stratum, in the mean: smaller ones cannot have a share in every part."""


@dataclass(frozen=True)
class Parts:
    """Which samples train, validate and test: int64 each, no sample twice."""

    train: Tensor
    validation: Tensor
    test: Tensor

    @classmethod
    def untested(cls, train: Tensor, validation: Tensor) -> Parts:
        """Parts where something else tests. A problem has a test part: validation stands there too,
        and a metric of it is no test.
        """
        return cls(train, validation, validation)


@dataclass(frozen=True)
class Pool:
    """All samples of a problem without an official test set.

    Attributes:
        count: how many samples there are.
        make: the problem with these parts.
        strata: a class per sample, int64 [count], of which every part gets its share. It is not
            looked at where there are groups or times.
        groups: the group of each sample, int64 [count]; a group is never divided.
        times: when each sample was taken, [count]; equal times are never divided.
        shares: of the units, those that test and those that validate where they are drawn.

    Raises:
        ValueError: a column is not of that length; or the shares leave nothing.
    """

    count: int
    make: Callable[[Parts], Problem]
    strata: Tensor | None = None
    groups: Tensor | None = None
    times: Tensor | None = None
    shares: tuple[float, float] = (SHARE, SHARE)

    def __post_init__(self) -> None:
        if not (min(self.shares) > 0 and sum(self.shares) < 1):
            raise ValueError(f"shares={self.shares}: must be positive, their sum below 1")
        for name in ("strata", "groups", "times"):
            column: Tensor | None = getattr(self, name)
            if column is not None and column.shape != (self.count,):
                raise ValueError(f"{name} is {tuple(column.shape)}, not [{self.count}]")

    def problem(self, design: str = "hold-out", splits: int = 1, number: int = 0) -> Problem:
        """Split `number` of so many.

        Raises:
            ValueError: the design is unknown, cannot be had here, or leaves a part empty.
        """
        parts = self.parts(design, splits, number)
        problem = replace(self.make(parts), pool=self)
        if self.groups is None:
            return problem
        learning = torch.cat([parts.train, parts.validation])
        sides = (torch.unique(self.groups[learning]), torch.unique(self.groups[parts.test]))
        return replace(
            problem, units=(len(sides[0]), len(sides[1])), test_groups=self.groups[parts.test]
        )

    def parts(self, design: str, splits: int, number: int) -> Parts:
        """The samples of split `number`, each part in their order in the pool.

        Raises:
            ValueError: as `problem`.
        """
        if design not in DESIGNS:
            raise ValueError(f"design={design!r}: must be one of {', '.join(DESIGNS)}")
        if number < 0 or (design != "hold-out" and number >= splits):
            raise ValueError(f"there is no split {number} of {splits} ({design})")
        drawn = {
            "hold-out": self._held_out,
            "k-fold": self._folded,
            "time": self._later,
        }[design](splits, number)
        sizes = {
            "train": len(drawn.train),
            "validation": len(drawn.validation),
            "test": len(drawn.test),
        }
        if not all(sizes.values()):
            raise ValueError(f"{self.count} samples are too few for {splits} x {design}: {sizes}")
        return drawn

    def apart(self, share: float, number: int) -> Parts:
        """Training and validation alone, see `Parts.untested`.

        Args:
            share: of the units that validate, one at least.
            number: another division for another number.

        Raises:
            ValueError: no unit is left to train.
        """
        order, units = self._dealt(number)
        size = max(1, round(share * len(order)))
        if size >= len(order):
            what = "samples" if self.groups is None else "groups"
            raise ValueError(
                f"{len(order)} {what} cannot be divided into training and validation ({share:g})"
            )
        validate = torch.isin(units, order[:size])
        return Parts.untested((~validate).nonzero().flatten(), validate.nonzero().flatten())

    def _held_out(self, splits: int, number: int) -> Parts:
        order, units = self._dealt(number)
        test, validate = (round(share * len(order)) for share in self.shares)
        after = test + validate
        return self._sides(units, order[after:], order[test:after], order[:test])

    def _folded(self, splits: int, number: int) -> Parts:
        if splits < 3:
            raise ValueError(f"splits={splits}: one fold tests, one validates, so at least 3")
        order, units = self._dealt(0)
        folds = order.tensor_split(splits)
        after = (number + 1) % splits
        rest = [fold for k, fold in enumerate(folds) if k not in (number, after)]
        return self._sides(units, torch.cat(rest), folds[after], folds[number])

    def _later(self, splits: int, number: int) -> Parts:
        if self.times is None:
            raise ValueError("design='time': the samples have no times")
        if self.groups is not None:
            raise ValueError("design='time': groups may reach over an origin; have one of the two")
        order = self.times.argsort(stable=True)
        sorted_times = self.times[order]

        def place(share: float) -> int:
            """The first sample of the time that stands at this share of all."""
            index = min(self.count - 1, int(share * self.count))
            return int(torch.searchsorted(sorted_times, sorted_times[index]))

        origin = 0.5 + 0.5 * number / splits
        end = self.count if number == splits - 1 else place(origin + 0.5 / splits)
        test, validation = place(origin), place((1 - SHARE) * origin)
        return Parts(order[:validation], order[validation:test], order[test:end])

    def _dealt(self, number: int) -> tuple[Tensor, Tensor]:
        """The units in a random order, of which every stretch has its share of each stratum; and
        the unit of each sample.
        """
        generator = torch.Generator().manual_seed(mixed_seed(number, *b"split"))
        if self.groups is not None:
            names, units = torch.unique(self.groups, return_inverse=True)
            return torch.randperm(len(names), generator=generator), units
        order = torch.randperm(self.count, generator=generator)
        if self.strata is not None:
            order = order[_interleaved(self.strata[order], generator)]
        return order, torch.arange(self.count)

    def beside(self, test: Tensor, number: int) -> Parts:
        """These samples divided into training and validation for split `number`; `test` tests.

        It is for official test sets, whose samples are numbers outside the pool, int64 [n].
        """
        order, units = self._dealt(number)
        validate = max(1, round(self.shares[1] * len(order)))
        drawn = self._sides(units, order[validate:], order[:validate], order[:0])
        return replace(drawn, test=test)

    def _sides(self, units: Tensor, train: Tensor, validation: Tensor, test: Tensor) -> Parts:
        return Parts(
            *(torch.isin(units, part).nonzero().flatten() for part in (train, validation, test))
        )


def strata(columns: Sequence[Tensor]) -> Tensor | None:
    """One class per sample of those in several columns, int64 [count]; None if there are none.

    It tells apart what differs in any column. Columns are taken in one after the other; one whose
    combinations with those before would have fewer than `ROWS` samples in the mean is passed over.

    Args:
        columns: classes of each sample, int64 [count] each.

    Example:
        >>> column = torch.arange(40)
        >>> strata([column % 2, column % 7, column // 20]).unique().tolist()
        [0, 1, 2, 3]
    """
    found: Tensor | None = None
    for column in columns:
        pairs = column[:, None] if found is None else torch.stack([found, column], dim=1)
        joint = torch.unique(pairs, dim=0, return_inverse=True)[1]
        if len(joint) and int(joint.max()) + 1 <= max(2, len(joint) / ROWS):
            found = joint
    return found


def _interleaved(strata: Tensor, generator: torch.Generator) -> Tensor:
    """An order in which the members of each stratum are spread evenly, in the order they have."""
    keys = torch.empty(len(strata), dtype=torch.float64)
    for stratum in torch.unique(strata):
        members = (strata == stratum).nonzero().flatten()
        start = torch.rand((), generator=generator, dtype=torch.float64)
        keys[members] = (torch.arange(len(members), dtype=torch.float64) + start) / len(members)
    return keys.argsort(stable=True)
