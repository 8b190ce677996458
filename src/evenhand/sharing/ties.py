"""What ties the parameters of several networks: penalties on how they differ.

A tie is given a stack for each parameter that the networks have in common, the T networks' values
of it along the first dimension, and returns one number. It is a term of the total loss that is
nobody's task.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from evenhand.arguments import require_fields

Flattening = Literal["laf", "tucker", "tt"]


@dataclass(frozen=True)
class Tie(ABC):
    """A penalty λ Ω on T networks' parameters.

    Attributes:
        weight: λ, at least 0. With 0 the networks are trained as if each were alone.

    Raises:
        ValueError: λ is negative or infinite.
    """

    weight: float = 1e-3

    def __post_init__(self) -> None:
        require_fields(self)
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"weight={self.weight}: must be a number >= 0")

    def __call__(self, stacks: Iterable[Tensor]) -> Tensor:
        """λ Ω, a scalar.

        Args:
            stacks: each tied parameter of all T networks, [T, ...].
        """
        return self.weight * torch.stack([self.of(stack) for stack in stacks]).sum()

    @abstractmethod
    def of(self, stack: Tensor) -> Tensor:
        """Ω of one parameter, [T, ...] → scalar."""


@dataclass(frozen=True)
class SquaredDistance(Tie):
    """Half the squared distance of every two networks.

        Ω = ½ Σ_{i<j} ‖θ_i − θ_j‖²,    ∂Ω/∂θ_i = Σ_j (θ_i − θ_j) = T (θ_i − θ̄)

    with θ̄ the mean of the T networks, so that Ω = ½ T Σ_i ‖θ_i − θ̄‖², which is how it is computed.

    Source: Duong, Cohn, Bird & Cook, "Low resource dependency parsing: cross-lingual parameter
    sharing in a neural network parser" (ACL 2015), where the parser of a language with few
    sentences is pulled to that of English. There the second network may be fixed; here all train.
    With more than two networks others measure the distance from the mean without the factor T:
    their weight is T times this λ.

    Example:
        >>> SquaredDistance(0.5)([torch.tensor([[1.0, 2.0], [4.0, 6.0]])])  # ½ · ½ · (3² + 4²)
        tensor(6.2500)
    """

    def of(self, stack: Tensor) -> Tensor:
        return 0.5 * len(stack) * (stack - stack.mean(dim=0)).square().sum()


@dataclass(frozen=True)
class TraceNorm(Tie):
    """The trace norm of the networks' stacked parameters: the sum of the singular values.

    A parameter of T networks is a tensor W with the networks along its last axis, and is flattened
    to one or several matrices X:

        laf      (last axis flattening)  X = W_(N) [T, d]:                Ω = ‖W_(N)‖_*
        tucker   every axis n in turn    X = W_(n) [d_n, …]:              Ω = Σ_n ‖W_(n)‖_*
        tt       (tensor train)          X = W_[n] [d_1 ⋯ d_n, …], n < N: Ω = Σ_n ‖W_[n]‖_*

    with d the size of one network's parameter. A small norm means that few directions explain all
    networks, so it is not distances that shrink but the rank; the networks themselves shrink too.

    With X = U S Vᵀ, the sub-gradient that is used is U_r V_rᵀ of the r singular values above
    rounding, max(shape) · ε · σ_1: the shortest one. Where X has full rank it is the gradient.

    Source: Yang & Hospedales, "Trace norm regularised deep multi-task learning" (arXiv 1606.04038),
    their three flattenings and the sub-gradient from the SVD. The released code averages over
    layers and flattenings, where the sum stands here: its weight is to be divided by their number.
    It uses U Vᵀ for singular values of zero too, which pushes equal networks apart in directions
    that rounding chooses. Here it leaves them equal.

    Attributes:
        flattening: "laf", "tucker" or "tt".

    Raises:
        ValueError: there is no such flattening; or see `Tie`.

    Example:
        >>> TraceNorm(0.5)([torch.tensor([[3.0, 0.0], [0.0, 4.0]])])
        tensor(3.5000)
    """

    flattening: Flattening = "laf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flattening not in get_args(Flattening):
            known = ", ".join(map(repr, get_args(Flattening)))
            raise ValueError(f"flattening={self.flattening!r}: must be one of {known}")

    def of(self, stack: Tensor) -> Tensor:
        matrices = FLATTENED[self.flattening](stack.movedim(0, -1))
        return torch.stack([trace_norm(matrix) for matrix in matrices]).sum()


def _laf(w: Tensor) -> list[Tensor]:
    return [w.reshape(-1, w.shape[-1]).mT]


def _tucker(w: Tensor) -> list[Tensor]:
    return [w.movedim(n, 0).reshape(w.shape[n], -1) for n in range(w.ndim)]


def _tt(w: Tensor) -> list[Tensor]:
    if w.ndim == 1:  # one number a network: the only matrix that there is
        return [w.unsqueeze(0)]
    return [w.reshape(math.prod(w.shape[:n]), -1) for n in range(1, w.ndim)]


FLATTENED: Mapping[str, Callable[[Tensor], list[Tensor]]] = {
    "laf": _laf,
    "tucker": _tucker,
    "tt": _tt,
}
"""W [d_1, …, T] → matrices."""


def trace_norm(matrix: Tensor) -> Tensor:
    """Σ σ_k of a matrix [n, d], NaN where an entry is not finite; its gradient is U_r V_rᵀ.

    It is computed as ⟨X, U_r V_rᵀ⟩ with the second factor held fixed, which has that value, and
    that gradient.
    """
    finite = matrix.isfinite().all()
    with torch.no_grad():
        u, s, v = torch.linalg.svd(matrix.where(finite, 0), full_matrices=False)
        above = s > max(matrix.shape) * torch.finfo(s.dtype).eps * s[..., :1]
        direction = (u * above) @ v
    norm: Tensor = (matrix * direction).sum().where(finite, torch.nan)
    return norm
