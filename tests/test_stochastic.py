"""Methods that average over time or look at several batches, against their equations and peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchjd.aggregation as peer
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import evenhand as eh
from evenhand import Aggregator, Balancer, Clock, Running, TaskGradients
from evenhand.linalg import min_norm
from samplers import (
    NAMES,
    flat_grad,
    inputs,
    jacobian,
    losses_of,
    plain_jacobian,
    same,
    small_network,
)

TASKS = ("a", "b", "c")
SEEDS = st.integers(0, 999)
SIZES = st.integers(1, 6)


def bound(method: Any, m: int) -> Running:
    return Running(method, NAMES[:m])


def view(rows: Tensor, *further: Tensor, **more: Any) -> TaskGradients:
    names = NAMES[: rows.shape[-2]]
    samples = [TaskGradients.of(jacobian=other, tasks=names) for other in further]
    return TaskGradients.of(jacobian=rows, tasks=names, samples=samples, **more)


def some(index: list[int], rows: Tensor, *further: Tensor, total: int) -> TaskGradients:
    """The view in which only some of `total` tasks speak."""
    chosen = {"tasks": [NAMES[i] for i in index], "index": torch.tensor(index), "total": total}
    samples = [TaskGradients.of(jacobian=other[index], **chosen) for other in further]
    return TaskGradients.of(jacobian=rows[index], samples=samples, **chosen)


def step(method: Any, g: TaskGradients) -> Tensor:
    found: Tensor = method(g)
    return found


def batches(m: int, seed: int, count: int) -> list[Tensor]:
    """Jacobians of one point on several batches: a common part and noise."""
    chance = torch.Generator().manual_seed(seed)
    common = torch.randn(m, m + 2, generator=chance, dtype=torch.float64)
    noise = torch.randn(count, m, m + 2, generator=chance, dtype=torch.float64)
    return list(common + 0.3 * noise)


def close(one: Tensor, other: Tensor | list[float], rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, torch.as_tensor(other).to(one.dtype), rtol=rtol, atol=atol)


# MoDo -----------------------------------------------------------------------------------------


@given(SIZES, SEEDS, st.floats(0, 1))
def test_modo_agrees_with_its_peer_step_by_step(m: int, seed: int, rho: float) -> None:
    method, reference = bound(eh.MoDo(0.05, rho), m), peer.MoDoWeighting(0.05, max(rho, 0.0))
    for k in range(4):
        update, first, second = batches(m, seed + k, 3)
        close(step(method, view(update, first, second)), reference(first @ second.T))


def test_modo_with_two_batches_multiplies_the_first_with_the_second() -> None:
    first, second = batches(3, 0, 2)
    lam = torch.full((3,), 1 / 3, dtype=torch.float64)
    expected = eh.linalg.project_simplex(lam - 0.1 * first @ second.T @ lam)
    close(bound(eh.MoDo(0.1, batches=2), 3)(view(first, second)), expected)


@pytest.mark.parametrize(
    ("make", "steps"),
    [(lambda: eh.MoDo(gamma=0.05), 1500), (lambda: eh.SDMGrad(0.0, lr=1.0), 100)],
)
def test_on_equal_batches_lambda_tends_to_the_min_norm_point(
    make: Callable[[], Any], steps: int
) -> None:
    rows = jacobian("conflicting", 4, seed=1)
    method = bound(make(), 4)
    for _ in range(steps):
        weights = step(method, view(rows, rows, rows))
    best = float(min_norm(rows @ rows.T).squared_norm)
    assert float((weights @ rows).square().sum()) <= best * (1 + 1e-6) + 1e-12


def test_double_sampling_is_unbiased_where_one_batch_is_not() -> None:
    """Two tasks of which one is noisy: the noise must not push its weight down."""
    chance = torch.Generator().manual_seed(0)
    common = torch.eye(2, 4, dtype=torch.float64)
    scale = torch.tensor([[2.0], [0.0]]).double()

    def average(batch: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
        method, kept = bound(eh.MoDo(gamma=0.01, batches=2), 2), []
        for _ in range(1500):
            kept.append(step(method, view(*batch())))
        return torch.stack(kept[500:]).mean(0)

    def noisy() -> Tensor:
        return common + scale * torch.randn(2, 4, generator=chance, dtype=torch.float64)

    def twice() -> tuple[Tensor, Tensor]:
        batch = noisy()
        return batch, batch

    independent = average(lambda: (noisy(), noisy()))
    assert float((independent - 0.5).abs().max()) < 0.15
    assert float(average(twice)[0]) < 0.1


# SDMGrad --------------------------------------------------------------------------------------


@given(SIZES, SEEDS, st.floats(0, 2))
def test_sdmgrad_agrees_with_its_peer_step_by_step(m: int, seed: int, strength: float) -> None:
    chance = torch.Generator().manual_seed(seed)
    preference = torch.rand(m, generator=chance, dtype=torch.float64) + 0.1
    preference /= preference.sum()
    by_task = dict(zip(NAMES, preference.tolist(), strict=False))
    method = bound(eh.SDMGrad(strength, by_task, lr=2.0, steps=7), m)
    reference = peer.SDMGradWeighting(
        lr=2.0, momentum=0.5, n_iter=7, lambda_=strength, pref_vector=preference
    )
    for k in range(3):
        update, first, second = (10 * b for b in batches(m, seed + k, 3))
        found = step(method, view(update, first, second))
        close(found, reference(first @ second.T), rtol=1e-6, atol=1e-6)
        close(found.sum(), torch.ones(()))


def test_sdmgrad_does_not_depend_on_the_scale_of_all_gradients_together() -> None:
    first, second, third = batches(3, 5, 3)
    for rows in ((first, second, third), (first, second, -second)):  # agreeing and contrary batches
        small = bound(eh.SDMGrad(), 3)(view(*(1e-9 * b for b in rows)))
        close(small, bound(eh.SDMGrad(), 3)(view(*rows)))


def test_sdmgrad_with_a_strong_pull_is_the_preferred_direction() -> None:
    preference = {"t0": 0.7, "t1": 0.2, "t2": 0.1}
    weights = bound(eh.SDMGrad(1e6, preference), 3)(view(*batches(3, 0, 3)))
    close(weights, [0.7, 0.2, 0.1], rtol=1e-4)


def test_sdmgrad_solves_its_own_problem_on_equal_batches() -> None:
    """min ‖Σ (w_i + λ p_i) g_i‖² over the simplex, by an exact solver."""
    rows, strength = jacobian("independent", 3, seed=4), 0.5
    method = bound(eh.SDMGrad(strength, lr=0.5, steps=1500, momentum=0.0), 3)
    weights = method(view(rows, rows, rows))
    gramian, pull = rows @ rows.T, torch.full((3,), strength / 3, dtype=torch.float64)
    w = eh.linalg.simplex_qp(gramian, gramian @ pull).weights
    close(weights, (w + pull) / (1 + strength), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [eh.MoDo, eh.SDMGrad])
def test_absent_tasks_keep_their_share(make: Callable[..., Any]) -> None:
    method = bound(make(), 3)
    rows = batches(3, 2, 3)
    before = step(method, view(*rows)), method.state["shares"].clone()
    weights = step(method, some([0, 2], *rows, total=3))
    assert weights.shape == (2,)
    assert method.state["shares"][1] == before[1][1]
    close(method.state["shares"].sum(), torch.ones(()))
    assert bool((method.state["shares"] >= 0).all())


@pytest.mark.parametrize("make", [eh.MoDo, eh.SDMGrad])
def test_missing_batches_are_missed(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"wants 2 further independent batch\(es\)"):
        bound(make(), 2)(view(*batches(2, 0, 2)))
    with pytest.raises(ValueError, match=r"batches=4: \w+ takes 2 or 3"):
        make(batches=4)
    with pytest.raises(ValueError, match="features have nothing to do with each other"):
        make(at="representation")


EXTREMES = ["independent", "huge", "tiny", "zeros", "zero row", "opposed", "huge and tiny"]


@pytest.mark.parametrize("make", [eh.MoDo, eh.SDMGrad])
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_double_sampling_stays_on_the_simplex(
    make: Callable[..., Any], kind: str, dtype: torch.dtype
) -> None:
    method = bound(make(), 8)
    for k in range(3):
        rows = [jacobian(kind, 8, 10 * k + b, dtype) for b in range(3)]
        weights = step(method, view(*rows))
        assert weights.dtype == dtype
        assert bool((weights >= 0).all())
        close(weights.sum(), torch.ones(()), rtol=1e-5)


# MoCo -----------------------------------------------------------------------------------------


def test_moco_by_its_equations() -> None:
    beta, gamma, rho, decay = 0.5, 0.1, 0.2, 0.5
    method = bound(eh.MoCo(beta, gamma, rho, decay), 3)
    y, lam = torch.zeros(3, 5).double(), torch.full((3,), 1 / 3, dtype=torch.float64)
    for k, rows in enumerate(batches(3, 7, 6), start=1):
        y = y - beta / k**decay * (y - rows)
        slope = y @ (y.T @ lam) + rho * lam
        lam = eh.linalg.project_simplex(lam - gamma / k**decay * slope)
        close(step(method, view(rows)), lam @ y)
        close(method.state["shares"], lam)


def test_moco_on_constant_gradients_tends_to_the_min_norm_point() -> None:
    rows = jacobian("conflicting", 3, seed=2)
    method = bound(eh.MoCo(gamma=0.05, decay=0.0), 3)
    for _ in range(1000):
        direction = step(method, view(rows))
    close(direction, min_norm(rows @ rows.T).weights @ rows, rtol=1e-5, atol=1e-7)


# DB-MTL ---------------------------------------------------------------------------------------


@given(SIZES, SEEDS, st.floats(0, 0.95), st.sampled_from([0.0, 0.5]))
def test_db_mtl_by_its_equations(m: int, seed: int, beta: float, decay: float) -> None:
    method = bound(eh.DBMTL(beta, decay), m)
    average = torch.zeros(m, m + 2).double()
    for k, rows in enumerate(batches(m, seed, 4), start=1):
        rate = beta / k**decay
        average = rate * average + (1 - rate) * rows
        length = average.norm(dim=1)
        expected = length.max() * (average / length.unsqueeze(1)).sum(0)
        close(step(method, view(rows)), expected)


def test_db_mtl_gives_every_task_the_length_of_the_longest() -> None:
    rows = torch.tensor([[8.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    close(bound(eh.DBMTL(0.0), 3)(view(rows)), [8.0, 8.0, 0.0])


def test_db_mtl_with_logarithms_is_algorithm_1() -> None:
    """One step of the network by hand: trunk by (1) and (2), heads by ∇ log L."""
    network = small_network(TASKS)
    balancer = Balancer(
        weighting=eh.ScaleInvariant(), aggregator=eh.DBMTL(beta=0.5), model=network, tasks=TASKS
    )
    blocks = network.blocks()
    average: Tensor | int = 0
    for batch in range(3):
        outputs = network(inputs(batch), TASKS)
        losses = losses_of(outputs, batch)
        logs = [loss.log() for loss in losses.values()]
        rows = plain_jacobian(logs, blocks.shared)
        heads = [plain_jacobian([x], blocks.own[t])[0] for x, t in zip(logs, TASKS, strict=True)]
        average = 0.5 * average + 0.5 * rows
        length = average.norm(dim=1)
        network.zero_grad()
        balancer.backward(losses, features=outputs.features)
        trunk = length.max() * (average / length.unsqueeze(1)).sum(0)
        close(flat_grad(blocks.shared), trunk)
        for task, head in zip(TASKS, heads, strict=True):
            close(flat_grad(blocks.own[task]), head)


# CR-MOGM --------------------------------------------------------------------------------------


@given(SIZES, SEEDS, st.floats(0, 1))
def test_cr_mogm_agrees_with_its_peer_step_by_step(m: int, seed: int, alpha: float) -> None:
    method = bound(eh.CRMOGM(eh.MGDA(), alpha), m)
    reference = peer.CRMOGMWeighting(_MinNorm(), alpha)
    for rows in batches(m, seed, 4):
        close(step(method, view(rows)), reference(rows @ rows.T))


class _MinNorm(torch.nn.Module):
    def forward(self, gramian: Tensor) -> Tensor:
        return min_norm(gramian).weights


def test_cr_mogm_follows_a_schedule_of_alpha() -> None:
    method = bound(eh.CRMOGM(eh.MGDA(), lambda clock: clock.step / (clock.step + 1)), 3)
    fresh = []
    for k, rows in enumerate(batches(3, 1, 5)):
        fresh.append(min_norm(rows @ rows.T).weights)
        close(step(method, view(rows, clock=Clock(step=k))), torch.stack(fresh).mean(0))


def test_cr_mogm_averages_each_task_over_its_own_calls() -> None:
    method = bound(eh.CRMOGM(eh.MGDA(), 0.5), 3)
    first, second = batches(3, 3, 2)
    alone = step(method, some([0, 2], first, total=3))
    close(alone, min_norm((first @ first.T)[[0, 2]][:, [0, 2]]).weights)
    fresh = min_norm(second @ second.T).weights
    weights = step(method, view(second))
    close(weights[1], fresh[1])
    close(weights[0], (alone[0] + fresh[0]) / 2)


def test_cr_mogm_promises_nothing_of_one_step_and_hands_on_what_the_base_needs() -> None:
    method = eh.CRMOGM(eh.SDMGrad())
    assert (method.traits.needs, method.traits.batches) == ("jacobian", 3)
    assert not eh.CRMOGM(eh.MGDA()).traits.feasible
    assert eh.CRMOGM(eh.IMTLL()).traits.learned


# ExcessMTL ------------------------------------------------------------------------------------


@given(SIZES, SEEDS, st.integers(1, 3))
def test_excess_mtl_agrees_with_its_peer_step_by_step(m: int, seed: int, warmup: int) -> None:
    method = bound(eh.ExcessMTL(0.5, warmup), m)
    reference = peer.ExcessMTLWeighting(0.5, warmup)
    for rows in batches(m, seed, 6):
        close(step(method, view(rows)), reference(rows), rtol=1e-4, atol=1e-6)


def test_excess_mtl_favours_the_task_that_is_far_from_its_optimum() -> None:
    method = bound(eh.ExcessMTL(0.1), 2)
    for k in range(50):
        weights = step(method, view(torch.tensor([[1.0, 0.0], [0.0, 0.9**k]]).double()))
    assert weights[0] > 0.6
    close(weights.sum(), torch.ones(()))


def test_excess_mtl_waits_for_a_first_gradient() -> None:
    method = bound(eh.ExcessMTL(1.0), 2)
    for rows in ([[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 2.0]]):
        weights = step(method, view(torch.tensor(rows).double()))
        assert bool(weights.isfinite().all())
    assert method.state["count"].tolist() == [3, 2]
    close(method.state["baseline"], [1.0, 2.0])


def test_excess_mtl_refuses_the_representation() -> None:
    with pytest.raises(ValueError, match="features of different batches"):
        eh.ExcessMTL(at="representation")


# History by coordinate ------------------------------------------------------------------------

HISTORIES: list[Callable[[], Any]] = [eh.MoCo, eh.DBMTL, eh.ExcessMTL]


@pytest.mark.parametrize("make", HISTORIES)
def test_a_history_of_gradients_keeps_their_precision(make: Callable[[], Any]) -> None:
    for dtype, kept in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32),
                        (torch.float64, torch.float64)):  # fmt: skip
        method = bound(make(), 2)
        found = step(method, view(batches(2, 0, 1)[0].to(dtype)))
        state = method.state["squares"] if make is eh.ExcessMTL else method.state["tracked"]
        assert (state.dtype, state.shape) == (kept, (4, 2))
        assert found.dtype == dtype


@pytest.mark.parametrize("make", HISTORIES)
def test_a_history_of_gradients_goes_on_after_saving(make: Callable[[], Any]) -> None:
    rows = batches(3, 0, 4)
    method, copy = bound(make(), 3), bound(make(), 3)
    for batch in rows[:2]:
        step(method, view(batch))
    copy.load_state_dict(method.state_dict())
    for batch in rows[2:]:
        assert same(step(method, view(batch)), step(copy, view(batch)))
    assert same(dict(method.state_dict()), dict(copy.state_dict()))


@pytest.mark.parametrize("make", HISTORIES)
def test_a_history_of_gradients_is_of_one_size(make: Callable[[], Any]) -> None:
    method = bound(make(), 2)
    step(method, view(torch.ones(2, 4)))
    with pytest.raises(ValueError, match="the gradients have 5 entries, and the history"):
        method(view(torch.ones(2, 5)))


@pytest.mark.parametrize("make", HISTORIES)
def test_a_history_of_gradients_leaves_absent_tasks_alone(make: Callable[[], Any]) -> None:
    method = bound(make(), 3)
    first, second = batches(3, 0, 2)
    step(method, view(first))
    state = method.state["squares"] if make is eh.ExcessMTL else method.state["tracked"]
    before = state[:, 1].clone()
    step(method, some([0, 2], second, total=3))
    state = method.state["squares"] if make is eh.ExcessMTL else method.state["tracked"]
    assert torch.equal(state[:, 1], before)
    assert not torch.equal(state[:, 0], before)


@pytest.mark.parametrize("make", [eh.MoCo, eh.DBMTL])
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averaged_directions_are_finite(
    make: Callable[[], Any], kind: str, dtype: torch.dtype
) -> None:
    for m in (1, 2, 3, 8):
        method = bound(make(), m)
        for k in range(3):
            assert bool(step(method, view(jacobian(kind, m, k, dtype))).isfinite().all())


# Arguments, and the loop ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eh.MoDo(gamma=0.0), "gamma=0.0, rho=0.0: must be > 0 and >= 0"),
        (lambda: eh.SDMGrad(strength=-1.0), "strength=-1.0, lr=10.0"),
        (lambda: eh.SDMGrad(momentum=1.0), r"momentum=1.0, steps=20: must be in \[0, 1\)"),
        (lambda: eh.MoCo(beta=1.5), r"beta=1.5, gamma=0.1: must be in \(0, 1\] and > 0"),
        (lambda: eh.MoCo(rho=-1.0), "rho=-1.0, decay=0.5: must be >= 0"),
        (lambda: eh.DBMTL(beta=1.0), r"beta=1.0, decay=0.0: must be in \[0, 1\) and >= 0"),
        (lambda: eh.CRMOGM(eh.MGDA(), 1.1), "alpha=1.1: must be between 0 and 1"),
        (lambda: eh.ExcessMTL(warmup=0), "lr=0.01, warmup=0: must be > 0 and >= 1"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_cr_mogm_refuses_a_schedule_out_of_range_when_it_is() -> None:
    method = bound(eh.CRMOGM(eh.MGDA(), lambda clock: -0.5), 2)
    with pytest.raises(ValueError, match=r"alpha=-0\.5: must be between"):
        method(view(torch.eye(2)))


METHODS: list[Callable[[], Any]] = [
    eh.MoDo,
    eh.SDMGrad,
    eh.MoCo,
    eh.DBMTL,
    lambda: eh.CRMOGM(eh.MGDA()),
    eh.ExcessMTL,
]


@pytest.mark.parametrize("make", METHODS)
def test_they_train_a_network(make: Callable[[], Any]) -> None:
    network = small_network(TASKS)
    method = make()
    balancer = Balancer(aggregator=method, tasks=TASKS, model=network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        outputs = network(inputs(), TASKS)
        samples = [losses_of(network(inputs(), TASKS)) for _ in range(method.traits.batches - 1)]
        balance = balancer.backward(losses_of(outputs), features=outputs.features, samples=samples)
        assert (balance.trunk_weights is None) == isinstance(method, Aggregator)
        optimizer.step()
        history.append(float(balance.losses.log().sum()))
    assert history[-1] < history[0]
