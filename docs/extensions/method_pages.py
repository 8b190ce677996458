"""A page for each method: its docstring in parts, and what the code knows about it.

Costs and promises come from the pieces of its recipes, values from calling it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import docstrings
from entries import directive
from names import METHODS, ROOT, link, slug
from paths import path_section
from values import table

from evenhand import aggregation, weighting
from evenhand.app.methods import traits
from evenhand.recipes import RECIPES, Recipe

OTHERS = re.compile(r"TorchJD|LibMTL|released|authors' code|other implementations", re.IGNORECASE)
"""What a paragraph about other implementations names."""


@cache
def users(method: type) -> tuple[Recipe, ...]:
    """The recipes that have the method in a slot, by itself or wrapped; plainest first."""
    found = []
    for entry in RECIPES:
        composition = next(iter(entry.compose(("a", "b", "c")).values()))
        slots = [composition.weighting, composition.aggregator]
        held = [type(part) for part_of in slots if part_of for part in part_of.modules()]
        if method in held:
            found.append((len(held), held.index(method), len(found), entry))
    return tuple(entry for *_, entry in sorted(found, key=lambda item: item[:3]))


def method_page(name: str, method: type) -> str:
    """The page of one method."""
    doc = inspect.getdoc(method) or ""
    parts = docstrings.sections(doc)
    theory = [block for part in parts if not part.name for block in _blocks(part.text)]
    first, *rest = theory
    elsewhere = [block for block in rest if OTHERS.search(block)]
    body = [block for block in rest if block not in elsewhere]
    details = [docstrings.shown(part, link) for part in parts if part.name]
    return "\n\n".join(
        [
            f"# {name}",
            docstrings.block(first, link),
            _how_to_use(name, method),
            "## What it does",
            *(docstrings.block(block, link) for block in body),
            "## What it costs and promises",
            _costs(method),
            *path_section(entry.name for entry in users(method)),
            "## Values to check by hand",
            values(method),
            "## Where implementations disagree",
            *(
                [docstrings.block(block, link) for block in elsewhere]
                or ["No disagreement with another implementation is known to us."]
            ),
            "## Reference",
            directive("class", f"evenhand.{name}", method, "\n\n".join(details)),
            "",
        ]
    )


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, a formula kept with the sentence that leads to it."""
    held = ""
    for paragraph in docstrings.paragraphs(text):
        if held and paragraph.startswith(" "):
            held += "\n\n" + paragraph
            continue
        if held:
            yield held
        held = paragraph
    if held:
        yield held


def _how_to_use(name: str, method: type) -> str:
    recipes = users(method)
    lines = []
    if how := call(method):
        imports = ", ".join(sorted({"Balancer", name, *re.findall(r"\bMGDA\b", how)}))
        code = f"from evenhand import {imports}\n\nbalancer = Balancer({slot(method)}={how})"
        lines.append(f"```python\n{code}\n```")
    if recipes:
        names = ",".join(dict.fromkeys(["single-task", "sg", recipes[0].name]))
        lines.append(f"```sh\nevenhand compare digits --recipes {names}\n```")
    return "\n\n".join(lines)


def call(method: type) -> str:
    """How to make one with its defaults, "" where something must be given."""
    parameters = inspect.signature(method).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if not required:
        return f"{method.__name__}()"
    return f"{method.__name__}(MGDA())" if required == ["base"] else ""


def made(method: type) -> Any:
    """One with its defaults, round MGDA if it wraps another."""
    return method() if call(method) == f"{method.__name__}()" else method(weighting.MGDA())


def slot(method: type) -> str:
    """The slot in which the plainest recipe has it."""
    if method.__name__ in aggregation.__all__ or not users(method):
        return "aggregator"
    composition = next(iter(users(method)[0].compose(("a", "b", "c")).values()))
    slot = composition.weighting
    held = [] if slot is None else [type(part) for part in slot.modules()]
    return "weighting" if method in held else "aggregator"


def _costs(method: type) -> str:
    """A row for each recipe that has it."""
    recipes = users(method)
    if not recipes:
        return "No recipe has it by itself: compose it in a `Balancer` of your own."
    rows = ["| recipe | looks at | backward passes of a step on m tasks | promises |"]
    rows.append("|---|---|---|---|")
    for entry in recipes:
        about = traits(entry)
        promises = ", ".join(about.guarantees) or "–"
        rows.append(f"| `{entry.name}` | {about.needs} | {about.cost} | {promises} |")
    return "\n".join(
        [
            *rows,
            "",
            "*Feasible*: no task's loss rises to first order. *Scale-invariant*: multiplying a loss"
            " by a positive factor leaves the direction as it is. *Stateful*: it remembers earlier"
            f" steps, in `state_dict`. {_laws(method)}",
        ]
    )


def _laws(method: type) -> str:
    cases = [case.name for case in _cases() if _is_case_of(case, method)]
    if not cases:
        return ""
    names = ", ".join(f"`{case}`" for case in cases)
    return (
        f"The laws of `tests/test_laws.py` hold it to its promises, as {names}, and to those that "
        "every method obeys: order of the tasks, finite weights for zero, duplicate, huge and tiny "
        "gradients, missing tasks, resuming bit for bit."
    )


@cache
def _cases() -> tuple[Any, ...]:
    sys.path.insert(0, str(ROOT / "tests"))
    cases: tuple[Any, ...] = importlib.import_module("cases").CASES
    return cases


def _is_case_of(case: Any, method: type) -> bool:
    made = case.make(tuple(f"t{i}" for i in range(case.tasks[-1])))
    return method in {type(part) for part in made.modules()}


def values(method: type) -> str:
    """A table of values, for a method that can be made without arguments and serves two tasks."""
    serves_two = any(2 in case.tasks for case in _cases() if _is_case_of(case, method))
    if not call(method) or not serves_two:
        return "See the example below: its arguments depend on the tasks."
    return table(slot(method), lambda: made(method))


def methods_index() -> str:
    rows = [
        "| method | in one line | looks at | passes of a step on m tasks |",
        "|---|---|---|---|",
    ]
    for name, method in sorted(METHODS.items(), key=lambda item: item[0].lower()):
        recipes = users(method)
        about = traits(recipes[0]) if recipes else None
        summary = recipes[0].summary if recipes else _first_sentence(method)
        cells = [
            f"[{name}]({slug(name)}.md)",
            summary,
            about.needs if about else "as its base",
            about.cost if about else "as its base",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    pages = "\n".join(sorted(map(slug, METHODS)))
    return (
        "# Methods\n\n"
        "A page for each, made from its docstring. [Which one when](../which.md) compares them; "
        "`evenhand methods` lists the recipes in a terminal.\n\n"
        + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )


def _first_sentence(method: type) -> str:
    return docstrings.prose(
        (inspect.getdoc(method) or "").split("\n\n")[0].replace("\n", " "), link
    )
