"""Weights refreshed every k steps."""

from __future__ import annotations

import pytest
import torch

from evenhand import MGDA, Clock, GradNorm, Running, TaskGradients
from evenhand.weighting import Every


class Counting(MGDA):
    """Min-norm weights, and how often they were asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def weigh(self, g):
        self.asked.append(g)
        return super().weigh(g)


def _view(seed: int, index: list[int] | None = None) -> TaskGradients:
    jacobian = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    if index is None:
        return TaskGradients.of(jacobian=jacobian)
    where = torch.tensor(index)
    return TaskGradients.of(jacobian=jacobian[where], index=where, total=3)


def test_solves_at_every_kth_call_only() -> None:
    lazy = Running(Every(base := Counting(), steps=3), ["a", "b", "c"])
    seen = [lazy(_view(seed)) for seed in range(7)]
    assert len(base.asked) == 3
    for start in (0, 3):
        torch.testing.assert_close(seen[start], MGDA()(_view(start)))
        assert torch.equal(seen[start], seen[start + 1])
        assert torch.equal(seen[start], seen[start + 2])
    assert not torch.equal(seen[0], seen[3])


def test_a_task_without_a_weight_makes_it_solve() -> None:
    lazy = Running(Every(base := Counting(), steps=10), ["a", "b", "c"])
    lazy(_view(0, [0, 1]))
    lazy(_view(1, [1]))
    assert len(base.asked) == 1
    lazy(_view(2, [1, 2]))
    assert len(base.asked) == 2


def test_what_a_call_will_need_depends_on_whether_it_solves() -> None:
    lazy = Running(Every(MGDA(), steps=3), ["a", "b", "c"])
    needs = []
    for seed in range(4):
        needs.append(lazy.method.needs(lazy.state, Clock(step=seed)))
        lazy(_view(seed))
    assert needs == ["gramian", "nothing", "nothing", "gramian"]
    partly = Running(Every(MGDA(), steps=3), ["a", "b", "c"])
    partly(_view(0, [0, 1]))
    assert partly.method.needs(partly.state, Clock()) == "gramian"  # c may come, without a weight


def test_learned_weights_learn_at_the_solves() -> None:
    lazy = Running(Every(GradNorm(), steps=2), ["a", "b", "c"])
    learned = []
    for seed in range(4):
        lazy.zero_grad()
        lazy(_view(seed))
        learned.append(all(scalar.grad is not None for scalar in lazy.parameters()))
    assert learned == [True, False, True, False]


def test_steps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="steps=0"):
        Every(MGDA(), steps=0)
