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
from evenhand.app import completing, config, door, progress, start, starting, table, using
from evenhand.app.doctor import doctor
from evenhand.app.door import before_work as refusing
from evenhand.app.source_options import keyed, takes_source
from evenhand.app.using import dumped
from evenhand.comparison.folder import MANIFEST, RESULT, read_manifest
from evenhand.files import held
from evenhand.recipes import recipe

if TYPE_CHECKING:
    from rich.console import Console

    from evenhand.comparison.across import Across
    from evenhand.comparison.compare import Comparison
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
    app.command()(_command)


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


@app.command()
@takes_source
def compare(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=completing.source_names,
            help="A table (csv, tsv, parquet, arff; - reads one), a function (mine.py:problem) or "
            "a data set (`evenhand datasets`).",
        ),
    ] = None,
    *,
    recipes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            autocompletion=completing.recipe_names,
            help="Recipes, or 'all'; `evenhand methods` lists them. "
            "[default: single-task,sg,mgda,mgda-ub,ate-sg]",
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            metavar="K",
            help="Divide the data anew K times; each split has its own rates and epochs. "
            "[default: 5; 3 where the test set is fixed]",
        ),
    ] = None,
    design: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="How the data are divided: hold-out, k-fold or time. [default: hold-out]",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N", help="Train with N seeds in each split. [default: 1]"),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…",
            help="Learning rates to choose from. [default: the data set's own]",
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(metavar="N", help="Most epochs of a run. [default: the data set's own]"),
    ] = None,
    patience: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Stop a run after N epochs without improvement. [default: never]"
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="sgd (momentum 0.9) or adam. [default: the data set's own]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Empty or new folder. [default: ./evenhand-SOURCE]"),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume", help="Go on with what was begun in --out, options unchanged."),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Runs trained at a time, each in a process with one thread; 1 trains in this "
            "process, with all. [default: one per core, at most 8]",
        ),
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Train a recipe's runs as one: auto (where it pays), never or always. "
            "[default: auto]",
        ),
    ] = None,
    jacobian: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Take the tasks' gradients looped, batched, so many at once, or as measured "
            "to be fastest. [default: looped]",
        ),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="Rows beside the recipes: none (the constant alone), cheap (a linear model and "
            "boosted trees, where inputs are flat), or all (equal size, own epochs, tuned "
            "weights). [default: cheap]",
        ),
    ] = None,
    matters: Annotated[
        str | None,
        typer.Option(
            metavar="POINTS", help="The smallest difference of skill that matters. [default: 1]"
        ),
    ] = None,
    delta: Annotated[
        bool | None, typer.Option("--delta", help="Show Δm as well, as the literature has it.")
    ] = None,
    plan: Annotated[
        bool | None,
        typer.Option("--plan", help="Show columns, labels and cost, and train nothing."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="As much as can be done in this time (90s, 10m, 1.5h); says what it gives up.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML or TOML file with these options; those given here win.",
        ),
    ] = None,
    print_config: Annotated[
        bool | None,
        typer.Option("--print-config", help="Print all options as YAML, and train nothing."),
    ] = None,
    as_json: Annotated[
        bool | None,
        typer.Option("--json", help="Print the verdict, or the plan, as JSON; the rest on stderr."),
    ] = None,
    told: dict[str, Any],
) -> None:
    """Train tasks together and apart, and see which serves them.

    The data are divided several times. In each split every recipe is trained at the same learning
    rates; the validation part chooses rate and epoch, the test part is scored. A verdict in
    sentences comes first, then the table. The folder gets the records of every run, the tables as
    CSV and JSON, and report.html, whose path is the last line printed.
    """
    given = {
        "source": source,
        "recipes": recipes,
        "splits": splits,
        "design": design,
        "seeds": seeds,
        "lr": lr,
        "epochs": epochs,
        "patience": patience,
        "optimizer": optimizer,
        "out": out,
        "resume": resume,
        "workers": workers,
        "stack": stack,
        "jacobian": jacobian,
        "references": references,
        "matters": matters,
        "delta": delta,
        "plan": plan,
        "budget": budget,
    }
    console = table.console(stderr=bool(as_json))
    say = progress.saying(console)
    with ExitStack() as held_folder:
        with refusing():
            asked = config.read(file, given | keyed(told))
            if print_config:
                typer.echo(config.written(asked, bool(as_json)), nl=False)
                return
            from evenhand.app import planning
            from evenhand.comparison.compare import prepare

            settings, recipes_asked = planning.planned(asked, say)
            if asked.plan and as_json:
                plan_told = planning.as_json(settings, recipes_asked, asked.processes())
                typer.echo(dumped(plan_told))
                return
            if asked.plan:
                console.print(planning.shown(settings, recipes_asked, asked.processes()))
                return
            folder = asked.folder()
            held_folder.enter_context(held(folder))
            jobs = prepare(settings, recipes_asked, folder, asked.resume)
        _compared(
            jobs,
            settings,
            recipes_asked,
            folder,
            asked.processes(),
            console,
            asked.delta,
            bool(as_json),
        )


