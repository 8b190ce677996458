"""Pages that are made from the code: one for each method, the API reference, the papers.

They are written into docs/methods, docs/api and docs/papers before Sphinx reads its sources; git
ignores them. Nothing in them is typed by hand that the code knows: formulas and disagreements come
from the docstrings, costs and promises from the pieces, values from calling them, and the figures
are drawn from the paths in benchmarks/results/landscape.json.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import docstrings
import torch
from sphinx.application import Sphinx
from torch import nn

import evenhand
from evenhand import aggregation, weighting
from evenhand.app import figures, landscape
from evenhand.app.methods import traits
from evenhand.data.toy import Paths
from evenhand.recipes import RECIPES, Recipe

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
MADE = ("methods", "api", "papers")
PATHS = ROOT / "benchmarks" / "results" / "landscape.json"


def _is_method(thing: Any) -> bool:
    kinds = evenhand.Weighting | evenhand.Aggregator
    return inspect.isclass(thing) and issubclass(thing, kinds) and not inspect.isabstract(thing)


METHODS: dict[str, type] = {
    name: getattr(room, name)
    for room in (weighting, aggregation)
    for name in room.__all__
    if _is_method(getattr(room, name))
}
OTHERS = re.compile(r"TorchJD|LibMTL|released|authors' code|other implementations", re.IGNORECASE)
"""What a paragraph about other implementations names."""


def write_all(app: Sphinx | None = None) -> None:
    """Make every page anew."""
    for folder in MADE:
        shutil.rmtree(DOCS / folder, ignore_errors=True)
        (DOCS / folder).mkdir()
    for name, method in METHODS.items():
        (DOCS / "methods" / f"{slug(name)}.md").write_text(method_page(name, method))
    (DOCS / "methods" / "index.md").write_text(methods_index())
    write_figures()
    for room, modules in rooms().items():
        (DOCS / "api" / f"{room}.md").write_text(api_page(room, modules))
    (DOCS / "api" / "index.md").write_text(api_index())
    copy_papers()


def slug(name: str) -> str:
    return name.lower()


# A method's page ------------------------------------------------------------------------------


@cache
def users(method: type) -> tuple[Recipe, ...]:
    """The recipes that have the method in a slot, by itself or wrapped; plainest first."""
    found = []
    for entry in RECIPES:
        composition = next(iter(entry.compose(("a", "b", "c")).values()))
        slots = [composition.weighting, composition.aggregator]
        held = [type(part) for slot in slots if slot is not None for part in slot.modules()]
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
            *_path_section(method),
            "## Values to check by hand",
            _values(name, method),
            "## Where implementations disagree",
            *(
                [docstrings.block(block, link) for block in elsewhere]
                or ["No disagreement with another implementation is known to us."]
            ),
            "## Reference",
            _directive("class", f"evenhand.{name}", method, "\n\n".join(details)),
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
    call = _call(method)
    if call:
        slot = _slot(method)
        imports = ", ".join(sorted({"Balancer", name, *re.findall(r"\bMGDA\b", call)}))
        code = f"from evenhand import {imports}\n\nbalancer = Balancer({slot}={call})"
        lines.append(f"```python\n{code}\n```")
    if recipes:
        names = ",".join(dict.fromkeys(["single-task", "sg", recipes[0].name]))
        lines.append(f"```sh\nevenhand compare digits --recipes {names}\n```")
    return "\n\n".join(lines)


def _call(method: type) -> str:
    """How to make one with its defaults, "" where something must be given."""
    parameters = inspect.signature(method).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if not required:
        return f"{method.__name__}()"
    return f"{method.__name__}(MGDA())" if required == ["base"] else ""


def _slot(method: type) -> str:
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


# Values ---------------------------------------------------------------------------------------

EXAMPLES: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "at right angles": ((2.0, 0.0), (0.0, 1.0)),
    "in conflict": ((2.0, 0.0), (-1.0, 1.0)),
    "of one direction": ((3.0, 0.0), (1.0, 0.0)),
}
LOSSES = (1.0, 2.0)


@dataclass(frozen=True)
class Value:
    """What a method makes of two gradients at its first call."""

    weights: list[float] | None
    direction: list[float]


class _Point(nn.Module):
    """A trunk that gives its one parameter, θ = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: None) -> torch.Tensor:
        return self.theta.clone()


class _Linear(nn.Module):
    """A head that is a loss, linear in θ."""

    def __init__(self, at_zero: float, gradient: tuple[float, float]) -> None:
        super().__init__()
        self.at_zero = at_zero
        self.gradient = torch.tensor(gradient, dtype=torch.float64)

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        return self.at_zero + (self.gradient * theta).sum()


