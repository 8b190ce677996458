"""What `--plan` and `--budget` tell of a comparison before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evenhand.app.config import Config, read_duration
from evenhand.app.progress import bytes_told
from evenhand.comparison.budget import Cost, cost, duration, fitted
from evenhand.comparison.plan import Size, sizes
from evenhand.comparison.references import REFERENCES, title
from evenhand.comparison.request import Settings
from evenhand.data.problem import Problem
from evenhand.tables.examined import Examined
from evenhand.tables.kinds import Reading, present
from evenhand.tables.problem import Prepared, TableProblem
from evenhand.tables.reading import plain
from evenhand.tables.scores import SCORES
from evenhand.tables.targets import Target, counted

SHOWN = 40
"""Inputs that are listed one by one."""
NAMED = 5
"""Values of a column that are listed."""


def looked_at(settings: Settings) -> Examined | None:
    """The table that a comparison is about, if it is about one."""
    source = settings.resolved()
    return source.examined if isinstance(source, TableProblem) else None


def notes(settings: Settings) -> list[str]:
    """What was decided about a table's columns, in sentences."""
    table = looked_at(settings)
    return [] if table is None else [*table.notes]


def planned(asked: Config, say: Callable[[str], None]) -> tuple[Settings, tuple[str, ...]]:
    """The settings and recipes of a comparison; with a budget, those that fit into it.

    Raises:
        ValueError: the budget is too small; or as `compare` does.
    """
    settings, recipes = asked.settings(), asked.recipes
    if asked.budget is None:
        return settings, recipes
    budget = read_duration(asked.budget)
    held = {name for name in ("splits", "epochs", "references") if getattr(asked, name) is not None}
    held |= {"recipes"} & asked.model_fields_set
    measured = cost(recipes, settings, asked.processes())
    found = fitted(budget, recipes, settings, measured, held)
    gave = f"; given up: {', '.join(found.given_up)}" if found.given_up else ""
    say(
        f"in {duration(budget)}: {found.settings.splits} splits of {', '.join(found.recipes)}, "
        f"about {duration(found.seconds)}{gave}"
    )
    return found.settings, found.recipes


def shown(settings: Settings, recipes: Sequence[str], workers: int) -> Group:
    """Everything that is known before training.

    Raises:
        ValueError: as `compare` does.
    """
    problem = settings.problem()
    problem.check_labels()
    measured = cost(recipes, settings, workers)
    table = looked_at(settings)
    parts: list[RenderableType] = [Text(f"{problem.name}: {problem.summary}", style="bold")]
    if table is not None:
        parts += [_targets(table, problem), _inputs(table)]
    parts.append(_sizes(sizes(recipes, problem, settings)))
    parts.append(Text("memory: parameters, gradients and optimizer; activations come on top"))
    parts += [Text(line) for line in _lines(settings, problem, measured)]
    parts += [Text(f"• {note}") for note in notes(settings)]
    return Group(*parts)


def as_json(settings: Settings, recipes: Sequence[str], workers: int) -> dict[str, Any]:
    """The same for other programs: times are seconds, kinds those of `--kind`.

    Raises:
        ValueError: as `compare` does.
    """
    problem = settings.problem()
    problem.check_labels()
    measured = cost(recipes, settings, workers)
    table = looked_at(settings)
    prepared = problem.preparation
    return {
        "source": settings.source,
        "name": problem.name,
        "summary": problem.summary,
        "targets": {} if table is None else dict(_targets_told(table)),
        "inputs": {} if table is None else dict(_inputs_told(table)),
        "notes": notes(settings),
        "labels": {
            task: {part: asdict(count) for part, count in parts.items()}
            for task, parts in problem.label_counts().items()
        },
        "network": str(prepared.shape) if isinstance(prepared, Prepared) else None,
        "network_inputs": prepared.titles() if isinstance(prepared, Prepared) else None,
        "batch": problem.batch_size,
        "epochs": settings.epochs or problem.epochs,
        "recipes": list(recipes),
        "sizes": {name: asdict(size) for name, size in sizes(recipes, problem, settings).items()},
        "splits": settings.splits,
        "design": settings.design,
        "seeds": len(settings.seeds),
        "optimizer": settings.optimizer,
        "rates": list(settings.rates),
        "runs": measured.runs,
        "seconds": measured.seconds,
        "processor_seconds": {name: measured.splits * s for name, s in measured.each.items()},
        "workers": measured.workers,
    }


