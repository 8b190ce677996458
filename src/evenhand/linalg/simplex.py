"""Problems on the simplex {w ≥ 0, Σ w_i = 1}: the min-norm point, and quadratic programs.

The min-norm point of the convex hull of the gradients (Désidéri, C. R. Acad. Sci. Paris I 350
(2012) 313-318: MGDA) is zero, which is Pareto-stationarity, or a direction v with g_i·v ≥ ‖v‖² for
every task. With ‖g_i‖ = n_i the problem

    minimise ½‖Σ w_i g_i‖² = ½wᵀGw

is solved in z_i = w_i n_i with the matrix C of the cosines, so norms that span many orders of
magnitude do no harm. On the simplex a constant may be added to the objective, and ½s(Σ w_i)² is
one: with it, A = C + s p pᵀ (p_i = 1/n_i, s = min n_i²) is definite whenever the gradients are
*affinely* independent, and zero inside their hull is no special case.
"""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import torch
from torch import Tensor

from .active_set import solve
from .few import FEW, min_norm_of_few
from .solution import (
    ROUNDING,
    TINY,
    Array,
    Single,
    Solution,
    assemble,
    judge,
    judge_all,
    read,
    read_vectors,
    require,
    require_number,
    simplex_gap,
    verdict,
)


def min_norm(gramian: Tensor) -> Solution:
    """The point of least norm in the convex hull of the gradients, exactly.

    w = argmin ‖Σ w_i g_i‖² over w ≥ 0, Σ w_i = 1, for any Gramian G = J Jᵀ `[..., m, m]`. Two tasks
    have a closed form; more are solved by an exact active-set method in float64
    (`evenhand.linalg.active_set`; `evenhand.linalg.few` for up to five). Leading dimensions are
    independent problems.

    The gap is max_i (v − (Gw)_i − ρ_i)₊ / (‖g_i‖·√max(v, ε·max_j ‖g_j‖²)), with v = wᵀGw: how far
    some g_i·d falls short of ‖d‖² for d = Σ w_i g_i, relative to the lengths of both. ε = 64 eps
    is where v drowns in the rounding of the Gramian, and ρ_i = 4 eps σ (σ + ‖g_i‖) with
    σ = Σ w_j ‖g_j‖ is the rounding of wᵀGw and of g_i·d: large gradients that cancel hide small
    ones. eps is that of the Gramian's dtype.

    Where several w reach the minimum: a zero gradient takes all the weight; identical gradients get
    identical weights; beyond that, which one comes out may depend on the order of the tasks.
    Multiplying G by a power of 4 changes no bit of w.

    Other implementations: the solver released by Sener & Koltun returns .999/.001 where the optimum
    is 1/0; Frank-Wolfe (`frank_wolfe`, the algorithm of their paper) is still some percent from the
    optimum after its 100 or 250 iterations when there are more than two tasks.

    Raises:
        TypeError: gramian is not a floating point tensor.
        ValueError: gramian is not square, finite, symmetric or a Gramian.

    >>> jacobian = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    >>> solution = min_norm(jacobian @ jacobian.T)
    >>> solution.weights, solution.weights @ jacobian
    (tensor([0.2500, 0.7500]), tensor([1.5000, 1.5000]))
    """
    if (plain := _plain(gramian)) is not None:
        return plain
    stack = read(gramian)
    precision = torch.finfo(gramian.dtype).eps
    if gramian.shape[-1] == 2 and len(stack) > 1:
        return _pairs(stack, precision, gramian)
    return assemble([_min_norm(g, precision) for g in stack], gramian.shape[:-1], gramian)


def min_norm_gap(gramian: Tensor, weights: Tensor) -> Tensor:
    """The gap of `min_norm` for given weights `[..., m]` on the simplex; `[...]`, float64, CPU.

    Raises:
        TypeError: an input is not a floating point tensor.
        ValueError: the Gramian is not one, or the shapes do not fit.
    """
    stack = read(gramian)
    vectors = read_vectors(weights, gramian, "weights")
    precision = torch.finfo(gramian.dtype).eps
    gaps = [
        simplex_gap(g @ w, w, g, w, precision)
        for g, block in zip(stack, vectors, strict=True)
        for w in block
    ]
    return torch.tensor(gaps, dtype=torch.float64).reshape(weights.shape[:-1])