def _compared(
    jobs: list[Job],
    settings: Settings,
    recipes: tuple[str, ...],
    folder: Path,
    workers: int,
    console: Console,
    delta: bool,
    as_json: bool,
) -> None:
    """Train what was prepared in a folder, and tell what came of it."""
    from evenhand.app import planning
    from evenhand.comparison.compare import finished
    from evenhand.comparison.plan import state_bytes
    from evenhand.comparison.pool import run_jobs

    say = progress.saying(console)
    problem = settings.problem()
    most = settings.epochs or problem.epochs
    again = f"{config.command(settings, recipes, folder)} --workers {workers}"
    with door.at_work(lambda: _kept(jobs, folder, again)):
        for note in planning.notes(settings):
            say(note)
        rates = ", ".join(f"{rate:g}" for rate in settings.rates)
        say(
            f"{len(jobs)} runs of up to {most} epochs each, {settings.optimizer} at {rates}, "
            f"kept in {folder}"
        )
        say(progress.told_labels(problem.label_counts()))
        say(progress.told_memory(state_bytes(recipes, problem, settings)))
        if stacks := progress.told_stacks(read_manifest(folder).get("trained", {})):
            say(stacks)
        with progress.shown(console, jobs, most) as listener:
            run_jobs(jobs, settings, folder, listener, workers)
        _present(finished(folder), delta, as_json)


@app.command()
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what compare or train prints with --json.")
    ] = False,
) -> None:
    """Go on with a comparison or a training that was stopped, as its folder says."""
    console = table.console(stderr=as_json)
    with ExitStack() as held_folder:
        with refusing():
            manifest = read_manifest(folder)
            from evenhand.comparison.compare import prepare, settings_of
            from evenhand.comparison.single import ONE

            settings, names = settings_of(manifest, folder), tuple(manifest["recipes"])
            held_folder.enter_context(held(folder))
            jobs = prepare(settings, names, folder, resume=True)
            processes = config.processes(workers)
        if manifest.get("kept") == ONE:
            say = progress.saying(console)
            using.trained(jobs, settings, folder, processes, console, say, as_json)
            return
        _compared(jobs, settings, names, folder, processes, console, False, as_json)


def _kept(jobs: list[Job], folder: Path, again: str) -> str:
    """What there is after a fault, and the command that goes on."""
    done = sum((folder / job.folder / RESULT).exists() for job in jobs)
    resume = " --resume" if (folder / MANIFEST).exists() else ""
    return f"{done} of {len(jobs)} runs are finished and kept. Go on with:\n{again}{resume}"


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


@app.command()
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


app.command()(doctor)


@app.command()
def datasets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the data sets."""
    if as_json:
        typer.echo(dumped([asdict(entry) for entry in sources.SOURCES]))
        return
    table.console().print(table.sources(sources.SOURCES))


@app.command("data")
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


@app.command()
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
