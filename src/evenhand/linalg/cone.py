"""Projection onto the cone of directions that harm no task, {x : g_i·x ≥ 0 for all i}.

For a direction v = Jᵀu the nearest point of the cone is again a combination of the gradients,
x = Jᵀ(u + λ), where λ solves the dual problem (Moreau's decomposition)

    minimise ½‖Jᵀ(u + λ)‖²   over λ ≥ 0,

whose optimality conditions, λ ≥ 0, G(u + λ) ≥ 0 and λ_i (G(u + λ))_i = 0, need the Gramian only.
This is what DualProj (Lopez-Paz & Ranzato, "Gradient Episodic Memory", NeurIPS 2017) and UPGrad
(Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, eq. 3 and Prop. 1) need.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .many import nearest
from .solution import EPS, Array, Member, Solution, judge_all, read, read_vectors


def project_cone(gramian: Tensor, weights: Tensor) -> Solution:
    """The weights u + λ of the projection of v = Jᵀu onto {x : g_i·x ≥ 0 for all i}, exactly.

    `gramian [..., m, m]`, u = `weights [..., m]` of any sign; or `[..., k, m]`, k vectors for each
    Gramian (UPGrad projects every gradient: the rows of the identity). The result has the shape of
    `weights`; `squared_norm` is ‖x‖², zero when no direction but zero harms nobody.

    With x = Jᵀ(u + λ) and ν = max(‖v‖, √ε · Σ_i |u_i + λ_i| ‖g_i‖), the gap is the largest of
    max_i (−g_i·x)₊ / (‖g_i‖ν), which is infeasibility, max_i (−λ_i)₊ ‖g_i‖ / ν, and
    |Σ λ_i g_i·x| / ν², the angle between x and v − x. ε = 64 eps: the second term of ν is where x
    drowns in the rounding of G.

    A zero gradient constrains nothing and keeps its u_i. Identical gradients share their λ evenly.
    x is unique, λ need not be. Other implementations: TorchJD adds 1e-4 of the trace to the
    diagonal of G by default, which moves the projection by about as much.

    Raises:
        TypeError: an input is not a floating point tensor.
        ValueError: gramian is not square, finite, symmetric or a Gramian; weights do not fit it.

    >>> jacobian = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
    >>> solution = project_cone(jacobian @ jacobian.T, torch.tensor([0.25, 0.75]))  # v = (-.5, 1.5)
    >>> solution.weights @ jacobian
    tensor([0.0000, 1.5000])
    """
    stack = read(gramian)
    vectors = read_vectors(weights, gramian, "weights")
    precision = torch.finfo(gramian.dtype).eps
    blocks = [project(g, block, precision) for g, block in zip(stack, vectors, strict=True)]
    lead = weights.shape[:-1]
    match blocks:
        case []:
            every = _NONE
        case [one]:
            every = one
        case _:
            every = Projections(*map(np.concatenate, zip(*blocks, strict=True)))
    return Solution(
        torch.from_numpy(every.weights.reshape(tuple(weights.shape))).to(weights),
        torch.from_numpy(every.squared_norm.reshape(lead)),
        torch.from_numpy(every.gap.reshape(lead)),
        int(every.iterations.max(initial=0)),
        judge_all(every.gap, every.stationary, precision),
    )


def project_cone_gap(gramian: Tensor, weights: Tensor, projected: Tensor) -> Tensor:
    """The gap of `project_cone` for given weights u + λ, of the shape of u = `weights`.

    `[...]` without the last dimension, in float64 on the CPU.

    Raises:
        TypeError: an input is not a floating point tensor.
        ValueError: the Gramian is not one, or the shapes do not fit.
    """
    if projected.shape != weights.shape:
        raise ValueError(f"projected must be {list(weights.shape)}, not {list(projected.shape)}")
    stack = read(gramian)
    vectors = read_vectors(weights, gramian, "weights")
    results = read_vectors(projected, gramian, "projected")
    gaps = [np.zeros(0)]
    for g, u, x in zip(stack, vectors, results, strict=True):
        norms = np.sqrt(g.diagonal())
        some = norms > 0
        among = g[some][:, some], norms[some], u[:, some], (x - u)[:, some], x[:, some]
        gaps.append(_certificate(*among)[1])
    return torch.from_numpy(np.concatenate(gaps).reshape(tuple(weights.shape[:-1])))


class Projections(NamedTuple):
    """What `project` returns, an entry for each vector."""

    weights: Array
    squared_norm: Array
    gap: Array
    iterations: npt.NDArray[np.intp]
    stationary: npt.NDArray[np.bool_]


_NONE = Projections(*(np.zeros(0, dtype=kind) for kind in (float, float, float, np.intp, bool)))


def project(gramian: Array, vectors: Array, precision: float) -> Projections:
    """The projections of the rows of `vectors [k, m]`.

    Solved in z_i = λ_i ‖g_i‖ / Σ_j |u_j| ‖g_j‖, where the matrix is that of the cosines.
    """
    norms = np.sqrt(gramian.diagonal())
    some = norms > 0
    if not some.all():
        # Zero gradients constrain nothing, and keep their weights.
        among = project(gramian[some][:, some], vectors[:, some], precision)
        weights = vectors.copy()
        weights[:, some] = among.weights
        return among._replace(weights=weights)
    unit = np.abs(vectors) @ norms
    unit[unit == 0] = 1.0
    unit = unit[:, None]
    z, counts = nearest(gramian / norms[:, None] / norms, vectors * norms / -unit)
    multipliers = z / norms * unit
    x = vectors + multipliers
    squared, gap, terms = _certificate(gramian, norms, vectors, multipliers, x)
    return Projections(x, squared, gap, counts, squared <= 4 * precision * terms)


def _certificate(
    gramian: Array, norms: Array, vectors: Array, multipliers: Array, x: Array
) -> tuple[Array, Array, Array]:
    """‖x‖², the gap, and what ‖x‖² would be if nothing cancelled; norms must not be zero."""
    scores = x @ gramian
    squared = np.maximum((x * scores).sum(1), 0.0)
    terms = (np.abs(x) @ norms) ** 2
    length = ((vectors @ gramian) * vectors).sum(1)
    size = np.sqrt(np.maximum(length, 64 * EPS * terms))
    size[size == 0] = 1.0
    wrong = np.maximum(scores / -norms, multipliers * -norms).max(1, initial=0.0) / size
    gap = np.maximum(wrong, np.abs((multipliers * scores).sum(1)) / size**2)
    return squared, gap, terms


def project_one(gramian: Array, vector: Array, precision: float) -> Member:
    """The projection of one vector `[m]`."""
    found = project(gramian, vector[None], precision)
    status = judge_all(found.gap, found.stationary, precision)
    return Member(
        found.weights[0],
        float(found.squared_norm[0]),
        float(found.gap[0]),
        int(found.iterations[0]),
        status,
    )
