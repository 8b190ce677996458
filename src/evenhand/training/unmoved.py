"""What a training would silently not train, told before its first step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from evenhand.network import MultiTaskNetwork
from evenhand.schedules import Clock, Phase, Schedule, Stateless
from evenhand.text import NAME, plain
from evenhand.training.steps import NetworkStepper, Steps

LOOKED_AT = 200
"""How many epochs, and how many steps of the first, a schedule is asked about."""


def require_moving(steps: Steps, stepper: NetworkStepper) -> None:
    """See that every parameter that requires a gradient has an optimizer and a phase.

    A schedule that learns from records is not asked: what it will do is not known. Nor is one that
    was told for how many epochs each block trains (`alternate_epochs`).

    Raises:
        ValueError: learned weights, or parameters, have no optimizer; the optimizers are another
            network's; or no phase trains the trunk, or some task. The message says what would be
            right; what is to rest for good has ``requires_grad_(False)``.
    """
    stepped = {
        id(parameter)
        for optimizer in stepper.optimizers.named().values()
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    learned = list(stepper.balancer.parameters())
    own = {n: p for n, p in stepper.network.named_parameters() if p.requires_grad}
    if any(id(weight) not in stepped for weight in learned):
        names = [type(m).__name__ for m in stepper.balancer.methods if m.traits.learned]
        raise ValueError(
            f"no optimizer has the learned weights of {' and '.join(names)}: make the optimizers "
            "with learned=balancer.parameters() of this training's balancer"
        )
    if stepped and stepped.isdisjoint(map(id, own.values())) and own:
        raise ValueError(
            "the optimizers are of another network: make them of network.blocks() of the network "
            "that is trained"
        )
    if lost := [name for name, parameter in own.items() if id(parameter) not in stepped]:
        raise ValueError(
            f"no optimizer has {_several(lost)}: make the optimizers of network.blocks(), or call "
            "requires_grad_(False) on what is to rest"
        )
    _require_shared(stepper)
    _require_phases(steps, stepper.network)


def _require_shared(stepper: NetworkStepper) -> None:
    """See that what wants shared parameters has some.

    Raises:
        ValueError: the network has none, and a method merges gradients of shared parameters, or
            looks at them.
    """
    if len(stepper.tasks) == 1 or stepper.shares:
        return
    aggregator = stepper.balancer.aggregator
    looking = [m for m in stepper.balancer.methods if m.traits.reads_gradients]
    if aggregator is not None or looking:
        name = type(looking[0] if aggregator is None else aggregator).__name__
        raise ValueError(
            f"{name} balances the gradients of shared parameters, and no parameter of this network "
            f"({type(stepper.network).__name__}) is reached by two tasks: the tasks' gradients "
            "never meet. Weightings that look at losses alone can be used: they weigh each loss "
            "against the penalty"
        )


def _require_phases(steps: Steps, network: MultiTaskNetwork) -> None:
    schedule = steps.schedule
    learns = type(schedule).observe is not Schedule.observe
    counted = isinstance(schedule, Stateless) and schedule.counted
    if learns or counted or schedule.state_dict():
        return
    phases = list(_phases(steps))
    blocks = network.blocks()
    if _trainable(blocks.shared) and not any("shared" in phase.trains for phase in phases):
        raise ValueError(
            f"no phase of {schedule!r} trains the shared parameters: let one move "
            "'shared', or call requires_grad_(False) on them"
        )
    spoken = {task for phase in phases for task in phase.tasks}
    if silent := [task for task in steps.tasks if task not in spoken]:
        raise ValueError(
            f"no phase of {schedule!r} has a loss of {_several(silent)}: name the task in "
            "a phase, or leave it out of tasks="
        )
    moved = {task for phase in phases if "own" in phase.trains for task in phase.tasks}
    frozen = [t for t in steps.tasks if t not in moved and _trainable(blocks.own.get(t, ()))]
    if frozen:
        raise ValueError(
            f"no phase of {schedule!r} trains the own parameters of {_several(frozen)}: "
            "let one move 'own', or call requires_grad_(False) on them"
        )


def _phases(steps: Steps) -> Iterator[Phase]:
    """The phases of the first steps, and of the first step of the first epochs."""
    each = len(steps.stepper.stream)
    epochs = range(LOOKED_AT)
    clocks = [Clock(epoch, epoch * each, steps.seed) for epoch in epochs]
    clocks += [Clock(0, step, steps.seed) for step in range(1, min(each, LOOKED_AT))]
    for clock in clocks:
        yield from steps.schedule(clock, steps.tasks)


def _trainable(parameters: tuple[Tensor, ...] | list[Tensor]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def _several(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(plain(name, NAME) for name in names[:3]) + more
