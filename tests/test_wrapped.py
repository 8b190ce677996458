"""No silent wrong step of several processes: right, or an error that says what would be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evenhand import Balancer
from ranks import spawned
from wrapped import CASES, named, stepped


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Any]]:
    found = spawned(2, named, list(CASES))
    return {name: [rank[k] for rank in found] for k, name in enumerate(CASES)}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("static graph, known before", r"static_graph.*Balancer\(model="),
        ("static graph, not known", r"static_graph.*Balancer\(model="),
        ("static graph, known wrapped", r"static_graph.*Balancer\(model="),
        *(
            (name, r"fully_shard.*Balancer\(model=.*backward.*group=")
            for name in CASES
            if name.startswith(("sharded", "tensors"))
        ),
        ("other tasks", r"all ranks need .* the same tasks"),
        ("other parameters", r"'#\d' .* wrap the model .*group=False"),
        ("missing in an unknown model", r"give Balancer\(model=\)"),
    ],
)
def test_an_error_on_every_rank(outcomes, name, words) -> None:
    for told in outcomes[name]:
        assert isinstance(told, str), told
        assert told.startswith("ValueError")
        with pytest.raises(ValueError, match=words):
            raise ValueError(told)


def test_a_rank_that_does_not_come_is_an_error(outcomes) -> None:
    assert outcomes["one does not come"] == ["an error", "did not come"]


@pytest.mark.parametrize(
    "name",
    [name for name in CASES if name.startswith(("wrapped", "plain", "past", "copied"))],
)
def test_right_whatever_was_said_of_the_model(outcomes, name) -> None:
    expected = stepped(0, 1)
    if name == "copied":
        expected = stepped(0, 1, steps=1) * 2
    for found in outcomes[name]:
        assert not isinstance(found, str), found
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    for pair in zip(*outcomes[name], strict=True):
        assert torch.equal(*pair)


def test_alone_is_alone(outcomes) -> None:
    one, other = outcomes["alone"]
    assert not any(map(torch.equal, one, other))


@pytest.mark.parametrize("group", [True, "world", 2])
def test_what_is_no_group(group) -> None:
    with pytest.raises(TypeError, match="must be a process group, a device mesh"):
        Balancer(group=group)
