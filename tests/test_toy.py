"""The toy landscape: its formulas, its Pareto set, and who gets there."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import evenhand as eh
from evenhand.data import toy
from evenhand.linalg import min_norm


def gradients(theta: Tensor, scale: float = toy.SCALE) -> Tensor:
    """J at each point, [..., 2, 2]."""
    theta = theta.clone().requires_grad_()
    values = toy.losses(theta, scale)
    rows = [torch.autograd.grad(values[..., i].sum(), theta, retain_graph=True)[0] for i in (0, 1)]
    return torch.stack(rows, -2)


def distance(theta: Tensor) -> Tensor:
    """To the Pareto set."""
    return torch.cdist(theta, toy.pareto_set(1001)).amin(-1)


def test_losses_by_hand() -> None:
    theta = torch.tensor([[0.0, 0.0], [7.0, -8.0], [-7.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
    below = math.tanh(4.0)
    above_2, bend_2 = math.tanh(1.0), math.tanh(2.0)
    above_1, bend_1 = math.tanh(0.5), math.tanh(1.0)
    expected = [
        [0.0, 0.0],
        [-20 * below, (19.6 - 20) * below],
        [above_2 * (math.log(bend_2) + 6), above_2 * (math.log(5 - bend_2 + 2) + 6)],
        [above_1 * (math.log(5 - bend_1) + 6), above_1 * (math.log(2 - bend_1) + 6)],
    ]
    torch.testing.assert_close(toy.losses(theta, scale=1.0), torch.tensor(expected).double())
    tenth = torch.tensor([0.1, 1.0]).double() * torch.tensor(expected).double()
    torch.testing.assert_close(toy.losses(theta), tenth)


def test_valleys_have_a_floor() -> None:
    """Where a logarithm's argument vanishes the loss is log 5e-6 + 6, and flat."""
    theta = torch.tensor([[-7 + 2 * math.tanh(3.0), 3.0]], dtype=torch.float64)
    floor = math.tanh(1.5) * (math.log(5e-6) + 6)
    assert toy.losses(theta, scale=1.0)[0, 0] == pytest.approx(floor)
    assert gradients(theta)[0, 0, 0] == 0


def test_pareto_set_is_stationary() -> None:
    front = toy.pareto_set(51)
    for scale in (0.1, 1.0):
        j = gradients(front, scale)
        shortest = min_norm(j @ j.mT)
        assert (shortest.squared_norm.sqrt() < 1e-7).all()
    assert (gradients(front)[0, 1].norm(), gradients(front)[-1, 0].norm()) < (1e-9, 1e-9)
    assert front[25, 1] == pytest.approx(-8.3552, abs=1e-4)
    values = toy.losses(front, scale=1.0)
    assert (values[1:, 0] < values[:-1, 0]).all()
    assert (values[1:, 1] > values[:-1, 1]).all()


def test_the_plain_sum_stays_where_gradients_conflict() -> None:
    """From (9, −1) it climbs to the ridge at θ_2 = 0 and creeps along it."""
    path = toy.trajectory(starts=[(9.0, -1.0)], steps=500, lr=2e-2)
    assert distance(path.theta[-1]) > 8
    assert path.theta[-1, 0, 1].abs() < 0.1


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (eh.NashMTL(), 0.05),
        (eh.PCGrad(), 0.2),
        (eh.UPGrad(), 0.2),
        (eh.DualProj(), 0.5),
        (eh.CAGrad(c=0.9), 1.2),
    ],
    ids=repr,
)
def test_balanced_gradients_descend_from_there(method: eh.Weighting, left: float) -> None:
    """Both losses all the way; what is left after as many steps."""
    path = toy.trajectory(aggregator=method, starts=[(9.0, -1.0)], steps=500, lr=2e-2)
    assert distance(path.theta[-1]) < left
    assert (path.losses[-1] < path.losses[0]).all()


@pytest.mark.filterwarnings("ignore:NashMTL. a solve ended:RuntimeWarning")  # at the front itself
def test_nash_mtl_reaches_the_front_from_everywhere() -> None:
    """As in its authors' Figure 1."""
    found = toy.paths(["nash-mtl"], partial(toy.trajectory, steps=800, lr=3e-2, every=300))
    path = found["nash-mtl"]
    assert (distance(path.theta[-1]) < 0.1).all()
    assert path.steps.tolist() == [0, 300, 600, 800]
    assert path.losses.shape == path.theta.shape == (4, 5, 2)
    torch.testing.assert_close(path.losses[0], toy.losses(torch.tensor(toy.STARTS).double()))


@pytest.mark.parametrize("make", [eh.NashMTL, eh.GradVac, eh.PCGrad])
def test_starts_do_not_know_of_each_other(make: type[eh.Weighting]) -> None:
    together = toy.trajectory(aggregator=make(), steps=40, every=20).theta[:, 3]
    alone = toy.trajectory(aggregator=make(), starts=toy.STARTS[3:4], steps=40, every=20).theta[
        :, 0
    ]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_chance_follows_the_seed() -> None:
    one, again, other = (
        toy.trajectory(aggregator=eh.GradDrop(), steps=30, seed=seed).theta for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", toy.recipe_names())
def test_every_balancing_recipe_can_be_drawn(name: str) -> None:
    path = toy.paths([name], partial(toy.trajectory, steps=12, every=5))[name]
    assert path.steps.tolist() == [0, 5, 10, 12]
    assert path.theta.isfinite().all()
    assert (path.theta[-1] != path.theta[0]).any()


def test_what_cannot_be_drawn_says_so() -> None:
    assert {"sg", "mgda", "cagrad", "famo", "uncertainty"} <= set(toy.recipe_names())
    for name in ("single-task", "grid", "ate-sg"):
        assert name not in toy.recipe_names()
        with pytest.raises(ValueError, match="nothing to draw"):
            toy.paths([name])
    with pytest.raises(ValueError, match="did you mean"):
        toy.paths(["cagard"])
    for wrong in ({"steps": 0}, {"every": 0}, {"starts": ()}):
        with pytest.raises(ValueError, match="all must be >= 1"):
            toy.trajectory(**wrong)
