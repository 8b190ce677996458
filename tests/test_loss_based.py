"""Methods that look at losses alone: each against the function it says it descends, by autograd."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torchjd.scalarization as peer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import evenhand as eh
from evenhand import Balancer, Clock, Running, TaskGradients
from samplers import NAMES, inputs, losses_of, small_network

LOSSES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def view(losses: Tensor | list[float], **more: object) -> TaskGradients:
    values = torch.as_tensor(losses, dtype=torch.float64)
    return TaskGradients.of(losses=values, tasks=NAMES[: values.shape[-1]], **more)


def bound(method: eh.Weighting, m: int) -> Running:
    return Running(method, NAMES[:m])


def gradient(function: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    losses = losses.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(function(losses), losses)
    return slopes


def by_task(values: Tensor | list[float]) -> dict[str, float]:
    return dict(zip(NAMES, torch.as_tensor(values).tolist(), strict=False))


def close(one: Tensor, other: Tensor | list[float], rtol: float = 1e-9) -> None:
    expected = torch.as_tensor(other, dtype=one.dtype)
    torch.testing.assert_close(one, expected, rtol=rtol, atol=1e-12)


# The function that is descended ---------------------------------------------------------------


@given(LOSSES)
def test_gls_descends_the_geometric_mean(losses: Tensor) -> None:
    weights = eh.GLS()(view(losses))
    close(weights, gradient(lambda x: x.log().mean().exp(), losses))
    close(weights, gradient(peer.GeometricMean(), losses))


@given(LOSSES)
def test_si_descends_the_sum_of_logarithms(losses: Tensor) -> None:
    close(eh.ScaleInvariant()(view(losses)), gradient(lambda x: x.log().sum(), losses))


@given(LOSSES, st.floats(0.01, 10), st.integers(0, 99))
def test_stch_descends_the_smooth_maximum(losses: Tensor, mu: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    preference = torch.rand(len(losses), generator=chance, dtype=torch.float64) + 0.1
    point = -torch.rand(len(losses), generator=chance, dtype=torch.float64)
    method = bound(eh.STCH(mu, by_task(preference), by_task(point)), len(losses))
    smooth = peer.STCH(mu, weights=preference, reference=point)
    close(method(view(losses)), gradient(smooth, losses))


def test_stch_prefers_no_task_by_default_and_tends_to_tchebycheff() -> None:
    losses = torch.tensor([0.3, 2.0, 1.9], dtype=torch.float64)
    close(eh.STCH(0.7)(view(losses)), gradient(peer.STCH(0.7), losses))
    close(eh.STCH(1e-4)(view(losses)), eh.Tchebycheff()(view(losses)))
    close(eh.STCH(1e9)(view(losses)), torch.full((3,), 1 / 9), rtol=1e-6)


@given(LOSSES)
def test_tchebycheff_descends_the_largest_weighted_loss(losses: Tensor) -> None:
    preference = torch.linspace(1.0, 1.7, len(losses), dtype=torch.float64)
    method = bound(eh.Tchebycheff(by_task(preference)), len(losses))
    expected = gradient(lambda x: (preference * x).max(), losses)
    if len((preference * losses).unique()) == len(losses):
        close(method(view(losses)), expected)


def test_tchebycheff_shares_equally_where_several_are_worst() -> None:
    close(eh.Tchebycheff()(view([2.0, 1.0, 2.0])), [1 / 6, 0, 1 / 6])


def test_tchebycheff_measures_from_the_reference_point() -> None:
    method = bound(eh.Tchebycheff(reference={"t0": 0.0, "t1": 5.0}), 2)
    close(method(view([1.0, 5.5])), torch.tensor([0.5, 0.0]))


@given(LOSSES, st.floats(0, 10))
def test_pbi_descends_the_penalised_distance(losses: Tensor, theta: float) -> None:
    preference = torch.linspace(1.0, 2.0, len(losses), dtype=torch.float64)
    point = torch.linspace(-1.0, -0.5, len(losses), dtype=torch.float64)
    method = bound(eh.PBI(theta, by_task(preference), by_task(point)), len(losses))
    reference = peer.PBI(theta, weights=preference, reference=point)
    f, ray = losses - point, preference / preference.norm()
    if (f - (f @ ray) * ray).norm() > 1e-3:  # nearer to the ray the peer smooths
        close(method(view(losses)), gradient(reference, losses), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pbi_on_the_ray_has_no_penalty_from_rounding(dtype: torch.dtype) -> None:
    preference = torch.tensor([0.1, 0.7, 0.3, 1.9], dtype=dtype)
    method = bound(eh.PBI(5.0, by_task(preference)), 4)
    g = TaskGradients.of(losses=3.7 * preference, tasks=NAMES[:4])
    close(method(g), preference / preference.norm(), rtol=1e-6)


def test_pbi_makes_a_task_ahead_of_the_ray_worse() -> None:
    weights = eh.PBI(5.0)(view([1.0, 3.0]))
    assert weights[0] < 0 < weights[1]


# IMTL-L ---------------------------------------------------------------------------------------


@given(LOSSES, st.integers(0, 99))
def test_imtl_l_weighs_and_learns_as_autograd_says(losses: Tensor, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    m = len(losses)
    method, reference = bound(eh.IMTLL(), m), peer.IMTLL(m).double()
    scales = torch.randn(m, generator=chance)
    with torch.no_grad():
        reference.log_scale.copy_(scales)
        for scalar, value in zip(method.parameters(), scales, strict=True):
            scalar.copy_(value)
    values = losses.clone().requires_grad_()
    reference(values).backward()
    close(method(view(losses)), values.grad, rtol=1e-6)
    found = torch.stack([scalar.grad for scalar in method.parameters()])
    torch.testing.assert_close(found.double(), reference.log_scale.grad, rtol=1e-5, atol=1e-5)


def test_imtl_l_draws_every_scaled_loss_to_one() -> None:
    method, losses = bound(eh.IMTLL(), 3), torch.tensor([0.2, 1.0, 5.0])
    optimizer = torch.optim.SGD(method.parameters(), lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        method(view(losses))
        optimizer.step()
    torch.testing.assert_close(method(view(losses)) * losses, torch.ones(3).double())


def test_imtl_l_leaves_an_absent_task_alone() -> None:
    method = bound(eh.IMTLL(), 2)
    method(TaskGradients.of(losses=torch.ones(1), tasks=["t1"], index=torch.tensor([1])))
    first, second = method.parameters()
    assert first.grad is None
    assert second.grad is not None


# RLW ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["normal", "dirichlet"])
def test_rlw_draws_from_the_simplex_with_equal_means(distribution: str) -> None:
    method = eh.RLW(distribution)
    draws = torch.stack([method(view([1.0] * 4, clock=Clock(step=k))) for k in range(2000)])
    assert bool((draws > 0).all())
    close(draws.sum(-1), torch.ones(2000))
    torch.testing.assert_close(draws.mean(0), torch.full((4,), 0.25).double(), atol=0.02, rtol=0)


def test_rlw_dirichlet_is_uniform_on_the_segment_for_two_tasks() -> None:
    method = eh.RLW("dirichlet")
    first = torch.stack([method(view([1.0, 1.0], clock=Clock(step=k)))[0] for k in range(2000)])
    quantiles = first.quantile(torch.tensor([0.1, 0.5, 0.9]).double())
    expected = torch.tensor([0.1, 0.5, 0.9]).double()
    torch.testing.assert_close(quantiles, expected, atol=0.04, rtol=0)


def test_rlw_draws_anew_by_step_seed_and_member_and_never_globally() -> None:
    state = torch.get_rng_state()
    method = eh.RLW()
    one = method(view([1.0, 1.0], clock=Clock(step=3)))
    assert torch.equal(one, method(view([5.0, 0.1], clock=Clock(step=3))))
    assert not torch.equal(one, method(view([1.0, 1.0], clock=Clock(step=4))))
    assert not torch.equal(one, method(view([1.0, 1.0], clock=Clock(step=3, seed=1))))
    stack = method(view(torch.ones(2, 3, 2), clock=Clock(step=3)))
    assert torch.equal(stack[0, 0], one)
    assert len(stack.reshape(6, 2)[:, 0].unique()) == 6
    assert torch.equal(state, torch.get_rng_state())


def test_rlw_of_an_absent_task_goes_with_it() -> None:
    everyone = eh.RLW()(view([1.0] * 3))
    index = torch.tensor([0, 2])
    g = TaskGradients.of(losses=torch.ones(2).double(), tasks=["t0", "t2"], index=index, total=3)
    assert torch.equal(eh.RLW()(g), everyone[index])


# DWA ------------------------------------------------------------------------------------------


def epochs_of(method: Running, epochs: list[list[list[float]]]) -> Tensor:
    """The weights of the last step, after epochs of steps of losses."""
    for epoch, steps in enumerate(epochs):
        for losses in steps:
            weights = method(view(losses, clock=Clock(epoch=epoch)))
    return weights


@given(st.integers(1, 5), st.floats(0.1, 10), st.integers(0, 99))
def test_dwa_agrees_with_its_peer_epoch_by_epoch(m: int, temperature: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    method, reference = bound(eh.DWA(temperature), m), peer.DWA(temperature)
    for epoch in range(5):
        for _ in range(1 + epoch % 3):
            losses = torch.rand(m, generator=chance, dtype=torch.float64) + 0.1
            weights = method(view(losses, clock=Clock(epoch=epoch)))
            close(weights, gradient(reference, losses))
            close(weights.sum(), torch.tensor(float(m)))
        reference.step()


def test_dwa_by_hand() -> None:
    method = bound(eh.DWA(), 2)
    weights = epochs_of(method, [[[1.0, 4.0], [3.0, 4.0]], [[1.0, 2.0]], [[9.0, 9.0]]])
    rates = torch.tensor([1 / 2, 2 / 4]).double()
    close(weights, 2 * (rates / 2).softmax(0))
    weights = epochs_of(bound(eh.DWA(), 2), [[[2.0, 4.0]], [[1.0, 8.0]], [[1.0, 1.0]]])
    close(weights, 2 * (torch.tensor([0.5, 2.0]).double() / 2).softmax(0))


def test_dwa_of_a_task_that_misses_an_epoch_uses_its_own_last_two() -> None:
    method = bound(eh.DWA(), 2)
    for epoch, losses in enumerate([[4.0, 8.0], [2.0, 2.0], None, [1.0, 1.0]]):
        clock = Clock(epoch=epoch)
        if losses is None:
            g = TaskGradients.of(
                losses=torch.tensor([1.0]).double(), tasks=["t0"], index=torch.tensor([0]),
                total=2, clock=clock,
            )  # fmt: skip
        else:
            g = view(losses, clock=clock)
        weights = method(g)
    close(weights, 2 * (torch.tensor([1 / 2, 2 / 8]).double() / 2).softmax(0))


def test_dwa_is_finite_for_losses_of_zero() -> None:
    assert bool(epochs_of(bound(eh.DWA(), 2), [[[0.0, 1.0]]] * 4).isfinite().all())
    weights = epochs_of(bound(eh.DWA(), 2), [[[0.0, 1.0]], [[1.0, 1.0]], [[1.0, 1.0]]])
    close(weights, torch.tensor([2.0, 0.0]))


# LogSTCH --------------------------------------------------------------------------------------


def test_log_stch_descends_logarithms_first_then_the_relative_maximum() -> None:
    method = bound(eh.LogSTCH(mu=0.5, warmup=1), 3)
    first = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    close(epochs_of(method, [[first.tolist()]]), 1 / first)
    again = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    for epoch, losses in ((1, first), (1, again)):
        close(method(view(losses, clock=Clock(epoch=epoch))), 1 / losses)
    nadir = (first + again) / 2
    now = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)

    def relative(x: Tensor) -> Tensor:
        return 3 * 0.5 * ((x / nadir).log() / 0.5).logsumexp(0)

    close(method(view(now, clock=Clock(epoch=2))), gradient(relative, now))


def test_log_stch_with_a_preference() -> None:
    preference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    method = bound(eh.LogSTCH(0.7, by_task(preference), warmup=0), 3)
    nadir = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    epochs_of(method, [[nadir.tolist()]])
    now = torch.tensor([0.9, 1.0, 1.0], dtype=torch.float64)

    def relative(x: Tensor) -> Tensor:
        return 3 * 0.7 * (3 * preference * (x / nadir).log() / 0.7).logsumexp(0)

    close(method(view(now, clock=Clock(epoch=1))), gradient(relative, now))


def test_log_stch_measures_a_late_task_when_it_comes() -> None:
    method = bound(eh.LogSTCH(warmup=0), 2)
    alone = {"tasks": ["t0"], "index": torch.tensor([0]), "total": 2}
    method(TaskGradients.of(losses=torch.tensor([2.0]).double(), clock=Clock(), **alone))
    weights = method(view([2.0, 5.0], clock=Clock(epoch=3)))
    close(weights * torch.tensor([2.0, 5.0]).double(), torch.ones(2))


# FAMO -----------------------------------------------------------------------------------------


def tell(method: Running, before: Tensor, after: Tensor | None) -> Tensor:
    weights = method(view(before))
    if after is not None:
        method.after(view(after))
    return weights


@given(st.integers(1, 5), st.floats(0, 0.1), st.integers(0, 99))
def test_famo_agrees_with_its_peer_step_by_step(m: int, decay: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    method = bound(eh.FAMO(decay=decay), m)
    reference = peer.FAMO(m, weight_decay=decay).double()
    for _ in range(6):
        before, after = torch.rand(2, m, generator=chance, dtype=torch.float64) + 0.1
        close(gradient(reference, before), tell(method, before, after), rtol=1e-5)
        reference.update(after)


def test_famo_weighs_the_task_more_that_falls_less() -> None:
    method = bound(eh.FAMO(), 2)
    for _ in range(20):
        weights = tell(method, torch.ones(2), torch.tensor([0.5, 0.9]))
    assert weights[1] > 0.6
    close(weights.sum(), torch.tensor(1.0))


def test_famo_decay_brings_equal_weights_back() -> None:
    method = bound(eh.FAMO(decay=0.1), 2)
    for after in ([0.5, 0.9],) * 20 + ([1.0, 1.0],) * 400:
        weights = tell(method, torch.ones(2), torch.tensor(after))
    assert weights[1] == pytest.approx(0.5, abs=0.01)


def test_famo_subtracts_the_reference() -> None:
    method = bound(eh.FAMO(reference={"t0": -1.0, "t1": 0.0}), 2)
    close(method(view([1.0, 1.0])), [1 / 3, 2 / 3])


def test_famo_that_is_told_nothing_takes_the_next_losses_and_says_so_once() -> None:
    told, untold = bound(eh.FAMO(), 2), bound(eh.FAMO(), 2)
    losses = [torch.tensor(row) for row in ([1.0, 1.0], [0.5, 0.9], [0.4, 0.9])]
    tell(untold, losses[0], None)
    tell(told, losses[0], losses[1])
    with pytest.warns(UserWarning, match=r"call balancer\.updated\(losses\)"):
        tell(untold, losses[1], None)
    tell(told, losses[1], losses[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(tell(untold, losses[2], None), tell(told, losses[2], None))


def test_famo_knows_of_each_task_whether_it_waits() -> None:
    method = bound(eh.FAMO(), 3)
    tell(method, torch.ones(3), None)
    alone = TaskGradients.of(
        losses=torch.tensor([0.5, 0.9]).double(), tasks=["t0", "t2"],
        index=torch.tensor([0, 2]), total=3,
    )  # fmt: skip
    method.after(alone)
    assert method.state["logits"][1] == 0
    assert method.state["logits"][0] < 0 < method.state["logits"][2]
    assert method.state["steps"].tolist() == [1, 0, 1]
    assert method.state["waiting"].tolist() == [0, 1, 0]
    before = method.state["logits"].clone()
    method.after(alone)  # told twice: nobody waits any more
    assert torch.equal(method.state["logits"], before)


def test_famo_in_a_loop_of_ones_own() -> None:
    network = small_network(("a", "b"))
    balancer = Balancer(weighting=eh.FAMO(), tasks=["a", "b"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        balance = balancer.backward(losses_of(network(inputs(), tasks=["a", "b"])))
        optimizer.step()
        with torch.no_grad():
            balancer.updated(losses_of(network(inputs(), tasks=["a", "b"])))
        history.append(balance.losses.log())
        assert float(balance.weights.sum()) == pytest.approx(1.0)
    assert bool((history[-1] < history[0]).all())


# What they have in common ---------------------------------------------------------------------

LOGARITHMIC: list[Callable[[], eh.Weighting]] = [eh.GLS, eh.ScaleInvariant, eh.LogSTCH, eh.FAMO]


@pytest.mark.parametrize("make", LOGARITHMIC)
def test_a_negative_loss_is_named(make: Callable[[], eh.Weighting]) -> None:
    with pytest.raises(ValueError, match=r"below are those of t1$"):
        bound(make(), 3)(view([1.0, -0.1, 1.0]))


@pytest.mark.parametrize("make", LOGARITHMIC)
def test_a_loss_of_zero_has_a_finite_weight(make: Callable[[], eh.Weighting]) -> None:
    g = TaskGradients.of(losses=torch.tensor([1.0, 0.0]), tasks=NAMES[:2])
    assert bool(bound(make(), 2)(g).isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eh.RLW("cauchy"), "must be one of 'normal', 'dirichlet'"),
        (lambda: eh.DWA(0.0), "temperature=0.0: must be > 0"),
        (lambda: eh.STCH(mu=0.0), "for its limit at 0 use Tchebycheff"),
        (lambda: eh.LogSTCH(mu=-1.0), "mu=-1.0: must be > 0"),
        (lambda: eh.LogSTCH(warmup=-1), "epochs count from 0"),
        (lambda: eh.PBI(theta=-1.0), "theta=-1.0: must be >= 0"),
        (lambda: eh.PBI(theta=math.nan), "theta=nan: must be a number"),
        (lambda: eh.FAMO(lr=0.0), "lr=0.0, decay=0.001: must be > 0 and >= 0"),
        (lambda: eh.STCH(preference={"a": -1.0}), "preferences must be finite and >= 0"),
        (lambda: eh.FAMO(reference={"a": math.inf}), "a reference point must be finite"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [eh.STCH, eh.Tchebycheff, eh.PBI, eh.FAMO])
def test_a_reference_is_for_every_task(make: Callable[..., eh.Weighting]) -> None:
    method = make(reference={"a": 0.0})
    with pytest.raises(ValueError, match="give one number for each"):
        method.require(["a", "b"])
    method.require(["a"])


def test_what_they_are_made_of_can_be_read() -> None:
    shown = repr(eh.PBI(2.0, {"a": 1.0}, {"a": 0.5}))
    assert shown == "PBI(theta=2.0, preference={'a': 1.0}, reference={'a': 0.5})"
    assert repr(eh.STCH()) == "STCH(mu=1.0)"


# In a loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [eh.DWA(), eh.LogSTCH(warmup=0)])
def test_epochs_come_from_the_clock(method: eh.Weighting) -> None:
    network = small_network(("a", "b"))
    balancer = Balancer(weighting=method, tasks=["a", "b"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    for step in range(12):
        optimizer.zero_grad()
        losses = losses_of(network(inputs(step % 3), tasks=["a", "b"]), step % 3)
        balance = balancer.backward(losses, clock=Clock(epoch=step // 3, step=step))
        optimizer.step()
        # LogSTCH promises of w_i L_i what DWA promises of w_i: first ones, then a sum of M.
        promised = (
            balance.weights if isinstance(method, eh.DWA) else balance.weights * balance.losses
        )
        close(promised.sum(), 2.0)
        equal = bool(torch.isclose(promised[0], promised[1], rtol=1e-9))
        assert equal == (step < (6 if isinstance(method, eh.DWA) else 3))
