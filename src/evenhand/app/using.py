"""`train`, `predict` and `export`: one network, kept, used and handed on."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from evenhand.app import completing, config, progress, table
from evenhand.app.door import at_work, complain
from evenhand.app.door import before_work as refusing
from evenhand.app.options import takes_options
from evenhand.app.source_options import File, PrintConfig, Source, keyed, takes_source
from evenhand.files import held, require_file, require_writable, write_atomically
from evenhand.text import composed

if TYPE_CHECKING:
    from rich.console import Console

    from evenhand.comparison.job import Job, Result
    from evenhand.comparison.request import Settings
    from evenhand.data.problem import Problem

Json = Annotated[bool | None, typer.Option("--json", help="Print JSON.")]


@takes_options(
    config.Config,
    *(*config.ALONE, "out", "resume", "workers"),
    workers="Runs trained at a time. [default: 1]",
)
@takes_source
def train(
    source: Source = None,
    *,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completing.recipe_names,
            help="A recipe that makes one network for all tasks. [default: sg]",
        ),
    ] = None,
    file: File = None,
    print_config: PrintConfig = None,
    as_json: Json = None,
    told: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    """Train one network on all tasks, and keep it.

    Validation chooses among the rates and epochs; the test part is scored once. The folder has the
    weights (best.safetensors) and, for a table, what turns its rows into inputs (preparation.json).
    Its path is the last line printed.
    """
    given = {"source": source, "recipes": None if recipe is None else [recipe]}
    console = table.console(stderr=bool(as_json))
    say = progress.saying(console)
    with ExitStack() as held_folder:
        with refusing():
            usual = {"recipes": ["sg"], "workers": 1}
            wanted = config.read(file, given | asked | keyed(told), usual)
            if print_config:
                typer.echo(config.written(wanted, bool(as_json)), nl=False)
                return
            wanted.require_columns()
            if len(wanted.recipes) != 1:
                raise ValueError(f"train takes one recipe, not {', '.join(wanted.recipes)}")
            from evenhand.comparison.single import prepare_one, single

            settings, folder = single(wanted.settings()), wanted.folder()
            held_folder.enter_context(held(folder))
            todo = prepare_one(settings, wanted.recipes[0], folder, wanted.resume)
        workers = wanted.processes()
        again = (
            f"{config.command(settings, wanted.recipes, folder, alone=True)} --workers {workers}"
        )
        again += "" if file is None else f" --config {config.for_shell(str(file))}"
        trained(todo, settings, folder, workers, console, say, bool(as_json), again)


def trained(
    todo: list[Job],
    settings: Settings,
    folder: Path,
    workers: int,
    console: Console,
    say: Callable[[str], None],
    as_json: bool,
    again: str,
) -> None:
    """Train what was prepared in a folder, keep the network that validation chooses, and tell.

    `again` is the command that goes on, should it be stopped.
    """
    from evenhand.app import planning
    from evenhand.comparison.single import train_one

    problem = settings.problem()
    with at_work(lambda: progress.kept(todo, folder, again)):
        for note in planning.notes(settings):
            say(note)
        say(progress.told_labels(problem.label_counts()))
        most = settings.epochs or problem.epochs
        with progress.shown(console, todo, most) as listener:
            chosen, constant = train_one(todo, settings, folder, listener, workers)
    _present(chosen, constant, problem, folder, as_json)


def _present(
    chosen: Result, constant: Result, problem: Problem, folder: Path, as_json: bool
) -> None:
    """The test metrics, beside those of the best constant."""
    from evenhand.comparison.skill import skill

    scores: dict[str, dict[str, Any]] = {
        name: {
            "metric": task.metric_name,
            "test": chosen.test[name],
            "constant": constant.test[name],
            "skill": skill(chosen.test[name], constant.test[name], task),
        }
        for name, task in problem.tasks.items()
    }
    if as_json:
        about = {"recipe": chosen.job.recipe, "rate": chosen.job.rate, "epoch": chosen.epoch}
        typer.echo(dumped({**about, "tasks": scores, "folder": str(folder)}))
        return
    typer.echo(f"{chosen.job.recipe} at rate {chosen.job.rate:g}, epoch {chosen.epoch}; test part:")
    for name, said in scores.items():
        points = f"skill {said['skill']:.1f}" if math.isfinite(said["skill"]) else "no skill known"
        typer.echo(
            f"  {name}: {said['metric']} {said['test']:.4g} (best constant "
            f"{said['constant']:.4g}), {points}"
        )
    typer.echo(folder)


def dumped(value: Any) -> str:
    """JSON, in which what is not a finite number is null."""
    return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained network.")],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A table with its inputs; - reads one.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write CSV there. [default: print it]")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Repeat this column of the table; once for each."),
    ] = None,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Of the table.")] = "utf-8",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each row instead of CSV.")
    ] = False,
) -> None:
    """Predict the rows of a table, in the columns' own units.

    Columns are found by name; what else the table has is passed over. Beside a class stands the
    probability of each. What is unknown or blank is told on the standard error.
    """
    with refusing():
        from evenhand.app.source_options import STDIN, spooled
        from evenhand.tables.kinds import as_text
        from evenhand.tables.predicting import Predictor
        from evenhand.tables.question import nearest
        from evenhand.tables.reading import read, shown

        predictor = Predictor.of(run)
        path = Path(spooled() if file == STDIN else file)
        rows = read(path, predictor.prepared.missing, encoding)
        kept: dict[str, Sequence[Any]] = {}
        for name in map(composed, keep or ()):
            if name not in rows.columns:
                near = nearest(name, list(rows.columns))
                raise ValueError(f"--keep: {rows.name} has no column {shown(name)}; {near}")
            kept[name] = as_text(rows.columns[name]).tolist()
        answers, notes = predictor.predicted(rows)
        both = [name for name in kept if name in answers]
        if both:
            raise ValueError(f"--keep {both[0]}: the answers have that name")
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"{out}: there is no folder {out.parent}")
        if out is not None:
            if out.exists():
                require_file(out)
            require_writable(out.parent)
    for note in notes:
        complain(note)
    columns = {**kept, **answers}
    if out is None:
        _write(sys.stdout, columns, as_json)
        return
    text = io.StringIO(newline="")
    _write(text, columns, as_json)
    write_atomically(out, text.getvalue())
    typer.echo(out)


def _write(stream: TextIO, columns: Mapping[str, Sequence[Any]], as_json: bool) -> None:
    if as_json:
        for row in _rows(columns):
            stream.write(dumped(dict(zip(columns, row, strict=True))) + "\n")
        return
    writer = csv.writer(stream)
    writer.writerow(columns)
    for row in _rows(columns):
        writer.writerow([f"{v:.9g}" if isinstance(v, float) else v for v in row])


def _rows(columns: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    return zip(*columns.values(), strict=True)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained network.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write to. [default: RUN]")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="A,B", help="torch (.pt2), onnx.")
    ] = "torch,onnx",
    as_json: Annotated[bool, typer.Option("--json", help="Print the files as JSON.")] = False,
) -> None:
    """Write a network for other programs, and check that it gives the same numbers.

    For a table it answers in the columns' units and in probabilities; preparation.json says, in
    plain numbers, how cells become its inputs.
    """
    with refusing():
        names = tuple(config.listed(formats))
        from evenhand.comparison import exporting

        files = exporting.export(run, out or run, names)
    if as_json:
        typer.echo(dumped({"files": [str(file) for file in files]}))
        return
    for file in files:
        typer.echo(file)
