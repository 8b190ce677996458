"""`evenhand doctor`: do these tasks conflict, where, and what would help?

What loads torch is imported in the function, once the options are known to be right.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BeforeValidator, Field, field_validator

from evenhand import sources
from evenhand.app import config, progress, table
from evenhand.app.config import Count, Listed, Optimizer, Rate, for_shell
from evenhand.app.door import before_work as refusing
from evenhand.app.door import stoppable
from evenhand.app.options import Option, settings_of, spelled, takes_options
from evenhand.app.source_options import (
    File,
    PrintConfig,
    Source,
    SourceOptions,
    keyed,
    takes_source,
    words_of,
)
from evenhand.app.using import dumped
from evenhand.comparison.request import MOST
from evenhand.files import held, is_empty

REPORT, JSON = "report.html", "doctor.json"


class Asked(SourceOptions):
    """An examination as the user asks for it. Options and keys of a file have these names.

    Raises:
        ValidationError: something is unknown or out of range.
    """

    verify: Annotated[
        bool, Option("", "Train small experiments until held-out losses decide; minutes.")
    ] = False
    splits: Annotated[
        Annotated[Count, Field(le=MOST["splits"])] | None,
        Option("K", "Divide the data anew K times. [default: 5 or 3]", "splits"),
    ] = None
    design: Annotated[
        str | None,
        Option(
            "HOW",
            "How the data are divided: hold-out, k-fold or time. [default: hold-out]",
            "design",
        ),
    ] = None
    epochs: Annotated[
        Annotated[Count, Field(le=MOST["epochs"])] | None,
        Option("N", "Epochs of a normal run. [default: the data set's own]", "epochs"),
    ] = None
    lr: Annotated[
        Listed[Rate] | None,
        Option("R,R,…", "Learning rates to choose from. [default: the data set's own]", "rates"),
    ] = None
    optimizer: Optimizer = None
    budget: Annotated[
        str | None,
        Option(
            "TIME",
            "About as long as it may take (90s, 10m, 1.5h); says what it leaves out. "
            "[default: 1m; 30m with --verify]",
        ),
    ] = None
    out: Annotated[
        Annotated[Path, BeforeValidator(config.a_path)] | None,
        Option("DIR", "New folder, or one of this command's. [default: ./evenhand-doctor-SOURCE]"),
    ] = None

    @field_validator("design")
    @classmethod
    def _known_design(cls, design: str | None) -> str | None:
        if design is not None and design not in sources.DESIGNS:
            raise ValueError(f"{design} must be one of {', '.join(sources.DESIGNS)}")
        return design

    def check(self) -> None:
        """Refuse what no source could suggest away, and load none.

        Raises:
            ValueError: the budget is no time, an option is none of the source's, or the folder
                holds something else.
        """
        self.seconds()
        self.folder()
        super().check()

    def given(self) -> dict[str, Any]:
        """What `Settings.suggested` is told besides the source."""
        return {"options": self.options()} | settings_of(self)

    def seconds(self) -> float | None:
        """Of the budget."""
        return None if self.budget is None else config.read_duration(self.budget)

    def folder(self) -> Path:
        """A new or empty folder, or that of an earlier examination, which is replaced.

        Raises:
            ValueError: it holds something else.
        """
        folder = self.out or Path(f"evenhand-doctor-{sources.called(self.source)}")
        if not folder.exists() or (folder / JSON).is_file():
            return folder
        if not folder.is_dir() or not is_empty(folder):
            raise ValueError(
                f"{folder} holds something else: give a new or empty folder with --out"
            )
        return folder

    def command(self) -> str:
        """The command line that asks for the same."""
        words = ["evenhand", "doctor", self.source, *words_of(self.options())]
        words += ["--verify"] if self.verify else []
        for name in ("splits", "design", "epochs", "optimizer", "budget", "lr"):
            value = getattr(self, name)
            words += [] if value is None else [f"--{name}", spelled(value)]
        return " ".join(map(for_shell, words))


@takes_options(Asked)
@takes_source
def doctor(
    source: Source = None,
    *,
    file: File = None,
    print_config: PrintConfig = None,
    as_json: Annotated[
        bool | None, typer.Option("--json", help="Print everything as JSON instead of sentences.")
    ] = None,
    told: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    """Say whether tasks conflict, where, and what would help.

    It counts labels, looks at gradients between different batches at several times of training,
    and measures what each kind of method costs. Gradients alone are evidence: with --verify small
    experiments ask of held-out losses whether tasks are better apart, and what that is due to.
    The folder gets report.html, whose path is the last line printed, and doctor.json.
    """
    say = progress.saying(table.console(stderr=True))
    with ExitStack() as held_folder:
        with refusing():
            wanted = config.read_as(Asked, file, {"source": source} | asked | keyed(told))
            if print_config:
                typer.echo(config.written(wanted, bool(as_json)), nl=False)
                return
            wanted.require_columns()
            from evenhand.app import doctor_report
            from evenhand.comparison.request import Settings
            from evenhand.doctor.examine import examine

            settings = Settings.suggested(wanted.source, **wanted.given())
            folder = wanted.folder()
            held_folder.enter_context(stoppable())
            held_folder.enter_context(held(folder))
            found = examine(settings, verify=wanted.verify, budget=wanted.seconds(), say=say)
        path = doctor_report.write(found, folder, wanted.command())
    if as_json:
        typer.echo(dumped(doctor_report.as_json(found)))
        return
    table.console().print(doctor_report.told(found))
    typer.echo(path)
