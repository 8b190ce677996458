"""An examination for the terminal, as JSON, and as one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from evenhand.app import doctor_figures, figures
from evenhand.app.doctor import JSON, REPORT
from evenhand.app.report import Plate
from evenhand.comparison.folder import environment
from evenhand.comparison.inference import Estimate
from evenhand.doctor.agreement import Agreement
from evenhand.doctor.examine import Examination
from evenhand.doctor.ladder import Ladder
from evenhand.doctor.looks import Look
from evenhand.doctor.words import words
from evenhand.training.records import write_atomically


def told(found: Examination) -> Group:
    """Verdict first, then its evidence, what to do, and what would change the verdict."""
    said = words(found)
    return Group(
        Text(f"{found.source}: {len(found.tasks)} tasks", style="dim"),
        Text(said.headline, style="bold"),
        *(Padding(Text(sentence), (0, 0, 0, 2), expand=False) for sentence in said.evidence),
        Text(f"Next: {said.advice}"),
        Text(f"What would change this: {said.change}", style="dim"),
    )


def write(found: Examination, folder: Path, command: str) -> Path:
    """The report and doctor.json in a folder; the report's path."""
    environment_of_pages = jinja2.Environment(
        loader=jinja2.PackageLoader("evenhand.app", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment_of_pages.get_template("doctor.html.j2").render(
        source=found.source,
        tasks=found.tasks,
        said=words(found),
        facts=found.description,
        notes=found.notes,
        costs=found.costs,
        plates=list(plates(found)),
        command=command,
        made=environment(),
    )
    write_atomically(folder / JSON, json.dumps(as_json(found), indent=1))
    path = folder / REPORT
    write_atomically(path, page)
    return path


def plates(found: Examination) -> Iterator[Plate]:
    """The figures, those left out of which there is nothing to show."""
    made = (
        (
            "Harm",
            "How many points of the best constant's loss are left together beyond those apart, for "
            "each task on each rung of the ladder, with 95 % intervals. Right of the shaded band "
            "apart is better by more than matters.",
            doctor_figures.harm,
        ),
        (
            "Cosines in training",
            "The cosine of each pair's mean gradients, from products between different batches, "
            "with 95 % intervals of the jackknife; there is none where a task has no signal. "
            "Crosses: the mean cosine on one batch, noise included.",
            doctor_figures.cosines,
        ),
        (
            "Cosines by layer",
            "The same in the last look, for each layer by itself.",
            doctor_figures.layers,
        ),
        (
            "Look-ahead",
            "By how many per cent a step of one task (row) lowers the loss of another (column) on "
            "the next batch, with the half-width of the 95 % interval; all steps have one length.",
            doctor_figures.ahead,
        ),
    )
    for title, caption, draw in made:
        name = title.lower().replace(" ", "-")
        with figures.style(name):
            figure = draw(found)
        if figure is not None:
            yield Plate(title, caption, figures.svg(figure, name))


# JSON -----------------------------------------------------------------------------------------


def as_json(found: Examination) -> dict[str, Any]:
    """Everything, with numbers that are not finite as null."""
    said = words(found)
    value = {
        "source": found.source,
        "tasks": found.tasks,
        "cause": None if found.ladder is None else found.ladder.cause,
        "headline": said.headline,
        "evidence": said.evidence,
        "advice": said.advice,
        "change": said.change,
        "description": {
            "tasks": {task: asdict(facts) for task, facts in found.description.tasks.items()},
            "duplicates": _paired(found.description.duplicates),
            "groups": found.description.groups,
            "unread": found.description.unread,
        },
        "looks": [] if found.diagnosis is None else [_look(at) for at in found.diagnosis.looks],
        "costs": [asdict(cost) for cost in found.costs],
        "ladder": None if found.ladder is None else _ladder(found.ladder),
        "splittings": [asdict(one) for one in found.splittings],
        "effort": None if found.effort is None else asdict(found.effort),
        "extent": None if found.extent is None else asdict(found.extent),
        "sampled": found.sampled,
        "notes": found.notes,
        "made": environment(),
    }
    finite: dict[str, Any] = _finite(value)
    return finite


def _look(at: Look) -> dict[str, Any]:
    return {
        "step": at.step,
        "losses": at.losses,
        "norms": at.norms,
        "whole": _agreement(at.whole),
        "metric": None if at.metric is None else _agreement(at.metric),
        "layers": {layer: _agreement(found) for layer, found in at.layers.items()},
        "ahead": {"reach": at.ahead.reach, "fall": _paired(at.ahead.fall)},
    }


def _agreement(found: Agreement) -> dict[str, Any]:
    return {
        "batches": found.batches,
        "signal": dict(zip(found.tasks, found.signal, strict=True)),
        "cosines": _paired(found.cosines),
        "one_batch": _paired(found.same_batch),
        "shared_noise": _paired(found.shared_noise),
    }


def _ladder(found: Ladder) -> dict[str, Any]:
    return {
        "thresholds": asdict(found.thresholds),
        "rungs": {
            name: {task: asdict(e) for task, e in rung.harm.items()}
            for name, rung in found.rungs.items()
        },
        "learned": {task: asdict(e) for task, e in found.learned.items()},
        "untested": found.untested,
    }


def _paired(values: Mapping[tuple[str, str], Any]) -> list[dict[str, Any]]:
    return [
        {"pair": pair, "value": asdict(value) if isinstance(value, Estimate) else value}
        for pair, value in values.items()
    ]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
