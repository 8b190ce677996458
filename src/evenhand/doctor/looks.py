"""Looking at a model's task gradients on several batches, and trying steps, touching nothing.

A *look* takes each task's gradient by the shared parameters on K batches, and keeps inner products
alone: of every layer, in plain coordinates and, where an optimizer that divides by a running size
of the gradient is given, in its metric ⟨g, P h⟩ with P = diag(1/(√v̂ + ε)), which is what decides
whether one task's step helps another.

The look-ahead asks the same of losses instead of gradients: a step of one task on one batch, scored
by all tasks on the *next* batch. Fifty et al. (NeurIPS 2021, arXiv 2109.04617, equation 1) score it
on the batch that made the step, with each task's own step length, so that a noisy task seems to
help itself and a large loss to matter; here every step has one length, ‖Δθ‖ = reach · ‖θ‖.

The model is in its own mode. Its buffers, its gradients and torch's random stream are afterwards as
they were.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from evenhand.balancer import Balancer
from evenhand.comparison.inference import Estimate
from evenhand.doctor.agreement import FEWEST, Agreement, agreement
from evenhand.network import Frozen

Losses = Callable[[Any, Any], Mapping[str, Tensor | None]]
"""(model, batch) -> each task's mean loss; a task without a label in the batch is absent."""

SECOND_MOMENT: Mapping[type[Optimizer], str] = {
    Adam: "exp_avg_sq",
    AdamW: "exp_avg_sq",
    NAdam: "exp_avg_sq",
    RAdam: "exp_avg_sq",
    RMSprop: "square_avg",
    Adagrad: "sum",
}
"""The optimizers that divide by the root of something, and what they call it."""
CORRECTED = (Adam, AdamW, NAdam, RAdam)
"""Those whose running mean is divided by 1 − β₂ᵗ."""


@dataclass(frozen=True)
class Affinity:
    """How much a step of one task changes the loss of another on a fresh batch.

    Attributes:
        fall: {(mover, judged): percent of its size by which the judged task's loss falls}, own
            steps included.
        reach: ‖Δθ‖ / ‖θ‖ of every step.
    """

    fall: Mapping[tuple[str, str], Estimate]
    reach: float


@dataclass(frozen=True)
class Look:
    """What was seen at one time.

    Attributes:
        step: of the training that the doctor did, 0 before it.
        losses: of each task, the mean over the batches.
        norms: ‖g_i‖ on one batch, likewise.
        whole: agreement over all shared parameters.
        metric: the same in the optimizer's metric; None where none was asked, or it is the plain
            one.
        layers: agreement by layer, in the order of the model.
        ahead: the look-ahead.
    """

    step: int
    losses: Mapping[str, float]
    norms: Mapping[str, float]
    whole: Agreement
    metric: Agreement | None
    layers: Mapping[str, Agreement]
    ahead: Affinity


def look(
    model: nn.Module,
    losses: Losses,
    batches: Sequence[Any],
    *,
    optimizer: Optimizer | None = None,
    step: int = 0,
    reach: float = 0.01,
) -> Look:
    """Look at the tasks' gradients on these batches.

    m·K gradients are held at once.

    Args:
        model: any module, or several in one.
        losses: each task's loss of the model on a batch.
        batches: independent ones, at least four that have labels of every task.
        optimizer: whose metric is of interest; it must have taken steps.
        step: what to note as the time.
        reach: ‖Δθ‖ / ‖θ‖ of the look-ahead's steps.

    Raises:
        ValueError: too few batches have labels of all tasks, there is one task, no parameter is
            shared, or a loss is not a scalar.
    """
    with _untouched(model):
        tasks, shared, usable = _ownership(model, losses, batches)
        taken = [_gradients(model, losses, batch, tasks, shared) for batch in usable]
        ahead = _look_ahead(model, losses, usable, tasks, shared, [g for _, g in taken], reach)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    layer_of = [names.get(p, "shared").rpartition(".")[0] or "model" for p in shared]
    stacked = torch.stack([g for _, g in taken])  # [K, m, n]
    sizes = [p.numel() for p in shared]
    plain: dict[str, Tensor] = {}
    scaled: dict[str, Tensor] = {}
    for layer, parameter, part in zip(
        layer_of, shared, torch.split(stacked, sizes, -1), strict=True
    ):
        _add(plain, layer, _products(part))
        if optimizer is not None:
            divisor = preconditioner(optimizer, parameter).flatten().to(part)
            _add(scaled, layer, _products(part, divisor))
    values = torch.tensor([[float(v) for v in found] for found, _ in taken]).mean(0).tolist()
    norms = stacked.double().norm(dim=-1).mean(0).tolist()
    return Look(
        step,
        dict(zip(tasks, values, strict=True)),
        dict(zip(tasks, norms, strict=True)),
        agreement(_sum(plain), tasks),
        agreement(_sum(scaled), tasks) if scaled and has_metric(optimizer) else None,
        {layer: agreement(products, tasks) for layer, products in plain.items()},
        ahead,
    )


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    kept = [(p, p.grad) for p in model.parameters()]
    with torch.random.fork_rng(), Frozen((), tuple(model.modules())).held("train"):
        yield
    for parameter, gradient in kept:
        parameter.grad = gradient


