"""Products and lengths of rows whose squares single precision cannot hold.

Above 1.8e19 a square overflows float32 and bfloat16, below 1e-19 it loses digits, and below 1e-23
it is zero; for float16 that is so above 256 and below 2e-4. What is computed here is right for all
rows that can be represented.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-30
"""Products below may have lost digits in single precision."""
SHORTEST = 1e-15
"""Lengths below may have."""


def products(left: Tensor, right: Tensor) -> Tensor:
    """L Rᵀ of rows [..., m, n], [..., m, m], float64.

    In single precision at least; in double where that overflows, or has nothing left.
    """
    narrow = torch.promote_types(left.dtype, torch.float32)
    found = left.to(narrow) @ right.to(narrow).mT
    most = found.detach().abs().amax((-2, -1)) if found.numel() else found.new_ones(())
    if bool(((most > SMALLEST) & most.isfinite()).all()):
        return _double(found)
    return _double(left) @ _double(right).mT


def lengths(rows: Tensor) -> Tensor:
    """‖rows‖ over the last dimension, [..., 1]; scaled first where squares cannot be held."""
    plain: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    sure = plain.isfinite() & (plain > SHORTEST)
    if bool(sure.all()) or not rows.shape[-1]:
        return plain
    most = rows.abs().amax(-1, keepdim=True)
    scale = torch.where(most > 0, most, 1)
    scaled = scale * torch.linalg.vector_norm(rows / scale, dim=-1, keepdim=True)
    return torch.where(sure, plain, scaled)


def _double(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()
