"""CAGrad: the direction near the mean gradient that serves the worst-off task best.

With g_0 the mean gradient, CAGrad (Liu et al., "Conflict-Averse Gradient Descent for Multi-task
Learning", NeurIPS 2021, Algorithm 1) solves

    maximise min_i g_i·d   over ‖d − g_0‖ ≤ c‖g_0‖,

whose dual is  minimise g_0·g_w + c‖g_0‖‖g_w‖  over the simplex, with g_w = Σ w_i g_i, and then
d = g_0 + (c‖g_0‖/‖g_w‖) g_w. The product of norms is what keeps this from being a quadratic
program. But for every τ > 0 the point of the hull nearest to −τg_0,

    w(τ) = argmin ½‖g_w + τg_0‖²,

is the min-norm point of the shifted gradients g_i + τg_0, and where ‖g_w(τ)‖ = τ c‖g_0‖ the two
problems have the same optimality conditions (τ is the ratio of ‖g_w‖ to the radius). So the dual
has one dimension: a root in log τ, bracketed and found by Brent's method, each evaluation exact.

G is known up to its rounding, and near a Pareto-stationary point ‖g_w‖ is not: to divide by too
small a length would leave the ball by as much. So ‖g_0‖ is taken as small, and ‖g_w‖ as large, as
the rounding of G allows. The latter is the length of g_w when all gradients are lifted by √ρ‖g_i‖
in one new direction, that is for the Gramian G + ρ n nᵀ with n_i = ‖g_i‖, ρ = 4 eps.
"""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import torch
from torch import Tensor

from .cone import LIFT, project_one
from .simplex import simplex_minimiser
from .solution import (
    EPS,
    ROUNDING,
    SEVERITY,
    TINY,
    Array,
    Single,
    Solution,
    assemble,
    read,
    require_number,
    rounding_unit,
    simplex_gap,
    verdict,
)


def cagrad_weights(gramian: Tensor, c: float) -> Solution:
    """The weights a = 1/m + (c‖g_0‖/‖g_w‖) w of CAGrad's direction d = Jᵀa.

    `gramian [..., m, m]` gives a `[..., m]`; the dual's solution on the simplex is a − 1/m divided
    by its sum. c ≥ 0 is the radius in units of ‖g_0‖ (with c < 1, as in the paper, only stationary
    points of the mean loss are at rest; c = 0 is the mean gradient). `squared_norm` is ‖d‖².

    The gap is max_i (g_w·d − g_i·d − ρ)₊ / (‖g_i‖·√max(‖d‖², ε·max_j ‖g_j‖²)), with ε and ρ as for
    `min_norm` (g_w·d is the dual's value and min_i g_i·d the primal's); ρ = 0 where ‖g_w‖ drowns in
    the rounding of G, so that the status is "inaccurate" there.

    d stays in the ball whatever the rounding of G, and no a_i exceeds 1/m + c‖g_0‖ / (2√eps ‖g_i‖).
    (For c = 1 exactly, the projection that follows may leave it by its own rounding.)

    At a Pareto-stationary point the dual's solution may be g_w = 0, which leaves d open; then d is
    the projection of g_0 onto {d : g_i·d ≥ 0 for all i}, of all maximisers the nearest to g_0 (see
    `project_cone`), and the status is "stationary". Where ‖g_0‖ itself drowns in the rounding of G,
    d is g_0 if c < 1, and that projection if c ≥ 1, which promises to hurt no task.

    Other implementations: the authors' code calls SciPy's SLSQP with 1e-8 added to the norms and
    can rescale d by 1/(1 + c²) or 1/(1 + c), which is left to the caller here; TorchJD solves a
    cone program with cvxpy, does not rescale, and returns zero where ‖g_w‖ is below a threshold.

    Raises:
        TypeError: gramian is not a floating point tensor, or c no number.
        ValueError: gramian is not square, finite, symmetric or a Gramian; c is negative or
            not finite.

    >>> cagrad_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), c=0.5).weights
    tensor([0.7500, 0.7500])
    """
    require_number(c, "c")
    if not 0 <= c < float("inf"):
        raise ValueError(f"c must be at least 0 and finite, not {c}")
    stack = read(gramian)
    precision = torch.finfo(gramian.dtype).eps
    each = [_cagrad(g, c, precision) for g in stack]
    return assemble(each, gramian.shape[:-1], gramian)


def _cagrad(gramian: Array, c: float, precision: float) -> Single:
    m, rounding = len(gramian), ROUNDING * precision
    mean = np.full(m, 1 / m)
    squared = float(mean @ gramian @ mean)
    radius = c * sqrt(max(squared - rounding * rounding_unit(gramian, mean), 0.0))
    if radius == 0 and c < 1:
        return verdict(gramian, mean, 0.0, 0, precision)
    w, count = simplex_minimiser(gramian)
    found = None
    if radius > 0 and _resolved(gramian, w, rounding):
        w, count, found = _on_the_ball(gramian, mean, radius, precision, count)
        if _resolved(gramian, w, rounding):
            return found
    projection = project_one(gramian, mean, precision)
    # A projection is never farther from g_0 than zero is: with c ≥ 1 it is in the ball.
    if c >= 1 or _length(gramian, projection.weights - mean) <= radius:
        status = max("stationary", projection.status, key=SEVERITY.index)
        return projection._replace(status=status)
    return found or _on_the_ball(gramian, mean, radius, precision, count)[2]


def _on_the_ball(
    gramian: Array, mean: Array, radius: float, precision: float, count: int
) -> tuple[Array, int, Single]:
    """The solution d with ‖d − g_0‖ = radius, after the dual's w and the number of steps so far."""
    from scipy.optimize import brentq

    rounding, norms = ROUNDING * precision, np.sqrt(gramian.diagonal())
    lifted = gramian + rounding * np.outer(norms, norms)
    linear = lifted @ mean
    squared = max(float(mean @ linear), 0.0)
    w = mean

    def excess(log_tau: float) -> float:
        nonlocal w, count
        tau = exp(log_tau)
        shifted = lifted + tau * (linear[:, None] + linear) + tau**2 * squared
        np.fill_diagonal(shifted, np.maximum(shifted.diagonal(), 0.0))
        w, steps = simplex_minimiser(shifted)
        count += steps
        return log(max(_length(lifted, w), TINY) / (tau * radius))

    shortest, longest = sqrt(rounding) * float(norms[norms > 0].min()), float(norms.max())
    low, high = log(shortest / radius / 2), log(2 * longest / radius)
    # What rounding hides beyond an end of the bracket is as good as at the end.
    root = low if excess(low) <= 0 else brentq(excess, low, high, xtol=1e-15, rtol=4 * EPS)
    excess(root)
    weights = mean + w * (radius / max(_length(lifted, w), TINY))
    sure = precision if _resolved(gramian, w, rounding) else 0.0
    gap = simplex_gap(gramian @ weights, w, gramian, weights, sure)
    return w, count, verdict(gramian, weights, gap, count, precision)


def _resolved(gramian: Array, weights: Array, rounding: float) -> bool:
    """Whether ‖Jᵀw‖² is well above its rounding, and above what `active_set` calls exact."""
    squared = float(weights @ gramian @ weights)
    return squared > max(LIFT * rounding, 1024 * EPS) * rounding_unit(gramian, weights)


def _length(gramian: Array, weights: Array) -> float:
    return sqrt(max(float(weights @ gramian @ weights), 0.0))