def simplex_qp(hessian: Tensor, linear: Tensor) -> Solution:
    """The minimiser of ½wᵀHw + bᵀw over the simplex, exactly.

    H `[..., m, m]` is symmetric positive semi-definite and b `[..., m]` arbitrary; with b = 0 this
    is `min_norm`. A linear program (H = 0) is a special case. `squared_norm` is wᵀHw. The gap is
    max_i (Σ_j w_j s_j − s_i − ρ)₊ over n_i·√max(wᵀHw, ε·max_j n_j²) + b'_i + Σ_j w_j b'_j with
    s = Hw + b, n_i = √H_ii, b' = b − min b, and ε, ρ as for `min_norm`.

    Raises:
        TypeError: an input is not a floating point tensor.
        ValueError: hessian is not square, finite, symmetric or semi-definite; linear does not fit.

    >>> simplex_qp(torch.eye(3), torch.tensor([0.0, 0.0, 9.0])).weights
    tensor([0.5000, 0.5000, 0.0000])
    """
    stack = read(hessian, "hessian")
    vectors = read_vectors(linear, hessian, "linear")
    if linear.ndim != hessian.ndim - 1:
        raise ValueError(f"linear must be {list(hessian.shape[:-1])}, not {list(linear.shape)}")
    precision = torch.finfo(hessian.dtype).eps
    each = [_simplex_qp(h, b, precision) for h, (b,) in zip(stack, vectors, strict=True)]
    return assemble(each, linear.shape, linear)


def frank_wolfe(gramian: Tensor, iterations: int = 250, tolerance: float = 1e-5) -> Solution:
    """The min-norm point as Sener & Koltun approximate it, for those who reproduce.

    Algorithm 2 of "Multi-Task Learning as Multi-Objective Optimization" (NeurIPS 2018): from
    w = (1/m, …, 1/m), repeat: t = argmin_r (Gw)_r; γ = the best step from w to the vertex e_t, in
    closed form (Algorithm 1); w ← (1 − γ)w + γe_t; until γ ≤ `tolerance` or `iterations` are done.
    The paper leaves both numbers open; 250 and 1e-5 are those of the released code (which applies
    them to a projected gradient instead). The gap is that of `min_norm`, which is exact and faster.

    Raises:
        TypeError: gramian is not a floating point tensor; a parameter is no number.
        ValueError: gramian is not square, finite, symmetric or a Gramian; iterations < 1;
            tolerance < 0 or not finite.
    """
    require_number(iterations, "iterations", whole=True)
    require_number(tolerance, "tolerance")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")
    if not 0 <= tolerance < inf:
        raise ValueError(f"tolerance must be at least 0 and finite, not {tolerance}")
    stack = read(gramian)
    precision = torch.finfo(gramian.dtype).eps
    each = [_frank_wolfe(g, iterations, tolerance, precision) for g in stack]
    return assemble(each, gramian.shape[:-1], gramian)


