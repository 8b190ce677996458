"""`diagnose`: what gradients say of any model, losses and loader, at several times in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evenhand.arguments import checked
from evenhand.autodiff.gradients import NonFiniteError
from evenhand.doctor.looks import Look, Losses, has_metric, look

BATCHES = 16
"""How many batches a look takes."""
Factory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Parameters -> optimizer, e.g. ``partial(torch.optim.Adam, lr=1e-3)``."""


class DivergedError(ValueError):
    """The training in which gradients were to be looked at has diverged."""


@dataclass(frozen=True)
class Diagnosis:
    """What was seen, from the first look to the last.

    Gradients are evidence and no verdict: they cannot tell a conflict that costs something from one
    that training resolves. `evenhand.doctor.ladder` can.
    """

    looks: tuple[Look, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return self.looks[0].whole.tasks

    @property
    def without_signal(self) -> tuple[str, ...]:
        """The tasks whose mean gradient could not be told from 0 in any look."""
        told = [look.whole.signal for look in self.looks]
        return tuple(t for k, t in enumerate(self.tasks) if not any(s[k] for s in told))

    @property
    def opposed(self) -> tuple[tuple[str, str], ...]:
        """The pairs whose mean gradients surely oppose each other in some look."""
        return tuple(dict.fromkeys(pair for look in self.looks for pair in look.whole.opposed))

    @property
    def aligned(self) -> tuple[tuple[str, str], ...]:
        """The pairs whose mean gradients surely agree in some look, and oppose in none."""
        found = dict.fromkeys(pair for look in self.looks for pair in look.whole.aligned)
        return tuple(pair for pair in found if pair not in self.opposed)

    @property
    def harmful_steps(self) -> tuple[tuple[str, str], ...]:
        """(mover, judged): steps of one task that surely raise the other's loss on fresh batches.

        In the last look; all pairs at once (Bonferroni).
        """
        fall = {p: e for p, e in self.looks[-1].ahead.fall.items() if p[0] != p[1]}
        return tuple(pair for pair, e in fall.items() if e.interval(len(fall)).high < 0)

    def __str__(self) -> str:
        from evenhand.doctor.words import gradient_sentences

        return "\n".join(gradient_sentences(self))


@checked
def diagnose(
    model: nn.Module,
    losses: Losses,
    batches: Iterable[Any],
    *,
    optimizer: Optimizer | None = None,
    train: Factory | None = None,
    steps: int = 0,
    looks: int = 3,
    number: int = BATCHES,
    reach: float = 0.01,
    seed: int = 0,
) -> Diagnosis:
    """Look at the gradients of a model's tasks, now or while a copy of it is trained.

    The model is not changed. Without `steps` it is looked at once, as it is. With `steps` a copy is
    trained on the plain sum of the losses, and looked at `looks` times from the first step to the
    last; the looks are at the same batches.

    Args:
        model: any module; several in a `torch.nn.ModuleList` if there are several.
        losses: (model, batch) -> {task: mean loss}. A task without a label in the batch is absent.
        batches: a loader. Its first `number` batches are looked at, and must be independent draws.
        optimizer: that of the model's own training so far: the cosines are then given in its metric
            as well. Not together with `steps`.
        train: makes the optimizer that trains the copy, ``partial(torch.optim.Adam, lr=1e-3)``;
            the looks after the first one are then given in its metric as well, where it divides by
            the root of a running size of the gradient (Adam, AdamW, NAdam, RAdam, RMSprop,
            Adagrad).
        steps: how many steps to train the copy.
        looks: how often to look, at least 2 where `steps` is given.
        number: how many batches a look takes, at least 4. Its memory is that of so many gradients
            per task.
        reach: ‖Δθ‖ / ‖θ‖ of the steps of the look-ahead.
        seed: of dropout while the copy is trained.

    Returns:
        A `Diagnosis`; ``print`` tells it in sentences.

    Raises:
        ValueError: an argument is out of range, or contradicts another; too few batches have labels
            of every task; nothing is shared.
        DivergedError: a ValueError: the training of the copy has diverged.
        NonFiniteError: a loss or gradient of the model as it is given is not finite.

    Example:
        >>> from evenhand import diagnose
        >>> trunk, a, b = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)
        >>> def losses(model, x):
        ...     z = model[0](x).tanh()
        ...     return {"a": (model[1](z) - x[:, :1]).square().mean(),
        ...             "b": (model[2](z) + x[:, :1]).square().mean()}
        >>> _ = torch.manual_seed(0)
        >>> found = diagnose(nn.ModuleList([trunk, a, b]), losses, torch.randn(8, 16, 3))
        >>> found.tasks, len(found.looks)
        (('a', 'b'), 1)
    """
    if number < 4:
        raise ValueError(f"number={number}: at least 4 batches are needed")
    if steps < 0 or (steps and looks < 2):
        raise ValueError(f"steps={steps}, looks={looks}: steps must be >= 0, and looks >= 2")
    if bool(steps) != (train is not None):
        raise ValueError("steps= and train= belong together: how long, and with what optimizer")
    if steps and optimizer is not None:
        raise ValueError("optimizer= is of the model as it is; train= makes the copy's")
    seen = list(islice(iter(batches), number))
    if not steps or train is None:
        return Diagnosis((look(model, losses, seen, optimizer=optimizer, reach=reach),))
    return watched(model, losses, seen, batches, train, steps, looks, reach, seed)


def watched(
    model: nn.Module,
    losses: Losses,
    seen: Sequence[Any],
    batches: Iterable[Any],
    train: Factory,
    steps: int,
    looks: int,
    reach: float = 0.01,
    seed: int = 0,
) -> Diagnosis:
    """Train a copy on `batches`, and look at it on others, `seen`; the rest as for `diagnose`."""
    copy = deepcopy(model)
    own = train(copy.parameters())
    marks = sorted({round(steps * k / (looks - 1)) for k in range(looks)})
    found: list[Look] = []
    drawn = _cycled(batches)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for step in range(steps + 1):
            if step in marks:
                metric = own if step and has_metric(own) else None
                with _diverged(step):
                    found.append(look(copy, losses, seen, optimizer=metric, step=step, reach=reach))
            if step < steps:
                _step(copy, losses, next(drawn), own)
    return Diagnosis(tuple(found))


@contextmanager
def _diverged(step: int) -> Iterator[None]:
    """Gradients that are not finite after steps are the training's fault."""
    try:
        yield
    except NonFiniteError as error:
        if not step:
            raise
        raise DivergedError(
            f"after {step} steps of the plain sum the gradients of "
            f"{', '.join(map(repr, error.tasks))} are not finite: take a smaller rate"
        ) from error


def _cycled(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError(
                "the batches ran out: give something that can be iterated again, such as a list "
                "or a DataLoader, not an iterator"
            )


def _step(model: nn.Module, losses: Losses, batch: Any, optimizer: Optimizer) -> None:
    present = [loss for loss in losses(model, batch).values() if loss is not None]
    if not present:
        return
    optimizer.zero_grad()
    torch.stack(present).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    optimizer.step()
