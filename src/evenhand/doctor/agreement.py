r"""Do gradients agree? Inner products between different batches, with the noise taken out.

A batch's gradient is ḡ_i plus noise, and the noise of two tasks on one batch is not independent:
it comes from the same samples, and often from the same mistakes in their labels. The expectation of
⟨g_i(A), g_j(A)⟩ is therefore ⟨ḡ_i, ḡ_j⟩ + tr Cov(g_i, g_j), and the second term may be far larger.
Between different batches A ≠ B it is ⟨ḡ_i, ḡ_j⟩ alone. Over K batches

    S_ij = 1/(K(K−1)) Σ_{A≠B} ⟨g_i(A), g_j(B)⟩          (unbiased; S_ii estimates ‖ḡ_i‖²)
    c_ij = S_ij / √(S_ii S_jj)                           (the noise-corrected cosine)

with the jackknife over batches for intervals (Efron & Stein, Annals of Statistics 9, 1981): of the
delete-one values c^(k) the standard error is √((K−1)/K Σ_k (c^(k) − c̄)²), and Student's t has K − 1
degrees of freedom. Where ‖ḡ_i‖² is not surely above 0 a batch tells nothing of the direction of a
task, and no cosine is given: there is *no signal*.

Everything here is pure functions of the inner products [K, m, K, m], which add up over layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evenhand.comparison.inference import Estimate

FEWEST = 4
"""Batches, below which there is nothing to say about noise."""


@dataclass(frozen=True)
class Agreement:
    """What K batches say of the tasks' mean gradients at one place and time.

    Attributes:
        tasks: the m tasks.
        batches: K.
        squares: ‖ḡ_i‖² of each task, an estimate with its standard error.
        cosines: c_ij by (i, j) with i < j, the pairs with a signal alone.
        same_batch: the usual cosine, the mean over batches of cos(g_i(A), g_j(A)), for comparison.
        noise: ‖g_i(A)‖² over ‖ḡ_i‖², what one batch is worth: 1 is no
            noise; infinite without signal.
        shared_noise: the correlation of the tasks' noise on one batch, by pair.
    """

    tasks: tuple[str, ...]
    batches: int
    squares: tuple[Estimate, ...]
    cosines: dict[tuple[str, str], Estimate]
    same_batch: dict[tuple[str, str], float]
    noise: tuple[float, ...]
    shared_noise: dict[tuple[str, str], float]

    @property
    def signal(self) -> tuple[bool, ...]:
        """Whether each task's ‖ḡ_i‖² is above 0 with 95 %."""
        return tuple(_above_zero(square) for square in self.squares)

    @property
    def opposed(self) -> tuple[tuple[str, str], ...]:
        """The pairs whose cosine's interval lies below 0, all at once (Bonferroni)."""
        count = max(1, len(self.cosines))
        return tuple(p for p, c in self.cosines.items() if c.interval(count).high < 0)

    @property
    def aligned(self) -> tuple[tuple[str, str], ...]:
        """Those whose interval lies above 0."""
        count = max(1, len(self.cosines))
        return tuple(p for p, c in self.cosines.items() if c.interval(count).low > 0)


def agreement(products: Tensor, tasks: Sequence[str]) -> Agreement:
    """What inner products say.

    Args:
        products: ⟨g_i(A), g_j(B)⟩ at [A, i, B, j], shape [K, m, K, m].
        tasks: m names.

    Raises:
        ValueError: the shape is another, there are fewer than four batches, or a number is not
            finite.

    Example:
        Opposite noise in one coordinate, the same signal in the other. The usual cosine sees two
        tasks at war, and the corrected one sees none of it.

        >>> noise = torch.tensor([3.0, -3.0, 3.0, -3.0])
        >>> g = torch.stack([torch.stack([noise, torch.ones(4)], -1),
        ...                  torch.stack([-noise, torch.ones(4)], -1)], 1)   # [K, m, n]
        >>> found = agreement(torch.einsum("ain,bjn->aibj", g, g), ["a", "b"])
        >>> round(found.same_batch["a", "b"], 2), found.shared_noise["a", "b"]
        (-0.8, -1.0)
    """
    m = len(tasks)
    if products.ndim != 4 or products.shape != (len(products), m, len(products), m):
        raise ValueError(f"products are {list(products.shape)}, not [K, {m}, K, {m}]")
    if len(products) < FEWEST:
        raise ValueError(f"{len(products)} batches: at least {FEWEST} are needed")
    if not bool(products.isfinite().all()):
        raise ValueError("an inner product of gradients is not finite")
    p = products.double()
    between, within = _means(p)
    left = _left_out(p)
    squares = tuple(_jackknifed(between, left, partial(_square, i=i)) for i in range(m))
    signal = [_above_zero(square) for square in squares]
    same = _same_batch(p)
    noise = within - between
    pairs = [(i, j) for j in range(m) for i in range(j)]
    cosines, naive, shared = {}, {}, {}
    for i, j in pairs:
        pair = (tasks[i], tasks[j])
        naive[pair] = float(same[i, j])
        size = float((noise[i, i].clamp_min(0) * noise[j, j].clamp_min(0)).sqrt())
        shared[pair] = float((noise[i, j] / size).clamp(-1, 1)) if size else 0.0
        if signal[i] and signal[j]:
            cosines[pair] = _jackknifed(between, left, partial(_cosine, i=i, j=j))
    ratio = [float(within[i, i] / between[i, i]) if signal[i] else math.inf for i in range(m)]
    return Agreement(tuple(tasks), len(p), squares, cosines, naive, tuple(ratio), shared)


def _means(p: Tensor) -> tuple[Tensor, Tensor]:
    """Of products between different batches and within one, [m, m] each; symmetric."""
    count = len(p)
    within = torch.einsum("aiaj->ij", p)
    between = (p.sum((0, 2)) - within) / (count * (count - 1))
    return (between + between.mT) / 2, within / count


def _square(s: Tensor, i: int) -> float:
    return float(s[i, i])


def _cosine(s: Tensor, i: int, j: int) -> float:
    """Beyond ±1 noise has made it larger than it can be."""
    size = float(s[i, i] * s[j, j])
    if s[i, i] <= 0 or s[j, j] <= 0:
        return math.nan
    return max(-1.0, min(1.0, float(s[i, j]) / math.sqrt(size)))


def _same_batch(p: Tensor) -> Tensor:
    """The mean over batches of the cosines on one batch, [m, m]."""
    own = torch.einsum("aiaj->aij", p)
    size = own.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    scale = size.unsqueeze(2) * size.unsqueeze(1)
    return torch.where(scale > 0, own / scale, torch.zeros_like(own)).mean(0)


def _left_out(p: Tensor) -> list[Tensor]:
    """S without each of the batches, [m, m] each."""
    found = []
    for k in range(len(p)):
        kept = [a for a in range(len(p)) if a != k]
        found.append(_means(p[kept][:, :, kept])[0])
    return found


def _jackknifed(s: Tensor, without: Sequence[Tensor], of: Callable[[Tensor], float]) -> Estimate:
    """A function of S with its jackknife standard error over batches."""
    count, whole, left = len(without), of(s), [of(other) for other in without]
    if not all(map(math.isfinite, [whole, *left])):
        # A batch decides whether there is a length at all: nothing is known of the direction.
        return Estimate(0.0, math.inf, count - 1)
    mean = math.fsum(left) / count
    variance = (count - 1) / count * math.fsum((value - mean) ** 2 for value in left)
    return Estimate(whole, math.sqrt(variance), count - 1)


def _above_zero(square: Estimate) -> bool:
    return square.mean > 0 and square.interval(level=0.9).low > 0
