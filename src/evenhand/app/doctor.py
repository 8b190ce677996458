"""`evenhand doctor`: do these tasks conflict, where, and what would help?

What loads torch is imported in the function, once the options are known to be right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from evenhand import sources
from evenhand.app.config import Count, Rate, listed
from evenhand.text import LINE, plain

REPORT, JSON = "report.html", "doctor.json"


class Asked(BaseModel):
    """An examination as the user asks for it.

    Raises:
        ValidationError: something is out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    splits: Count | None = None
    epochs: Count | None = None
    lr: Annotated[tuple[Rate, ...] | None, BeforeValidator(listed), Field(min_length=1)] = None


def doctor(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Data set; `evenhand datasets` lists them.")
    ],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Train small experiments until held-out losses decide; minutes."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON instead of sentences.")
    ] = False,
    splits: Annotated[
        str | None,
        typer.Option(metavar="K", help="Divide the data anew K times. [default: 5 or 3]"),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(metavar="N", help="Epochs of a normal run. [default: the data set's own]"),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…", help="Learning rates to choose from. [default: the data set's own]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="New folder, or one of this command's. [default: ./evenhand-doctor-SOURCE]",
        ),
    ] = None,
) -> None:
    """Say whether tasks conflict, where, and what would help.

    It counts labels, looks at gradients between different batches at several times of training,
    and measures what each kind of method costs. Gradients alone are evidence: with --verify small
    experiments ask of held-out losses whether tasks are better apart, and what that is due to.
    The folder gets report.html, whose path is the last line printed, and doctor.json.
    """
    try:
        name = sources.source(source).name
        asked = _read({"splits": splits, "epochs": epochs, "lr": lr})
        folder = _folder(out or Path(f"evenhand-doctor-{name}"))
    except ValueError as error:
        _refuse(error)
    from evenhand.app import doctor_report, progress, table
    from evenhand.comparison.request import Settings
    from evenhand.doctor.examine import examine

    say = progress.saying(table.console(stderr=True))
    try:
        settings = Settings.suggested(
            name, splits=asked.splits, epochs=asked.epochs, rates=asked.lr
        )
        found = examine(settings, verify=verify, say=say)
    except ValueError as error:
        _refuse(error)
    folder.mkdir(parents=True, exist_ok=True)
    path = doctor_report.write(found, folder, _command(name, verify, asked))
    if as_json:
        typer.echo(json.dumps(doctor_report.as_json(found)))
        return
    table.console().print(doctor_report.told(found))
    typer.echo(path)


def _refuse(error: ValueError) -> None:
    typer.echo(f"evenhand: {error}", err=True)
    raise typer.Exit(2) from error


def _read(given: dict[str, Any]) -> Asked:
    try:
        return Asked(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        told = plain(str(given[str(name)]), 40)
        raise ValueError(f"--{name} {told}: {plain(first['msg'], 2 * LINE)}") from error


def _folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if (folder / JSON).is_file():
            return folder  # an earlier examination's, which is replaced
        raise ValueError(f"{folder} holds something else: give a new or empty folder with --out")
    return folder


def _command(name: str, verify: bool, asked: Asked) -> str:
    parts = ["evenhand doctor", name, *(["--verify"] if verify else [])]
    if asked.splits:
        parts.append(f"--splits {asked.splits}")
    if asked.epochs:
        parts.append(f"--epochs {asked.epochs}")
    if asked.lr:
        parts.append(f"--lr {','.join(f'{rate:g}' for rate in asked.lr)}")
    return " ".join(parts)
