"""Tables for the terminal."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evenhand.comparison.request import BASELINE
from evenhand.recipes import Recipe
from evenhand.sources import Source
from evenhand.text import NAME, plain

if TYPE_CHECKING:
    from evenhand.app.findings import Column, Findings
    from evenhand.app.methods import Traits
    from evenhand.comparison.across import Across

WIDE = 160
"""Columns to write where nothing tells how wide the page is."""
ROOMY = 120
"""Columns from which on methods are listed in columns."""
SHOWN = {1: "bold green", 0: "", -1: "bold red"}
"""How a difference is written that is shown to be above zero, is not shown, or is below."""
DIFFERENT = 4
"""More different counts of labels than these are told as a range."""
GAP = 3
"""Columns between two columns of a table."""


def console(stderr: bool = False) -> Console:
    """Of the terminal's width, or wide enough for a table in a file or pipe."""
    plain = _Console(stderr=stderr, highlight=False)
    return plain if plain.is_terminal else _Console(stderr=stderr, highlight=False, width=WIDE)


class _Console(Console):
    """One that leaves it to the door what to say when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def comparison(findings: Findings, width: int, delta: bool = False) -> Group:
    """Verdict, table (in parts if it is wider than `width`), footnotes, and what to be wary of."""
    from evenhand.app.findings import MANY, columns, notes, task_table

    said = findings.verdict
    opening: list[RenderableType] = [
        _text(subject(findings), style="dim"),
        _text(said.headline, style="bold"),
        *(Padding(_text(sentence), (0, 0, 0, 2)) for sentence in said.sentences),
        *([_text(f"Next: {said.advice}")] if said.advice else []),
    ]
    parts: list[RenderableType] = []
    parts += [_part(columns) for columns in _fitting(columns(findings, delta), width)]
    if len(findings.problem.tasks) > MANY:
        worst = task_table(findings, findings.worst)
        told = f"The {len(findings.worst)} tasks that are worst together; the report has all:"
        parts += [_text(told, style="dim"), *(_part(c) for c in _fitting(worst, width))]
    foot = [f"* {' '.join(said.footnotes)}", labels(findings)]
    notes_told = (_text(f"• {note}") for note in notes(findings))
    return Group(*opening, *parts, *(_text(line, "dim") for line in foot), *notes_told)


def over_tables(found: Sequence[Across]) -> Group:
    """Each row against the plain sum, over many tables."""
    from evenhand.comparison.references import title
    from evenhand.comparison.verdict import signed

    shown = _list("row", "tables", "median difference", "better / worse", "p", "p by Holm")
    for entry in found:
        shown.add_row(
            _text(title(entry.name)),
            str(entry.tables),
            signed(entry.median),
            f"{entry.better} / {entry.worse}",
            f"{entry.p:.3g}",
            _text(f"{entry.adjusted:.3g}", style="bold" if entry.adjusted < 0.05 else ""),
        )
    caption = (
        f"Mean skill against {BASELINE}: Wilcoxon's signed-rank test over the tables, two-sided, "
        "exact; Holm's correction over the rows. In bold: below 0.05."
    )
    return Group(shown, _text(caption, style="dim"))


def subject(findings: Findings) -> str:
    """What was compared: rows, tasks, splits and seeds."""
    made, facts = findings.comparison.settings, findings.comparison.facts
    # By time, the last split alone has all rows.
    rows = max((sum(count for count in f.rows if count > 0) for f in facts), default=0)
    tasks, splits, seeds = len(findings.problem.tasks), made.splits, len(made.seeds)
    units = max((sum(f.units) for f in facts), default=rows)
    of = f" of {units:,} independent units" if units != rows else ""
    return (
        f"{plain(findings.problem.name, NAME)}: {rows:,} rows{of}, {tasks} task{_s(tasks)}; "
        f"{splits} split{_s(splits)} ({made.design}) x {seeds} seed{_s(seeds)}"
    )


def labels(findings: Findings) -> str:
    """How many labels the tasks have, in the first split."""
    from evenhand.comparison.verdict import joined

    facts = findings.comparison.facts
    if not facts or not facts[0].training:
        return ""
    counts: dict[tuple[int, ...], list[str]] = {}
    for task, train in facts[0].training.items():
        parts = (train, facts[0].validation.get(task, 0), facts[0].test[task].count)
        counts.setdefault(parts, []).append(task)
    if len(counts) <= DIFFERENT:
        told = "; ".join(
            f"{joined(tasks, 4)} {'/'.join(f'{count:,}' for count in parts)}"
            for parts, tasks in counts.items()
        )
    else:
        ranges = (
            f"{min(part):,}–{max(part):,}" if len(set(part)) > 1 else f"{part[0]:,}"
            for part in zip(*counts, strict=True)
        )
        told = f"{'/'.join(ranges)} for {len(facts[0].training)} tasks"
    which = " of the first split" if len(facts) > 1 else ""
    return f"Labels (train/validation/test){which}: {told}."


def _text(words: str, style: str = "") -> Text:
    """Words that may hold anything: no markup, nothing that moves a cursor; lines stay lines."""
    return Text("\n".join(map(plain, words.split("\n"))), style=style)


def _s(number: int) -> str:
    return "" if number == 1 else "s"


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
        head = _text(column.title, style="bold")
        head.append(f"\n{plain(column.subtitle)}", style="not bold dim")
        table.add_column(head, justify="right" if position else "left", vertical="bottom")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(_text(cell.text, style=SHOWN[cell.shown]) for cell in row))
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
    return _text(entry.summary + more).append(f"\n{entry.citation}", style="dim")
