"""What certifies the solvers: optimality conditions, closed forms, and solvers written by others.

The conditions are written out here once more, from the gradients where there are gradients, so that
a wrong certificate cannot vouch for a wrong solution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, least_squares, minimize, nnls
from torch import Tensor

from evenhand.linalg import (
    Solution,
    active_set,
    cagrad_weights,
    frank_wolfe,
    many,
    min_norm,
    min_norm_gap,
    nash_weights,
    project_cone,
    project_cone_gap,
    project_simplex,
    simplex_qp,
)
from evenhand.linalg.few import FEW, _certified, min_norm_of_few
from evenhand.linalg.simplex import min_norm_of_many
from evenhand.linalg.solution import TINY, read, simplex_gap
from samplers import EVERY, REGULAR, STATIONARY, jacobian

EPS = 2.0**-52
GRAM_SOLVERS: dict[str, Callable[[Tensor], Solution]] = {
    "min_norm": min_norm,
    "frank_wolfe": frank_wolfe,
    "simplex_qp": lambda g: simplex_qp(g, g[..., 0]),
    "project_cone": lambda g: project_cone(g, torch.eye(g.shape[-1]).to(g).expand(g.shape)),
    "nash": nash_weights,
    "fair": lambda g: nash_weights(g, alpha=2.0),
    "cagrad": lambda g: cagrad_weights(g, c=0.4),
}
solvers = pytest.mark.parametrize("solver", GRAM_SOLVERS.values(), ids=GRAM_SOLVERS.keys())
kinds = pytest.mark.parametrize("kind", EVERY)


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gram(j: Tensor) -> Tensor:
    return j @ j.mT


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def jacobians(draw: st.DrawFn, most: int = 12) -> Tensor:
    """Any rank, scales 1e-12 to 1e12, norms that span up to 1e6, zeros, repetitions, opposites."""
    m = draw(st.integers(2, most))
    rank = draw(st.integers(1, m + 2))
    seed = draw(st.integers(0, 2**32))
    j = normal(m, rank, seed=seed) @ normal(rank, m + 2, seed=seed + 1)
    spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
    j *= 10 ** (spread * normal(m, 1, seed=seed + 2).clamp(-1, 1))
    flaw = draw(st.sampled_from(["none", "none", "zero", "twice", "multiple", "opposite", "sum"]))
    if flaw == "zero":
        j[0] = 0
    elif flaw == "twice":
        j[-1] = j[0]
    elif flaw == "multiple":
        j[-1] = 3 * j[0]
    elif flaw == "opposite":
        j[-1] = -0.5 * j[0]
    elif flaw == "sum":
        j[-1] = -j[:-1].sum(0)
    return j * 10.0 ** draw(st.integers(-12, 12))


def gap_of(g: Tensor, w: Tensor) -> float:
    """The house's certificate: max (v − (Gw)_i)₊ / (‖g_i‖ √max(v, ε max ‖g‖²)), less rounding."""
    norms = g.diagonal().sqrt()
    v = w @ g @ w
    root = torch.maximum(v, 64 * EPS * norms.max() ** 2).sqrt()
    excess = (v - g @ w - 4 * EPS * (w @ norms) ** 2).clamp(min=0)
    return float((excess / (norms * root))[norms > 0].max()) if (norms > 0).any() else 0.0


def on_simplex(w: Tensor, atol: float = 1e-12) -> bool:
    return bool((w >= 0).all()) and math.isclose(float(w.sum()), 1, abs_tol=atol)


# Min-norm -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("j", "weights", "point"),
    [
        (matrix((3, 0), (1, 2)), (0.25, 0.75), (1.5, 1.5)),
        (
            matrix((3, 4), (5, -12)),
            (0.77692307692308, 0.22307692307692),
            (3.44615384615385, 0.43076923076923),
        ),
        (matrix((1, 0), (2, 1)), (1, 0), (1, 0)),
        (matrix((2, 0), (0, 2), (0, 0)), (0, 0, 1), (0, 0)),
        (matrix((1, 0), (1, 0), (0, 1)), (0.25, 0.25, 0.5), (0.5, 0.5)),
        (matrix((1, 0), (1, 0)), (0.5, 0.5), (1, 0)),
        (matrix((0, 0), (0, 0), (0, 0)), (1 / 3, 1 / 3, 1 / 3), (0, 0)),
        (matrix((5, 0)), (1,), (5, 0)),
    ],
)
def test_min_norm_worked_values(
    j: Tensor, weights: tuple[float, ...], point: tuple[float, ...]
) -> None:
    solution = min_norm(gram(j))
    torch.testing.assert_close(solution.weights, vector(*weights), rtol=0, atol=1e-9)
    torch.testing.assert_close(solution.weights @ j, vector(*point), rtol=0, atol=1e-9)
    assert solution.solved


@kinds
@pytest.mark.parametrize("m", [2, 3, 8, 40])
def test_min_norm_meets_its_conditions(kind: str, m: int) -> None:
    for seed in range(3):
        g = gram(jacobian(kind, m, seed))
        solution = min_norm(g)
        assert on_simplex(solution.weights)
        assert gap_of(g, solution.weights) <= 1e-8
        assert solution.gap <= 1e-8
        assert solution.solved
        assert (kind in STATIONARY) <= (solution.status == "stationary")


@given(jacobians())
def test_min_norm_of_anything(j: Tensor) -> None:
    g = gram(j)
    solution = min_norm(g)
    assert on_simplex(solution.weights)
    assert solution.gap <= 1e-8
    assert gap_of(g, solution.weights) <= 1e-8


