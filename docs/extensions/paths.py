"""Where methods go on the toy landscape, drawn from the committed walk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache

import torch
from names import DOCS, ROOT

from evenhand.app import figures, landscape
from evenhand.data.toy import Paths

PATHS = ROOT / "benchmarks" / "results" / "landscape.json"


@cache
def walked() -> dict[str, Paths]:
    if not PATHS.exists():
        raise FileNotFoundError(f"{PATHS}: make it with `python benchmarks/landscape.py`")
    kept = json.loads(PATHS.read_text())
    every = kept["setting"]["every"]
    found = {}
    for name, points in kept["paths"].items():
        theta = torch.tensor(points, dtype=torch.float64)
        found[name] = Paths(torch.arange(len(theta)) * every, theta, torch.empty(0))
    return found


def path_section(recipes: Iterable[str]) -> list[str]:
    """A figure for each way that its recipes go; equal ways are drawn once."""
    ways: list[tuple[torch.Tensor, list[str]]] = []
    for entry in recipes:
        if entry not in walked():
            continue
        theta = walked()[entry].theta
        same = [names for way, names in ways if torch.equal(way, theta)]
        if same:
            same[0].append(entry)
        else:
            ways.append((theta, [entry]))
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
    for name, path in walked().items():
        with figures.style(name):
            figure = landscape.draw({name: path})
            figure.legends.clear()  # the page says what the marks are
            figures.save(figure, folder / f"{name}.svg")
