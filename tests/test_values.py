"""Printed and hand-computed values, and the facts that follow from a method's formula.

The vectors were computed in 40-digit arithmetic, in two ways; they hold to 1e-9 here.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import evenhand as eh
from evenhand import MGDA, CentralDirection, Equal, Normalized, Running, TaskGradients, Tension
from evenhand.linalg import project_cone
from evenhand.weighting.tension import one_pass

CLOSE = {"rtol": 0, "atol": 1e-9}


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


PAIR = matrix((3, 4), (5, -12))
TRIPLE = matrix((3, 0, 0), (1, 2, 2), (2, -3, 6))


def gradients(jacobian: Tensor, losses: Tensor | None = None) -> TaskGradients:
    return TaskGradients.of(jacobian=jacobian, losses=losses)


def assert_weights(weights: Tensor, jacobian: Tensor, expected: Tensor, v: Tensor) -> None:
    torch.testing.assert_close(weights, expected, **CLOSE)
    torch.testing.assert_close(weights @ jacobian, v, **CLOSE)


# Base directions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jacobian", "weights", "v"),
    [
        (matrix((3, 0), (1, 2)), vector(0.25, 0.75), vector(1.5, 1.5)),
        (
            PAIR,
            vector(0.77692307692308, 0.22307692307692),
            vector(3.44615384615385, 0.43076923076923),
        ),
        (matrix((1, 0), (2, 1)), vector(1, 0), vector(1, 0)),
    ],
)
def test_min_norm(jacobian: Tensor, weights: Tensor, v: Tensor) -> None:
    assert_weights(MGDA()(gradients(jacobian)), jacobian, weights, v)


def test_central_direction_of_two() -> None:
    weights = CentralDirection()(gradients(PAIR))
    v = vector(32 / 9, -4 / 9)
    assert_weights(weights, PAIR, vector(13 / 18, 5 / 18), v)
    (g1, g2), (n1, n2) = PAIR, PAIR.norm(dim=1)
    torch.testing.assert_close(v, (g1 * n2 + g2 * n1) / (n1 + n2), **CLOSE)
    unit = PAIR / PAIR.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit @ v, vector(1.7777777778, 1.7777777778), **CLOSE)


def test_central_direction_of_three() -> None:
    weights = CentralDirection()(gradients(TRIPLE))
    assert_weights(
        weights,
        TRIPLE,
        vector(0.4406779661, 0.3813559322, 0.1779661017),
        vector(2.0593220339, 0.2288135593, 1.8305084746),
    )
    k = weights * TRIPLE.norm(dim=1)
    expected = vector(0.3561643836, 0.3082191781, 0.3356164384)
    torch.testing.assert_close(k / k.sum(), expected, **CLOSE)


def test_central_direction_has_equal_angles_and_the_direction_of_unit_gradients() -> None:
    rows = torch.randn(4, 6, dtype=torch.float64) * vector(1e-3, 1, 10, 1e4)[:, None]
    weights = CentralDirection()(gradients(rows))
    v = weights @ rows
    angles = (rows / rows.norm(dim=1, keepdim=True)) @ v / v.norm()
    active = weights > 0
    assert active.any()
    torch.testing.assert_close(angles[active], angles[active][:1].expand(int(active.sum())))
    assert bool((angles >= angles[active].min() - 1e-9).all())
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    unit = Normalized(MGDA(), by="l2", back=True)(gradients(rows)) @ rows
    torch.testing.assert_close(v / v.norm(), unit / unit.norm(), rtol=0, atol=1e-9)


def test_central_direction_with_gradients_that_are_zero_or_equal() -> None:
    zero = CentralDirection()(gradients(matrix((0, 0), (1, 2), (-1, -2))))
    torch.testing.assert_close(zero, vector(1, 0, 0), **CLOSE)
    both = CentralDirection()(gradients(matrix((0, 0), (0, 0), (1, 0))))
    torch.testing.assert_close(both, vector(0.5, 0.5, 0), **CLOSE)
    for _ in range(50):
        rows = torch.randn(7, dtype=torch.float64).expand(2, 7)
        equal = CentralDirection()(gradients(rows))
        torch.testing.assert_close(equal, vector(0.5, 0.5), **CLOSE)
        parallel = CentralDirection()(gradients(rows * vector(1, 3)[:, None]))
        torch.testing.assert_close(parallel, vector(0.75, 0.25), **CLOSE)


# Normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("none", vector(0.7769230769, 0.2230769231)),
        ("l2", vector(0.5, 0.5)),
        ("loss", vector(0.3613445378, 0.6386554622)),
        ("loss+", vector(0.1439006574, 0.8560993426)),
    ],
)
def test_normalised_min_norm(by: str, expected: Tensor) -> None:
    losses = vector(0.5, 2)
    scale = {"none": torch.ones(2), "l2": PAIR.norm(dim=1), "loss": losses}.get(by)
    scale = losses * PAIR.norm(dim=1) if scale is None else scale
    g = gradients(PAIR, losses)
    torch.testing.assert_close(Normalized(MGDA(), by=by)(g), expected, **CLOSE)
    back = Normalized(MGDA(), by=by, back=True)(g)
    torch.testing.assert_close(back, expected / scale, **CLOSE)


@pytest.mark.parametrize("by", ["l2", "loss", "loss+"])
def test_only_the_normalised_direction_divided_back_is_feasible_and_stationary(by: str) -> None:
    losses = vector(0.5, 2) if by == "l2" else vector(0.1, 2)
    raw, back = Normalized(MGDA(), by=by), Normalized(MGDA(), by=by, back=True)
    assert not raw.traits.feasible
    assert back.traits.feasible
    g = gradients(matrix((3, 4), (5, -12)), losses)
    assert (PAIR @ (raw(g) @ PAIR)).min() < -0.1
    assert (PAIR @ (back(g) @ PAIR)).min() > 0
    opposed = matrix((1, 0), (-3, 0))
    g = gradients(opposed, losses)
    assert not raw.traits.stationary
    assert back.traits.stationary
    assert (raw(g) @ opposed).norm() > 0.1
    assert (back(g) @ opposed).norm() < 1e-12


# Tension --------------------------------------------------------------------------------------


def running(method: eh.Weighting, tasks: int) -> Running:
    return Running(method, [f"task{i}" for i in range(tasks)])


def pulled(
    method: Tension, directions: Tensor, norms: list[tuple[float, ...]], losses: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights after feeding fixed directions with the norms given, and the last Jacobian."""
    tension = running(method, len(losses))
    unit = torch.nn.functional.normalize(directions)
    for length in norms:
        jacobian = unit * vector(*length)[:, None]
        weights = tension(gradients(jacobian, losses))
    return weights, jacobian


