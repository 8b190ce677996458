"""Train, choose, compare: from a request to a finished comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evenhand.comparison.folder import AS_ONE, RESULT, claim, read_manifest, told_data
from evenhand.comparison.job import Job, Listener, Result
from evenhand.comparison.plan import jobs, units
from evenhand.comparison.pool import run_jobs
from evenhand.comparison.request import Settings, load_problem
from evenhand.comparison.statistics import Row, rows
from evenhand.training.records import Record, RecordFile


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: what was asked, a row per recipe in the order asked, every run."""

    settings: Settings
    recipes: tuple[str, ...]
    rows: tuple[Row, ...]
    results: tuple[Result, ...]
    out: Path

    def records(self, result: Result) -> list[Record]:
        """The records of one of its runs."""
        return list(RecordFile(self.out / result.job.folder / "records.jsonl"))


def compare(
    settings: Settings,
    recipes: Sequence[str],
    out: Path,
    *,
    listener: Listener = lambda job, event: None,
    workers: int = 1,
    resume: bool = False,
) -> Comparison:
    """Train every recipe at every rate with every seed, choose by validation, compare.

    Raises:
        ValueError: as `prepare` does, before anything is trained.
    """
    run_jobs(prepare(settings, recipes, out, resume), settings, out, listener, workers)
    return finished(out)


def prepare(
    settings: Settings, recipes: Sequence[str], out: Path, resume: bool = False
) -> list[Job]:
    """The runs to make, and their folder with manifest.json: settings, recipes, versions, machine,
    and which runs are trained as one.

    Each run has a folder in `out` with records.jsonl, a checkpoint (runs that are trained as one
    have one together) and, when it is finished, result.json.

    Raises:
        ValueError: an unknown recipe or data set; a task without labels; `out` holds another
            comparison, or one on other data (or anything at all without `resume`); stacks are
            asked for where there can be none.
    """
    load_problem.cache_clear()  # the data may be others than those of an earlier comparison
    problem = load_problem(settings.source)
    problem.check_labels()
    todo = jobs(recipes, problem, settings)
    chosen = {
        unit.jobs[0].group: unit.why or f"{len(unit.jobs)} {AS_ONE}"
        for unit in units(todo, settings)
    }
    claim(out, settings, recipes, resume, {"trained": chosen}, told_data(problem))
    return todo


def finished(out: Path) -> Comparison:
    """The comparison in the folder `out`, whose runs are all finished.

    Raises:
        ValueError: `out` holds no comparison, or one whose runs are not all finished.
    """
    manifest = read_manifest(out)
    load_problem.cache_clear()
    asked = manifest["settings"]
    settings = Settings(**{**asked, "seeds": tuple(asked["seeds"]), "rates": tuple(asked["rates"])})
    problem = load_problem(settings.source)
    files = [out / j.folder / RESULT for j in jobs(manifest["recipes"], problem, settings)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(files)} runs in {out} are not finished: go on with the "
            "command that began them, with --resume"
        )
    results = tuple(Result.from_json(file.read_text()) for file in files)
    recipes = tuple(manifest["recipes"])
    return Comparison(settings, recipes, rows(results, recipes, problem), results, out)
