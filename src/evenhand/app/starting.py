"""`evenhand new`: starting points that run as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evenhand.app.door import Command
from evenhand.app.door import before_work as refusing
from evenhand.training.records import write_atomically

app = typer.Typer(
    help="Write a starting point of one's own, which runs as it is.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TEMPLATE = Path(__file__).with_name("problem.py.txt")


@app.callback()
def _new() -> None:
    pass


@app.command(cls=Command)
def problem(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path(
        "mine.py"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the file as JSON.")] = False,
) -> None:
    """Write a problem with data, a network and tasks, to be changed into yours."""
    with refusing():
        if file.suffix != ".py":
            raise ValueError(f"{file}: a module's name must end in .py")
        if file.exists():
            raise ValueError(f"{file} is there already: choose another name")
        if not file.parent.is_dir():
            raise ValueError(f"{file}: there is no folder {file.parent}")
        write_atomically(file, TEMPLATE.read_text())
    if as_json:
        typer.echo(json.dumps({"file": str(file)}, ensure_ascii=False))
        return
    typer.echo(f"{file} is written. Try it: evenhand compare {file}:problem --splits 2 --epochs 5")
