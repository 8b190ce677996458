"""What the package holds, and how pages link to it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import evenhand
from evenhand import aggregation, estimators, weighting

DOCS = Path(__file__).parents[1]


ROOT = DOCS.parent


def is_method(thing: Any) -> bool:
    kinds = evenhand.Weighting | evenhand.Aggregator
    return inspect.isclass(thing) and issubclass(thing, kinds) and not inspect.isabstract(thing)


METHODS: dict[str, type] = {
    name: getattr(room, name)
    for room in (weighting, aggregation)
    for name in room.__all__
    if is_method(getattr(room, name))
}


ESTIMATORS = tuple(getattr(estimators, name) for name in estimators.__all__)
"""Public without being in `evenhand.public`, since they need an extra."""


def slug(name: str) -> str:
    return name.lower()


TITLES = {
    "balancer": "The balancer",
    "network": "Networks",
    "sharing": "Networks for each task: `sharing`",
    "autodiff": "Gradients: `autodiff`",
    "weighting": "Weightings: `weighting`",
    "aggregation": "Aggregators: `aggregation`",
    "linalg": "Solvers: `linalg`",
    "schedules": "Schedules: `schedules`",
    "training": "Training: `training`",
    "ensemble": "Ensembles: `ensemble`",
    "recipes": "Recipes",
    "data": "Problems and data: `data`",
    "tables": "Tables: `tables`",
    "comparison": "Comparisons: `comparison`",
    "estimators": "Estimators for scikit-learn",
}


LEFT_OUT = ("app", "public")
"""The tool, which is no library, and what only arranges names."""


@cache
def rooms() -> dict[str, tuple[ModuleType, ...]]:
    """The modules of each room, in the order of the stair; rooms unknown here come last."""
    found: dict[str, list[ModuleType]] = {name: [] for name in TITLES}
    for info in pkgutil.walk_packages(evenhand.__path__, "evenhand."):
        room = info.name.split(".")[1]
        if room not in LEFT_OUT and not info.name.rpartition(".")[2].startswith("_"):
            found.setdefault(room, []).append(importlib.import_module(info.name))
    return {room: tuple(modules) for room, modules in found.items() if modules}


def members(module: ModuleType) -> list[tuple[str, Any]]:
    """The public classes and functions that a module defines, in its order."""
    return [
        (name, thing)
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
        and inspect.getdoc(thing)
    ]


def room_of(thing: Any) -> str:
    return str(thing.__module__.split(".")[1])


def full_name(name: str, thing: Any) -> str:
    """Where users import it from."""
    public = getattr(evenhand.public, name, None) is thing and name in evenhand.public.__all__
    if public or thing in ESTIMATORS:
        return f"evenhand.{name}"
    return f"{thing.__module__}.{name}"


@cache
def _known() -> dict[str, str]:
    """The full name of everything that has an entry, by each name that docstrings use."""
    found: dict[str, str] = {}
    for modules in rooms().values():
        for module in modules:
            for name, thing in members(module):
                full = full_name(name, thing)
                room = module.__name__.removeprefix("evenhand.")
                for known in (name, f"{room}.{name}", f"{room.split('.')[0]}.{name}"):
                    found.setdefault(known, full)
    return found


def link(code: str) -> str:
    """What stands in backticks: a link where there is an entry of that name."""
    full = _known().get(code.removesuffix("()").removeprefix("evenhand."))
    return f"{{py:obj}}`{code} <{full}>`" if full else f"`{code}`"
