"""One set of recipes on many tables: signed ranks, with Holm's correction (Demšar, JMLR 7, 2006).

Each recipe is held against the plain sum. A table counts once, by the mean skill over its judged
tasks. Splits of one table are no sample of tables, so this is never done within one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from evenhand.comparison.inference import holm, signed_rank
from evenhand.comparison.request import BASELINE

LEAST = 10
"""Fewer tables are no sample: with five, the smallest p is 1/16."""


@dataclass(frozen=True)
class Across:
    """A row against the plain sum over the tables that have both.

    Attributes:
        name: of the recipe or reference.
        tables: how many tables have both.
        median: of the differences, points of skill.
        better, worse: on how many tables.
        p: two-sided, of the signed-rank test.
        adjusted: by Holm, over the rows.
    """

    name: str
    tables: int
    median: float
    better: int
    worse: int
    p: float
    adjusted: float


def over_tables(skills: Mapping[str, Mapping[str, float]]) -> list[Across]:
    """Compare the rows that at least `LEAST` tables have with the plain sum.

    Args:
        skills: by table, the mean skill of each row; NaN where it has none.

    Raises:
        ValueError: there are fewer than `LEAST` tables, or fewer have the plain sum and another
            row.
    """
    if len(skills) < LEAST:
        raise ValueError(
            f"{len(skills)} tables: signed ranks need {LEAST} at least; with one folder `report` "
            "shows that comparison"
        )
    names = list(dict.fromkeys(name for rows in skills.values() for name in rows))
    differences = {}
    for name in names:
        found = [
            rows[name] - rows[BASELINE]
            for rows in skills.values()
            if name in rows and BASELINE in rows and math.isfinite(rows[name] - rows[BASELINE])
        ]
        if name != BASELINE and len(found) >= LEAST:
            differences[name] = found
    if not differences:
        raise ValueError(f"fewer than {LEAST} tables have {BASELINE} and another row in common")
    p = {name: signed_rank(found) for name, found in differences.items()}
    adjusted = holm(p)
    return [
        Across(
            name,
            len(found),
            statistics.median(found),
            sum(d > 0 for d in found),
            sum(d < 0 for d in found),
            p[name],
            adjusted[name],
        )
        for name, found in differences.items()
    ]
