"""Several processes that share out a batch do what one does with all of it."""

from __future__ import annotations

import pytest

from ranks import ROUTES, SHARES, Variation, differences, spawned, train, variations


def sample(world: int) -> list[Variation]:
    """Every fourth method, slot and place, with every way to share out and every route."""
    return [
        Variation(v.method, v.slot, v.at, SHARES[k % len(SHARES)], ROUTES[k // 2 % len(ROUTES)])
        for k, v in enumerate(variations())
        if k % 4 == world % 4
    ]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_what_one_process_does(world: int) -> None:
    """All of them in one group of processes; `make ranks` takes the whole table."""
    chosen = sample(world)
    found = spawned(world, train, chosen)
    wrong = {}
    for k, variation in enumerate(chosen):
        told = differences([rank[k] for rank in found], train(variation.alone, 0, 1))
        if told:
            wrong[str(variation)] = told[:3]
    assert not wrong