def _ownership(
    model: nn.Module, losses: Losses, batches: Sequence[Any]
) -> tuple[tuple[str, ...], list[Tensor], list[Any]]:
    """The tasks, what they share, and the batches that have labels of all of them."""
    found = [(batch, _present(losses(model, batch))) for batch in batches]
    tasks = tuple(dict.fromkeys(task for _, said in found for task in said))
    if len(tasks) < 2:
        raise ValueError(f"{len(tasks)} tasks have a loss: a question between tasks needs two")
    usable = [(batch, said) for batch, said in found if len(said) == len(tasks)]
    if len(usable) < FEWEST:
        raise ValueError(
            f"{len(usable)} of {len(batches)} batches have labels of all of "
            f"{', '.join(tasks)}: at least {FEWEST} are needed; give more or larger ones"
        )
    balancer = Balancer(tasks=tasks, model=model)
    for _, said in usable:
        balancer.gradients(said)
    shared = [p for p in balancer.blocks.shared if p.requires_grad]
    if not shared:
        raise ValueError("the tasks share no parameter that trains: they cannot conflict")
    return tasks, shared, [batch for batch, _ in usable]


def _present(said: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {task: loss for task, loss in said.items() if loss is not None}


def _values(said: Mapping[str, Tensor | None]) -> dict[str, float]:
    """As numbers at once: a loss may be a view of a parameter that moves."""
    return {task: float(loss) for task, loss in _present(said).items()}


def _gradients(
    model: nn.Module, losses: Losses, batch: Any, tasks: Sequence[str], shared: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Losses [m] and Jacobian [m, n] on a batch, in the order of `tasks` and `shared`."""
    said = _present(losses(model, batch))
    view = Balancer(tasks=tasks).gradients(said, shared=shared)
    return view.losses, view.jacobian


def _products(part: Tensor, divisor: Tensor | None = None) -> Tensor:
    """[K, m, n] -> [K, m, K, m], with each coordinate divided if asked."""
    flat = part.flatten(0, 1).double()
    other = flat if divisor is None else flat / divisor
    return (flat @ other.mT).reshape(*part.shape[:2], *part.shape[:2])


def _add(into: dict[str, Tensor], layer: str, products: Tensor) -> None:
    into[layer] = into[layer] + products if layer in into else products


def _sum(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum(0)


# The optimizer's metric -----------------------------------------------------------------------


def has_metric(optimizer: Optimizer | None) -> bool:
    """Whether the optimizer divides by a running size of the gradient that is known here."""
    return type(optimizer) in SECOND_MOMENT


def preconditioner(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """What the optimizer divides a parameter's step by, of its shape; ones for plain SGD.

    Raises:
        ValueError: the optimizer has not seen the parameter, has taken no step, or is of a kind
            whose metric is not known here.
    """
    if type(optimizer) is torch.optim.SGD:
        return torch.ones_like(parameter)
    kinds: tuple[type[Optimizer], ...] = (torch.optim.SGD, *SECOND_MOMENT)
    if type(optimizer) not in kinds:
        known = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"the metric of {type(optimizer).__name__} is not known here; that of {known} is. "
            "Leave optimizer= out for the plain one"
        )
    group = next(
        (g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None
    )
    state = optimizer.state.get(parameter, {})
    key = SECOND_MOMENT[type(optimizer)]
    if group is None or key not in state:
        raise ValueError(
            f"{type(optimizer).__name__} has taken no step of a shared parameter of shape "
            f"{list(parameter.shape)}: look after some training, or leave optimizer= out"
        )
    size = state["max_exp_avg_sq" if group.get("amsgrad") else key].detach().double()
    if group.get("centered"):
        size = size - state["grad_avg"].detach().double().square()
    if isinstance(optimizer, CORRECTED):
        step, beta = float(state["step"]), group["betas"][1]
        size = size / (1 - beta**step)
        if type(optimizer) is RAdam and _averaged(step, beta) <= RECTIFIED:
            return torch.ones_like(parameter)
    divisor: Tensor = size.sqrt() + group["eps"]
    return divisor


RECTIFIED = 5.0
"""Averaged gradients up to which RAdam takes the plain step."""


def _averaged(step: float, beta: float) -> float:
    """ρ_t of RAdam: how many gradients its running mean is worth (Liu et al., ICLR 2020)."""
    kept = math.pow(beta, step)
    return 2 / (1 - beta) - 1 - 2 * step * kept / (1 - kept)


# The look-ahead -------------------------------------------------------------------------------


@torch.no_grad()
def _look_ahead(
    model: nn.Module,
    losses: Losses,
    batches: Sequence[Any],
    tasks: Sequence[str],
    shared: Sequence[Tensor],
    gradients: Sequence[Tensor],
    reach: float,
) -> Affinity:
    if not reach > 0:
        raise ValueError(f"reach={reach}: must be positive")
    there = [p.detach().clone() for p in shared]
    length = reach * math.sqrt(math.fsum(float(p.double().square().sum()) for p in there))
    falls: dict[tuple[str, str], list[float]] = {(a, b): [] for a in tasks for b in tasks}
    try:
        for k, gradient in enumerate(gradients):
            fresh = batches[(k + 1) % len(batches)]
            torch.manual_seed(k)  # dropout drops the same before and after
            before = _values(losses(model, fresh))
            for row, mover in zip(gradient, tasks, strict=True):
                size = float(row.double().norm())
                step = row * (length / size) if size else row
                pieces = torch.split(step, [p.numel() for p in shared])
                for p, old, piece in zip(shared, there, pieces, strict=True):
                    p.copy_(old - piece.view_as(old))
                torch.manual_seed(k)
                after = _values(losses(model, fresh))
                for judged in tasks:
                    value = before[judged]
                    fall = 100 * (value - after[judged]) / abs(value) if value else 0.0
                    falls[mover, judged].append(fall)
            for p, old in zip(shared, there, strict=True):
                p.copy_(old)
    finally:
        for p, old in zip(shared, there, strict=True):
            p.copy_(old)
    return Affinity({pair: _mean(values) for pair, values in falls.items()}, reach)


def _mean(values: Sequence[float]) -> Estimate:
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), spread, len(values) - 1)
