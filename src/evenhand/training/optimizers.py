"""Which optimizer a phase steps, and at which rate.

One for the shared parameters (or one per group, each with moments of its own: independent task
steps), one for all tasks' own parameters (or one per task), one for learned task weights. What
is frozen has `.grad` None, and an optimizer leaves such parameters and their moments alone, so no
momentum, decay or statistics move them.

The rate of an optimizer follows its own schedule; what a plateau takes off multiplies whatever
the schedule says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from evenhand.arguments import checked, require_fields
from evenhand.network import Blocks
from evenhand.schedules import Phase

Groups = list[dict[str, Any]]
Factory = Callable[[Groups], Optimizer]
"""Parameter groups -> optimizer, e.g. ``partial(torch.optim.SGD, lr=0.1, momentum=0.9)``."""
Rate = Callable[[Optimizer], LRScheduler]
"""Optimizer -> schedule of its rate, e.g. ``partial(lr_scheduler.StepLR, step_size=30)``."""


@dataclass(frozen=True)
class Scheduled:
    """An optimizer whose learning rate follows a schedule of `torch.optim.lr_scheduler`.

    Args:
        optimizer: makes the optimizer.
        rate: makes the schedule.
        every: what the schedule counts: "epoch", all epochs whatever trains in them, or "step",
            this optimizer's own steps.

    Example:
        >>> from torch.optim import SGD, lr_scheduler
        >>> halving = Scheduled(partial(SGD, lr=0.1), partial(lr_scheduler.StepLR, step_size=30))
    """

    optimizer: Factory
    rate: Rate
    every: Literal["epoch", "step"] = "epoch"

    def __post_init__(self) -> None:
        require_fields(self)
        if self.every not in ("epoch", "step"):
            raise ValueError(f"every={self.every!r}: must be 'epoch' or 'step'")


@dataclass(frozen=True)
class _Diminishing:
    """k -> (1 + k/over)^−power. An object, so that a checkpoint holds its numbers."""

    power: float
    over: float

    def __call__(self, k: int) -> float:
        return float((1 + k / self.over) ** -self.power)


@checked
def diminishing(power: float = 0.75, over: float = 1.0) -> Rate:
    """α_k = α_0 / (1 + k/over)^power, which meets Σ α_k = ∞ and Σ α_k² < ∞.

    These are the conditions under which alternate training converges, liminf ‖∇ℓ‖ = 0 almost
    surely: Bellavia, Della Santa & Papini (arXiv 2312.16340), Theorem 3.3 for `alternate_steps`
    and Theorem 3.5 for `alternate_epochs`. They ask it of each block's own steps k:
    ``Scheduled(…, diminishing(), every="step")`` for shared and own parameters.

    Args:
        power: above ½, or Σ α_k² diverges, and at most 1, or Σ α_k converges.
        over: how many steps (or epochs) it takes for the rate to fall to 2^−power of α_0.

    Raises:
        ValueError: `power` or `over` is out of range.
    """
    if not 0.5 < power <= 1:
        raise ValueError(f"power={power}: must lie above 1/2 and be at most 1")
    if not (math.isfinite(over) and over > 0):
        raise ValueError(f"over={over}: must be a positive number")
    return partial(LambdaLR, lr_lambda=_Diminishing(power, over))


class _Part:
    """An optimizer, the schedule of its rate, and how far a plateau has reduced that."""

    def __init__(
        self, make: Factory | Scheduled, parameters: list[Tensor], tasks: Iterable[str] = ()
    ) -> None:
        self.factory = make.optimizer if isinstance(make, Scheduled) else make
        self.tasks = frozenset(tasks)
        self.optimizer = self.factory([{"params": parameters}])
        self.schedule: LRScheduler | None = None
        self.every = ""
        if isinstance(make, Scheduled):
            self.schedule, self.every = make.rate(self.optimizer), make.every
        if isinstance(self.schedule, ReduceLROnPlateau):
            raise TypeError("ReduceLROnPlateau needs a loss to watch: use stopping.Plateau instead")
        self.planned = self.rates()
        self.factor, self.floor = 1.0, 0.0

    def step(self) -> None:
        self.optimizer.step()
        self.advance("step")

    def advance(self, event: str) -> None:
        """Let the schedule of the rate go on, if `event` is what it counts."""
        if self.schedule is None or event != self.every:
            return
        self._set(self.planned)
        with warnings.catch_warnings():
            # Torch takes a schedule that steps before its optimizer for a mistake; here the
            # optimizer's block has rested so far.
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
            self.schedule.step()
        self.planned = self.rates()
        self._set(map(self._reduced, self.planned))

    def reduce(self, factor: float, floor: float) -> None:
        self.factor, self.floor = self.factor * factor, floor
        self._set(map(self._reduced, self.planned))

    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _reduced(self, rate: float) -> float:
        return max(rate * self.factor, min(rate, self.floor))

    def _set(self, rates: Iterable[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "planned": self.planned,
            "factor": self.factor,
            "floor": self.floor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.planned, self.factor, self.floor = state["planned"], state["factor"], state["floor"]


class Optimizers:
    """The optimizers of a run, by block.

    Args:
        blocks: whose each parameter is.
        shared: makes the optimizer of the shared parameters.
        own: makes the optimizer of all heads' own parameters, one parameter group (a fused
            optimizer pays for each). Or, for each head, what makes the optimizer of its own. By
            default as `shared`.
        weights: makes the optimizer of learned task weights. By default as `shared`.
        learned: the learned task weights.
        groups: how many optimizers the shared parameters have; phase.group says which one steps.
            One mixes the moments of all phases. A task's own parameters have one optimizer
            whatever the groups, so the moments of a head are always its own.

    Raises:
        ValueError: `own` names other heads than `blocks` does.
        TypeError: something is of another kind; the message names it.
    """

    @checked
    def __init__(
        self,
        blocks: Blocks,
        shared: Factory | Scheduled,
        own: Factory | Scheduled | Mapping[str, Factory | Scheduled] | None = None,
        *,
        weights: Factory | Scheduled | None = None,
        learned: Iterable[Tensor] = (),
        groups: int = 1,
    ) -> None:
        if groups < 1:
            raise ValueError(f"groups={groups}: must be at least 1, or nothing shared would move")
        trunk = [p for p in blocks.shared if p.requires_grad]
        heads = {
            task: [p for p in parameters if p.requires_grad]
            for task, parameters in blocks.own.items()
        }
        scalars = list(learned)
        self.shared, self.groups = shared, groups
        self.own = shared if own is None else own
        self.weights = weights or shared
        self._shared = [_Part(shared, trunk) for _ in range(groups if trunk else 0)]
        self._own = _own_parts(self.own, heads)
        self._weights = _Part(self.weights, scalars) if scalars else None
        alone = len(self._shared) == 1
        parts = {"shared" if alone else f"shared.{k}": p for k, p in enumerate(self._shared)}
        alone = len(self._own) == 1
        parts |= {"own" if alone else f"own.{min(p.tasks)}": p for p in self._own}
        self._parts = parts
        self._parameters = [*trunk, *chain(*heads.values()), *scalars]
        if self._weights is not None:
            self._parts["weights"] = self._weights
        self.initial_rates = self.rates()

    def named(self) -> dict[str, Optimizer]:
        """Every optimizer by a name: "shared" (or "shared.0", …), "own" (or "own.<task>", …),
        "weights".
        """
        return {name: part.optimizer for name, part in self._parts.items()}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self, phase: Phase) -> None:
        """Step what `phase` trains, and the learned weights.

        The phase is the network's: its `tasks` are heads.

        Raises:
            ValueError: the phase has a group for which there is no optimizer.
        """
        if "shared" in phase.trains and self._shared:
            self._of_group(phase.group).step()
        if "own" in phase.trains:
            for part in self._own:
                if not part.tasks.isdisjoint(phase.tasks):
                    part.step()
        if self._weights is not None:
            self._weights.step()

    def _of_group(self, group: int) -> _Part:
        if len(self._shared) == 1:
            return self._shared[0]
        if group >= len(self._shared):
            raise ValueError(
                f"a phase has group {group}, and the shared parameters have {len(self._shared)} "
                "optimizers: make one for each of schedule.groups(tasks), or one for all"
            )
        return self._shared[group]

    # Rates ------------------------------------------------------------------------------------

    def rates(self) -> dict[str, float]:
        """The learning rate of each optimizer (of its first group)."""
        return {name: part.rates()[0] for name, part in self._parts.items()}

    def end_epoch(self) -> None:
        """Let the schedules that count epochs go on."""
        for part in self._parts.values():
            part.advance("epoch")

    def scale_rates(self, factor: float, floor: float = 0.0) -> None:
        """From now on every rate is what its schedule says times one more `factor`.

        No rate is reduced below `floor`. Learned weights' rates are among them.
        """
        for part in self._parts.values():
            part.reduce(factor, floor)

    # State ------------------------------------------------------------------------------------

    def state_bytes(self) -> dict[str, int]:
        """The memory that each optimizer's state (moments, counts) takes now."""
        return {name: _held(optimizer) for name, optimizer in self.named().items()}

    def planned_state_bytes(self) -> dict[str, int]:
        """The memory that each optimizer's state will take, known before training.

        Found by a step of copies, one optimizer at a time. With a group for each of m tasks, Adam
        keeps 2 m numbers per shared parameter.
        """
        return {name: _planned(part.factory, part.optimizer) for name, part in self._parts.items()}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != set(self._parts):
            raise ValueError(
                f"the state is of optimizers {set(state)}, here are {set(self._parts)}"
            )
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def _own_parts(
    make: Factory | Scheduled | Mapping[str, Factory | Scheduled],
    heads: Mapping[str, list[Tensor]],
) -> list[_Part]:
    if isinstance(make, Mapping) and set(make) != set(heads):
        raise ValueError(
            f"own= has optimizers for {', '.join(sorted(make))}, "
            f"but the heads are {', '.join(sorted(heads))}: give one for each"
        )
    moving = {task: parameters for task, parameters in heads.items() if parameters}
    if isinstance(make, Mapping):
        return [_Part(make[task], parameters, [task]) for task, parameters in moving.items()]
    return [_Part(make, [*chain(*moving.values())], moving)] if moving else []


def _held(optimizer: Optimizer) -> int:
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _planned(factory: Factory, optimizer: Optimizer) -> int:
    def twin(parameter: Tensor) -> Tensor:
        copy = torch.zeros_like(parameter, requires_grad=True)
        copy.grad = torch.zeros_like(copy)
        return copy

    twins = [{"params": [twin(p) for p in group["params"]]} for group in optimizer.param_groups]
    made = factory(twins)
    made.step()
    return _held(made)
