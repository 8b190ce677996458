"""The commands. A user's mistake is one line on stderr and exit code 2, before any work.

What loads torch is imported inside the commands, once the options are known to be right, so that
help and refusals come at once.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import evenhand
from evenhand import sources
from evenhand.app import config, door, progress, start, starting, table, using
from evenhand.app.doctor import doctor
from evenhand.app.door import before_work as refusing
from evenhand.app.options import takes_options
from evenhand.app.source_options import File, PrintConfig, Source, keyed, takes_source
from evenhand.app.using import dumped
from evenhand.comparison.executors import LOCAL, executor_of, require_executor
from evenhand.comparison.folder import read_manifest
from evenhand.files import held
from evenhand.recipes import recipe

if TYPE_CHECKING:
    from rich.console import Console

    from evenhand.comparison.across import Across
    from evenhand.comparison.compare import Comparison
    from evenhand.comparison.executors.base import Executor
    from evenhand.comparison.job import Job
    from evenhand.comparison.request import Settings

app = typer.Typer(
    name="evenhand",
    cls=door.Door,
    help="Train one network on many tasks without the tasks fighting. "
    "With --debug an error shows its trace.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(starting.app, name="new")
for _command in (using.train, using.predict, using.export):
    app.command(cls=door.Command)(_command)


def main() -> None:
    """The commands, for a console."""
    start.quiet()
    sys.excepthook = door.unforeseen
    typer.main.get_command(app)()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"evenhand {evenhand.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command(cls=door.Command)
@takes_options(config.Config)
@takes_source
def compare(
    source: Source = None,
    *,
    file: File = None,
    print_config: PrintConfig = None,
    as_json: Annotated[
        bool | None,
        typer.Option("--json", help="Print the verdict, or the plan, as JSON; the rest on stderr."),
    ] = None,
    told: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    """Train tasks together and apart, and see which serves them.

    The data are divided several times. In each split every recipe is trained at the same learning
    rates; the validation part chooses rate and epoch, the test part is scored. A verdict in
    sentences comes first, then the table. The folder gets the records of every run, the tables as
    CSV and JSON, and report.html, whose path is the last line printed.
    """
    console = table.console(stderr=bool(as_json))
    say = progress.saying(console)
    with ExitStack() as held_folder:
        with refusing():
            wanted = config.read(file, {"source": source} | asked | keyed(told))
            if print_config:
                typer.echo(config.written(wanted, bool(as_json)), nl=False)
                return
            wanted.require_columns()
            from evenhand.app import planning
            from evenhand.comparison.compare import prepare

            settings, recipes_asked = planning.planned(wanted, say)
            if wanted.plan and as_json:
                plan_told = planning.as_json(settings, recipes_asked, wanted.processes())
                typer.echo(dumped(plan_told))
                return
            if wanted.plan:
                console.print(planning.shown(settings, recipes_asked, wanted.processes()))
                return
            folder, executor = wanted.folder(), executor_of(wanted.executor)
            held_folder.enter_context(held(folder))
            jobs = prepare(settings, recipes_asked, folder, wanted.resume)
        _compared(
            jobs,
            settings,
            recipes_asked,
            folder,
            wanted.processes(),
            executor,
            config.at(wanted.processes(), wanted.executor),
            console,
            wanted.delta,
            bool(as_json),
        )


def _compared(
    jobs: list[Job],
    settings: Settings,
    recipes: tuple[str, ...],
    folder: Path,
    workers: int,
    executor: Executor,
    where: str,
    console: Console,
    delta: bool,
    as_json: bool,
) -> None:
    """Train what was prepared in a folder, and tell what came of it.

    `where` says with how many workers, and whose, on a command line.
    """
    from evenhand.app import planning
    from evenhand.comparison.compare import finished
    from evenhand.comparison.plan import sizes
    from evenhand.comparison.running import run_jobs

    say = progress.saying(console)
    problem = settings.problem()
    most = settings.epochs or problem.epochs
    again = f"{config.command(settings, recipes, folder)} {where}"
    with door.at_work(lambda: progress.kept(jobs, folder, again)):
        for note in planning.notes(settings):
            say(note)
        rates = ", ".join(f"{rate:g}" for rate in settings.rates)
        say(
            f"{len(jobs)} runs of up to {most} epochs each, {settings.optimizer} at {rates}, "
            f"kept in {folder}"
        )
        say(progress.told_labels(problem.label_counts()))
        held = sizes(recipes, problem, settings)
        say(progress.told_memory({name: size.state_bytes for name, size in held.items()}))
        if stacks := progress.told_stacks(read_manifest(folder).get("trained", {})):
            say(stacks)
        with progress.shown(console, jobs, most) as listener:
            run_jobs(jobs, settings, folder, listener, workers, executor)
        _present(finished(folder), delta, as_json)


@app.command(cls=door.Command)
def resume(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that compare or train has begun.")
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=256, help="Runs trained at a time. [default: as compare]"
        ),
    ] = None,
    executor: Annotated[
        str,
        typer.Option(metavar="WHERE", help="Who trains them: local, ray or slurm, see compare."),
    ] = LOCAL,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what compare or train prints with --json.")
    ] = False,
) -> None:
    """Go on with a comparison or a training that was stopped, as its folder says."""
    console = table.console(stderr=as_json)
    with ExitStack() as held_folder:
        with refusing():
            require_executor(executor)
            manifest = read_manifest(folder)
            from evenhand.comparison.compare import prepare, settings_of
            from evenhand.comparison.single import ONE

            if manifest.get("kept") == ONE and executor != LOCAL:
                raise ValueError(f"--executor {executor}: train works on this machine alone")
            settings, names = settings_of(manifest, folder), tuple(manifest["recipes"])
            held_folder.enter_context(held(folder))
            jobs = prepare(settings, names, folder, resume=True)
            processes, chosen = config.processes(workers), executor_of(executor)
        if manifest.get("kept") == ONE:
            say = progress.saying(console)
            again = config.command(settings, names, folder, alone=True)
            using.trained(jobs, settings, folder, processes, console, say, as_json, again)
            return
        where = config.at(processes, executor)
        _compared(jobs, settings, names, folder, processes, chosen, where, console, False, as_json)


def _present(comparison: Comparison, delta: bool = False, as_json: bool = False) -> None:
    """Verdict, table, report, and the report's path on the last line; or verdict.json."""
    from evenhand.app import exports, report
    from evenhand.app.findings import Findings

    findings = Findings.of(comparison, comparison.settings.problem())
    if as_json:
        report.write(findings, delta)
        typer.echo((comparison.out / exports.VERDICT).read_text())
        return
    console = table.console()
    console.print(table.comparison(findings, console.width, delta))
    typer.echo(report.write(findings, delta))