def test_tension_on_the_central_direction_of_two() -> None:
    tension = Tension(CentralDirection(), alpha=0.3, period=2)
    norms = [(4.0, 13.0), (5.0, 13.0), (5.0, 13.0)]
    weights, jacobian = pulled(tension, PAIR, norms, vector(0.5, 2))
    v = vector(3.5674682196, -0.5397457565)
    assert_weights(weights, jacobian, vector(0.7162658902, 0.2837341098), v)
    (g1, g2), c = PAIR, vector(0.8121186436, 0.9081616113)
    along = (g1 - g2) / (g1 - g2).norm()
    torch.testing.assert_close(v, vector(32 / 9, -4 / 9) + (c[0] - c[1]) * along, **CLOSE)


def test_tension_on_the_central_direction_of_three() -> None:
    tension = Tension(CentralDirection(), alpha=0.3, period=2)
    norms = [(2.0, 3.0, 14.0), (4.0, 3.0, 14.0), (3.0, 3.0, 7.0)]
    weights, jacobian = pulled(tension, TRIPLE, norms, vector(0.1, 1, 0.01))
    v = vector(1.9474155854, 0.4464172818, 1.8102933306)
    assert_weights(weights, jacobian, vector(0.3979369011, 0.4505213157, 0.1515417832), v)
    base = CentralDirection()(gradients(jacobian)) @ jacobian
    towards = jacobian - base
    c = vector(0.7282130243, 0.85, 0.7006606334)
    explicit = base + c @ (towards / towards.norm(dim=1, keepdim=True))
    torch.testing.assert_close(v, explicit, **CLOSE)


def reference(
    base: np.ndarray, rows: np.ndarray, history: np.ndarray, losses: np.ndarray, alpha: float
) -> np.ndarray:
    """v + Σ u_i with vectors, from the last T + 1 norms of every task."""
    growth = history[1:].mean(0) / history[:-1].mean(0)
    delta = growth + np.log10(losses)
    c = alpha / (1 + np.exp(-np.e * delta + np.e)) + 1 - alpha
    towards = rows - base
    return base + (c[:, None] * towards / np.linalg.norm(towards, axis=1)[:, None]).sum(0)


