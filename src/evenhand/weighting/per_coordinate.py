"""State with an entry for every task and every coordinate of its gradient, [N, M].

Such state costs as much memory as M gradients. It is made when the first gradient shows N, in the
gradient's precision (half precision is widened). Each parameter has rows of its own: those of one
that is frozen wait, and those of a newcomer start at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenhand.autodiff.gradients import TaskGradients


def nothing(total: int) -> Tensor:
    """The state before the first gradient, [0, M]."""
    return torch.zeros(0, total)


def recalled(state: Tensor, g: TaskGradients) -> Tensor:
    """The rows of `state` [..., N, M] for the columns of g's Jacobian, [..., n, M]."""
    whole = _grown(state, g)
    index = g.columns.index
    return whole if index is None else whole.index_select(-2, index.to(whole.device))


def remembered(state: Tensor, g: TaskGradients, rows: Tensor) -> Tensor:
    """A copy of `state` [..., N, M] with these rows for the columns of g's Jacobian."""
    index = g.columns.index
    if index is None:
        return rows
    return _grown(state, g).clone().index_copy_(-2, index.to(rows.device), rows)


def _grown(state: Tensor, g: TaskGradients) -> Tensor:
    """`state` with zeros for the coordinates that it does not know yet.

    Raises:
        ValueError: it has more coordinates than there are.
    """
    jacobian, columns = g.jacobian, g.columns
    lead = jacobian.shape[:-2]
    if state.numel() == 0 or columns.anew:
        dtype = torch.promote_types(jacobian.dtype, torch.float32)
        return jacobian.new_zeros(*lead, columns.total, g.total, dtype=dtype)
    missing = columns.total - state.shape[-2]
    if missing < 0:
        raise ValueError(
            f"the gradients have {columns.total} entries, and the history of this method "
            f"{state.shape[-2]}: it is another model's; begin again with Balancer.reset()"
        )
    state = state.to(jacobian.device)
    if not missing:
        return state
    fresh = state.new_zeros(*state.shape[:-2], missing, state.shape[-1])
    return torch.cat([state, fresh], dim=-2)
