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
from .solution import ROUNDING, Array, Single, Solution, judge_all, read, read_vectors

LIFT = 4.0
"""How much larger than the rounding of ‖x‖² what keeps x above it is; see `project`."""


def project_cone(gramian: Tensor, weights: Tensor) -> Solution:
    """The weights u + λ of the projection of v = Jᵀu onto {x : g_i·x ≥ 0 for all i}, exactly.

    `gramian [..., m, m]`, u = `weights [..., m]` of any sign; or `[..., k, m]`, k vectors for each
    Gramian (UPGrad projects every gradient: the rows of the identity). The result has the shape of
    `weights`; `squared_norm` is ‖x‖², zero when no direction but zero harms nobody.

    With x = Jᵀ(u + λ), σ = Σ_i |u_i + λ_i| ‖g_i‖ and ν = max(‖v‖, √ε σ), the gap is the largest of
    max_i (−g_i·x/‖g_i‖ − ρ)₊ / ν, which is infeasibility, max_i (−λ_i)₊ ‖g_i‖ / ν, and
    (|Σ λ_i g_i·x| − ρ Σ λ_i ‖g_i‖)₊ / ν², the angle between x and v − x. ε = 64 eps is where x
    drowns in the rounding of G, and ρ = 4 eps σ is what that hides of g_i·x; eps is that of G.

    Near a Pareto-stationary point the cone is narrow, λ is large, and rounding decides. Where it
    could lengthen x by more than ‖v‖/2 (4 eps σ² > ‖v‖²/4), the projection is that for the Gramian
    G_ij + 16 eps ‖g_i‖‖g_j‖, whose cone is a little wider: Σ |u_i + λ_i| ‖g_i‖ is at most
    ‖v‖/(4√eps) + Σ |u_i| ‖g_i‖, and g_i·x ≥ −16 eps ‖g_i‖ σ, −4√eps ‖g_i‖‖v‖ at worst. Its gap has
    ρ = 0, so it is "inaccurate", unless x is zero up to rounding ("stationary").

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
    rounding = ROUNDING * torch.finfo(gramian.dtype).eps
    gaps = [np.zeros(0)]
    for g, u, x in zip(stack, vectors, results, strict=True):
        norms = np.sqrt(g.diagonal())
        some = norms > 0
        among = g[some][:, some], norms[some], u[:, some], (x - u)[:, some]
        gaps.append(_certificate(*among, rounding).gap)
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

    Solved in z_i = λ_i ‖g_i‖ / Σ_j |u_j| ‖g_j‖, where the matrix is that of the cosines. What
    rounding could lengthen too much is solved again with all gradients lifted by the same small
    amount in one new direction: then large weights cost more than rounding hides.
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
    cosines, targets = gramian / norms[:, None] / norms, vectors * norms / -unit
    rounding = ROUNDING * precision
    z, counts = nearest(cosines, targets, precision)
    found = _certificate(gramian, norms, vectors, z / norms * unit, rounding)
    if not found.sure.all():
        again = np.flatnonzero(~found.sure)
        z[again], more = nearest(cosines, targets[again], precision, lift=LIFT * rounding)
        counts[again] += more
        lifted = _certificate(gramian, norms, vectors[again], z[again] / norms * unit[again], 0.0)
        for whole, part in zip(found, lifted, strict=True):
            whole[again] = part
    stationary = found.squared <= rounding * found.terms
    return Projections(found.weights, found.squared, found.gap, counts, stationary)


class _Certified(NamedTuple):
    """Weights u + λ, ‖x‖², what it would be if nothing cancelled, and the gap, row by row.

    `sure` says whether rounding leaves x about as short as v at most.
    """

    weights: Array
    squared: Array
    terms: Array
    gap: Array
    sure: npt.NDArray[np.bool_]


def _certificate(
    gramian: Array, norms: Array, vectors: Array, multipliers: Array, rounding: float
) -> _Certified:
    """The certificate of `project_cone`, for norms > 0.

    `rounding` is that of G relative to ‖g_i‖‖g_j‖; it is forgiven where it leaves x sure.
    """
    x = vectors + multipliers
    scores = x @ gramian
    squared = np.maximum((x * scores).sum(1), 0.0)
    terms = (np.abs(x) @ norms) ** 2
    length = np.maximum(((vectors @ gramian) * vectors).sum(1), 0.0)
    blur = rounding * (np.abs(vectors) @ norms) ** 2
    sure = rounding * terms <= length / LIFT + 16 * blur
    forgiven = np.where(sure, rounding * np.sqrt(terms), 0.0)
    size = np.sqrt(np.maximum(length, 16 * rounding * terms))
    size[size == 0] = 1.0
    harm = np.maximum(scores / -norms - forgiven[:, None], multipliers * -norms)
    slack = np.abs((multipliers * scores).sum(1)) - forgiven * (np.abs(multipliers) @ norms)
    gap = np.maximum(harm.max(1, initial=0.0) / size, slack / size**2)
    return _Certified(x, squared, terms, np.maximum(gap, 0.0), sure)


def project_one(gramian: Array, vector: Array, precision: float) -> Single:
    """The projection of one vector `[m]`."""
    found = project(gramian, vector[None], precision)
    status = judge_all(found.gap, found.stationary, precision)
    return Single(
        found.weights[0],
        float(found.squared_norm[0]),
        float(found.gap[0]),
        int(found.iterations[0]),
        status,
    )