def value(slots: Mapping[str, Any], rows: tuple[tuple[float, float], ...]) -> Value:
    """By a balancer, on losses that are linear in θ, so that their gradients are `rows`."""
    heads = {task: _Linear(*loss) for task, *loss in zip("ab", LOSSES, rows, strict=True)}
    network = evenhand.MultiTaskNetwork(_Point(), heads)
    (theta,) = network.parameters()
    balancer = evenhand.Balancer(**slots, tasks=("a", "b"), model=network)
    further = max((method.traits.batches for method in balancer.methods), default=1) - 1
    outputs, samples = network(None), [network(None) for _ in range(further)]
    clock = evenhand.Clock()
    balance = balancer.backward(outputs, features=outputs.features, samples=samples, clock=clock)
    weights = balance.trunk_weights
    return Value(None if weights is None else weights.tolist(), theta.grad.tolist())


def _values(name: str, method: type) -> str:
    two = any(2 in case.tasks for case in _cases() if _is_case_of(case, method))
    if not _call(method) or not two:
        return "See the example below: its arguments depend on the tasks."
    rows = [
        "| gradients | g_1 | g_2 | weights | direction v | g_1·v | g_2·v |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [row.replace("g_1", "{formula}`g_1`").replace("g_2", "{formula}`g_2`") for row in rows]
    rows[0] = rows[0].replace("{formula}`g_1`·v", "{formula}`g_1·v`")
    rows[0] = rows[0].replace("{formula}`g_2`·v", "{formula}`g_2·v`")
    for kind, gradients in EXAMPLES.items():
        part = METHODS[name]() if _call(method) == f"{name}()" else METHODS[name](weighting.MGDA())
        found = value({_slot(method): part}, gradients)
        inner = [sum(a * b for a, b in zip(g, found.direction, strict=True)) for g in gradients]
        weights = "–" if found.weights is None else _vector(found.weights)
        cells = [
            kind,
            *map(_vector, gradients),
            weights,
            _vector(found.direction),
            *map(_number, inner),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "What a fresh `Balancer` makes of two gradients at its first call, with losses 1 and 2"
            " and the method's defaults:",
            "",
            *rows,
        ]
    )


def _number(value: float) -> str:
    text = f"{value:.4g}" if abs(value) > 5e-7 else "0"
    return text.replace("-", "−")


def _vector(values: Any) -> str:
    return f"({', '.join(map(_number, values))})"


# The landscape --------------------------------------------------------------------------------


@cache
def _walked() -> dict[str, Paths]:
    if not PATHS.exists():
        raise FileNotFoundError(f"{PATHS}: make it with `python benchmarks/landscape.py`")
    kept = json.loads(PATHS.read_text())
    every = kept["setting"]["every"]
    found = {}
    for name, points in kept["paths"].items():
        theta = torch.tensor(points, dtype=torch.float64)
        found[name] = Paths(torch.arange(len(theta)) * every, theta, torch.empty(0))
    return found


def _path_section(method: type) -> list[str]:
    """A figure for each way that its recipes go; equal ways are drawn once."""
    ways: list[tuple[torch.Tensor, list[str]]] = []
    for entry in users(method):
        if entry.name not in _walked():
            continue
        theta = _walked()[entry.name].theta
        same = [names for way, names in ways if torch.equal(way, theta)]
        if same:
            same[0].append(entry.name)
        else:
            ways.append((theta, [entry.name]))
    if not ways:
        return []
    told = [
        f"{', '.join(f'`{name}`' for name in others)} {'goes' if len(others) == 1 else 'go'} where "
        f"`{first}` goes."
        for _, (first, *others) in ways
        if others
    ]
    shown = "\n".join(
        f"```{{image}} figures/{names[0]}.svg\n:alt: where {names[0]} goes on the toy landscape\n"
        ":class: landscape\n```"
        for _, names in ways
    )
    about = (
        "Two losses in conflict over two parameters, from five starts (dots); the thick line is"
        " the Pareto set, stars are where 3,500 steps of Adam end."
    )
    return ["## Its path on the toy landscape", " ".join([about, *told]), shown]


def write_figures() -> None:
    """A small figure for each recipe that has a path."""
    folder = DOCS / "methods" / "figures"
    folder.mkdir()
    for name, path in _walked().items():
        with figures.style(name):
            figure = landscape.draw({name: path})
            figure.legends.clear()  # the page says what the marks are
            figures.save(figure, folder / f"{name}.svg")


# Lists ----------------------------------------------------------------------------------------


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


# The API reference ----------------------------------------------------------------------------

TITLES = {
    "balancer": "The balancer",
    "network": "Networks",
    "autodiff": "Gradients: `autodiff`",
    "weighting": "Weightings: `weighting`",
    "aggregation": "Aggregators: `aggregation`",
    "linalg": "Solvers: `linalg`",
    "schedules": "Schedules: `schedules`",
    "training": "Training: `training`",
    "ensemble": "Ensembles: `ensemble`",
    "recipes": "Recipes",
    "data": "Problems and data: `data`",
    "comparison": "Comparisons: `comparison`",
}
LEFT_OUT = ("app", "public", "lazy")
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


