"""State with an entry for every task and every coordinate of its gradient, [n, M].

Such state costs as much memory as M gradients. It is made when the first gradient shows n, in the
gradient's precision (half precision is widened).
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients


def nothing(total: int) -> Tensor:
    """The state before the first gradient, [0, M]."""
    return torch.zeros(0, total)


def like_gradients(state: Tensor, g: TaskGradients) -> Tensor:
    """`state` as [..., n, M], fit for the gradients of g; zeros at first.

    Raises:
        ValueError: the gradients have another size than before.
    """
    *lead, _, n = g.jacobian.shape
    if state.numel() == 0:
        dtype = torch.promote_types(g.jacobian.dtype, torch.float32)
        return g.jacobian.new_zeros(*lead, n, g.total, dtype=dtype)
    if state.shape[-2] != n:
        raise ValueError(
            f"the gradients have {n} entries, and the history of this method {state.shape[-2]}: "
            "what is shared, or frozen, has changed; make a new method"
        )
    return state.to(g.jacobian.device)
