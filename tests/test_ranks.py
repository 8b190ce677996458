"""Several processes that share out a batch do what one does with all of it, or say why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import traffic
from evenhand import Balancer
from evenhand.distributed.fully_sharded import require_reducing
from evenhand.distributed.ranks import Ranks
from ranks import ROUTES, SHARES, Job, Variation, differences, spawned, train, variations
from traffic import MODES, sent, table
from wrapped import CASES, named

REFUSED = {
    "static graph, known before": r"static_graph.*Balancer\(model=",
    "static graph, not known": r"static_graph.*Balancer\(model=",
    "static graph, known wrapped": r"static_graph.*Balancer\(model=",
    "in join()": r"join\(\) answers .* leave join\(\) out",
    "frozen on one": r"rank 1 does not train 'trunk.0.weight'.*on all ranks",
    "flattened": r"FullyShardedDataParallel flattens .*fully_shard",
    "sharded in parts alone": r"not on it: call fully_shard\(model\) too",
    "wrapped, another group": r"reduces over \[0, 1\]: leave group= out",
    "sharded, alone": r"group=False.*under fully_shard .* leave group= out",
    "wrapped, alone": r"balances its own part of the batch.*leave group= out",
    "wrapped, alone, not known": r"balances its own part of the batch.*leave group= out",
    "sharded, missing": r"every rank must run the same passes, and 'c'",
    "sharded, accumulated": r"accumulate\(\).*take larger batches",
    "replicas of shards": r"several dimensions.*one mesh of one dimension",
    "tensors of a mesh": r"tensor parallelism.*Balancer\(model=.*backward.*group=",
    "other tasks": r"all ranks need .* the same tasks",
    "other options": r"weighting.c is 0.4 on rank 0 and 0.5 on rank 1",
    "other slots": r"weighting is MGDA on rank 0 and nothing on rank 1",
    "other parameters": r"'#\d' .* wrap the model .*group=False",
    "missing in an unknown model": r"give Balancer\(model=\)",
}


def sample(world: int) -> list[Variation]:
    """Every fifth or ninth method, slot and place; all ways to share out, and all routes."""
    chosen = list(variations())[:: {2: 5, 3: 9}[world]]
    ways = [(share, route) for route in ROUTES for share in SHARES]
    return [
        Variation(v.method, v.slot, v.at, *ways[k * 7 % len(ways)]) for k, v in enumerate(chosen)
    ]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks(world: int) -> None:
    """All that is asked of them, in one group of processes; `make ranks` asks of every method."""
    jobs: list[Job] = [(train, variation) for variation in sample(world)]
    jobs += [(sent, (name, route)) for name in MODES for route in traffic.ROUTES]
    jobs += [(named, name) for name in CASES] if world == 2 else []
    found = spawned(world, jobs)
    wrong: dict[str, Any] = {}
    for (job, argument), outcomes in zip(jobs, found, strict=True):
        told = TESTS[job](argument, outcomes, world)
        if told:
            wrong[str(argument)] = told
    assert not wrong


def as_one_process(variation: Variation, outcomes: list[Any], world: int) -> list[str]:
    return differences(outcomes, train(variation.alone, 0, 1))[:3]


def no_more_than_the_table_says(mode: tuple[str, str], outcomes: list[Any], world: int) -> str:
    expected, small = table(mode, world)
    right = all(abs(numbers - expected - small) < 1e-6 for numbers, _ in outcomes)
    return "" if right else f"sent {outcomes}, expected {expected} and {small}"


def right_or_refused(name: str, outcomes: list[Any], world: int) -> str:
    if name in REFUSED:
        kind = ("ValueError", "UserWarning")  # which is an error in a test
        refused = [isinstance(told, str) and told.startswith(kind) for told in outcomes]
        right = all(refused) and all(re.search(REFUSED[name], told) for told in outcomes)
        return "" if right else f"not refused: {outcomes}"
    if name == "one does not come":
        return "" if outcomes == ["an error", "did not come"] else str(outcomes)
    if any(isinstance(told, str) for told in outcomes):
        return str(outcomes)
    first, *others = outcomes
    if name == "alone":
        return "the same on all ranks" if any(map(torch.equal, *outcomes)) else ""
    expected = named(name, 0, 1)
    if not all(all(map(torch.equal, first, other)) for other in others):
        return "ranks differ"
    close = [
        torch.allclose(*pair, rtol=1e-10, atol=1e-12) for pair in zip(first, expected, strict=True)
    ]
    return "" if all(close) else f"not as one process: {close}"


TESTS: Mapping[Any, Any] = {
    train: as_one_process,
    sent: no_more_than_the_table_says,
    named: right_or_refused,
}


@pytest.mark.parametrize("group", [True, "world", 2])
def test_what_is_no_group(group) -> None:
    with pytest.raises(TypeError, match="must be a process group, a device mesh"):
        Balancer(group=group)


def test_parts_on_a_gpu_are_not_summed_by_gloo() -> None:
    for config in ("cpu:gloo,cuda:gloo", "gloo"):
        with pytest.raises(ValueError, match="make the group with nccl"):
            require_reducing("cuda", config)
        require_reducing("cpu", config)
    require_reducing("cuda", "cpu:gloo,cuda:nccl")


class Remembering(Ranks):
    """Three ranks, one after the other: the last one hears them all."""

    def __init__(self) -> None:
        self.size = 3
        self.told: list[torch.Tensor] = []

    def joined(self, part: torch.Tensor) -> torch.Tensor:
        self.told.append(part)
        return torch.cat([self.told[k % len(self.told)] for k in range(self.size)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@pytest.mark.parametrize(("shape", "dim"), [((7, 2), 0), ((2, 4, 3), 1), ((4,), 0), ((2, 0), 0)])
def test_chunks_make_the_whole_again(shape, dim, dtype) -> None:
    whole = torch.randn(shape, dtype=dtype)
    chunks = list(whole.chunk(3, dim))
    chunks += [whole.narrow(dim, 0, 0)] * (3 - len(chunks))  # fewer rows than ranks
    ranks = Remembering()
    *_, last = [ranks.whole(chunk, shape, dim) for chunk in chunks]
    assert torch.equal(last, whole)