def api_page(room: str, modules: tuple[ModuleType, ...]) -> str:
    parts = [f"# {TITLES.get(room, room.capitalize())}"]
    for module in modules:
        own = [(name, thing) for name, thing in members(module) if not _has_page(name, thing)]
        if not own and module.__name__ != f"evenhand.{room}":
            continue
        if len(modules) > 1 and module.__name__ != f"evenhand.{room}":
            parts.append(f"## `{module.__name__}`")
        about = inspect.getdoc(module)
        if about:
            parts.append(docstrings.markdown(about, link))
        parts += [_member(name, thing) for name, thing in own]
    if room in ("weighting", "aggregation"):
        named = [name for name in METHODS if _room_of(METHODS[name]) == room]
        parts.append("## Methods\n\nEach has [a page](../methods/index.md):")
        parts.append(", ".join(f"[{name}](../methods/{slug(name)}.md)" for name in sorted(named)))
    return "\n\n".join(parts) + "\n"


def _room_of(thing: Any) -> str:
    return str(thing.__module__.split(".")[1])


def _has_page(name: str, thing: Any) -> bool:
    return METHODS.get(name) is thing


def _member(name: str, thing: Any) -> str:
    kind = "class" if inspect.isclass(thing) else "function"
    content = docstrings.markdown(inspect.getdoc(thing) or "", link)
    if kind == "class":
        content += "".join(f"\n\n{method}" for method in _methods(thing))
    return _directive(kind, full_name(name, thing), thing, content)


def _methods(thing: type) -> Iterator[str]:
    for name, part in vars(thing).items():
        plain = part.__func__ if isinstance(part, classmethod | staticmethod) else part
        if name.startswith("_"):
            continue
        if isinstance(part, property) and part.__doc__:
            text = docstrings.markdown(inspect.cleandoc(part.__doc__), link)
            yield _fenced("py:attribute", name, [], text, colons=4)
        elif inspect.isfunction(plain) and plain.__doc__:
            text = docstrings.markdown(inspect.cleandoc(plain.__doc__), link)
            arguments = signature(plain, bound=not isinstance(part, staticmethod))
            yield _fenced("py:method", name + arguments, [], text, colons=4)


def full_name(name: str, thing: Any) -> str:
    """Where users import it from."""
    if getattr(evenhand.public, name, None) is thing and name in evenhand.public.__all__:
        return f"evenhand.{name}"
    return f"{thing.__module__}.{name}"


def _directive(kind: str, name: str, thing: Any, content: str) -> str:
    options = []
    if f"{thing.__module__}.{thing.__name__}" != name:
        options.append(f":canonical: {thing.__module__}.{thing.__name__}")
    return _fenced(f"py:{kind}", name + signature(thing), options, content)


def _fenced(
    directive: str, argument: str, options: list[str], content: str, colons: int = 5
) -> str:
    fence = ":" * colons
    head = "\n".join([f"{fence}{{{directive}}} {argument}", *options])
    return f"{head}\n\n{content}\n{fence}"


def signature(thing: Any, bound: bool = False) -> str:
    """The arguments as the source writes them, without `self`."""
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except ValueError:  # what is written in C tells no signature
        return ""
    parameters = parameters[1:] if bound else parameters
    shown = []
    star = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        star |= p.kind is p.VAR_POSITIONAL
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        text = prefix + p.name
        if p.default is not p.empty:
            text += f"={_default(p.default)}"
        shown.append(text)
    return f"({', '.join(shown)})"


def _default(value: Any) -> str:
    text = repr(value)
    return "…" if "<" in text or len(text) > 30 else text


def api_index() -> str:
    pages = "\n".join(rooms())
    return (
        "# API reference\n\nMade from the docstrings, in the order of the stair that data walks "
        "down. Public names are imported from `evenhand` itself; they are on the pages of their "
        f"rooms.\n\n{_public_list()}\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )


def _public_list() -> str:
    by_room: dict[str, list[str]] = {}
    for name in sorted(evenhand.public.__all__, key=str.lower):
        thing = getattr(evenhand.public, name)
        by_room.setdefault(_room_of(thing), []).append(link(name))
    order = [*TITLES, *sorted(set(by_room) - set(TITLES))]
    return "\n".join(
        f"- [{TITLES.get(room, room)}]({room}.md): {', '.join(by_room[room])}"
        if room in by_room
        else f"- [{TITLES.get(room, room)}]({room}.md)"
        for room in order
        if room in rooms()
    )


# Names in docstrings --------------------------------------------------------------------------


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


# The papers -----------------------------------------------------------------------------------


def copy_papers() -> None:
    """The papers' pages, with the files that they link to."""
    for page in [ROOT / "papers" / "README.md", *sorted((ROOT / "papers").glob("*/README.md"))]:
        text = page.read_text()
        to = DOCS / page.relative_to(ROOT)
        to.parent.mkdir(exist_ok=True)
        for target in re.findall(r"\]\(([^):#]+)\)", text):
            if not target.endswith(".md"):
                (to.parent / target).parent.mkdir(exist_ok=True)
                shutil.copy(page.parent / target, to.parent / target)
        to.with_name("index.md").write_text(text.replace("README.md)", "index.md)"))
    folders = sorted(path.parent.name for path in (DOCS / "papers").glob("*/index.md"))
    pages = "\n".join(f"{folder}/index" for folder in folders)
    with (DOCS / "papers" / "index.md").open("a") as index:
        index.write(f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
