"""Weights on the simplex over all tasks that are kept and moved from step to step.

The tasks that speak in a step redistribute among themselves the share that they have in common;
the shares of absent ones stay. With all tasks present that is the projection onto the simplex.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.linalg import project_simplex


def equal_shares(total: int) -> Tensor:
    """1/M for each of `total` tasks, [M], float64."""
    return torch.full((total,), 1 / total, dtype=torch.float64)


def redistribute(values: Tensor, share: Tensor) -> Tensor:
    """The nearest point to `values` [..., m] on {w >= 0, Σw = `share`}, share [..., 1] >= 0."""
    size = torch.where(share > 0, share, 1)
    return share * project_simplex(values / size)
