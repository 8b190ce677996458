"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from evenhand.recipes import Recipe
from evenhand.sources import Source

if TYPE_CHECKING:
    from evenhand.app.findings import Column, Findings
    from evenhand.app.methods import Traits

WIDE = 160
"""Columns to write where nothing tells how wide the page is."""
ROOMY = 120
"""Columns from which on methods are listed in columns."""
GAP = 3
"""Columns between two columns of a table."""


def console(stderr: bool = False) -> Console:
    """Of the terminal's width, or wide enough for a table in a file or pipe."""
    plain = Console(stderr=stderr, highlight=False)
    return plain if plain.is_terminal else Console(stderr=stderr, highlight=False, width=WIDE)


def comparison(findings: Findings, width: int) -> Group:
    """The table of a comparison, in parts if it is wider than `width`, and what to be wary of."""
    from evenhand.app.findings import columns, notes

    spread = (
        "mean ± standard deviation over the seeds"
        if len(findings.comparison.settings.seeds) > 1
        else "one seed"
    )
    caption = Text(f"Test set, {spread}; validation chose rate and epoch.", style="dim")
    parts = (_part(columns) for columns in _fitting(columns(findings), width))
    return Group(*parts, caption, *(Text(f"• {note}") for note in notes(findings)))


def _fitting(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """The columns in groups no wider than `width`, each led by the first column."""
    first, *others = columns
    group, left = [first], width - _width(first)
    for column in others:
        if _width(column) > left and len(group) > 1:
            yield group
            group, left = [first], width - _width(first)
        group.append(column)
        left -= _width(column)
    yield group


def _width(column: Column) -> int:
    texts = (column.title, column.subtitle, *(cell.text for cell in column.cells))
    return max(map(len, texts)) + GAP


def _part(columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, GAP - 2, 0, 1), pad_edge=False)
    for position, column in enumerate(columns):
        head = Text(column.title, style="bold")
        head.append(f"\n{column.subtitle}", style="not bold dim")
        table.add_column(head, justify="right" if position else "left", vertical="bottom")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell.text, style="bold green" if cell.best else "") for cell in row))
    return table


def recipes(entries: Sequence[Recipe], width: int) -> Table:
    """What each recipe does, needs, costs and promises."""
    from evenhand.app.methods import traits

    if width < ROOMY:
        table = _list("recipe", "what it does, backward passes of a step on m tasks, source")
        for entry in entries:
            table.add_row(entry.name, _about(entry, _in_words(traits(entry))))
        return table
    cost = "backward passes\nof a step, m tasks"
    table = _list("recipe", "what it does", "looks at", cost, "promises")
    for entry in entries:
        about = traits(entry)
        promises = "\n".join(about.guarantees)
        table.add_row(entry.name, _about(entry), about.needs, about.cost, promises)
    return table


def _in_words(about: Traits) -> str:
    promises = f"; {', '.join(about.guarantees)}" if about.guarantees else ""
    return f"\nlooks at {about.needs}; passes: {about.cost}{promises}"


def sources(entries: Sequence[Source]) -> Table:
    """The data sets."""
    table = _list("data set", "what it is")
    for entry in entries:
        table.add_row(entry.name, _about(entry))
    return table


def _list(name: str, *headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, leading=1)
    table.add_column(name, no_wrap=True, style="bold")
    for header in headers:
        table.add_column(header)
    return table


def _about(entry: Recipe | Source, more: str = "") -> Text:
    return Text(entry.summary + more).append(f"\n{entry.citation}", style="dim")