@pytest.mark.parametrize("m", [100, 1000])
@pytest.mark.parametrize("kind", ["mixed", "ill-conditioned", "stationary"])
def test_min_norm_of_many_tasks(m: int, kind: str) -> None:
    if kind == "mixed":
        j = normal(m, m // 2 + 1, seed=m) * 10 ** (3 * normal(m, 1, seed=1).clamp(-1, 1))
        j[: m // 4] += j[0].clone()
    elif kind == "ill-conditioned":
        j = torch.linspace(1, 4, m, dtype=torch.float64) ** torch.arange(30).unsqueeze(1)
        j = (j / j.norm(dim=1, keepdim=True)).T.contiguous()
    else:
        j = normal(m, 2 * m, seed=m)
        j[-1] = -j[:-1].sum(0)
    solution = min_norm(gram(j))
    assert on_simplex(solution.weights)
    assert gap_of(gram(j), solution.weights) <= 1e-8
    assert (kind == "stationary") <= (solution.status == "stationary")


@given(jacobians(most=8))
def test_min_norm_is_what_nonnegative_least_squares_finds(j: Tensor) -> None:
    """The minimiser of ‖Jᵀx‖² + (Σx − 1)² over x ≥ 0 is the min-norm point's multiple."""
    j = j / j.norm(dim=1).max().clamp(min=1e-300)
    stacked = torch.cat([j.T, torch.ones(1, len(j), dtype=j.dtype)])
    x, _ = nnls(stacked.numpy(), np.eye(len(stacked))[-1])
    reference = torch.from_numpy(x / x.sum()) @ j
    torch.testing.assert_close(min_norm(gram(j)).weights @ j, reference, rtol=0, atol=1e-7)


def test_wrong_weights_are_not_certified_when_norms_span_six_orders() -> None:
    """Equal norms would hide it: the small gradient alone is best, the mixture triples its norm."""
    j = torch.diag(vector(1.0, 1e6))
    small = min_norm(gram(j))
    assert small.gap <= 1e-8
    torch.testing.assert_close(small.weights, vector(1, 1e-12), rtol=1e-9, atol=0)
    for wrong in (vector(0.999999, 1e-6), vector(0.5, 0.5)):
        assert min_norm_gap(gram(j), wrong) > 0.1
    nearly = vector(1 - 1e-8, 1e-8)
    assert min_norm_gap(gram(j), nearly) > 1e-5


def test_the_gap_sees_that_a_zero_gradient_was_passed_over() -> None:
    g = torch.diag(vector(0.0, 1.0, 4.0))
    assert min_norm(g).gap == 0
    assert min_norm_gap(g, vector(0, 0.8, 0.2)) > 0.1


@kinds
def test_both_ways_to_pivot_agree(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = np.zeros(0, dtype=np.intp)
    for m, seed in itertools.product([3, 8, 30], range(2)):
        j = jacobian(kind, m, seed)
        g = gram(j)
        scale = float(j.norm(dim=1).max())
        fast = min_norm(g).weights @ j
        with monkeypatch.context() as patch:
            patch.setattr(active_set, "_block_pivoting", lambda a, q, e: (None, nowhere, 0))
            patch.setattr(active_set, "_least_squares", lambda a, e: nowhere)
            patch.setattr(many, "_least_squares", lambda a, z: np.zeros_like(z))
            patch.setattr(many, "_right", lambda a, z, q, x: np.zeros(len(x), dtype=bool))
            slow = min_norm(g)
            projected = project_cone(g, torch.full((m,), 1.0, dtype=torch.float64))
        assert slow.gap <= 1e-8
        assert projected.gap <= 1e-8
        torch.testing.assert_close(slow.weights @ j, fast, rtol=0, atol=1e-7 * scale)


def test_identical_gradients_share_their_weight() -> None:
    j = jacobian("independent", 5)[[0, 1, 1, 2, 1, 3, 4, 4]]
    assert_shared = lambda w: (w[[1, 2]] == w[[2, 4]]).all() and w[6] == w[7]  # noqa: E731
    g = gram(j)
    g = (g + g.T) / 2
    assert assert_shared(min_norm(g).weights)
    assert assert_shared(simplex_qp(g, g.sum(0)).weights)


# Frank-Wolfe ----------------------------------------------------------------------------------


def test_frank_wolfe_is_the_papers_loop() -> None:
    j = jacobian("conflicting", 6)
    w = torch.full((6,), 1 / 6, dtype=torch.float64)
    for _ in range(30):
        point = w @ j
        t = int((j @ point).argmin())
        a, b = j[t], point
        if a @ b >= a @ a:
            step = 1.0
        elif a @ b >= b @ b:
            step = 0.0
        else:
            step = float((b - a) @ b / ((a - b) @ (a - b)))
        w = (1 - step) * w
        w[t] += step
    solution = frank_wolfe(gram(j), iterations=30, tolerance=0.0)
    assert solution.iterations == 30
    torch.testing.assert_close(solution.weights, w)


def test_frank_wolfe_is_exact_for_two_and_slow_for_more() -> None:
    pair = gram(matrix((3, 0), (1, 2)))
    assert frank_wolfe(pair).status == "optimal"
    torch.testing.assert_close(frank_wolfe(pair).weights, vector(0.25, 0.75))
    more = frank_wolfe(gram(jacobian("conflicting", 8)))
    assert more.status == "inaccurate"
    assert more.gap > 1e-6
    assert more.squared_norm > min_norm(gram(jacobian("conflicting", 8))).squared_norm


# Quadratic programs on the simplex --------------------------------------------------------------


def faces(h: Tensor, b: Tensor) -> Iterator[float]:
    """The objective at the stationary point of every face on which it is feasible and unique."""
    m = len(b)
    for size in range(1, m + 1):
        for face in itertools.combinations(range(m), size):
            rows = list(face)
            system = torch.zeros(size + 1, size + 1, dtype=torch.float64)
            system[:size, :size] = h[rows][:, rows]
            system[:size, size] = system[size, :size] = 1
            w, info = torch.linalg.solve_ex(system, torch.cat([-b[rows], vector(1)]))
            w = w[:size]
            if info == 0 and (w >= 0).all():
                yield float(w @ h[rows][:, rows] @ w / 2 + b[rows] @ w)


@given(st.integers(1, 5), st.integers(1, 6), st.floats(-3, 3), st.integers(0, 2**32))
def test_simplex_qp_is_the_best_of_all_faces(m: int, rank: int, power: float, seed: int) -> None:
    h, b = gram(normal(m, rank, seed=seed)), 10**power * normal(m, seed=seed + 1)
    solution = simplex_qp(h, b)
    assert on_simplex(solution.weights)
    assert solution.gap <= 1e-8
    w = solution.weights
    value = float(w @ h @ w / 2 + b @ w)
    best = min(faces(h, b))
    assert value <= best + 1e-9 * (1 + float(b.abs().max()))


@given(jacobians(most=10), st.floats(-2, 2))
def test_simplex_qp_with_a_linear_term_in_the_span_is_a_shifted_min_norm(
    j: Tensor, power: float
) -> None:
    """½‖Jᵀw + c‖² has the linear term Jc: the min-norm point of the gradients g_i + c."""
    j = j / j.norm(dim=1).max().clamp(min=1e-300)
    c = 10**power * j.mean(0)
    shifted = min_norm(gram(j + c)).weights @ j
    direct = simplex_qp(gram(j), j @ c)
    assert direct.gap <= 1e-8
    torch.testing.assert_close(direct.weights @ j, shifted, rtol=0, atol=1e-6)


def test_simplex_qp_without_curvature_is_a_linear_program() -> None:
    solution = simplex_qp(torch.zeros(3, 3), torch.tensor([3.0, 1.0, 2.0]))
    assert solution.weights.tolist() == [0, 1, 0]
    tie = simplex_qp(torch.zeros(3, 3), torch.tensor([1.0, 2.0, 1.0]))
    assert tie.gap == 0
    assert tie.weights[1] == 0


def test_project_simplex_is_the_nearest_point() -> None:
    v = normal(200, 7) * 10 ** normal(200, 1, seed=1)
    w = project_simplex(v)
    assert (w >= 0).all()
    torch.testing.assert_close(w.sum(-1), torch.ones(200, dtype=torch.float64))
    # v − w is normal to the simplex at w: constant on the support, no larger beside it.
    theta = torch.where(w > 0, v - w, -math.inf).amax(-1, keepdim=True)
    torch.testing.assert_close(torch.where(w > 0, v - w, theta), theta.expand_as(v))
    assert (v <= theta + w + 1e-12).all()
    torch.testing.assert_close(project_simplex(w), w)
    identity = torch.eye(7, dtype=torch.float64).expand(200, 7, 7)
    torch.testing.assert_close(simplex_qp(identity, -v).weights, w)
    assert project_simplex(torch.tensor([1e30, 0.0])).tolist() == [1, 0]
    assert project_simplex(torch.zeros(4, dtype=torch.float16)).tolist() == [0.25] * 4


# The cone of directions that harm nobody --------------------------------------------------------


@pytest.mark.parametrize(
    ("j", "v", "expected"),
    [
        (((1, 0), (-1, 2)), (-0.5, 1.5), (0, 1.5)),
        (((3, 4), (5, -12)), (-2, 1), (0, 0)),
        (
            ((3, 0, 0), (1, 2, 2), (-2, -6, 3)),
            (1, -2, -1),
            (1.5555555556, -0.8888888889, 0.1111111111),
        ),
    ],
)
def test_project_cone_worked_values(
    j: tuple[tuple[float, ...], ...], v: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    rows = matrix(*j)
    u = torch.linalg.solve(rows.T, vector(*v))
    solution = project_cone(gram(rows), u)
    torch.testing.assert_close(solution.weights @ rows, vector(*expected), rtol=0, atol=1e-9)
    assert solution.solved


@kinds
@pytest.mark.parametrize("m", [2, 3, 8, 40])
def test_project_cone_meets_its_conditions(kind: str, m: int) -> None:
    j = jacobian(kind, m, seed=m)
    g, norms = gram(j), j.norm(dim=1)
    u = torch.cat([torch.eye(m, dtype=torch.float64), normal(3, m)])
    solution = project_cone(g, u)
    assert solution.solved
    assert (solution.gap <= 1e-8).all()
    multipliers = solution.weights - u
    assert (multipliers >= 0).all()
    length = (u @ j).norm(dim=1)
    scale = torch.maximum(length, 1e-7 * (solution.weights.abs() @ norms)).unsqueeze(1)
    x = solution.weights @ j
    assert (x @ j.T >= -1e-8 * norms * scale).all()
    assert ((multipliers * (x @ j.T)).sum(1).abs() <= 1e-8 * scale[:, 0] ** 2).all()


@given(jacobians(most=8), st.integers(0, 2**32))
def test_project_cone_is_what_nonnegative_least_squares_finds(j: Tensor, seed: int) -> None:
    j = j / j.norm(dim=1).max().clamp(min=1e-300)
    u = normal(len(j), seed=seed)
    multipliers, _ = nnls(j.T.numpy(), -(u @ j).numpy())
    reference = (u + torch.from_numpy(multipliers)) @ j
    x = project_cone(gram(j), u).weights @ j
    torch.testing.assert_close(x, reference, rtol=0, atol=1e-6)


def test_project_cone_leaves_alone_what_harms_nobody() -> None:
    j = jacobian("agreeing", 5)
    u = vector(1, 2, 3, 4, 5)
    assert (project_cone(gram(j), u).weights == u).all()
    zero = project_cone(torch.zeros(3, 3, dtype=torch.float64), vector(1, -1, 2))
    assert zero.weights.tolist() == [1, -1, 2]


def crowd(kind: str, m: int) -> Tensor:
    """Gradients of many tasks, of each kind that `linalg.many` treats in a way of its own."""
    j = normal(m, 2 * m, seed=m)
    if kind == "mixed":
        return j + 0.3 * normal(1, 2 * m, seed=1)
    if kind == "nearly stationary":
        return j - (1 - 1e-6) * j.mean(0)
    if kind == "stationary":
        return j - j.mean(0)
    if kind == "stationary in part":
        j[m // 2] = -j[: m // 2].sum(0)
    if kind == "twins":
        j[m // 2 :] = 3 * j[: m - m // 2].clone()
    if kind == "almost twins":
        j[m // 2 :] = j[: m - m // 2] + 1e-9 * normal(m - m // 2, 2 * m, seed=2)
    if kind == "rank m/2":
        j = normal(m, m // 2, seed=m) @ normal(m // 2, 2 * m, seed=1)
    if kind == "rank m/2, no conflict":
        j = normal(m, m // 2, seed=m) @ normal(m // 2, 2 * m, seed=1)
        j += 0.5 * j.norm(dim=1).mean() * torch.eye(2 * m, dtype=j.dtype)[0]
    return torch.logspace(-3, 3, m, dtype=torch.float64)[:, None] * j if kind == "spread" else j


CROWDS = (
    "random",
    "mixed",
    "nearly stationary",
    "stationary",
    "stationary in part",
    "twins",
    "almost twins",
    "rank m/2",
    "rank m/2, no conflict",
    "spread",
)


@pytest.mark.parametrize("m", [5, 17, 40])
@pytest.mark.parametrize("kind", CROWDS)
def test_all_gradients_together_are_projected_as_each_alone(kind: str, m: int) -> None:
    j = crowd(kind, m)
    norms = j.norm(dim=1)
    together = project_cone(gram(j), torch.eye(m, dtype=torch.float64))
    assert together.solved
    assert (together.gap <= 1e-8).all()
    unit = (j / norms[:, None]).T.numpy()
    for i in range(0, m, 4):
        multipliers, _ = nnls(unit, -unit[:, i], maxiter=100 * m)
        reference = torch.from_numpy(unit[:, i] + unit @ multipliers)
        x = together.weights[i] @ j / norms[i]
        torch.testing.assert_close(x, reference, rtol=0, atol=1e-6)
        alone = project_cone(gram(j), torch.eye(m, dtype=torch.float64)[i]).weights @ j / norms[i]
        torch.testing.assert_close(x, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["any", "half-space", "open"])
def test_far_more_tasks_than_dimensions(kind: str, dtype: torch.dtype) -> None:
    """150 gradients of 10 entries, against least squares on the rows themselves."""
    rows = normal(150, 10, seed=1)
    if kind != "any":  # a cone of directions that harm nobody remains: narrow, or wider
        rows[:, 0] = rows[:, 0].abs() + (1.0 if kind == "open" else 0.0)
    j = rows.to(dtype)
    solution = project_cone(gram(j), torch.eye(150, dtype=dtype))
    assert solution.solved
    j, norms = j.double(), j.double().norm(dim=1)
    unit = (j / norms[:, None]).T.numpy()
    tolerance = 1e-6 if dtype == torch.float64 else 2e-3
    for i in range(0, 150, 7):
        multipliers, _ = nnls(unit, -unit[:, i], maxiter=1000)
        reference = torch.from_numpy(unit[:, i] + unit @ multipliers)
        x = solution.weights[i].double() @ j / norms[i]
        torch.testing.assert_close(x, reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("m", [8, 12, 20, 30])
def test_what_the_gramian_can_hardly_tell_apart_is_projected_with_a_certificate(m: int) -> None:
    """Almost twins, some with an opposite: multipliers could grow without bound."""
    for seed in range(5):
        j = crowd("almost twins", m)[
            torch.from_numpy(np.random.default_rng(seed).integers(m, size=m))
        ]
        j[seed] = -3 * j[m - 1 - seed]
        solution = project_cone(gram(j), torch.eye(m, dtype=torch.float64))
        assert solution.solved
        assert (solution.gap <= 1e-8).all()


@pytest.mark.parametrize("m", [4, 30])
def test_identical_gradients_share_their_multiplier(m: int) -> None:
    j = crowd("mixed", m)
    j[m // 2 :] = j[: m // 2].clone()
    u = normal(3, m, seed=1)
    added = project_cone(gram(j), u).weights - u
    assert (added > 0).any()
    torch.testing.assert_close(added[:, m // 2 :], added[:, : m // 2], rtol=1e-12, atol=1e-14)


@kinds
def test_project_cone_gap_knows_right_from_wrong(kind: str) -> None:
    for m in (2, 3, 8):
        g = gram(jacobian(kind, m))
        u = torch.cat([torch.eye(m, dtype=torch.float64), normal(2, m)])
        solution = project_cone(g, u)
        gap = project_cone_gap(g, u, solution.weights)
        torch.testing.assert_close(gap, solution.gap, rtol=0, atol=1e-8)
        if kind in ("conflicting", "independent", "orthogonal"):
            assert (project_cone_gap(g, u, solution.weights + 1e-3) > 1e-6).all()
            assert (project_cone_gap(g, u, solution.weights - 1e-3) > 1e-6).all()
    with pytest.raises(ValueError, match=r"projected must be \[3\], not \[2\]"):
        project_cone_gap(torch.eye(3), torch.ones(3), torch.ones(2))
    assert project_cone_gap(torch.zeros(0, 3, 3), torch.ones(0, 3), torch.ones(0, 3)).numel() == 0


# Bargaining -------------------------------------------------------------------------------------


@given(st.floats(-6, 6), st.floats(-6, 6), st.floats(-0.999, 0.999))
def test_nash_has_a_closed_form_for_two(a: float, b: float, cosine: float) -> None:
    """w_i = 1 / (‖g_i‖ √(1 + cos))."""
    norms = vector(10**a, 10**b)
    g = norms.outer(norms) * matrix((1, cosine), (cosine, 1))
    w = 1 / (norms * math.sqrt(1 + cosine))
    torch.testing.assert_close(nash_weights(g).weights, w, rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("kind", REGULAR)
def test_nash_solves_its_equation(kind: str, alpha: float) -> None:
    for m in (1, 2, 8, 40):
        g = gram(jacobian(kind, m))
        solution = nash_weights(g, alpha)
        w = solution.weights
        assert solution.solved
        assert (w > 0).all()
        torch.testing.assert_close(
            (g @ w) * w ** (1 / alpha), torch.ones_like(w), rtol=1e-6, atol=0
        )


def test_nash_is_what_least_squares_finds() -> None:
    g = gram(jacobian("conflicting", 5)) + 0.1 * torch.eye(5, dtype=torch.float64)
    for alpha in (1.0, 2.0):
        found = least_squares(
            lambda x, a=alpha: g.numpy() @ x - x ** (-1 / a),
            np.full(5, 0.2),
            bounds=(0, np.inf),
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
            max_nfev=2000,
        )
        w = nash_weights(g, alpha).weights
        torch.testing.assert_close(w, torch.from_numpy(found.x), rtol=1e-5, atol=0)


def exact_nash(g: Tensor, w: Tensor, p: float) -> list[mpmath.mpf]:
    """The root of Gw = w^(−p) to 100 digits, by Newton's method from w.

    It is the stationary point of a strictly convex function, so there is one: wherever Newton's
    method starts, what satisfies the equation to 30 digits is what there is to find.
    """
    m = len(w)
    matrix, x = mpmath.matrix(g.tolist()), mpmath.matrix(w.tolist())
    for _ in range(8):
        pull = mpmath.matrix([x[i] ** -p for i in range(m)])
        miss = pull - matrix * x
        if max(abs(miss[i] / pull[i]) for i in range(m)) < mpmath.mpf(10) ** -30:
            return list(x)
        curvature = mpmath.diag([p * pull[i] / x[i] for i in range(m)])
        x += mpmath.lu_solve(matrix + curvature, miss)
    raise AssertionError("no root near w")


@pytest.mark.parametrize("spread", [1e3, 1e6])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("m", [2, 3, 8, 40])
def test_nash_when_norms_span_orders_of_magnitude(m: int, alpha: float, spread: float) -> None:
    for seed in range(1 if m == 40 else 4):
        lengths = torch.logspace(0, math.log10(spread), m, dtype=torch.float64)
        g = gram(lengths.unsqueeze(1) * normal(m, 2 * m, seed=seed))
        g = (g + g.T) / 2
        solution = nash_weights(g, alpha)
        w = solution.weights
        assert solution.status == "optimal"
        assert (w > 0).all()
        # Each g_i·d is w_i^(−1/α), but for the rounding of the sum that it is.
        rounding = 8 * EPS * (g.abs() @ w)
        assert ((g @ w - w ** (-1 / alpha)).abs() <= rounding + 1e-8 * w ** (-1 / alpha)).all()
        with mpmath.workdps(100):
            root = exact_nash(g, w, 1 / alpha)
            error = max(abs(x / r - 1) for x, r in zip(w.tolist(), root, strict=True))
        assert error <= 1e-11


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_nash_is_what_least_squares_finds_for_small_alpha(alpha: float) -> None:
    """From a start of its own, in the logarithm of w."""
    for m, seed in itertools.product([2, 3, 8], range(3)):
        lengths = torch.logspace(0, 1, m, dtype=torch.float64)
        g = gram(lengths.unsqueeze(1) * (normal(m, 2 * m, seed=seed) + 0.5))
        found = least_squares(
            lambda y, g=g: np.log(np.maximum(g.numpy() @ np.exp(y), 1e-9)) + y / alpha,
            np.zeros(m),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            max_nfev=5000,
        )
        w = nash_weights(g, alpha).weights
        torch.testing.assert_close(w.log(), torch.from_numpy(found.x), rtol=0, atol=1e-7)


def test_nash_when_gradients_recur_and_norms_span_orders_of_magnitude() -> None:
    """Where G is singular and α small, so is Newton's matrix."""
    for seed in range(6):
        rows = torch.from_numpy(np.random.default_rng(seed).integers(12, size=17))
        j = (torch.logspace(-3, 3, 12, dtype=torch.float64)[:, None] * normal(12, 30, seed=seed))[
            rows
        ]
        g = gram(j)
        solution = nash_weights(g, alpha=0.1)
        w = solution.weights
        assert solution.status == "optimal"
        rounding = 8 * EPS * (g.abs() @ w)
        assert ((g @ w - w**-10).abs() <= rounding + 1e-8 * w**-10).all()


@pytest.mark.parametrize(
    ("kind", "m", "alpha"),
    [
        ("independent", 2, 0.05),
        ("conflicting", 8, 0.1),
        ("spread", 8, 0.1),
        ("tiny", 8, 5.0),
        ("tiny", 20, 5.0),
        ("tiny", 20, 20.0),
    ],
)
def test_newtons_method_arrives_without_a_line_search(kind: str, m: int, alpha: float) -> None:
    """Where a search by the objective's value stops short: rounding hides its last decrease."""
    for seed in range(2):
        j = jacobian(kind, m, seed)
        for rows in (j, torch.logspace(0, 6, m, dtype=torch.float64)[:, None] * j):
            solution = nash_weights(gram(rows), alpha)
            assert solution.status == "optimal"
            assert solution.gap <= 1e-12


def test_nash_directions_ignore_the_scale_of_tasks() -> None:
    j = jacobian("conflicting", 6)
    scales = 10 ** (2 * normal(6, 1))
    scaled = scales * j
    torch.testing.assert_close(
        nash_weights(gram(scaled)).weights @ scaled, nash_weights(gram(j)).weights @ j
    )
    assert nash_weights(gram(j)).squared_norm == pytest.approx(6, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("spread", [1.0, 1e3])
@pytest.mark.parametrize("kind", ["opposed", "stationary", "stationary face"])
def test_nash_says_so_when_there_is_no_solution(kind: str, spread: float, alpha: float) -> None:
    j = torch.logspace(0, math.log10(spread), 4, dtype=torch.float64)[:, None] * jacobian(kind, 4)
    solution = nash_weights(gram(j), alpha)
    assert solution.status == "unbounded"
    assert not solution.solved
    assert on_simplex(solution.weights)
    assert (solution.weights @ j).norm() <= 1e-7 * j.norm()


def test_a_zero_gradient_does_not_bargain() -> None:
    j = jacobian("independent", 3)
    with_zero = torch.cat([j, torch.zeros_like(j[:1])])
    solution = nash_weights(gram(with_zero))
    assert solution.solved
    assert solution.weights[3] == 0
    torch.testing.assert_close(solution.weights[:3], nash_weights(gram(j)).weights)
    assert nash_weights(torch.zeros(2, 2)).status == "unbounded"


# CAGrad -----------------------------------------------------------------------------------------


def worst(j: Tensor, a: Tensor) -> float:
    return float((j @ (a @ j)).min())


def cagrad_bound(j: Tensor, c: float, w: Tensor) -> float:
    """The dual's objective, at least the primal's at every w of the simplex."""
    mean = j.mean(0)
    return float(mean @ (w @ j) + c * mean.norm() * (w @ j).norm())


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 1.5])
@pytest.mark.parametrize("kind", [k for k in EVERY if k != "huge and tiny"])
def test_cagrad_closes_the_gap_between_primal_and_dual(kind: str, c: float) -> None:
    for m in (2, 3, 8):
        j = jacobian(kind, m, seed=m)
        solution = cagrad_weights(gram(j), c)
        assert solution.solved
        assert solution.gap <= 1e-8
        mean, d = j.mean(0), solution.weights @ j
        assert (d - mean).norm() <= c * mean.norm() + 1e-7 * j.norm()
        part = solution.weights - 1 / m
        if solution.status == "optimal" and part.sum() > 0:
            bound = cagrad_bound(j, c, part / part.sum())
            scale = float(j.norm(dim=1).max() * mean.norm())
            assert bound - worst(j, solution.weights) <= 1e-7 * scale


@pytest.mark.parametrize("c", [0.2, 0.8])
def test_cagrad_is_what_slsqp_finds(c: float) -> None:
    for m, seed in itertools.product([2, 3, 6], range(3)):
        j = jacobian("conflicting", m, seed) + 0.3
        found = minimize(
            lambda w, j=j: cagrad_bound(j, c, torch.from_numpy(w)),
            np.full(m, 1 / m),
            bounds=[(0, 1)] * m,
            constraints=LinearConstraint(np.ones(m), 1, 1),
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        part = cagrad_weights(gram(j), c).weights - 1 / m
        ours = cagrad_bound(j, c, part / part.sum())
        assert ours <= found.fun + 1e-12
        assert ours == pytest.approx(found.fun, rel=1e-5)


def test_cagrad_at_the_ends() -> None:
    j = jacobian("conflicting", 5)
    mean = torch.full((5,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(cagrad_weights(gram(j), 0.0).weights, mean)
    towards = cagrad_weights(gram(j), 1e7).weights @ j
    shortest = min_norm(gram(j)).weights @ j
    cosine = torch.cosine_similarity(towards, shortest, dim=0)
    assert cosine == pytest.approx(1, abs=1e-9)
    opposed = matrix((1, 0), (-1, 0))
    assert cagrad_weights(gram(opposed), 0.5).weights.tolist() == [0.5, 0.5]


def test_cagrad_at_a_stationary_point_projects_the_mean() -> None:
    """Where g_w = 0 the dual says nothing; of the primal's solutions d is the nearest to g_0."""
    j = matrix((1, 0, 0), (-1, 0, 0), (0.2, 1, 0))
    solution = cagrad_weights(gram(j), 0.5)
    assert solution.status == "stationary"
    d, mean = solution.weights @ j, j.mean(0)
    assert (d - mean).norm() < 0.5 * mean.norm()
    assert worst(j, solution.weights) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(d, vector(0, 1 / 3, 0), rtol=0, atol=1e-12)


# Near stationary points, where rounding decides -------------------------------------------------


def nearly_stationary(seed: int) -> Tensor:
    """Rows of which a combination with positive weights almost vanishes, rounded to float32.

    2 to 20 tasks, 10 to 10 000 parameters, norms that span up to six orders of magnitude, and a
    remainder from 1 to nothing at all.
    """
    at = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=at, dtype=torch.float64))

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=at, dtype=torch.float64)

    m, n = int(uniform(2, 21)), int(10 ** uniform(1, 4))
    j, rest = rows(m, n), 10 ** uniform(-8, 0) if uniform(0, 1) < 0.8 else 0.0
    kind = int(uniform(0, 4))
    if kind == 2:
        j = j - (1 - rest) * j.mean(0)
    elif kind == 3:
        j = rows(m, max(1, m // 2)) @ rows(max(1, m // 2), n) + rest * j
    else:
        k = m if kind == 0 else max(2, m // 2)
        w = rows(k).exp()
        j[k - 1] = -(w[:-1] @ j[: k - 1]) / w[-1] + rest * rows(n)
    spread = uniform(-3, 3)
    return (10 ** (spread * (2 * torch.rand(m, 1, generator=at) - 1)) * j).float()


EPS32 = 2.0**-23
NEAR = [nearly_stationary(seed) for seed in range(150)]


@pytest.mark.parametrize("c", [0.4, 1.0, 2.0])
def test_cagrad_keeps_its_promises_near_stationary_points_in_single_precision(c: float) -> None:
    """Measured on the rows: the ball, g_i·d ≥ 0 for c ≥ 1, and weights that rounding allows."""
    statuses = set()
    for j32 in NEAR:
        solution = cagrad_weights(gram(j32), c)
        j, a = j32.double(), solution.weights.double()
        norms, mean, d = j.norm(dim=1), j.mean(0), a @ j
        radius, size, scale = c * mean.norm(), a @ norms, norms.mean()
        statuses.add(solution.status)
        assert (d - mean).norm() <= 1.01 * radius + 1e-3 * EPS32**0.5 * scale
        assert size <= 1.01 * (scale + max(c, 1) * mean.norm() / (2 * EPS32**0.5))
        if c >= 1:
            harm = (-(j @ d) / norms).max()
            assert harm <= 2 * EPS32**0.5 * scale
            assert harm <= 20 * EPS32 * size
    assert {"optimal", "stationary"} <= statuses


@pytest.mark.parametrize("kind", ["mean", "preference", "each"])
def test_projections_keep_their_promises_near_stationary_points_in_single_precision(
    kind: str,
) -> None:
    """Measured on the rows: no longer than v, g_i·x ≥ 0, and weights that rounding allows."""
    statuses = set()
    for seed, j32 in enumerate(NEAR):
        m = len(j32)
        preference = 10 ** normal(m, seed=seed).clamp(-1, 1)
        u = {
            "mean": torch.full((1, m), 1 / m, dtype=torch.float64),
            "preference": preference[None],
            "each": preference.diag(),
        }[kind].float()
        solution = project_cone(gram(j32), u)
        j, w, u = j32.double(), solution.weights.double(), u.double()
        norms, x, v = j.norm(dim=1), w @ j, u @ j
        size, scale = w @ norms, u @ norms
        statuses.add(solution.status)
        # What v is known to before: its own rounding.
        before = (v.norm(dim=1).square() + EPS32 * scale**2).sqrt()
        assert (x.norm(dim=1) <= 1.1 * before).all()
        assert (size <= 1.01 * (scale + v.norm(dim=1) / (4 * EPS32**0.5)) + 4 * scale).all()
        harm = (-(x @ j.T) / norms).amax(1)
        assert (harm <= 5 * EPS32**0.5 * scale).all()
        assert (harm <= 20 * EPS32 * size).all()
        if solution.status == "optimal":
            assert (harm <= 4 * EPS32 * size + 1e-6 * before).all()
    assert statuses == {"optimal", "stationary", "inaccurate"}


def test_nash_says_so_where_single_precision_does_not_tell_the_solution() -> None:
    """Measured on the rows: what is called optimal satisfies g_i·d = 1/w_i and ‖d‖² = m."""
    statuses = set()
    for j32 in NEAR:
        solution = nash_weights(gram(j32))
        j, w = j32.double(), solution.weights.double()
        d = w @ j
        statuses.add(solution.status)
        if solution.status == "optimal":
            assert float(d.norm()) == pytest.approx(len(j) ** 0.5, rel=1e-2)
            assert ((j @ d) * w - 1).abs().max() <= 0.2
        elif solution.status == "inaccurate":
            assert solution.gap > 0.05
    assert statuses == {"optimal", "unbounded", "inaccurate"}


def test_the_certificate_is_at_the_gramians_precision() -> None:
    """Two gradients at cosine −1 + 5e-7: float32 can hardly tell it from −1, float64 can."""
    j = matrix((1, 0), (-1, 1e-3))
    u = vector(1.0, 0.5)
    exact = project_cone(gram(j), u)
    assert exact.status == "optimal"
    edge = vector(1e-3, 1.0)  # g_2·x = 0
    expected = (u @ j @ edge) / (edge @ edge) * edge
    torch.testing.assert_close(exact.weights @ j, expected, rtol=0, atol=1e-9)
    rounded = project_cone(gram(j).float(), u.float())
    assert rounded.status in ("stationary", "inaccurate")
    assert float(rounded.weights.max()) <= 0.5 / (4 * EPS32**0.5) + 1.5


# All of them ------------------------------------------------------------------------------------


@solvers
def test_a_stack_is_the_stack_of_its_members(solver: Callable[[Tensor], Solution]) -> None:
    for m in (1, 2, 3, 5):
        stack = torch.stack(
            [gram(jacobian(kind, m)) for kind in ("independent", "conflicting", "spread", "tiny")]
        ).reshape(2, 2, m, m)
        together = solver(stack)
        alone = [[solver(g) for g in row] for row in stack]
        for field in ("weights", "squared_norm", "gap"):
            single = torch.stack([torch.stack([getattr(s, field) for s in row]) for row in alone])
            assert torch.equal(getattr(together, field), single), field
        assert together.iterations == max(s.iterations for row in alone for s in row)
    empty = solver(torch.zeros(0, 3, 3))
    assert empty.weights.shape[0] == 0
    assert empty.gap.numel() == 0


def test_a_stack_of_pairs_is_the_stack_of_its_members() -> None:
    """The vectorised closed form equals the plain one, degenerate pairs included."""
    pairs = torch.stack([gram(jacobian(kind, 2, seed)) for kind in EVERY for seed in range(3)])
    together = min_norm(pairs)
    for k, g in enumerate(pairs):
        alone = min_norm(g)
        assert torch.equal(together.weights[k], alone.weights)
        assert torch.equal(together.squared_norm[k], alone.squared_norm)
        assert torch.equal(together.gap[k], alone.gap)
    assert together.status == "stationary"


@given(jacobians(most=FEW))
def test_few_gradients_have_the_point_that_many_have(j: Tensor) -> None:
    """Python's floats and the engine agree, as far as rounding lets the point be one."""
    g = read(gram(j))[0]
    found = min_norm_of_few(g.tolist(), EPS, TINY)
    if found is None:
        return
    engine = min_norm_of_many(g, EPS)
    scale = g.diagonal().max()
    assert found.squared_norm == pytest.approx(engine.squared_norm, rel=1e-9, abs=1e-13 * scale)
    assert found.status == engine.status or engine.squared_norm < 1e-12 * scale
    assert found.gap <= 1e-8
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("m", [3, FEW])
@pytest.mark.parametrize("kind", REGULAR)
def test_few_regular_gradients_have_the_weights_that_many_have(kind: str, m: int) -> None:
    g = read(gram(jacobian(kind, m)))[0]
    found = min_norm_of_few(g.tolist(), EPS, TINY)
    assert found is not None
    engine = min_norm_of_many(g, EPS)
    np.testing.assert_allclose(found.weights, engine.weights, rtol=1e-9, atol=1e-12)
    assert (found.iterations, found.status) == (engine.iterations, engine.status)
    wrong = np.eye(m)[0]  # the certificate is not one of any weights
    assert _certified(g.tolist(), np.sqrt(g.diagonal()).tolist(), wrong.tolist(), 0, EPS).gap == (
        pytest.approx(simplex_gap(g @ wrong, wrong, g, wrong, EPS), rel=1e-9)
    )


@pytest.mark.parametrize(
    ("i", "j", "value"),
    [(0, 0, 0.0), (1, 1, -1.0), (2, 2, 1e-320), (0, 0, math.inf), (0, 1, math.nan), (1, 2, 0.3)],
    ids=["zero", "negative", "underflown", "infinite", "NaN", "skew"],
)
def test_what_is_no_plain_gramian_is_left_to_the_engine(i: int, j: int, value: float) -> None:
    g = torch.eye(3, dtype=torch.float64) + 0.5
    assert min_norm_of_few(g.tolist(), EPS, TINY) is not None
    g[i, j] = value
    assert min_norm_of_few(g.tolist(), EPS, TINY) is None


@pytest.mark.parametrize("squares", [(1.7e308, 1.7e308, 1.7e308), (1e-307, 1e290, 1e290)])
def test_norms_whose_squares_overflow_or_vanish_are_left_to_the_engine(squares) -> None:
    g = torch.tensor(squares, dtype=torch.float64).diag()
    assert min_norm_of_few(g.tolist(), EPS, TINY) is None


def test_a_product_larger_than_two_norms_allow_is_left_to_the_engine() -> None:
    g = matrix((1.0, 1.5, 0.0), (1.5, 1.0, 0.0), (0.0, 0.0, 1.0))
    assert min_norm_of_few(g.tolist(), EPS, TINY) is None
    with pytest.raises(ValueError, match=r"\[0, 1\] is larger than the two norms allow"):
        min_norm(g)


@solvers
@pytest.mark.parametrize("kind", REGULAR)
def test_order_does_not_matter(solver: Callable[[Tensor], Solution], kind: str) -> None:
    for m in (2, 3, 8):
        g = gram(jacobian(kind, m))
        order = torch.randperm(m, generator=torch.Generator().manual_seed(m))
        if solver is GRAM_SOLVERS["simplex_qp"]:
            continue  # its linear term is the first task's
        expected, found = solver(g).weights, solver(g[order][:, order]).weights
        if expected.ndim == 2:
            expected = expected[order]
        torch.testing.assert_close(found, expected[..., order], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", EVERY)
def test_min_norm_does_not_feel_a_power_of_two(kind: str) -> None:
    for m in (2, 3, 8):
        g = gram(jacobian(kind, m))
        for power in (-20, 3, 40):
            assert torch.equal(min_norm(g * 4.0**power).weights, min_norm(g).weights)
            assert torch.equal(min_norm(g * 4.0**power).gap, min_norm(g).gap)


@solvers
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_results_have_the_inputs_dtype(
    solver: Callable[[Tensor], Solution], dtype: torch.dtype
) -> None:
    g = (torch.eye(3) + 1).to(dtype).requires_grad_()
    solution = solver(g)
    assert solution.weights.dtype == dtype
    assert not solution.weights.requires_grad
    assert solution.squared_norm.dtype == solution.gap.dtype == torch.float64
    assert isinstance(solution.iterations, int)


@kinds
def test_float32_gramians_are_solved_to_their_precision(kind: str) -> None:
    for m in (2, 3, 8):
        g = gram(jacobian(kind, m, dtype=torch.float32))
        if not g.isfinite().all():
            continue
        assert min_norm(g).solved
        assert project_cone(g, torch.eye(m)).solved
        assert cagrad_weights(g, 0.4).solved


@pytest.mark.parametrize("solver", [min_norm, frank_wolfe, nash_weights, GRAM_SOLVERS["cagrad"]])
@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        (torch.zeros(2, 3), ValueError, r"square.*\[2, 3\]"),
        (torch.zeros(3), ValueError, "square"),
        (torch.zeros(0, 0), ValueError, "m ≥ 1"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), ValueError, r"\[0, 1\] is not finite"),
        (torch.diag(torch.tensor([1.0, 1.0, math.inf])), ValueError, r"\[2, 2\] is not finite"),
        (torch.tensor([[2.0, 1.0], [0.5, 2.0]]), ValueError, r"symmetric.*\[0, 1\]"),
        (torch.tensor([[1.0, 0.0], [0.0, -1.0]]), ValueError, r"\[1, 1\] is negative"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), ValueError, r"\[0, 1\] is larger"),
        (torch.eye(2, dtype=torch.int64), TypeError, "floating point"),
    ],
)
def test_what_is_no_gramian_is_refused(
    solver: Callable[[Tensor], Solution], bad: Tensor, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        solver(bad)


def test_the_other_arguments_are_checked() -> None:
    g = torch.eye(3)
    with pytest.raises(ValueError, match=r"hessian must be square"):
        simplex_qp(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"gramian must be square"):
        project_cone(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"weights \[2\] does not fit gramian \[3, 3\]"):
        project_cone(g, torch.ones(2))
    with pytest.raises(ValueError, match=r"weights\[1\] is not finite"):
        project_cone(g, torch.tensor([0.0, math.inf, 0.0]))
    with pytest.raises(ValueError, match=r"linear must be \[3\]"):
        simplex_qp(g, torch.ones(2, 3))
    with pytest.raises(TypeError, match="floating point"):
        simplex_qp(g, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="alpha must be positive"):
        nash_weights(g, alpha=0.0)
    square = torch.eye(2)
    for wrong, told in (
        (lambda: cagrad_weights(square, "x"), "c must be a number, not str"),
        (lambda: nash_weights(square, None), "alpha must be a number"),
        (lambda: frank_wolfe(square, 2.5), "iterations must be an integer"),
        (lambda: frank_wolfe(square, tolerance=math.nan), "tolerance must be at least 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=told):
            wrong()
    with pytest.raises(ValueError, match="c must be at least 0"):
        cagrad_weights(g, c=-1.0)
    with pytest.raises(ValueError, match="iterations"):
        frank_wolfe(g, iterations=0)
    with pytest.raises(ValueError, match="finite"):
        project_simplex(torch.tensor([math.nan, 1.0]))
    with pytest.raises(TypeError, match="floating point"):
        project_simplex(torch.ones(3, dtype=torch.int64))