@given(
    seed=st.integers(0, 10_000),
    tasks=st.integers(2, 5),
    period=st.integers(1, 4),
    alpha=st.sampled_from([0.1, 0.3, 1.0]),
)
def test_tension_equals_its_vector_form(seed: int, tasks: int, period: int, alpha: float) -> None:
    random = np.random.default_rng(seed)
    method = Tension(Equal(mean=True), alpha=alpha, period=period, feasibility="none")
    tension = running(method, tasks)
    history = []
    for _ in range(period + 3):
        rows = random.normal(size=(tasks, 6)) * random.uniform(0.5, 2, size=(tasks, 1))
        losses = random.uniform(0.01, 5, size=tasks)
        history.append(np.linalg.norm(rows, axis=1))
        weights = tension(gradients(torch.tensor(rows), torch.tensor(losses))).numpy()
        mean = rows.mean(0)
        expected = mean
        if len(history) > period:
            expected = reference(mean, rows, np.array(history[-period - 1 :]), losses, alpha)
        np.testing.assert_allclose(weights @ rows, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("base", [MGDA, CentralDirection])
def test_what_a_feasible_base_gives_is_left_alone_until_a_task_pulls(
    base: type[eh.Weighting],
) -> None:
    for seed in range(20):
        rows = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
        rows[-1] = -rows[:-1].sum(0)  # a stationary point, where any correction is rounding
        g = gradients(rows)
        assert torch.equal(Tension(base(), period=1)(g), base()(g))


def test_the_constraint_holds_before_the_first_tension_if_the_base_does_not_promise_it() -> None:
    g = gradients(matrix((1, 0.1), (-3, 0.1)))
    v = Tension(Equal())(g) @ g.jacobian
    assert (g.jacobian @ v).min() >= -1e-12
    assert (g.jacobian @ (Equal()(g) @ g.jacobian)).min() < -1


def test_pulls_that_cancel_leave_nothing() -> None:
    """Gradients of 1e-12, pulls of 1 that no task allows: v is zero, not the pulls' rounding."""
    rows = 1e-12 * matrix((1, 0.1, 0.3), (-1, 0.2, 0.1), (0.3, -1, 0.2), (-0.3, 0.7, -1))
    tension = Tension(Equal(), period=1)
    norms = [tuple(rows.norm(dim=1).tolist())] * 2
    weights, _ = pulled(tension, rows, norms, vector(1e-3, 1, 10, 1))
    assert weights.tolist() == [0, 0, 0, 0]


def test_the_first_tension_comes_one_iteration_after_the_window_fills() -> None:
    tension, g = running(Tension(MGDA(), period=3), 2), gradients(PAIR, vector(0.5, 2))
    base = MGDA()(g)
    changed = []
    for _ in range(5):
        changed.append(bool((tension(g) - base).abs().max() > 1e-6))
    assert changed == [False, False, False, True, True]


@pytest.mark.parametrize("base", [MGDA, CentralDirection])
@pytest.mark.parametrize(
    "jacobian", [PAIR, matrix((1, 0), (2, 1)), matrix((4, 2, 1), (1, 0.25, 0))], ids=str
)
def test_two_tasks_on_the_segment_pull_along_it(base: type[eh.Weighting], jacobian: Tensor) -> None:
    """At a vertex too, where min-norm's v is one of the gradients."""
    tension = Tension(base(), period=1, feasibility="none")
    losses = vector(0.5, 20)
    norms = jacobian.norm(dim=1).tolist()
    weights, _ = pulled(tension, jacobian, [tuple(norms)] * 2, losses)
    c = 0.3 / (1 + (-math.e * losses.log10()).exp()) + 0.7
    g1, g2 = jacobian
    v = base()(gradients(jacobian)) @ jacobian
    expected = v + (c[0] - c[1]) * (g1 - g2) / (g1 - g2).norm()
    torch.testing.assert_close(weights @ jacobian, expected, **CLOSE)


def test_a_vertex_is_the_limit_from_inside() -> None:
    at, near = matrix((1, 0), (1, 1)), matrix((1, 0), (1 - 1e-7, 1))
    assert MGDA()(gradients(at)).tolist() == [1, 0]
    assert 0 < MGDA()(gradients(near))[1] < 1e-6
    vs = []
    for jacobian in (at, near):
        tension = Tension(MGDA(), period=1, feasibility="none")
        norms = [tuple(jacobian.norm(dim=1).tolist())] * 2
        weights, _ = pulled(tension, jacobian, norms, vector(0.5, 2))
        vs.append(weights @ jacobian)
    torch.testing.assert_close(vs[0], vs[1], rtol=0, atol=1e-6)
    assert (vs[0] - at[0]).norm() > 0.01


def test_three_tasks_at_a_vertex_do_not_pull_from_it() -> None:
    jacobian = matrix((1, 0, 0), (2, 1, 0), (3, 0, 1))
    assert MGDA()(gradients(jacobian)).tolist() == [1, 0, 0]
    tension = Tension(MGDA(), alpha=0, period=1, feasibility="none")
    norms = [tuple(jacobian.norm(dim=1).tolist())] * 2
    weights, _ = pulled(tension, jacobian, norms, vector(1, 1, 1))
    v, *others = jacobian
    expected = v + sum((g - v) / (g - v).norm() for g in others)
    torch.testing.assert_close(weights @ jacobian, expected, **CLOSE)


@pytest.mark.parametrize("base", [MGDA, CentralDirection])
def test_without_alpha_two_pulls_cancel_and_three_do_not(base: type[eh.Weighting]) -> None:
    for jacobian, cancel in ((PAIR, True), (TRIPLE, False)):
        tension = Tension(base(), alpha=0, period=1, feasibility="none")
        norms = [tuple(jacobian.norm(dim=1).tolist())] * 2
        losses = torch.linspace(0.5, 4, len(jacobian), dtype=torch.float64)
        weights, _ = pulled(tension, jacobian, norms, losses)
        moved = (weights - base()(gradients(jacobian))) @ jacobian
        assert (moved.norm() < 1e-12) == cancel


# Feasibility ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jacobian", "v", "after_pass", "projection"),
    [
        (matrix((1, 0), (-1, 2)), vector(-0.5, 1.5), vector(0, 1), vector(0, 1.5)),
        (PAIR, vector(-2, 1), vector(-0.8410890133, -0.3504537556), vector(0, 0)),
        (
            matrix((3, 0, 0), (1, 2, 2), (-2, -6, 3)),
            vector(1, -2, -1),
            vector(1, -0.5714285714, 0.0714285714),
            vector(1.5555555556, -0.8888888889, 0.1111111111),
        ),
    ],
)
def test_pass_and_projection(
    jacobian: Tensor, v: Tensor, after_pass: Tensor, projection: Tensor
) -> None:
    weights = torch.linalg.solve(jacobian.T, v)
    gramian = jacobian @ jacobian.T
    torch.testing.assert_close(one_pass(gramian, weights) @ jacobian, after_pass, **CLOSE)
    exact = project_cone(gramian, weights).weights @ jacobian
    torch.testing.assert_close(exact, projection, **CLOSE)
    assert bool((jacobian @ exact >= -1e-9).all())


