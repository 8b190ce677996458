"""Many points projected onto one cone: quadratic programs that share their matrix, together.

    minimise ½(x − z)ᵀA(x − z)   over x ≥ 0,   for every row z of Z

with A symmetric, positive semi-definite up to rounding, of unit diagonal; with q = Az it is the
problem of `active_set`. Few indices, and whatever the rest leaves, go row by row to SciPy's
nonnegative least squares (Lawson and Hanson's active set, compiled). Many go through block
principal pivoting as in `active_set`, all rows in step: their residuals, violations and changes of
side are one matrix product and a few comparisons. What remains for each row and round is one small
factorisation. Three things keep these few and small:

- A row with q ≤ 0 is solved by x = 0.
- With P = A⁻¹, computed once, a face F is as well solved from outside: x = z + Ps, where s lives on
  the complement N and P_NN s_N = −z_N. That costs |N|³ where the other way costs |F|³, and nothing
  if N is one index.
- The first guess is N = {i : z_i < 0} if that is one index and leaves few violations, otherwise
  F = {i : q_i > 0}. Where gradients conflict so much that their cone is narrow the former is the
  solution itself; where they are nearly orthogonal the latter almost is.

Where A is singular many faces are, and pivots go round in circles. If Aw = 0 for some w ≥ 0, zero
lies in the hull of the gradients, and no direction improves those with w_i > 0 together. These
indices S need no signs, since adding enough of w makes x_S ≥ 0 for nothing: they are eliminated,
and what is left is the same problem, smaller, for the others. Identical rows of A are solved as one
index, whose x they share evenly.

Each x is accepted only if its conditions hold up to the rounding of Ax. A row of which that cannot
be said ends with single pivoting, from the face that it came to.
"""

from __future__ import annotations

from contextlib import suppress
from warnings import catch_warnings, simplefilter

import numpy as np
import numpy.typing as npt

from .active_set import PATIENCE, cholesky_solve, lapack, single_pivoting, square_root
from .solution import EPS, TOLERANCE, Array

Mask = npt.NDArray[np.bool_]
Count = npt.NDArray[np.intp]

SMALL = 16
"""Up to so many indices least squares row by row are faster than pivots in step."""


def nearest(a: Array, z: Array, precision: float = EPS, lift: float = 0.0) -> tuple[Array, Count]:
    """The minimisers `[k, m]` for the rows of `z [k, m]`, and the pivoting steps of each.

    A is known up to 4 `precision`: rows that differ by less are one, and q counts as zero below
    that. `lift` is added to every entry of A, beyond the rounding.
    """
    if (twins := _twins(a, max(32 * EPS, 4 * precision))) is not None:
        first = np.flatnonzero(twins == np.arange(len(a)))
        kinds = (twins[:, None] == first).astype(float)
        x, counts = nearest(a[first][:, first], z @ kinds, precision, lift)
        return x / kinds.sum(0) @ kinds.T, counts
    x, counts = np.zeros_like(z), np.zeros(len(z), dtype=np.intp)
    q = z @ a
    rows = (q > 4 * precision * np.abs(z).sum(1, keepdims=True)).any(1)
    if not rows.any():
        return x, counts
    if not lift and len(a) == 2 and abs(c := float(a[0, 1])) < 0.999:
        return _of_two(c, z, q), counts + rows
    root, definite = square_root(a, precision)
    if not definite:
        a = root.T @ root
    if lift:
        a, root = a + lift, np.vstack((root, np.full(len(a), lift**0.5)))
    x[rows], counts[rows] = _pivoted(a, root, definite, z[rows])
    return x, counts


def _twins(a: Array, apart: float) -> Count | None:
    """For each row the first that is the same but for rounding; None if all differ."""
    alike = a > 1 - 2 * apart
    if np.count_nonzero(alike) <= len(a):
        return None
    i, j = np.nonzero(alike)
    alike[i, j] = np.abs(a[i] - a[j]).max(1) <= apart
    return alike.argmax(1) if np.count_nonzero(alike) > len(a) else None


