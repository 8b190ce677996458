"""What a recipe needs, costs and promises, read from the pieces it is composed of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from evenhand.autodiff.gradients import Place
from evenhand.recipes import Composition, Recipe
from evenhand.schedules import Clock, Phase
from evenhand.weighting.base import Method
from evenhand.weighting.state import Held
from evenhand.weighting.traits import dearest

TASKS = ("a", "b", "c")
FREE = ("nothing", "losses", "product")
"""Needs that do not take a pass for every task."""
PLACES: Mapping[Place, str] = {
    "parameters": "",
    "representation": " of the features",
    "last_layer": " of the last layer",
}


@dataclass(frozen=True)
class Traits:
    """A recipe's line in the table of methods.

    Attributes:
        needs: the most expensive thing it looks at, and where if not at all shared parameters.
        cost: backward passes of a step on m tasks, at most.
        guarantees: what it promises or keeps: "feasible" (g_i·v ≥ 0 for every task),
            "scale-invariant", "stateful".
    """

    needs: str
    cost: str
    guarantees: tuple[str, ...]


def traits(recipe: Recipe) -> Traits:
    """Of a recipe."""
    composition = next(iter(recipe.compose(TASKS).values()))
    methods = _methods(composition)
    for method in methods:
        method.require(composition.tasks)
    promises = {
        "feasible": bool(methods) and methods[-1].traits.feasible,
        "scale-invariant": any(method.traits.scale_invariant for method in methods),
        "stateful": any(_has_state(method, len(composition.tasks)) for method in methods),
    }
    return Traits(
        _needs(methods),
        _updates(recipe)
        + _passes(composition)
        + composition.network.cost
        + _moving(composition)
        + _networks(recipe),
        tuple(name for name, held in promises.items() if held),
    )


def told(recipe: Recipe) -> dict[str, Any]:
    """A recipe in JSON's types, with the options that it takes and their defaults."""
    found = traits(recipe)
    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in recipe.options().items()
    }
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "citation": recipe.citation,
        "needs": found.needs,
        "cost": found.cost,
        "promises": list(found.guarantees),
        "options": plain,
    }


def _methods(composition: Composition) -> list[Method]:
    slots = (composition.weighting, composition.aggregator)
    return [slot for slot in slots if slot is not None]


def _has_state(method: Method, tasks: int) -> bool:
    return bool(Held(method.init(tasks)).state_dict())


def _needs(methods: Sequence[Method]) -> str:
    needs = dearest("nothing", *(method.traits.needs for method in methods))
    looking = [method for method in methods if method.traits.needs == needs]
    if not looking or not looking[0].traits.reads_gradients:
        return needs
    name = needs.replace("gramian", "Gramian").replace("jacobian", "Jacobian")
    return name + PLACES.get(looking[0].at, " of chosen parameters")


def _passes(composition: Composition) -> str:
    """Backward passes of one update, as `differentiation` takes them in a `MultiTaskNetwork`."""
    methods = _methods(composition)
    places = {method.at for method in methods if method.traits.reads_gradients}
    if not places and composition.aggregator is None:
        passes = "1"
    elif "parameters" in places and all(m.traits.needs in FREE for m in methods):
        passes = "all heads + 2 trunks"
    elif "parameters" in places:
        passes = "all heads + m trunks"
    elif places <= {"representation"}:
        passes = "all heads + 1 trunk"
    else:
        passes = "all heads + m last layers + 1 trunk"
    further = max((method.traits.batches for method in methods), default=1) - 1
    more = f", m more on each of {further} further batches" if further else ""
    return passes + more + (", and 1 forward" if any(m.traits.after for m in methods) else "")


def _updates(recipe: Recipe) -> str:
    """How many updates a step makes, if more than one."""
    number = _in_tasks(lambda tasks: _phases(next(iter(recipe.compose(tasks).values())), 1))
    return f"{number} updates a step, each " if number else ""


def _networks(recipe: Recipe) -> str:
    """How many networks are trained, if more than one."""
    number = _in_tasks(recipe.compose)
    return f", in each of {number} networks" if number else ""


def _in_tasks(counted: Callable[[tuple[str, ...]], Sized]) -> str:
    """A number as it depends on that of the tasks, m; nothing if it is always one."""
    two, three = len(counted(TASKS[:2])), len(counted(TASKS))
    if two != three:
        return "m" if (two, three) == (2, 3) else f"{two}, {three}, … (for m = 2, 3, …)"
    return "" if three == 1 else str(three)


def _phases(composition: Composition, calls: int) -> list[Phase]:
    """What the first calls of the schedule say."""
    clocks = (Clock(epoch=time, step=time) for time in range(calls))
    return [p for clock in clocks for p in composition.schedule(clock, composition.tasks)]


def _moving(composition: Composition, calls: int = 60) -> str:
    """How often trunk and heads move, where it is not always."""
    phases = _phases(composition, calls)
    trunk, heads = (
        sum(block in phase.trains for phase in phases) / len(phases) for block in ("shared", "own")
    )
    if (trunk, heads) == (1, 1):
        return ""
    return f"; trunk trains {trunk:.0%} of the time, heads {heads:.0%}"