def test_one_pass_may_leave_a_task_hurt() -> None:
    weights = torch.linalg.solve(PAIR.T, vector(-2, 1))
    passed = one_pass(PAIR @ PAIR.T, weights) @ PAIR
    assert (PAIR @ passed).min() < -1


@given(
    seed=st.integers(0, 10_000), position=st.floats(-5, 5), scale=st.sampled_from([1e-3, 1, 1e3])
)
def test_one_pass_suffices_for_two_tasks_on_their_line(
    seed: int, position: float, scale: float
) -> None:
    rows = torch.tensor(np.random.default_rng(seed).normal(size=(2, 3))) * vector(1, scale)[:, None]
    weights = vector(position, 1 - position)
    after = one_pass(rows @ rows.T, weights) @ rows
    assert bool((rows @ after >= -1e-9 * rows.norm(dim=1) * (rows.norm() + after.norm())).all())


@given(
    seed=st.integers(0, 10_000),
    tasks=st.sampled_from([2, 3, 8]),
    feasibility=st.sampled_from(["auto", "projection"]),
    base=st.sampled_from(["mgda", "central", "equal"]),
)
def test_tension_is_feasible_with_auto_and_projection(
    seed: int, tasks: int, feasibility: str, base: str
) -> None:
    random = np.random.default_rng(seed)
    bases = {"mgda": MGDA, "central": CentralDirection, "equal": Equal}
    tension = running(Tension(bases[base](), period=1, feasibility=feasibility), tasks)
    assert tension.method.traits.feasible
    for _ in range(3):
        rows = torch.tensor(
            random.normal(size=(tasks, 4)) * 10 ** random.uniform(-2, 2, (tasks, 1))
        )
        losses = torch.tensor(10 ** random.uniform(-6, 2, tasks))
        v = tension(gradients(rows, losses)) @ rows
        size = rows.norm(dim=1)
        assert bool((rows @ v >= -1e-7 * size * (v.norm() + size.max())).all())


