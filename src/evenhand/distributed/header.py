"""The header: one small all-reduce with which a step of several ranks begins.

Of each term (the tasks' losses, and what is nobody's task) a rank tells how many labels n it has,
n times the loss, and whether that is not finite. Every rank then knows the same losses, which tasks
are absent everywhere, and who is to be named in an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evenhand.distributed.ranks import Ranks


@dataclass(frozen=True)
class Header:
    """What all ranks know after it.

    Attributes:
        counts: Σ_r n_i^r for each term.
        values: Σ_r n_i^r L_i^r / Σ_r n_i^r, [K, *leading], float64; NaN for one that is not finite
            on some rank.
        news: whether some rank has news of who reaches what.
    """

    counts: list[float]
    values: Tensor
    news: bool

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        terms: Sequence[Tensor | None],
        counts: Sequence[float],
        leading: torch.Size,
        news: bool,
    ) -> Header:
        """Tell this rank's terms and hear all others'; a term that is absent here is None."""
        k = len(terms)
        zero = torch.zeros(leading, dtype=torch.float64)
        found = [zero if t is None else t.detach().double().cpu().expand(leading) for t in terms]
        values = torch.stack(found)
        finite = values.isfinite().reshape(k, -1).all(-1)
        n = torch.tensor(counts, dtype=torch.float64)
        values = torch.where(values.isfinite(), values, 0) * n.view(-1, *(1,) * len(leading))
        told = torch.cat([n, (~finite).double(), values.flatten(), torch.tensor([float(news)])])
        heard = ranks.sum(told.to(ranks.device)).cpu()
        n, bad, values = heard[:k], heard[k : 2 * k] > 0, heard[2 * k : -1].view(k, *leading)
        by = n.clamp_min(torch.finfo(torch.float64).tiny).view(-1, *(1,) * len(leading))
        values = values / by
        values[bad] = torch.nan
        return cls(n.tolist(), values, bool(heard[-1] > 0))