@app.command(cls=door.Command)
def methods(
    recipes: Annotated[
        str, typer.Option(metavar="A,B,…", help="Only these. [default: all]")
    ] = config.EVERYTHING,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead, draw where they go on a landscape of two conflicting losses; "
            "png, pdf or svg; some ten seconds a recipe.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with the options that a recipe takes.")
    ] = False,
) -> None:
    """List the recipes: what they do, cost and promise."""
    with refusing():
        names = config.known(config.listed(recipes))
        if figure is not None:
            config.require_figure(figure)
    if as_json and figure is None:
        from evenhand.app.methods import told

        typer.echo(dumped([told(recipe(name)) for name in names]))
        return
    if figure is None:
        console = table.console()
        console.print(table.recipes([recipe(name) for name in names], console.width))
        return
    from evenhand.app import figures, landscape

    with refusing():
        paths = landscape.walk(names, progress.saying(table.console(stderr=True)))
    with figures.style():
        figures.save(landscape.draw(paths), figure)
    typer.echo(dumped({"file": str(figure)}) if as_json else figure)


app.command(cls=door.Command)(doctor)


@app.command(cls=door.Command)
def datasets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the data sets."""
    if as_json:
        typer.echo(dumped([asdict(entry) for entry in sources.SOURCES]))
        return
    table.console().print(table.sources(sources.SOURCES))


@app.command("data", cls=door.Command)
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to download: mnist.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder. [default: $EVENHAND_DATA, else ~/.cache/evenhand]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the folder as JSON.")] = False,
) -> None:
    """Download a data set that is not part of a package, and check it."""
    with refusing():
        if name != "mnist":
            raise ValueError(f"nothing called {name!r} can be downloaded; mnist can")
        from evenhand.data import mnist

        fetched = mnist.fetch(out, progress.saying(table.console(stderr=True)))
        typer.echo(dumped({"folder": str(fetched)}) if as_json else fetched)


@app.command(cls=door.Command)
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR…", help="Folder of a comparison; or of ten or more tables."),
    ],
    delta: Annotated[bool, typer.Option("--delta", help="Show Δm as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Make verdict, table and report of a comparison again; or test over ten tables and more.

    Several folders are comparisons of the same recipes on different tables. Each recipe is then
    held against the plain sum by Wilcoxon's signed-rank test over the tables, with Holm's
    correction.
    """
    with refusing():
        for folder in folders:
            read_manifest(folder)  # one without it is refused before torch is loaded
        from evenhand.comparison.compare import finished

        comparisons = [finished(folder) for folder in folders]
        if len(comparisons) > 1:
            rows = _across(folders, comparisons)
            if as_json:
                typer.echo(dumped([asdict(row) for row in rows]))
            else:
                table.console().print(table.over_tables(rows))
            return
    _present(comparisons[0], delta, as_json)


def _across(folders: list[Path], comparisons: list[Comparison]) -> list[Across]:
    """Each row against the plain sum over the comparisons."""
    from evenhand.app.findings import Findings
    from evenhand.comparison import across

    made = [Findings.of(one, one.settings.problem()) for one in comparisons]
    return across.over_tables(
        {
            str(folder): {line.name: line.skill.mean for line in one.assessment.lines}
            for folder, one in zip(folders, made, strict=True)
        }
    )