def test_auto_passes_on_the_segment_and_projects_elsewhere() -> None:
    """Two tasks, strong conflict: the pull leaves the cone, and the two rules differ."""
    jacobian = matrix((1, 0.1), (-1, 0.1))
    norms = [tuple(jacobian.norm(dim=1).tolist())] * 2
    losses = vector(1e-9, 1e3)
    v = {}
    for rule in ("auto", "pass", "projection", "none"):
        weights, _ = pulled(Tension(MGDA(), period=1, feasibility=rule), jacobian, norms, losses)
        v[rule] = weights @ jacobian
    assert (jacobian @ v["none"]).min() < -0.1
    torch.testing.assert_close(v["auto"], v["pass"], **CLOSE)
    assert (v["pass"] - v["projection"]).norm() > 1e-3
    summed = {}
    for rule in ("auto", "projection"):
        tension = Tension(Equal(), period=1, feasibility=rule)
        summed[rule] = pulled(tension, jacobian, norms, losses)[0] @ jacobian
    torch.testing.assert_close(summed["auto"], summed["projection"], **CLOSE)


# Guards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [MGDA, CentralDirection])
@pytest.mark.parametrize(
    ("jacobian", "losses"),
    [
        (matrix((0, 0), (1, 2)), vector(0, 1)),
        (matrix((0, 0), (0, 0)), vector(0, 0)),
        (matrix((0, 0, 0), (1, 2, 3), (-1, 0, 2)), vector(0, 1, -3)),
        (matrix((1, 2, 3), (1, 2, 3), (-1, 0, 2)), vector(1, 1, 1)),
        (matrix((1e12, 0), (0, 1e-12)), vector(1e-30, 1e30)),
    ],
)
def test_tension_is_finite_where_gradients_or_losses_are_zero(
    base: type[eh.Weighting], jacobian: Tensor, losses: Tensor
) -> None:
    tension = running(Tension(base(), period=2), len(losses))
    for _ in range(4):
        weights = tension(gradients(jacobian, losses))
        assert bool(weights.isfinite().all())


def test_norms_that_stay_zero_count_as_unchanged_and_the_logarithm_stops() -> None:
    """c = α σ(e (1 − 12 − 1)) + 1 − α for the zero task, which then pulls v by it."""
    jacobian = matrix((0, 0), (3, 4))
    tension = Tension(Equal(mean=True), period=1, feasibility="none")
    weights, _ = pulled(tension, jacobian, [(0, 5), (0, 5)], vector(0, 1))
    low = 0.3 / (1 + math.exp(12 * math.e)) + 0.7
    expected = matrix((1.5, 2))[0] + (0.85 - low) * vector(0.6, 0.8)
    torch.testing.assert_close(weights @ jacobian, expected, **CLOSE)


@pytest.mark.parametrize("by", ["none", "l2", "loss", "loss+"])
@pytest.mark.parametrize("back", [False, True])
def test_a_zero_scale_divides_nothing(by: str, back: bool) -> None:
    g = gradients(matrix((0, 0), (1, 2)), vector(0, 1))
    weights = Normalized(MGDA(), by=by, back=back)(g)
    torch.testing.assert_close(weights, vector(1, 0), **CLOSE)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5: must be between 0 and 1"):
        Tension(MGDA(), alpha=1.5)
    with pytest.raises(ValueError, match="period=0"):
        Tension(MGDA(), period=0)
    with pytest.raises(ValueError, match="feasibility='both': must be one of 'auto'"):
        Tension(MGDA(), feasibility="both")
    with pytest.raises(ValueError, match="by='l1': must be one of 'none', 'l2'"):
        Normalized(MGDA(), by="l1")
    g = gradients(PAIR, vector(0.5, -2))
    with pytest.raises(ValueError, match=r"must be >= 0, but are .*'task1': -2.0"):
        Normalized(MGDA(), by="loss")(g)
