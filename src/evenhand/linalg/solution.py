"""What a solver takes and gives: checked matrices in, a solution with its certificate out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
TINY = float(np.finfo(np.float64).tiny)
TOLERANCE = 1e-8
"""The gap up to which a solution is called optimal, if the Gramian is known that well."""
ROUNDING = 4.0
"""How far an entry of a Gramian may be off, in units of eps·‖g_i‖‖g_j‖.

eps is that of the dtype in which the Gramian came, whatever the solver works in. Products of
float32 rows of up to 10 000 entries were off by 3.7 at most, as a whole wᵀGw, in 2000 draws.
"""

SEVERITY = ("optimal", "stationary", "inaccurate", "unbounded")


class Solution(NamedTuple):
    """The weights w that solve a problem on a Gramian G = J Jᵀ, and the proof that they do.

    `weights [..., m]` has the dtype and device of the input. What certifies it stays on the CPU in
    float64 and belongs to the weights before they were rounded to that dtype:

    - `squared_norm [...]` is ‖Jᵀw‖² = wᵀGw, the squared length of the direction;
    - `gap [...]` is how far w is from optimal, relative to the problem's own scale (each solver's
      docstring has its formula), beyond what the rounding of the Gramian may account for;
    - `iterations` counts what the solver repeats, the largest number in the stack;
    - `status` is the worst of the stack: "optimal" (gap ≤ 1e-8, or 8 eps where that is more);
      "stationary" (so is the solution, and Jᵀw is zero as far as the Gramian's precision can tell:
      no direction improves all tasks); "inaccurate" (a larger gap; also where the weights are so
      large that the Gramian's rounding decides, and no certificate can be had);
      "unbounded" (there is no finite solution).

    eps is the machine epsilon of the dtype in which the Gramian came. A Gramian that was computed
    in float32 knows G_ij to about 4 eps‖g_i‖‖g_j‖, although the solver works in float64. So
    ‖Jᵀw‖² is known to 4 eps (Σ |w_i| ‖g_i‖)²: near a Pareto-stationary point, where gradients
    cancel to less than √eps of their length, no method on Gramians can tell directions apart.
    """

    weights: Tensor
    squared_norm: Tensor
    gap: Tensor
    iterations: int
    status: str

    @property
    def solved(self) -> bool:
        """Whether the status is "optimal" or "stationary"."""
        return self.status in ("optimal", "stationary")


class Single(NamedTuple):
    """The solution of one problem of a stack."""

    weights: Array
    squared_norm: float
    gap: float
    iterations: int
    status: str


def require(values: Tensor, name: str, shape: str, dimensions: int) -> None:
    """The one check of numbers that come from outside: one row per task, all of them finite.

    `shape` is how the message puts what the last `dimensions` of the tensor must be.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: too few dimensions, no rows, or an entry that is not finite.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a floating point tensor {shape}, not {kind}")
    if values.ndim < dimensions or values.shape[-dimensions] == 0:
        raise ValueError(f"{name} must be {shape} with m ≥ 1 tasks, not {list(values.shape)}")
    # A finite sum says that all entries are, and costs half of a test of each.
    if math.isfinite(values.sum().item()):
        return
    finite = values.detach().isfinite()
    if not bool(finite.all()):
        raise ValueError(f"{name}{_first(~finite.cpu().numpy(), values)} is not finite")


def require_number(value: Any, name: str, *, whole: bool = False) -> None:
    """See that a parameter is a number, an integer if asked; its range the solver knows.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        wanted = "an integer" if whole else "a number"
        raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")


def require_gramian(gramian: Tensor, name: str = "gramian") -> None:
    """`require` for a stack of square matrices."""
    require(gramian, name, "square, [..., m, m]", 2)
    if gramian.shape[-1] != gramian.shape[-2]:
        raise ValueError(f"{name} must be square, [..., m, m], not {list(gramian.shape)}")


def read(gramian: Tensor, name: str = "gramian") -> Array:
    """The matrices of a stack `[..., m, m]` as a float64 array `[N, m, m]`, checked.

    Where a squared norm underflows in the input's dtype the gradient is zero: row and column, too.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: not square, not finite, not symmetric or not positive semi-definite as far as
            its 2 x 2 minors tell, all beyond the rounding of its dtype.
    """
    require_gramian(gramian, name)
    m = gramian.shape[-1]
    stack: Array = gramian.detach().cpu().double().numpy().reshape(-1, m, m)
    diagonal = stack.diagonal(axis1=1, axis2=2)
    info = torch.finfo(gramian.dtype)
    least = float(diagonal.min(initial=np.inf))
    if least < 0:
        where = _first((diagonal < 0)[:, :, None] & np.eye(m, dtype=bool), gramian)
        raise ValueError(f"{name}{where} is negative: a squared norm cannot be")
    symmetric = (stack + stack.swapaxes(1, 2)) / 2
    underflow = least < info.tiny
    norms = np.sqrt(np.where(diagonal < info.tiny, np.inf, diagonal) if underflow else diagonal)
    bound = norms[:, :, None] * norms[:, None, :]
    slack = info.eps**0.5
    large = np.abs(symmetric) > (1 + slack) * bound
    if large.any():
        raise ValueError(
            f"{name}{_first(large, gramian)} is larger than the two norms allow: "
            "no Gramian has |G_ij| > √(G_ii G_jj)"
        )
    skew = np.abs(symmetric - stack) > slack * bound
    if skew.any():
        raise ValueError(f"{name} is not symmetric: see {name}{_first(skew, gramian)}")
    if underflow:
        known = np.isfinite(norms)
        symmetric[~(known[:, :, None] & known[:, None, :])] = 0.0
    return symmetric


def read_vectors(vectors: Tensor, gramian: Tensor, name: str) -> Array:
    """The vectors `[..., m]` that go with a stack of Gramians, as a float64 array `[N, K, m]`.

    N counts the Gramians; K what `vectors` has in dimensions between theirs and the last.

    Raises:
        TypeError: not a floating point tensor.
        ValueError: the shapes do not fit, or an entry is not finite.
    """
    require(vectors, name, "[..., m]", 1)
    lead, m = tuple(gramian.shape[:-2]), gramian.shape[-1]
    shape = tuple(vectors.shape)
    if len(shape) <= len(lead) or shape[: len(lead)] != lead or shape[-1] != m:
        raise ValueError(
            f"{name} {list(shape)} does not fit gramian {list(gramian.shape)}: "
            f"it must begin with {list(lead)} and end with {m}"
        )
    values: Array = vectors.detach().cpu().double().numpy()
    between = int(np.prod(shape[len(lead) : -1]))
    return values.reshape(int(np.prod(lead)), between, m)


def assemble(each: Sequence[Single], shape: Sequence[int], like: Tensor) -> Solution:
    """The stack of solutions, weights of the given shape and with the dtype and device of `like`.

    An empty stack is "optimal".
    """
    lead = tuple(shape[:-1])
    weights = np.array([one.weights for one in each]).reshape(tuple(shape))
    norms = np.array([one.squared_norm for one in each], dtype=np.float64)
    gaps = np.array([one.gap for one in each], dtype=np.float64)
    return Solution(
        torch.from_numpy(weights).to(dtype=like.dtype, device=like.device),
        torch.from_numpy(norms.reshape(lead)),
        torch.from_numpy(gaps.reshape(lead)),
        max((one.iterations for one in each), default=0),
        max((one.status for one in each), key=SEVERITY.index, default="optimal"),
    )


def judge(gap: float, precision: float) -> str:
    """The status that a gap earns on a Gramian of the given machine epsilon."""
    return "optimal" if gap <= max(TOLERANCE, 8 * precision) else "inaccurate"


def judge_all(gaps: Array, stationary: npt.NDArray[np.bool_], precision: float) -> str:
    """The worst status among problems with these gaps, of which some are stationary."""
    judged = judge(float(gaps[~stationary].max(initial=0.0)), precision)
    return max(judged, "stationary" if stationary.any() else "optimal", key=SEVERITY.index)


def verdict(
    gramian: Array, weights: Array, gap: float, iterations: int, precision: float
) -> Single:
    """The solution with these weights, its squared norm and its status.

    `precision` is the machine epsilon of the dtype in which the Gramian came: what is below the
    rounding of wᵀGw is called stationary.
    """
    squared = max(float(weights @ gramian @ weights), 0.0)
    stationary = squared <= ROUNDING * precision * rounding_unit(gramian, weights)
    status = "stationary" if stationary else judge(gap, precision)
    return Single(weights, squared, gap, iterations, status)


def rounding_unit(gramian: Array, weights: Array) -> float:
    """(Σ |w_i| ‖g_i‖)²: the terms of wᵀGw sum to this at most, so its rounding is eps times it."""
    return float(np.abs(weights) @ np.sqrt(gramian.diagonal())) ** 2


def simplex_gap(
    scores: Array,
    weights: Array,
    gramian: Array,
    direction: Array,
    precision: float,
    linear: Array | None = None,
) -> float:
    """How far w is from minimising a convex function with gradient `scores` on the simplex.

    max_i (Σ_j w_j s_j − s_i − ρ_i)₊ / (‖g_i‖·√max(‖v‖², ε·max_j ‖g_j‖²) + |b_i| + Σ_j w_j |b_j|)

    with v = Jᵀ`direction`, b the linear term if there is one, ε = 64 eps, and ρ_i = 4 eps times
    what the terms of Σ w_j s_j and of s_i can add up to, their rounding; eps is the Gramian's
    `precision`. Where g_i = 0 the root takes its place. For the min-norm problem s = Gw and
    v = Jᵀw, so the numerator is ‖v‖² − g_i·v: the Frank-Wolfe gap of task i.
    """
    norms = np.sqrt(gramian.diagonal())
    length = np.sqrt(max(float(direction @ gramian @ direction), 64 * precision * norms.max() ** 2))
    scale = np.where(norms > 0, norms, length) * length
    rounding = (weights @ norms + norms) * (np.abs(direction) @ norms)
    if linear is not None:
        terms = np.abs(linear) + weights @ np.abs(linear)
        scale, rounding = scale + terms, rounding + terms
    excess = np.maximum(weights @ scores - scores - ROUNDING * precision * rounding, 0.0)
    return float(np.divide(excess, scale, out=np.zeros_like(excess), where=scale > 0).max())


def _first(bad: npt.NDArray[np.bool_], tensor: Tensor) -> str:
    """The index of the first bad entry, as one would type it."""
    where = np.unravel_index(int(bad.argmax()), tuple(tensor.shape))
    return "[" + ", ".join(str(int(i)) for i in where) + "]"
