"""The options that say what a source is, for every command that takes one.

A command says ``@takes_source`` and has parameters `source` and `told`; the options of tables come
to it as one mapping, ready for its configuration. So every command reads a table alike.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from evenhand import sources
from evenhand.app import completing
from evenhand.app.options import Command, with_options
from evenhand.files import LARGE, write_atomically
from evenhand.tables.question import Question, absolute

TABLE = "A table"
"""The heading of these options in a command's help."""


def _several(metavar: str, text: str) -> Any:
    return Annotated[list[str] | None, typer.Option(metavar=metavar, help=text)]


def _one(metavar: str, text: str) -> Any:
    return Annotated[str | None, typer.Option(metavar=metavar, help=text)]


OPTIONS: Mapping[str, Any] = {
    "target": _several("COLUMN", "Predict this column; once for each."),
    "targets": _one("A,B,…", "The same, as a list."),
    "test": _one("FILE", "An official test set, a table with the same columns."),
    "kind": _several(
        "COLUMN=KIND", "What a column is: numeric, boolean, category, date, or labels (a;b;c)."
    ),
    "input": _several("COLUMN", "Predict from these columns alone. [default: all others]"),
    "drop": _several("COLUMN", "Leave this column out."),
    "group": _one("COLUMN", "Rows that agree here stay on one side of every split."),
    "time": _one("COLUMN", "When a row was taken; what comes later tests."),
    "weight": _one("COLUMN", "How much a row counts, in losses and metrics."),
    "metric": _several(
        "COLUMN=METRIC",
        "rmse, mae, r2; auc, ap, accuracy, balanced-accuracy, f1, log-loss, brier. "
        "[default: rmse, auc, accuracy, ap by the target's kind]",
    ),
    "missing": _several("TEXT", "Cells that mean blank, besides NA and the like."),
    "encoding": _one("NAME", "Of text files. [default: utf-8]"),
    "balance": Annotated[
        bool | None,
        typer.Option("--balance", help="Let classes count equally in the loss."),
    ],
    "network": _one(
        "MLP",
        "mlp(width=64,depth=2,head=32,dropout=0.1,activation=relu); what is left out follows from "
        "the data's size.",
    ),
    "batch": _one("N", "Rows per training batch. [default: from the data's size]"),
}
"""By the name of the parameter."""
Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        autocompletion=completing.source_names,
        help="A table (csv, tsv, parquet, arff; - reads one), a function (mine.py:problem) or "
        "a data set (`evenhand datasets`).",
    ),
]
File = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML or TOML file with these options; those given here win.",
    ),
]
PrintConfig = Annotated[
    bool | None,
    typer.Option("--print-config", help="Print all options as YAML, and do nothing else."),
]
"""What every command that takes a source has besides."""


def takes_source(command: Command) -> Command:
    """Give a command the options of a table; it gets them in `told`, as `SourceOptions` has them.

    The command must have a keyword parameter `told`.
    """
    return with_options(command, OPTIONS, "told")


def keyed(told: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the keys of a configuration file; those that were not given are left out.

    Raises:
        ValueError: `--kind` or `--metric` is not COLUMN=WORD, or a column is given twice.
    """
    listed = str(told["targets"] or "").split(",")
    targets = [*(name.strip() for name in listed if name.strip()), *(told["target"] or ())]
    found = {
        "targets": targets,
        "kinds": _pairs("--kind", told["kind"] or ()),
        "metrics": _pairs("--metric", told["metric"] or ()),
        "inputs": told["input"] or (),
    }
    rest = ("test", "drop", "group", "time", "weight", "missing", "encoding", "balance")
    found |= {name: told[name] for name in (*rest, "network", "batch")}
    return {key: value for key, value in found.items() if value}


def words_of(options: Mapping[str, Any]) -> list[str]:
    """The words of a command line that say these options of a table."""
    words = []
    single = {"targets": "target", "inputs": "input", "kinds": "kind", "metrics": "metric"}
    for key, value in options.items():
        option = f"--{single.get(key, key)}"
        if isinstance(value, Mapping):
            words += [word for k, v in value.items() for word in (option, f"{k}={v}")]
        elif isinstance(value, list):
            words += [word for item in value for word in (option, str(item))]
        else:
            words += [option] if value is True else [option, str(value)]
    return words


def _pairs(option: str, given: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        column, equals, word = text.rpartition("=")
        if not equals or not column or not word:
            raise ValueError(f"{option} {text}: write {option} COLUMN=WORD")
        if column in found:
            raise ValueError(f"{option} {text}: the column is given twice")
        found[column] = word
    return found


def _names(value: Any) -> Any:
    """`a,b,c` of a configuration file: a list; names with commas are given as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class SourceOptions(BaseModel):
    """A source, and what a table is told; see `tables.question.Question`.

    Raises:
        ValidationError: something is unknown or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    targets: Names = ()
    test: str | None = None
    kinds: dict[str, str] = Field(default_factory=dict)
    inputs: Names = ()
    drop: Names = ()
    group: str | None = None
    time: str | None = None
    weight: str | None = None
    metrics: dict[str, str] = Field(default_factory=dict)
    missing: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: [v] if type(v) is str else v)
    ] = ()
    encoding: str = "utf-8"
    balance: bool = False
    network: str = "mlp"
    batch: Annotated[int, Field(ge=1)] | None = None

    @field_validator("source")
    @classmethod
    def _known_source(cls, name: str) -> str:
        return sources.checked(spooled() if name == STDIN else name)

    def check(self) -> None:
        """Refuse what can be refused once all options are known.

        Raises:
            ValueError: an option is out of range, or none of the source's.
        """
        self.options()

    def require_columns(self) -> None:
        """Refuse names that no column of the table has, before torch is loaded.

        Raises:
            ValueError: there is one; or the table cannot be read.
        """
        options = self.options()
        if sources.is_table(self.source):
            from evenhand.tables.reading import read

            question = Question.of(options)
            question.require_columns(read(Path(self.source), self.missing, self.encoding))

    def options(self) -> dict[str, Any]:
        """What the source is told besides its name; nothing, unless it is a table.

        Raises:
            ValueError: it is out of range, or the source is no table.
        """
        said = {
            name: getattr(self, name) for name in SourceOptions.model_fields if name != "source"
        }
        if sources.is_table(self.source):
            return Question.of(absolute(said)).written()
        usual = SourceOptions.model_construct(source="")
        if given := [name for name, value in said.items() if value != getattr(usual, name)]:
            raise ValueError(
                f"{', '.join(given)}: only a table has such options, and {self.source} is none"
            )
        return {}


STDIN = "-"
"""The source that is read from the standard input."""


def spooled() -> str:
    """The standard input, kept in a file that its content names, so that runs can go on with it.

    Raises:
        ValueError: it is empty, or has no end.
    """
    import os

    content = sys.stdin.buffer.read(LARGE + 1)
    if not content.strip():
        raise ValueError("the standard input is empty")
    if len(content) > LARGE:
        raise ValueError(f"the standard input has more than {LARGE} bytes: no more are read")
    home = os.environ.get("EVENHAND_DATA") or Path.home() / ".cache" / "evenhand"
    ending = ".parquet" if content.startswith(b"PAR1") else ".csv"
    if content.lstrip().lower().startswith((b"@relation", b"%")):
        ending = ".arff"
    file = Path(home) / "stdin" / f"stdin-{hashlib.sha256(content).hexdigest()[:12]}{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, content)
    return str(file)