def _pivoted(a: Array, root: Array, definite: bool, z: Array) -> tuple[Array, Count]:
    q = z @ a
    x, counts = _in_step(a, root, definite, z, q)
    if x is None:
        x = _least_squares(root, z)
    elif (wrong := ~_right(a, z, q, x)).any():
        x[wrong] = _least_squares(root, z[wrong])
    else:
        return x, counts
    for i in np.flatnonzero(~_right(a, z, q, x)):
        x[i], singles = single_pivoting(a, q[i], None, np.flatnonzero(x[i] > 0))
        counts[i] += singles
    return x, counts


def _in_step(
    a: Array, root: Array, definite: bool, z: Array, q: Array
) -> tuple[Array | None, Count]:
    """What the fast ways find, if there is one."""
    steps = np.ones(len(z), dtype=np.intp)
    if len(a) == 2:
        return _of_two(float(a[0, 1]), z, q), steps
    if len(a) <= SMALL:
        return None, steps
    if len(z) == 1:
        return _block_pivoting(a, None, z, q, q > 0)
    if definite:
        p = _inverse(a)
        return _block_pivoting(a, p, z, q, _first_faces(p, z, q))
    return _eliminated(a, root, z), steps


def _right(a: Array, z: Array, q: Array, x: Array) -> Mask:
    """Which rows meet their conditions. A solution that is not a number meets none.

    Up to the rounding of Ax, and xᵀr = 0 up to what counts beside ‖z‖² or the rounding of ‖x − z‖²
    (in the norm of A): where indices are nearly the same x can be so large that the one does not
    imply the other.
    """
    noise, r = _noise(z, x), x @ a - q
    met = np.where(x > 0, np.abs(r) <= 64 * noise, (x == 0) & (r >= -noise)).all(axis=1)
    size = np.maximum((z * q).sum(1), 64 * EPS * np.abs(x - z).sum(1) ** 2)
    return np.asarray(met & (np.abs((x * r).sum(1)) <= 0.1 * TOLERANCE * size))


def _least_squares(root: Array, z: Array) -> Array:
    """The solutions as those of minimise ‖R(x − z)‖, where RᵀR = A; zero where there is no end."""
    from scipy.linalg import LinAlgWarning
    from scipy.optimize import nnls

    x = np.zeros_like(z)
    with catch_warnings():
        # SciPy before 1.13 warns of what it solves on the way; the certificate judges the outcome.
        simplefilter("ignore", LinAlgWarning)
        for row, target in zip(x, z @ root.T, strict=True):
            with suppress(RuntimeError):
                row[:], _ = nnls(root, target)
    return x


def _noise(z: Array, x: Array) -> Array:
    """The rounding of Ax − Az, `[k, 1]`."""
    return np.asarray((np.abs(z) + np.abs(x)) @ np.full((z.shape[1], 1), 4 * EPS))


def _of_two(c: float, z: Array, q: Array) -> Array:
    """The solutions of two variables, with A = [[1, c], [c, 1]]."""
    x = q - c * q[:, ::-1]
    x[x <= 4 * EPS * np.abs(z).sum(1, keepdims=True)] = 0.0
    alone = np.maximum(q, 0.0) * (x[:, ::-1] == 0)
    return np.where(x.all(axis=1, keepdims=True), x / max(1 - c * c, EPS), alone)


def _block_pivoting(
    a: Array, p: Array | None, z: Array, q: Array, inside: Mask
) -> tuple[Array, Count]:
    """What comes out, and the steps."""
    k, m = z.shape
    x, counts = np.empty_like(z), np.empty(k, dtype=np.intp)
    fewest, patience = np.full(k, m + 1), np.full(k, PATIENCE)
    rows, count = np.arange(k), 0
    while len(rows):
        count += 1
        y = _on_faces(a, p, z, q, inside)
        bad = np.where(inside, y < 0, y @ a - q < -_noise(z, y))
        x[rows], counts[rows] = y, count
        violations = bad.sum(1)
        if not violations.any():
            break
        patience = np.where(violations < fewest, PATIENCE, patience - 1)
        fewest = np.minimum(violations, fewest)
        inside = inside ^ bad
        on = (violations > 0) & (patience >= 0)
        if not on.all():
            rows, z, q, inside = rows[on], z[on], q[on], inside[on]
            fewest, patience = fewest[on], patience[on]
    return x, counts


