"""The bargaining solution: weights with which every task gains its fair share.

Nash's solution maximises Σ log(g_i·d) over directions d of bounded length; its optimality condition
is G w = 1/w with d = Jᵀw (Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022,
Claim 3.1). With fairness α the utilities are (g_i·d)^(1−α)/(1−α) and the condition is
G w = w^(−1/α) (Ban & Ji, "Fair Resource Allocation in Multi-Task Learning", ICML 2024, eq. 4).
Either is the stationary point of a strictly convex function,

    minimise ½wᵀGw − Σ h(w_i) over w > 0,   h'(w) = w^(−p),   p = 1/α,

so Newton's method finds it to machine precision; for p = 1 the function is self-concordant.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .active_set import cholesky_solve
from .simplex import simplex_minimiser
from .solution import (
    EPS,
    ROUNDING,
    TINY,
    TOLERANCE,
    Array,
    Single,
    Solution,
    assemble,
    judge,
    read,
    require_number,
)

SUSPECT = 1e-2
"""The relative error of some g_i·d from which on one should ask whether there is a solution."""
DOUBT = 0.05
"""The part of ‖d‖ that the rounding of G may move, from which on the solution is not called one."""


def nash_weights(gramian: Tensor, alpha: float = 1.0) -> Solution:
    """The w > 0 with G w = 1/w (Nash-MTL); with G w = w^(−1/α) for other α > 0 (FairGrad).

    The gap is max_i (|(Gw)_i w_i^(1/α) − 1| − ρ_i)₊, where ρ_i = 4 eps w_i^(1/α) Σ_j |G_ij| w_j is
    the rounding of its first term: 0 says that w is the solution for a Gramian whose entries differ
    from G's by no more than 4 eps |G_ij|. Where gradients of very different lengths conflict and α
    is small, g_i·d = w_i^(−1/α) can be far below the rounding of (Gw)_i; w is as accurate
    as elsewhere then, though that g_i·d cannot be read off it. Where 4 eps ‖g_i‖‖g_j‖ of G_ij, eps
    that of G's dtype, could move d by more than 5 % of its length (close to a Pareto-stationary
    point), that share is the gap, and the status "inaccurate". `squared_norm` is wᵀGw, which is m
    for α = 1, whatever the scale of the gradients. For α = 1 multiplying g_i by s > 0 divides w_i
    by s, and the direction does not change; for other α it does.

    A zero gradient has nothing to bargain for: its weight is 0 and the others settle without it.
    If zero lies in the convex hull of the gradients (a Pareto-stationary point), no w satisfies the
    equation. Then the status is "unbounded" and the weights are those of the min-norm point, whose
    direction is zero: there is nothing to gain. What decides is the geometry: the point of least
    norm in the hull of the gradients scaled to unit length is zero as far as G's precision can tell
    (asked where 4 eps Σ_j |G_ij| w_j, eps that of G's dtype, exceeds 0.01 w_i^(−1/α) for some i).

    Other implementations: the authors' code linearises a concave part and calls a conic solver, up
    to 20 times. Where that fails it keeps the previous step's weights, at first equal ones, without
    a word; so does TorchJD. FairGrad's code calls a least-squares solver.

    Raises:
        TypeError: gramian is not a floating point tensor, or alpha no number.
        ValueError: gramian is not square, finite, symmetric or a Gramian; alpha is not positive.

    >>> nash_weights(torch.tensor([[4.0, 0.0], [0.0, 25.0]])).weights
    tensor([0.5000, 0.2000])
    """
    require_number(alpha, "alpha")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, not {alpha}")
    stack = read(gramian)
    precision = torch.finfo(gramian.dtype).eps
    each = [_bargain(g, 1 / alpha, precision) for g in stack]
    return assemble(each, gramian.shape[:-1], gramian)


def _bargain(gramian: Array, p: float, precision: float) -> Single:
    some = gramian.diagonal() > 0
    inner = gramian[some][:, some]
    weights = np.zeros(len(gramian))
    count, suspect = 0, True
    if some.any():
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # 1e3^(−1/0.01)
            w, gap, count = _newton(inner, p)
            blur = ROUNDING * precision * float((w**p * (np.abs(inner) @ w)).max())
        weights[some] = w
        suspect = not blur <= SUSPECT or gap > TOLERANCE
    if suspect and _nothing_to_gain(inner, precision):
        weights, more = simplex_minimiser(gramian)
        squared = max(float(weights @ gramian @ weights), 0.0)
        return Single(weights, squared, np.inf, count + more, "unbounded")
    if suspect and (doubt := _sensitivity(inner, w, p, ROUNDING * precision)) > DOUBT:
        gap = max(gap, doubt)
    squared = max(float(weights @ gramian @ weights), 0.0)
    return Single(weights, squared, gap, count, judge(gap, precision))


def _nothing_to_gain(gramian: Array, precision: float) -> bool:
    """Whether zero is in the hull of the gradients: of the unit gradients, so scales play no part.

    ‖Σ v_i g_i/‖g_i‖‖² is known up to `precision` times (Σ v_i)² = 1.
    """
    if len(gramian) == 0:
        return True
    n = np.sqrt(gramian.diagonal())
    cosines = gramian / n[:, None] / n
    v, _ = simplex_minimiser(cosines)
    return float(v @ cosines @ v) <= ROUNDING * precision


def _sensitivity(gramian: Array, w: Array, p: float, rounding: float) -> float:
    """By how much of its length Jᵀw may move when each G_ij does by `rounding` ‖g_i‖‖g_j‖.

    To first order δ_i = Δw_i/w_i solves Hδ = −W ΔG w with W = diag(w), H = WGW + p diag(w^(1−p)),
    and ‖JᵀΔw‖ = ‖M^½ δ‖ with M = WGW. Roundings are taken as independent of each other, so their
    effects are added as squares.
    """
    terms = w * np.sqrt(gramian.diagonal())
    inner = gramian * w * w[:, None]
    with np.errstate(over="ignore", divide="ignore"):
        hessian = inner + np.diag(p * w ** (1 - p))
    length = float(inner.sum())
    inverse = _solve(hessian, np.eye(len(w))) if np.isfinite(hessian).all() else None
    if inverse is None or length <= 0:
        return np.inf
    moves = np.sqrt(np.maximum(((inverse @ inner) * inverse).sum(1), 0.0))
    return float(rounding * np.linalg.norm(terms * moves) * np.linalg.norm(terms) / length**0.5)


def _newton(gramian: Array, p: float) -> tuple[Array, float, int]:
    """The solution, its gap and the number of steps: Newton's method in x, w_i = s_i x_i.

    With X = diag(x), K = SGS, κ = diag(K) = s^(1−p) and x ← x(1 + tδ), δ solves
    (XKX + p κ x^(1−p)) δ = κ x^(1−p) − x∘Kx. For p = 1, K is the matrix of the cosines and κ = 1.
    """
    s = gramian.diagonal() ** (-1 / (1 + p))
    k = gramian * s * s[:, None]
    kappa, total = k.diagonal(), k.sum()
    x = np.full(len(s), (kappa.sum() / total) ** (1 / (1 + p)) if total > 0 else 1.0)
    best, least, gap, count = x, np.inf, np.inf, 0
    while count < 200:
        count += 1
        pull, push = kappa * x ** (1 - p), x * (k @ x)
        error = np.abs(push / pull - 1)
        excess = float((error - 4 * EPS * x * (np.abs(k) @ x) / pull).max())
        worst = float(error.max())
        ended = excess <= 64 * EPS and worst > least / 2
        if max(excess, 0.0) < gap or (max(excess, 0.0) == gap and worst < least):
            best, least, gap = x, worst, max(excess, 0.0)
        hessian = k * x * x[:, None]
        hessian[np.diag_indices_from(hessian)] += p * pull
        step = _solve(hessian, pull - push)
        if step is None or ended or worst == 0:
            break
        # A whole step, but never more than nine tenths of the way to x_i = 0.
        x = x * (1 + min(1.0, 0.9 / max(float(-step.min()), TINY)) * step)
    return s * best, gap, count


def _solve(hessian: Array, b: Array) -> Array | None:
    """H⁻¹b; of a little more than H where G is singular and hides the barrier's curvature."""
    diagonal = np.diag(hessian.diagonal())
    for more in (0.0, 1e-14, 1e-12, 1e-10):
        step = cholesky_solve(hessian + more * diagonal if more else hessian, b)
        if step is not None and np.isfinite(step).all():
            return step
    return None