def _targets_told(table: Examined) -> Iterator[tuple[str, dict[str, Any]]]:
    for target, reading in table.targets.values():
        yield (
            target.title,
            {
                "column": target.name,
                "kind": target.kind,
                "metric": target.metric,
                "labels": int(present(reading.values).sum()),
                "blank": int((~present(reading.values)).sum()),
                "classes": dict(counted(reading)) if target.names else None,
            },
        )


def _inputs_told(table: Examined) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, reading in table.inputs.items():
        yield name, {"kind": reading.kind, "blank": int((~present(reading.values)).sum())}


def _targets(table: Examined, problem: Problem) -> Table:
    counts = problem.label_counts()
    listed = _list("target", "kind", "metric", "values", "labels", "train/validation/test")
    for target, reading in table.targets.values():
        parts = counts[target.title].values()
        listed.add_row(
            Text(target.title),
            KIND[target.kind],
            SCORES[target.metric].title,
            Text(_labels(target, reading)),
            f"{int(present(reading.values).sum()):,} of {table.rows:,}",
            "/".join(f"{count.used:,}" for count in parts),
        )
    return listed


KIND = {"numeric": "number", "boolean": "yes or no", "category": "classes", "labels": "labels"}
"""What a target is called."""


def _labels(target: Target, reading: Reading) -> str:
    if target.kind == "numeric":
        return _range(reading)
    counts = counted(reading)
    first = [f"{plain(name)} {counts[name]:,}" for name in target.names[:NAMED]]
    return ", ".join(first) + (f", … ({len(target.names)})" if len(target.names) > NAMED else "")


def _inputs(table: Examined) -> Table:
    listed = _list("input", "kind", "blank", "values")
    for name, reading in list(table.inputs.items())[:SHOWN]:
        blank = int((~present(reading.values)).sum())
        listed.add_row(
            Text(plain(name)), reading.kind, f"{blank:,}" if blank else "", Text(_values(reading))
        )
    if len(table.inputs) > SHOWN:
        listed.add_row(f"… {len(table.inputs) - SHOWN} more", "", "", "")
    return listed


def _sizes(found: Mapping[str, Size]) -> Table:
    listed = _list("recipe", "networks", "parameters", "memory, one in training")
    for name, size in found.items():
        listed.add_row(
            Text(plain(name)),
            f"{size.networks:,}",
            f"{size.parameters:,}",
            bytes_told(size.training_bytes),
        )
    return listed


def _values(reading: Reading) -> str:
    if reading.kind != "category":
        return _range(reading)
    distinct = list(dict.fromkeys(v for v in reading.values if v is not None))
    more = f", … ({len(distinct):,})" if len(distinct) > NAMED else ""
    return ", ".join(plain(v) for v in sorted(distinct)[:NAMED]) + more


def _range(reading: Reading) -> str:
    known = reading.values[present(reading.values)]
    low, high = float(known.min()), float(known.max())
    if reading.kind == "date":
        return f"{_day(low)} to {_day(high)}"
    if reading.kind == "boolean":
        return f"{known.mean():.0%} yes"
    return f"{low:.6g} to {high:.6g}"


def _day(seconds: float) -> str:
    import numpy as np

    return str(np.datetime64(int(seconds), "s"))[:10]


def _lines(settings: Settings, problem: Problem, taken: Cost) -> Iterator[str]:
    epochs = settings.epochs or problem.epochs
    if isinstance(problem.preparation, Prepared):
        yield (
            f"network {problem.preparation.shape} on {len(problem.preparation.titles())} numbers; "
            f"batches of {problem.batch_size}, up to {epochs} epochs"
        )
    rates = ", ".join(f"{rate:g}" for rate in settings.rates)
    seeds = len(settings.seeds)
    yield (
        f"{settings.splits} split{'s' * (settings.splits != 1)} ({settings.design}) x {seeds} "
        f"seed{'s' * (seeds != 1)} x {settings.optimizer} at {rates}: {taken.runs:,} runs"
    )
    shares = sorted(taken.each.items(), key=lambda pair: -pair[1])
    total = math.fsum(taken.each.values()) or 1.0
    worth = [(name, seconds / total) for name, seconds in shares if seconds >= 0.01 * total]
    dear = ", ".join(f"{_called(name)} {share:.0%}" for name, share in worth)
    yield f"about {duration(taken.seconds)} with {taken.workers} processes: {dear}"


def _called(name: str) -> str:
    return title(name) if name in REFERENCES else name


def _list(*headers: str) -> Table:
    listed = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        listed.add_column(header)
    return listed