def _first_faces(p: Array, z: Array, q: Array) -> Mask:
    inside, above = q > 0, z >= 0
    rows = np.flatnonzero(above.sum(1) == z.shape[1] - 1)
    if len(rows):
        n = above[rows].argmin(1)
        x = z[rows] - (z[rows, n] / p.diagonal()[n])[:, None] * p[n]
        few = 4 * (above[rows] & (x < 0)).sum(1) <= len(p)
        inside[rows[few]] = above[rows[few]]
    return inside


def _on_faces(a: Array, p: Array | None, z: Array, q: Array, inside: Mask) -> Array:
    """The x of each row with gradient zero on its face."""
    m = z.shape[1]
    x, s = np.zeros_like(z), np.zeros_like(z)
    outside = 2 * np.count_nonzero(inside, axis=1) > (m if p is not None else 2 * m)
    for i, f in enumerate(inside):
        if p is None or not outside[i]:
            face = np.flatnonzero(f)
            x[i, face] = _definite(a[face][:, face], q[i, face])
        elif len(n := np.flatnonzero(~f)) == 1:
            s[i, n] = -z[i, n] / p[n, n]
        else:
            s[i, n] = _definite(p[n][:, n], -z[i, n])
    if p is not None and outside.any():
        x[outside] = (z[outside] + s[outside] @ p) * inside[outside]
    return x


def _definite(a: Array, b: Array) -> Array:
    """A⁻¹b; NaN if A is not definite."""
    if len(b) == 0:
        return b
    _, x, info = lapack().dposv(a.T, b, overwrite_a=True)
    return x if info == 0 else np.full(len(b), np.nan)


def _inverse(a: Array) -> Array:
    """A⁻¹ of a definite A."""
    upper = lapack().dpotri(lapack().dpotrf(a.T)[0])[0]
    p: Array = upper + upper.T
    p.flat[:: len(a) + 1] /= 2
    return p


def _eliminated(a: Array, root: Array, z: Array) -> Array | None:
    """The solutions if zero lies in the hull of the gradients: Aw = 0, w ≥ 0; otherwise None.

    On S = {w_i > 0} A is singular in the direction of w only, so A_SS + eeᵀ is definite, and
    inverts A_SS for right-hand sides that wᵀ takes to zero, like the columns of A_SN.
    """
    w = _combination(root)
    w[w < 1e-8 * w.max()] = 0.0  # what is not zero by rounding only would ask for a huge x
    s, n = np.flatnonzero(w > 0), np.flatnonzero(w == 0)
    if len(s) == 0 or (np.abs(a @ w) > 64 * EPS * w.sum()).any():
        return None
    if (y := cholesky_solve(a[s][:, s] + 1, a[s][:, n])) is None:
        return None
    rest = a[n][:, n] - a[n][:, s] @ y
    length = np.sqrt(np.maximum(rest.diagonal(), 0.0))
    bound = length > 1e-7 * (1 + np.abs(y).sum(0))
    others = np.zeros((len(z), len(n)))
    if bound.any():
        length = length[bound]
        rest = rest[bound][:, bound] / length[:, None] / length
        others[:, bound] = nearest((rest + rest.T) / 2, z[:, n[bound]] * length)[0] / length
    x = np.zeros_like(z)
    x[:, n] = others
    x[:, s] = z[:, s] - (others - z[:, n]) @ y.T
    x[:, s] += (-x[:, s] / w[s]).max(1, initial=0.0, keepdims=True) * w[s]
    return np.maximum(x, 0.0)


def _combination(root: Array) -> Array:
    """The nonnegative combination of the columns, with sum about 1, that is nearest to zero.

    Zero where least squares come to no end.
    """
    from scipy.optimize import nnls

    one = np.ones((1, root.shape[1]))
    with suppress(RuntimeError):
        x: Array = nnls(np.vstack((root, one)), np.append(np.zeros(len(root)), 1.0))[0]
        return x
    return np.zeros(root.shape[1])
