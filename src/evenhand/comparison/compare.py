"""Train, choose, compare: from a request to a finished comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenhand.arguments import checked
from evenhand.asking import option
from evenhand.comparison.assessment import assess
from evenhand.comparison.executors import LOCAL, executor_of
from evenhand.comparison.executors.base import Executor
from evenhand.comparison.facts import Facts
from evenhand.comparison.folder import AS_ONE, RESULT, claim, read_manifest, told_data
from evenhand.comparison.job import Job, Listener, Result
from evenhand.comparison.plan import jobs, units
from evenhand.comparison.reference_runs import FACTS
from evenhand.comparison.references import (
    CONSTANT,
    REFERENCES,
    reference_jobs,
    reference_names,
)
from evenhand.comparison.request import Given, Maker, Settings, forget
from evenhand.comparison.running import run_jobs
from evenhand.comparison.statistics import Row, rows
from evenhand.comparison.verdict import Verdict, verdict
from evenhand.data.problem import Problem
from evenhand.files import held
from evenhand.recipes import Recipe
from evenhand.training.records import Record, RecordFile


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: what was asked, a row per recipe in the order asked, every run.

    Attributes:
        references: the rows beside the recipes, the best constant first.
        facts: what was counted, a split at a time.
    """

    settings: Settings
    recipes: tuple[str, ...]
    rows: tuple[Row, ...]
    results: tuple[Result, ...]
    out: Path
    references: tuple[Row, ...] = ()
    facts: tuple[Facts, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What it comes to, in words."""
        problem = self.settings.problem()
        return verdict(assess(self.rows, self.references, problem, self.settings, self.facts))

    def __str__(self) -> str:
        said = self.verdict
        advice = [f"Next: {said.advice}"] if said.advice else []
        return "\n".join([said.headline, *(f"  {line}" for line in said.sentences), *advice])

    def records(self, result: Result) -> list[Record]:
        """The records of one of its runs.

        Raises:
            ValueError: they are damaged, or do not reach the run's best epoch.
        """
        file = self.out / result.job.folder / "records.jsonl"
        if result.job.recipe in REFERENCES and not file.exists():
            return []  # nothing was trained by epochs
        found = list(RecordFile(file))
        if not any(record.epoch == result.epoch for record in found):
            raise ValueError(
                f"{file} has no record of the run's best epoch, {result.epoch}: delete its folder, "
                f"and {option('resume', True)} makes the run again, to the same numbers"
            )
        return found


@checked
def compare(
    asked: Settings | Problem | Maker | str,
    recipes: Sequence[str | Recipe],
    out: Path,
    *,
    listener: Listener = lambda job, event: None,
    workers: int = 1,
    resume: bool = False,
    executor: str | Executor = LOCAL,
) -> Comparison:
    """Train every recipe at every rate, seed and split, choose by validation, compare.

    Args:
        asked: the settings; or what to compare on, with the settings that it suggests: a problem,
            a function that gives one for the number of a split, or the name of a data set.
            `Settings.suggested(problem, seeds=…)` asks for others.
        recipes: names, and recipes of one's own (`Recipe.of`).
        out: an empty or new folder; with `resume`, that of this comparison.
        listener: is told of every record and result.
        workers: runs at a time; what is given as an object must then be fit to be pickled.
        resume: go on with what was begun in `out`.
        executor: where runs are trained: "local", "ray", "slurm(slurm_partition=…)", or an object
            such as `executors.ray.Ray(cpus=2)`.

    Raises:
        ValueError: as `prepare` does, before anything is trained; objects cannot be sent to
            workers; or the executor cannot be had.
        BusyError: another process writes to `out`.
        WorkerEndedError: workers have ended before a run, again and again.
        OSError: `out` cannot be read or written. What is finished is kept; `resume` goes on.
    """
    forget()  # the data may be others than those of an earlier comparison
    settings = asked if isinstance(asked, Settings) else Settings.suggested(asked)
    settings, names = settings.taking(recipes)
    executor = executor_of(executor)
    if workers > 1:
        settings.given.require_picklable()
    with held(out):
        todo = prepare(settings, names, out, resume)
        run_jobs(todo, settings, out, listener, workers, executor)
        return finished(out, settings.given)


def prepare(
    settings: Settings,
    recipes: Sequence[str],
    out: Path,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
) -> list[Job]:
    """The runs to make, and their folder with manifest.json: settings, recipes, versions, machine,
    and which runs are trained as one.

    `about` is what else a new manifest says.

    Each run has a folder in `out` with records.jsonl, a checkpoint (runs that are trained as one
    have one together) and, when it is finished, result.json.

    Raises:
        ValueError: an unknown recipe or data set; a task without labels, or whose network's
            output is not finite for a sample (by task and count); `out` holds another
            comparison, or one on other data (or anything at all without `resume`); stacks are
            asked for where there can be none.
    """
    problem = settings.problem()
    problem.check_labels()
    problem.check_pieces()
    problem.check_finite()
    for split in range(1, settings.splits):
        # An impossible division is told before training.
        if settings.design != "hold-out" or problem.pool is not None or settings.options:
            settings.problem(split).check_labels()
    todo = jobs(recipes, problem, settings)
    chosen = {
        unit.jobs[0].network: unit.why or f"{len(unit.jobs)} {AS_ONE}"
        for unit in units(todo, settings)
    }
    todo += reference_jobs(recipes, problem, settings)
    claim(out, settings, recipes, resume, {"trained": chosen, **(about or {})}, told_data(problem))
    return todo


def finished(out: Path, given: Given | None = None) -> Comparison:
    """The comparison in the folder `out`, whose runs are all finished.

    Args:
        out: the folder.
        given: the objects that it was made with, where they have no names: a problem, recipes of
            one's own.

    Raises:
        ValueError: `out` holds no comparison, or one whose runs are not all finished, or one that
            was made with objects that are not given.
    """
    manifest = read_manifest(out)
    settings = settings_of(manifest, out, given or Given())
    problem = settings.problem()
    todo = jobs(manifest["recipes"], problem, settings)
    todo += reference_jobs(manifest["recipes"], problem, settings)
    files = [out / job.folder / RESULT for job in todo]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(files)} runs in {out} are not finished: "
            f"evenhand resume {out} goes on"
        )
    results = tuple(Result.read(file, job) for file, job in zip(files, todo, strict=True))
    recipes = tuple(manifest["recipes"])
    counted = [Facts.read(out / job.folder / FACTS) for job in todo if job.recipe == CONSTANT]
    beside = [name for name in reference_names(settings) if any(j.recipe == name for j in todo)]
    return Comparison(
        settings,
        recipes,
        rows(results, recipes, problem),
        results,
        out,
        rows(results, beside, problem),
        tuple(counted),
    )


def settings_of(manifest: Mapping[str, Any], out: Path, given: Given | None = None) -> Settings:
    """The settings that a manifest holds.

    Raises:
        ValueError: it was made with objects that are not given.
    """
    given = given or Given()
    _require_objects(manifest.get("objects", {}), given, out)
    asked = manifest["settings"]
    return Settings(
        **{**asked, "seeds": tuple(asked["seeds"]), "rates": tuple(asked["rates"])}, given=given
    )


def _require_objects(objects: Mapping[str, Any], given: Given, out: Path) -> None:
    lacking = [name for name in objects.get("recipes", {}) if name not in given.recipes]
    if objects.get("problem") and given.problem is None:
        lacking.insert(0, "its problem")
    if lacking:
        raise ValueError(
            f"{out} was compared with objects that have no names here ({', '.join(lacking)}): "
            "give them again, finished(out, Given(problem, {recipe.name: recipe}))"
        )