def project_simplex(vectors: Tensor) -> Tensor:
    """The nearest point to each vector `[..., m]` on the simplex, in its dtype and on its device.

    max(x − θ, 0) with the θ that makes it sum to one, found by sorting (Held, Wolfe & Crowder,
    Mathematical Programming 6 (1974) 62-88; Duchi et al., ICML 2008).

    Raises:
        TypeError: vectors is not a floating point tensor.
        ValueError: it has no entries along its last dimension, or one that is not finite.

    >>> project_simplex(torch.tensor([2.0, 1.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    require(vectors, "vectors", "[..., m]", 1)
    x = vectors.detach().cpu().double()
    x = x - x.amax(-1, keepdim=True)
    ranked = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=torch.float64, device=x.device)
    theta = (ranked.cumsum(-1) - 1) / count
    last = (ranked > theta).sum(-1, keepdim=True) - 1
    return (x - theta.gather(-1, last)).clamp(min=0).to(vectors)


def _plain(gramian: Tensor) -> Solution | None:
    """The solution for one well-formed Gramian of few tasks, without the cost of `read`."""
    if not (isinstance(gramian, Tensor) and gramian.is_floating_point()):
        return None
    if gramian.ndim != 2 or not 2 <= len(gramian) == gramian.shape[1] <= FEW:
        return None
    entries, info = gramian.tolist(), torch.finfo(gramian.dtype)
    if len(entries) == 2:
        found = _plain_pair(entries, info)
    else:
        found = min_norm_of_few(entries, info.eps, info.tiny)
    if found is None:
        return None
    weights, squared, gap, count, status = found
    squares, gaps = torch.from_numpy(np.array(squared)), torch.from_numpy(np.array(gap))
    return Solution(torch.from_numpy(weights).to(gramian), squares, gaps, count, status)


def _plain_pair(entries: list[list[float]], info: torch.finfo) -> Single | None:
    """`_pair`, where the entries can be those of a Gramian of this dtype; else None."""
    (a, b), (c, d) = entries
    b, skew = (b + c) / 2, (b - c) / 2
    if not (info.tiny <= a < inf and info.tiny <= d < inf and b * b <= a * d):
        return None
    if not skew * skew <= info.eps * a * d:
        return None
    return _pair(a, b, d, info.eps)


def _pair(a: float, b: float, d: float, precision: float) -> Single:
    """The min-norm point of [[a, b], [b, d]], in Python's floats: Sener & Koltun's Algorithm 1."""
    p, q = max(d - b, 0.0), max(a - b, 0.0)
    x, y = (p / (p + q), q / (p + q)) if p + q > 0 else (0.5, 0.5)
    ga, gb = x * a + y * b, x * b + y * d
    squared = x * ga + y * gb
    na, nb = sqrt(a), sqrt(d)
    size = x * na + y * nb
    blur = ROUNDING * precision * size
    rounding = blur * size
    root = sqrt(max(squared, 64 * precision * max(a, d)))
    most = squared - rounding
    gap = 0.0
    if a:
        gap = max(gap, (most - ga - blur * na) / (na * root))
    if d:
        gap = max(gap, (most - gb - blur * nb) / (nb * root))
    status = "stationary" if squared <= rounding else judge(gap, precision)
    return Single(np.array((x, y)), max(squared, 0.0), gap, 0, status)


def _pairs(stack: Array, precision: float, like: Tensor) -> Solution:
    """`_pair` for every matrix of a stack `[N, 2, 2]` at once, operation by operation the same."""
    a, b, d = stack[:, 0, 0], stack[:, 0, 1], stack[:, 1, 1]
    p, q = np.maximum(d - b, 0.0), np.maximum(a - b, 0.0)
    total = p + q
    some = total > 0
    x = np.divide(p, total, out=np.full_like(a, 0.5), where=some)
    y = np.divide(q, total, out=np.full_like(a, 0.5), where=some)
    ga, gb = x * a + y * b, x * b + y * d
    squared = x * ga + y * gb
    na, nb = np.sqrt(a), np.sqrt(d)
    size = x * na + y * nb
    blur = ROUNDING * precision * size
    rounding = blur * size
    root = np.sqrt(np.maximum(squared, 64 * precision * np.maximum(a, d)))
    most = squared - rounding
    none = np.zeros_like(a)
    gap_a = np.divide(most - ga - blur * na, na * root, out=none.copy(), where=a > 0)
    gap_b = np.divide(most - gb - blur * nb, nb * root, out=none.copy(), where=d > 0)
    gap = np.maximum(np.maximum(gap_a, gap_b), 0.0)
    stationary = squared <= rounding
    lead = like.shape[:-2]
    return Solution(
        torch.from_numpy(np.stack((x, y), axis=-1)).reshape(*lead, 2).to(like),
        torch.from_numpy(np.maximum(squared, 0.0)).reshape(lead),
        torch.from_numpy(gap).reshape(lead),
        0,
        judge_all(gap, stationary, precision),
    )


def _min_norm(gramian: Array, precision: float) -> Single:
    if len(gramian) == 2:
        (a, b), (_, d) = gramian.tolist()
        return _pair(a, b, d, precision)
    if len(gramian) <= FEW:
        found = min_norm_of_few(gramian.tolist(), precision, TINY)
        if found is not None:
            return found
    return min_norm_of_many(gramian, precision)


def min_norm_of_many(gramian: Array, precision: float) -> Single:
    """The min-norm point of any number of gradients, by the engine."""
    weights, count = simplex_minimiser(gramian)
    gap = simplex_gap(gramian @ weights, weights, gramian, weights, precision)
    return verdict(gramian, weights, gap, count, precision)


def _simplex_qp(hessian: Array, linear: Array, precision: float) -> Single:
    linear = linear - linear.min()
    weights, count = simplex_minimiser(hessian, linear)
    gap = simplex_gap(hessian @ weights + linear, weights, hessian, weights, precision, linear)
    squared = max(float(weights @ hessian @ weights), 0.0)
    return Single(weights, squared, gap, count, judge(gap, precision))


def simplex_minimiser(hessian: Array, linear: Array | None = None) -> tuple[Array, int]:
    """The argmin of ½wᵀHw + bᵀw on the simplex, and the number of steps that the engine took."""
    norms = np.sqrt(hessian.diagonal())
    zero = norms == 0
    if linear is None and zero.any():
        return zero / zero.sum(), 0
    norms[zero] = norms.max() or 1.0
    least = norms.min()
    e = least / norms
    cosines = hessian / norms[:, None] / norms
    if linear is None:
        x, count = solve(cosines, np.zeros(len(norms)), e)
        return x * e / (x @ e), count
    # Where the solution puts weight, (Hw + b)_i = t. Only b − t matters, and it is best when small.
    t, steps = linear.min(), 0
    for _ in range(2):
        x, count = solve(cosines, (t - linear) / norms / least, e)
        weights = x * e / (x @ e)
        t, steps = weights @ (hessian @ weights + linear), steps + count
    return weights, steps


def _frank_wolfe(gramian: Array, iterations: int, tolerance: float, precision: float) -> Single:
    m = len(gramian)
    w = np.full(m, 1 / m)
    count, step = 0, inf
    while count < iterations and step > tolerance:
        count += 1
        gw = gramian @ w
        t = int(np.argmin(gw))
        vertex, mixed, here = gramian[t, t], gw[t], w @ gw
        if mixed >= vertex:
            step = 1.0
        elif mixed >= here:
            step = 0.0
        else:
            step = (here - mixed) / (here - 2 * mixed + vertex)
        w *= 1 - step
        w[t] += step
    gap = simplex_gap(gramian @ w, w, gramian, w, precision)
    return verdict(gramian, w, gap, count, precision)
