"""The min-norm point of a few gradients, in Python's floats.

It is what `simplex.simplex_minimiser` and `active_set` find by block principal pivoting, written
out for matrices so small that each call of NumPy or LAPACK costs more than the sum it does. What is
out of the ordinary (an entry that cannot be, a zero or an underflown norm, norms whose squares span
too much, a singular face) is left to them: they say what is wrong, or take more care.
"""

from __future__ import annotations

from math import sqrt
from operator import mul

import numpy as np

from .solution import EPS, ROUNDING, Single, judge

FEW = 5
"""Up to so many tasks Python's floats are the faster."""
PIVOTS = 8
"""Block pivoting that has not ended after so many faces is left to the general solver."""
LARGEST, SPAN = 1e300, 1e200
"""Squared norms below the first, and within the second of each other: no sum or square of what is
made of them overflows, and no divisor becomes 0."""

Vector = list[float]
Matrix = list[Vector]


def min_norm_of_few(gramian: Matrix, precision: float, tiny: float) -> Single | None:
    """`simplex.min_norm` of one Gramian [m, m]; None where it is not plain enough for this.

    Args:
        gramian: its rows.
        precision: the machine epsilon of the dtype in which it came.
        tiny: that dtype's least normal number.
    """
    norms = _norms(gramian, tiny)
    symmetric = None if norms is None else _symmetric(gramian, norms, precision**0.5)
    if norms is None or symmetric is None:
        return None
    least = min(norms)
    e = [least / n for n in norms]
    cosines = [
        [g / n / k for g, k in zip(row, norms, strict=True)]
        for row, n in zip(symmetric, norms, strict=True)
    ]
    x, count = _pivoted(cosines, e)
    if x is None:
        return None
    total = _dot(x, e)
    weights = [y * f / total for y, f in zip(x, e, strict=True)]
    return _certified(symmetric, norms, weights, count, precision)


def _norms(gramian: Matrix, tiny: float) -> Vector | None:
    """‖g_i‖; None where a square is negative or NaN, or too small or too large to work with."""
    squares = [row[i] for i, row in enumerate(gramian)]
    if not all(tiny <= s < LARGEST for s in squares) or max(squares) > SPAN * min(squares):
        return None
    return [sqrt(s) for s in squares]


def _symmetric(gramian: Matrix, norms: Vector, slack: float) -> Matrix | None:
    """(G + Gᵀ) / 2; None where |G_ij| > ‖g_i‖‖g_j‖ or G_ij ≠ G_ji beyond the dtype's rounding."""
    made = [list(row) for row in gramian]
    for i, row in enumerate(gramian):
        for j in range(i):
            bound = norms[i] * norms[j]
            one, other = row[j], gramian[j][i]
            mean = (one + other) / 2
            if not (abs(mean) <= (1 + slack) * bound):  # NaN neither
                return None
            if not (abs(one - other) / 2 <= slack * bound):
                return None
            made[i][j] = made[j][i] = mean
    return made


def _pivoted(a: Matrix, e: Vector) -> tuple[Vector | None, int]:
    """The minimiser of ½xᵀAx over x ≥ 0, eᵀx = 1, and how many faces were tried.

    None where a face is empty or singular, the solution is not exact, or no end is in sight.
    """
    m = len(e)
    inside = [True] * m
    for count in range(1, PIVOTS + 1):
        face = [i for i in range(m) if inside[i]]
        y = _on_face(a, e, face)
        if y is None:
            break
        x = [0.0] * m
        for i, value in zip(face, y, strict=True):
            x[i] = value
        r = [_dot(row, x) for row in a]
        mu = sum([e[i] * r[i] for i in face]) / sum([e[i] * e[i] for i in face])
        size, near = 1 + sum(map(abs, x)), abs(mu)
        noise = [4 * EPS * (size + near * f) for f in e]
        r = [s - mu * f for s, f in zip(r, e, strict=True)]
        bad = [x[i] < 0 if inside[i] else r[i] < -noise[i] for i in range(m)]
        if True not in bad:
            exact = all(abs(r[i]) <= 64 * noise[i] for i in face)
            return (x if exact else None), count
        inside = [here != wrong for here, wrong in zip(inside, bad, strict=True)]
    return None, PIVOTS


def _on_face(a: Matrix, e: Vector, face: list[int]) -> Vector | None:
    """The stationary point where only x_i with i in the face are not zero: A x = μe, eᵀx = 1.

    By Cholesky's decomposition LLᵀ = A + s eeᵀ, which changes μ alone; None where it is not
    safely definite, or the face is empty.
    """
    if not face:
        return None
    top = max([e[i] for i in face])
    g = [e[i] / top for i in face]
    lower: Matrix = []
    for k, i in enumerate(face):
        row: Vector = []
        for n, j in enumerate(face[: k + 1]):
            rest = a[i][j] + g[k] * g[n] - _dot(row, lower[n] if n < k else row)
            if n < k:
                row.append(rest / lower[n][n])
            elif rest < 4 * EPS * len(face):
                return None
            else:
                row.append(sqrt(rest))
        lower.append(row)
    z: Vector = []
    for k, row in enumerate(lower):  # Lz = e
        z.append((e[face[k]] - _dot(row, z)) / row[k])
    for k in reversed(range(len(face))):  # Lᵀz = that
        z[k] = (z[k] - sum([lower[n][k] * z[n] for n in range(k + 1, len(face))])) / lower[k][k]
    along = sum([e[i] * y for i, y in zip(face, z, strict=True)])
    return [y / along for y in z]


def _certified(
    gramian: Matrix, norms: Vector, weights: Vector, count: int, precision: float
) -> Single:
    """The solution with its gap and its status: `solution.simplex_gap` and `solution.verdict`."""
    products = [_dot(row, weights) for row in gramian]
    squared = max(_dot(weights, products), 0.0)
    size = _dot(weights, norms)
    blur = ROUNDING * precision * size
    length = sqrt(max(squared, 64 * precision * max(norms) ** 2))
    most = squared - blur * size
    gap = max(
        max(most - s - blur * n, 0.0) / (n * length) for s, n in zip(products, norms, strict=True)
    )
    status = "stationary" if squared <= blur * size else judge(gap, precision)
    return Single(np.array(weights), squared, gap, count, status)


def _dot(one: Vector, other: Vector) -> float:
    """Σ a_i b_i, up to where the shorter ends."""
    return sum(map(mul, one, other), 0.0)
