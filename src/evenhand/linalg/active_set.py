"""The engine: quadratic programs in nonnegative variables, exactly.

    minimise ½xᵀAx − qᵀx   over x ≥ 0   [and eᵀx = 1, e > 0]

with A symmetric, positive semi-definite up to rounding, of diagonal about 1. The optimality
conditions are a linear complementarity problem,

    x ≥ 0,   r = Ax − q [− μe] ≥ 0,   x_i r_i = 0,

so the solution is one linear system away once the *face* F = {i : x_i > 0} is known. Two ways to
find it, both finite:

**Block principal pivoting** (Júdice & Pires, Computers & Operations Research 21 (1994) 587-596;
Kim & Park, SIAM J. Sci. Comput. 33 (2011) 3261-3281): guess F, solve on it by Cholesky, let *every*
index that violates its condition change sides, and give up when their number has not fallen for the
fourth time in a row. (Moving on one index at a time from there, by Murty's rule, is finite as well,
but takes more steps than the other method.) A handful of factorisations whatever m is. It needs A
positive definite on each face it tries.

**Single principal pivoting**, for the rest: the primal active-set method of Dantzig, van de Panne
and Whinston. It starts where x > 0 on a face that another method proposes (SciPy's nonnegative
least squares, or the best one that block pivoting met), or at the best vertex, and lets one index
in at a time, the one with the most negative r_i, moving along the direction that keeps the gradient
on the face at zero; an index whose x_j reaches 0 on the way leaves. A face only ever holds indices
on which A is positive definite: where the curvature along the direction vanishes (a gradient
dependent on those of the face, or, by the rounding of G, even a negative curvature) the step goes
to the boundary and swaps an index. So singular A needs no regularisation, and each step lowers the
objective. Of minimisers of equal worth it finds one; among indices with identical rows (the same
gradient twice) it is spread evenly.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .solution import EPS, Array

Indices = npt.NDArray[np.intp]

PATIENCE = 3
"""How often in a row block pivoting may end with no fewer violations than before."""


def solve(a: Array, q: Array, e: Array) -> tuple[Array, int]:
    """The minimiser x `[m]` with eᵀx = 1, and the number of pivoting steps.

    Scale A to unit diagonal first. Without e, see `evenhand.linalg.many`.
    """
    x, face, blocks = _block_pivoting(a, q, e)
    if x is not None:
        return x, blocks
    if not q.any():
        face = _least_squares(a, e)
    x, singles = single_pivoting(a, q, e, face)
    return _share(a, q, e, x), blocks + singles


def _block_pivoting(a: Array, q: Array, e: Array) -> tuple[Array | None, Indices, int]:
    """The solution, or None where a face is empty or not definite, or no end is in sight.

    Also the face with the fewest violations on the way, and the number of steps.
    """
    m = len(q)
    inside = np.ones(m, dtype=bool)
    nearest, fewest, patience, count = np.zeros(0, dtype=np.intp), m + 1, PATIENCE, 0
    while patience >= 0:
        count += 1
        face = np.flatnonzero(inside)
        factor = _factor(a, face, e) if len(face) else None
        if factor is None:
            break
        x = np.zeros(m)
        x[face] = _on_face(factor, q[face], e[face])
        r, noise = _residual(a, q, e, x, face)
        bad = np.where(inside, x < 0, r < -noise)
        violations = int(np.count_nonzero(bad))
        if violations == 0:
            exact = bool((np.abs(r) <= 64 * noise)[face].all())
            return (x if exact else None), face, count
        patience -= 1
        if violations < fewest:
            nearest, fewest, patience = face, violations, PATIENCE
        inside ^= bad
    return None, nearest, count


def _least_squares(a: Array, e: Array) -> Indices:
    """The face of the solution for q = 0, as SciPy sees it; empty where it comes to no end.

    The minimiser of ‖Rx‖² + (eᵀx − 1)² over x ≥ 0, where RᵀR = A, is a multiple of the solution.
    """
    from scipy.optimize import nnls

    try:
        root, _ = square_root(a)
        x, _ = nnls(np.vstack((root, e)), np.append(np.zeros(len(root)), 1.0))
    except RuntimeError:
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(x > 0)


def single_pivoting(a: Array, q: Array, e: Array | None, face: Indices) -> tuple[Array, int]:
    """The solution, from a face near which it may be, and the number of indices that entered.

    An index that has entered is barred until the objective falls, so that what happens below the
    rounding of the objective cannot go round in circles.
    """
    m = len(q)
    walk = _Walk(a, q, e, face)
    barred = np.zeros(m, dtype=bool)
    lowest, entries = np.inf, 0
    while entries < 20 * m + 100:
        r, noise = _residual(a, q, e, walk.x, walk.face)
        value = float(walk.x @ (a @ walk.x) / 2 - q @ walk.x)
        if value < lowest:
            lowest = value
            barred[:] = False
        r[walk.face] = r[barred] = 0.0
        r[r >= -noise] = 0.0
        i = int(np.argmin(r))
        if r[i] == 0:
            break
        barred[i] = True
        walk.enter(i, float(r[i]))
        entries += 1
    return walk.x, entries


class _Walk:
    """A feasible x, stationary on its face, and the Cholesky factor of A there."""

    def __init__(self, a: Array, q: Array, e: Array | None, face: Indices) -> None:
        self.a, self.q, self.e = a, q, e
        self.x = np.zeros(len(q))
        self.face, self.factor = np.zeros(0, dtype=np.intp), np.zeros((0, 0))
        while len(face) and (factor := _factor(a, face, e)) is not None:
            y = _on_face(factor, q[face], None if e is None else e[face])
            if y.min() >= 0:
                self.face, self.factor, self.x[face] = face, factor, y
                return
            face = face[y > 0]
        if e is not None:
            self._only(int(np.argmin(a.diagonal() / (2 * e**2) - q / e)), e)

    def enter(self, i: int, slope: float) -> None:
        """Let i in, whose gradient is `slope` < 0: the objective falls until the gradient is 0."""
        start = self.x.copy(), self.face, self.factor
        while True:
            if self.e is not None and len(self.face) == 0:
                return self._only(i, self.e)
            direction, half, pivot, curvature = self._direction(i)
            ratios = np.full(len(self.face), np.inf)
            falls = direction < 0
            ratios[falls] = -self.x[self.face[falls]] / direction[falls]
            bound = float(ratios.min(initial=np.inf))
            step = -slope / curvature if curvature > 0 else np.inf
            definite = pivot > 4 * (len(self.face) + 1) * EPS
            if definite and step <= bound and self._join(i, half, pivot, direction, step):
                return None
            left = None
            if bound < np.inf:
                self._move(i, direction, bound)
                slope = min(slope + bound * curvature, 0.0)
                leaving = int(np.argmin(ratios))
                self.x[self.face[leaving]] = 0.0
                self.face = np.delete(self.face, leaving)
                left = _factor(self.a, self.face, self.e, threshold=0.0)
            if left is None:  # nothing stops i, or its face is singular: the slope was rounding
                self.x, self.face, self.factor = start
                return None
            self.factor = left

    def _direction(self, i: int) -> tuple[Array, Array, float, float]:
        """How x moves on the face as x_i grows by 1, and the curvature of the objective there.

        A_FF d = −A_Fi [+ νe_F with e_Fᵀd = −e_i]. Also the column that i adds to the Cholesky
        factor, and its pivot.
        """
        a, e, face, factor = self.a, self.e, self.face, self.factor
        if len(face) == 0:
            return np.zeros(0), np.zeros(0), float(a[i, i]), float(a[i, i])
        column, diagonal = a[face, i], a[i, i]
        if e is not None:
            g, s = e[face], _shift(e, face)
            column, diagonal = column + s * e[i] * g, diagonal + s * e[i] ** 2
        half = lapack().dtrtrs(factor, column, trans=1)[0]
        pivot = float(diagonal - half @ half)
        d = -lapack().dtrtrs(factor, half)[0]
        if e is None:
            return d, half, pivot, pivot
        y = lapack().dpotrs(factor, g)[0]
        t = (g @ d + e[i]) / (g @ y)
        return d - t * y, half, pivot, pivot + float(t**2 * (g @ y))

    def _move(self, i: int, direction: Array, step: float) -> None:
        self.x[self.face] = np.maximum(self.x[self.face] + step * direction, 0.0)
        self.x[i] += step

    def _join(self, i: int, half: Array, pivot: float, direction: Array, step: float) -> bool:
        """Take the step, add i to the face, and settle x there exactly if rounding allows."""
        k = len(self.face)
        face = np.append(self.face, i)
        if self.e is None or self.e[i] <= self.e[self.face].max():
            factor = np.zeros((k + 1, k + 1), order="F")
            factor[:k, :k], factor[:k, k], factor[k, k] = self.factor, half, np.sqrt(pivot)
        elif (again := _factor(self.a, face, self.e)) is not None:
            factor = again
        else:
            return False
        self._move(i, direction, step)
        self.face, self.factor = face, factor
        y = _on_face(factor, self.q[face], None if self.e is None else self.e[face])
        if y.min() >= 0:
            self.x[face] = y
        return True

    def _only(self, i: int, e: Array) -> None:
        self.x[:] = 0.0
        self.x[i] = 1 / e[i]
        self.face, self.factor = np.array([i]), np.sqrt(self.a[i : i + 1, i : i + 1] + 1)


def square_root(a: Array, precision: float = EPS) -> tuple[Array, bool]:
    """An R with RᵀR = A, and whether A is definite for certain.

    If so R is the Cholesky factor [m, m], otherwise [r, m], and eigenvalues count as zero below the
    rounding of A, whose entries are known up to a few times `precision`.
    """
    factor: Array
    rounding = 8 * precision * len(a) ** 0.5  # of the eigenvalues
    factor, info = lapack().dpotrf(a.T)
    if info == 0 and factor.diagonal().min() ** 2 > rounding:
        return factor, True
    values, vectors = np.linalg.eigh(a)
    some = values > rounding
    return np.asarray((np.sqrt(values[some]) * vectors[:, some]).T), False


def cholesky_solve(a: Array, b: Array) -> Array | None:
    """A⁻¹b, None if A is not positive definite."""
    _, x, info = lapack().dposv(a.T, b)
    return x if info == 0 else None


def _shift(e: Array, face: Indices) -> float:
    """The s of A + s eeᵀ on a face: as large as leaves its diagonal about 1.

    Where eᵀx = 1, adding ½s(eᵀx)² to the objective changes nothing but the conditioning.
    """
    return 1 / float(e[face].max()) ** 2


def _factor(a: Array, face: Indices, e: Array | None, threshold: float = 4 * EPS) -> Array | None:
    """The upper Cholesky factor of A [+ s eeᵀ] on the face; None if not safely definite."""
    if len(face) == 0:
        return np.zeros((0, 0))
    block = a[face][:, face]
    if e is not None:
        g = e[face] / e[face].max()
        block += g[:, None] * g
    factor: Array
    factor, info = lapack().dpotrf(block.T, overwrite_a=True)
    if info != 0 or factor.diagonal().min() ** 2 < threshold * len(face):
        return None
    return factor


def _on_face(factor: Array, q: Array, e: Array | None) -> Array:
    """The stationary point: A_FF y = q [+ μe, with eᵀy = 1]."""
    if len(q) == 0:
        return q
    y: Array = lapack().dpotrs(factor, q)[0]
    if e is None:
        return y
    z: Array = lapack().dpotrs(factor, e)[0]
    return y + float((1 - e @ y) / (e @ z)) * z


def _residual(a: Array, q: Array, e: Array | None, x: Array, face: Indices) -> tuple[Array, Array]:
    """The r = Ax − q [− μe, with μ such that r is zero on the face], and its rounding errors."""
    r = a @ x - q
    size = 1 + np.abs(x).sum() + np.abs(q)
    if e is not None:
        mu = e[face] @ r[face] / (e[face] @ e[face])
        r -= mu * e
        size += abs(mu) * e
    return r, 4 * EPS * size


def _share(a: Array, q: Array, e: Array, x: Array) -> Array:
    """Spread x evenly over indices that the problem cannot tell apart."""
    rows = np.column_stack((a, q, e))
    _, group = np.unique(rows, axis=0, return_inverse=True)
    group = group.reshape(-1)
    return np.asarray((np.bincount(group, x) / np.bincount(group))[group])


@cache
def lapack() -> Any:
    """scipy.linalg.lapack, imported on first use: it costs a tenth of torch's own import."""
    from scipy.linalg import lapack as routines

    return routines
