"""Compare recipes: the same seeds, the same splits, the same grid of rates; validation chooses.

Methods have different natural step sizes (the min-norm point is shorter than the sum), so one
rate for all would be no comparison. Every recipe is trained at every rate with every seed; the
rate is chosen by the mean over seeds of the monitored validation quantity, and only then is the
test set read. A recipe that composes several networks is joined the same way: among networks for
the same tasks the better one by validation stands, networks for different tasks complete each
other.
"""

from __future__ import annotations

import json
import math
import platform
import signal
import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from evenhand import checkpoint, data
from evenhand.balancer import Balancer
from evenhand.chunking import Chunking, Jacobian
from evenhand.data.problem import Problem
from evenhand.gradients import NonFiniteError
from evenhand.optimizers import Optimizers
from evenhand.recipes import Composition, recipe
from evenhand.records import Record, RecordFile, write_atomically
from evenhand.stacked import FINISHED, StackedTraining, drawback, obstacle
from evenhand.stopping import EarlyStopping
from evenhand.training import Training, evaluate

REFERENCE = "single-task"
"""The recipe that Δm compares with."""
BASELINE = "sg"
"""The recipe that times are relative to."""
MANIFEST, RESULT = "manifest.json", "result.json"
AS_ONE = "runs as one"
"""What the manifest says after their number."""
STACKED = "stack.safetensors"
"""The checkpoint of runs that are trained as one, in their group's folder until all are done."""


@dataclass(frozen=True)
class Settings:
    """What a comparison is made with, besides the recipes.

    Attributes:
        source: name of the data set.
        seeds: of initial weights, order of data, dropout and methods.
        rates: learning rates to choose from.
        epochs: the most epochs of one run; None takes the problem's own.
        patience: epochs without improvement after which a run stops; None never stops.
        optimizer: "sgd" (momentum 0.9) or "adam".
        weights_rate: learning rate of learned task weights (Adam).
        observe_every: steps between looks at the tasks' gradients.
        stack: train the runs of a recipe as one (`stacked.py`): "auto" where it can be and pays,
            "never", or "always". What was chosen is in the manifest, with the reason.
        jacobian: how tasks' gradients are taken, see `Balancer`.
    """

    source: str
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    epochs: int | None = None
    patience: int | None = None
    optimizer: str = "sgd"
    weights_rate: float = 0.025
    observe_every: int = 10
    stack: str = "auto"
    jacobian: Jacobian = "looped"

    @classmethod
    def suggested(cls, source: str, **given: Any) -> Settings:
        """What the data set suggests, and what is given (None counts as not given)."""
        problem = load_problem(source)
        own = {"rates": problem.rates, "optimizer": problem.optimizer}
        return cls(source, **own | {k: v for k, v in given.items() if v is not None})

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds={self.seeds}: must be different integers >= 0")
        if not self.rates or any(not (math.isfinite(r) and r > 0) for r in self.rates):
            raise ValueError(f"rates={self.rates}: must be positive numbers")
        if len({f"{rate:g}" for rate in self.rates}) != len(self.rates):
            raise ValueError(f"rates={self.rates}: must differ within six digits")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={self.optimizer!r}: must be one of {', '.join(OPTIMIZERS)}"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience={self.patience}: must be at least 1 epoch, or None")
        if not (math.isfinite(self.weights_rate) and self.weights_rate > 0):
            raise ValueError(f"weights_rate={self.weights_rate}: must be a positive number")
        if self.observe_every < 0:
            raise ValueError(f"observe_every={self.observe_every}: must be >= 0")
        if self.stack not in STACK:
            raise ValueError(f"stack={self.stack!r}: must be one of {', '.join(STACK)}")
        Chunking(self.jacobian)


STACK = ("auto", "never", "always")

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
}
"""Fused: one pass over the memory instead of several; ``benchmarks/alternation.py`` has both."""


@dataclass(frozen=True)
class Job:
    """One network's training: a recipe, which of its networks, a seed and a rate."""

    recipe: str
    label: str
    seed: int
    rate: float

    @property
    def group(self) -> str:
        """The folder, inside the comparison's, of the runs that differ in seed and rate alone."""
        return f"{self.recipe}-{self.label}" if self.label else self.recipe

    @property
    def folder(self) -> str:
        """The run's folder inside the comparison's."""
        return f"{self.group}/seed{self.seed}-lr{self.rate:g}"


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
        tasks: what the network was trained on.
        status: "finished", or "diverged: …" with the reason.
        epoch: the best epoch by the monitored quantity.
        monitored: its value there; infinite for a diverged run.
        validation, test: each task's metric with the best epoch's weights.
        seconds: wall time of an epoch's training steps, the median over epochs that move the same
            parameters, averaged over all of them.
    """

    job: Job
    tasks: tuple[str, ...]
    status: str
    epoch: int = 0
    monitored: float = math.inf
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Result:
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "job": Job(**values["job"]), "tasks": tuple(values["tasks"])})


Listener = Callable[[Job, Record | Result], None]
"""Called with every record of a running job, and with its result."""


@dataclass(frozen=True)
class Unit:
    """Runs that are trained together: one, or several as one.

    Attributes:
        jobs: the runs.
        why: for a single run, why it is not one of a stack.
    """

    jobs: tuple[Job, ...]
    why: str = ""

    @property
    def stacked(self) -> bool:
        """Whether they are trained as one."""
        return not self.why


# One job --------------------------------------------------------------------------------------


def composition(job: Job, problem: Problem) -> Composition:
    """What `job` trains, made afresh."""
    return recipe(job.recipe).compose(tuple(problem.tasks))[job.label]


def training(job: Job, problem: Problem, settings: Settings) -> Training:
    """The training that `job` stands for."""
    parts = composition(job, problem)
    torch.manual_seed(job.seed)
    network = problem.network(parts.tasks)
    balancer = Balancer(
        parts.weighting, parts.aggregator, tasks=parts.tasks, jacobian=settings.jacobian
    )
    optimizers = Optimizers(
        network.blocks(),
        partial(OPTIMIZERS[settings.optimizer], lr=job.rate),
        weights=partial(OPTIMIZERS["adam"], lr=settings.weights_rate),
        learned=balancer.parameters(),
        slots=len(parts.schedule.slots(len(parts.tasks))) if parts.own_moments else 1,
    )
    return Training(
        problem,
        network,
        optimizers,
        balancer,
        parts.schedule,
        tasks=parts.tasks,
        epochs=settings.epochs or problem.epochs,
        seed=job.seed,
        stopping=EarlyStopping(settings.patience),
        replacement=parts.replacement,
        observe_every=settings.observe_every,
        count_work=True,
    )


def state_bytes(recipes: Sequence[str], problem: Problem, settings: Settings) -> dict[str, int]:
    """The memory that the optimizers of a network of each recipe will keep, known beforehand."""
    found = {}
    for name in recipes:
        labels = recipe(name).compose(tuple(problem.tasks))
        runs = (training(Job(name, label, 0, 1e-3), problem, settings) for label in labels)
        found[name] = max(sum(run.optimizers.planned_state_bytes().values()) for run in runs)
    return found


def execute(unit: Unit, settings: Settings, out: Path, listener: Listener) -> list[Result]:
    """Train the runs of `unit` in their folders under `out`, going on where they were killed."""
    if unit.stacked:
        return _execute_as_one(unit.jobs, settings, out, listener)
    results = []
    for job in unit.jobs:
        results.append(_execute_alone(job, settings, out, partial(listener, job)))
        listener(job, results[-1])
    return results


def _execute_alone(
    job: Job, settings: Settings, out: Path, on_record: Callable[[Record], None]
) -> Result:
    folder = out / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / RESULT
    if done.exists():
        return Result.from_json(done.read_text())
    problem = load_problem(settings.source)
    run = training(job, problem, settings)
    records: list[Record] = []
    try:
        for record in run.run(folder):
            records.append(record)
            on_record(record)
        result = _result(job, run, records)
    except NonFiniteError as error:
        reason, _, _ = str(error).partition(";")
        result = Result(job, run.tasks, f"diverged: {reason}")
    write_atomically(done, result.to_json())
    return result


def _execute_as_one(
    jobs: Sequence[Job], settings: Settings, out: Path, listener: Listener
) -> list[Result]:
    """Those that are finished are trained along, if others are not: the stack stays what it was."""
    folders = [out / job.folder for job in jobs]
    found: dict[int, Result] = {}
    for k, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RESULT).exists():
            found[k] = Result.from_json((folder / RESULT).read_text())
            listener(jobs[k], found[k])
    if len(found) == len(jobs):
        return [found[k] for k in range(len(jobs))]
    saved = out / jobs[0].group / STACKED
    if saved.exists():
        ended = checkpoint.load(saved)["ended"]
        if any(k not in found and status == FINISHED for k, status in ended.items()):
            saved.unlink()  # somebody has taken a result away, and the weights are gone
    problem = load_problem(settings.source)
    runs = StackedTraining([training(job, problem, settings) for job in jobs])
    wanted = [k for k in range(len(jobs)) if k not in found]
    files = {k: RecordFile(folders[k] / "records.jsonl") for k in wanted}
    records: dict[int, list[Record]] = {k: [] for k in wanted}
    for k, event in runs.run(saved, files):
        if k not in records:
            continue
        if isinstance(event, Record):
            records[k].append(event)
            listener(jobs[k], event)
            continue
        if event == FINISHED:
            found[k] = _result(jobs[k], runs.members[k], records[k])
        else:
            found[k] = Result(jobs[k], runs.members[k].tasks, event)
        write_atomically(folders[k] / RESULT, found[k].to_json())
        listener(jobs[k], found[k])
    saved.unlink(missing_ok=True)
    return [found[k] for k in range(len(jobs))]


def _result(job: Job, run: Training, records: Sequence[Record]) -> Result:
    best = [record for record in records if record.best][-1]
    _, test = evaluate(run.network, run.problem, run.problem.test, run.tasks)
    return Result(
        job,
        run.tasks,
        "finished",
        best.epoch,
        best.monitored,
        best.metrics,
        test,
        _epoch_seconds(records[1:]),
    )


def _epoch_seconds(records: Sequence[Record]) -> float:
    # One median over all epochs of an alternating run would be that of the commoner kind alone.
    kinds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for record in records:
        kinds[record.moves].append(record.seconds)
    total = math.fsum(statistics.median(seconds) * len(seconds) for seconds in kinds.values())
    return total / len(records)


@lru_cache(maxsize=4)
def load_problem(source: str) -> Problem:
    """The problem called `source`, with the split that all seeds share."""
    return data.problem(source)


# All jobs -------------------------------------------------------------------------------------


def jobs(recipes: Sequence[str], problem: Problem, settings: Settings) -> list[Job]:
    """Every network to train, seeds outermost, so that an early stop leaves whole seeds.

    Raises:
        ValueError: a recipe is unknown, asked for twice, or cannot serve the problem's tasks.
    """
    if not recipes or len(set(recipes)) != len(recipes):
        raise ValueError(f"recipes={', '.join(recipes)}: must be one or more different names")
    labels = [
        (name, label) for name in recipes for label in recipe(name).compose(tuple(problem.tasks))
    ]
    return [
        Job(name, label, seed, rate)
        for seed in settings.seeds
        for rate in settings.rates
        for name, label in labels
    ]


def units(todo: Sequence[Job], settings: Settings) -> list[Unit]:
    """The jobs, in order, those of a recipe as one where that is asked for or pays.

    The choice depends on `todo` and `settings` alone: on no timing, and not on what is finished.

    Raises:
        ValueError: stacks are asked for, and a recipe's runs cannot be one.
    """
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in todo:
        groups[job.group].append(job)
    reasons = {name: _why_single(group, settings) for name, group in groups.items()}
    found: dict[tuple[Job, ...], Unit] = {}
    for job in todo:
        why = reasons[job.group]
        unit = Unit((job,) if why else tuple(groups[job.group]), why)
        found[unit.jobs] = unit
    return list(found.values())


def _why_single(group: Sequence[Job], settings: Settings) -> str:
    """Why the runs of a group are trained one by one, or "" if they are one."""
    if settings.stack == "never":
        return "not asked for"
    problem = load_problem(settings.source)
    two = [training(job, problem, settings) for job in group[:2]]
    if settings.stack == "auto" and (why := drawback(two[0], len(group))):
        return why
    why = obstacle(two)
    if why and settings.stack == "always":
        raise ValueError(f"stack=always: the runs of {group[0].group} cannot be one: {why}")
    return why


def run_jobs(
    todo: Sequence[Job], settings: Settings, out: Path, listener: Listener, workers: int = 1
) -> list[Result]:
    """Execute the jobs, several processes at a time if asked; results in the order of the jobs."""
    planned = units(todo, settings)
    if workers == 1:
        return _in_order(todo, [execute(unit, settings, out, listener) for unit in planned])
    context = get_context("spawn")
    reports: Reports = context.SimpleQueue()
    pool = ProcessPoolExecutor(workers, context, initializer=_in_worker, initargs=(reports,))
    try:
        with _deaf_children():
            futures = [pool.submit(_execute_in_worker, unit, settings, out) for unit in planned]
        with _noted_interrupts() as raise_if_any:
            for job, event in _events(futures, reports, raise_if_any):
                listener(job, event)
        return _in_order(todo, [future.result() for future in futures])
    except BaseException:
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(todo: Sequence[Job], found: Sequence[Sequence[Result]]) -> list[Result]:
    by_job = {result.job: result for results in found for result in results}
    return [by_job[job] for job in todo]


def _events(
    futures: Sequence[Future[list[Result]]], reports: Reports, between: Callable[[], None]
) -> Iterator[tuple[Job, Record | Result]]:
    """Records and results as they come; a worker has sent them all when it is done.

    `between` is called ten times a second, while no lock is held.
    """
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
        while not reports.empty():
            yield reports.get()
        for future in done:
            future.result()  # raises what the worker raised
        between()


Reports = SimpleQueue[tuple[Job, Record | Result]]
_reports: Reports
"""In a worker: where its records and results go."""


def _in_worker(reports: Reports) -> None:
    global _reports
    _reports = reports
    torch.set_num_threads(1)


def _execute_in_worker(unit: Unit, settings: Settings, out: Path) -> list[Result]:
    return execute(unit, settings, out, lambda job, event: _reports.put((job, event)))


@contextmanager
def _noted_interrupts() -> Iterator[Callable[[], None]]:
    """Inside, Ctrl-C is noted, and raised by the function that this gives.

    Raised wherever it comes, it would now and then leave a lock of the pool taken, and the pool
    could not be shut down.
    """
    elsewhere = threading.current_thread() is not threading.main_thread()
    if elsewhere or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: None
        return
    noted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.set())

    def raise_if_any() -> None:
        if noted.is_set():
            raise KeyboardInterrupt

    try:
        yield raise_if_any
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which reaches every process of a terminal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# The comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What a comparison says about one recipe.

    Attributes:
        recipe: its name.
        chosen: the runs that stand for it, one per seed and network. Tasks for which some seed
            diverged at every rate have none, and are missing in `test`.
        test: each task's metric on the test set, one value per seed.
        rates: the learning rate chosen, by network label.
        delta: Δm in per cent, one value per seed: the mean over tasks of the relative gain over
            single-task networks, positive is better. Empty without those of every task.
        rank: mean rank over the tasks among the recipes that have all tasks, 1 is best; else NaN.
        relative_time: time per epoch relative to `sg`; NaN without that recipe.
        diverged: those of its runs that ended in a loss or gradient that is not finite.
    """

    recipe: str
    chosen: tuple[Result, ...]
    test: Mapping[str, tuple[float, ...]]
    rates: Mapping[str, float]
    delta: tuple[float, ...] = ()
    rank: float = math.nan
    relative_time: float = math.nan
    diverged: tuple[Result, ...] = ()


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
        ValueError: an unknown recipe or data set; `out` holds another comparison (or anything at
            all without `resume`); stacks are asked for where there can be none.
    """
    todo = jobs(recipes, load_problem(settings.source), settings)
    chosen = {
        unit.jobs[0].group: unit.why or f"{len(unit.jobs)} {AS_ONE}"
        for unit in units(todo, settings)
    }
    _claim(out, settings, recipes, resume, {"trained": chosen})
    return todo


def finished(out: Path) -> Comparison:
    """The comparison in the folder `out`, whose runs are all finished.

    Raises:
        ValueError: `out` holds no comparison, or one whose runs are not all finished.
    """
    manifest = read_manifest(out)
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


def read_manifest(out: Path) -> dict[str, Any]:
    """What the comparison in the folder `out` was asked, and where it was made.

    Raises:
        ValueError: there is none.
    """
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{out} holds no comparison: no readable {MANIFEST}") from error
    return manifest


def _claim(
    out: Path,
    settings: Settings,
    recipes: Sequence[str],
    resume: bool,
    chosen: Mapping[str, Any],
) -> None:
    asked = {"settings": asdict(settings), "recipes": list(recipes)}
    asked = json.loads(json.dumps(asked))
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder")
    if not out.exists() or not any(out.iterdir()):
        out.mkdir(parents=True, exist_ok=True)
        manifest = {**asked, **chosen, **environment()}
        write_atomically(out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    if not resume:
        raise ValueError(f"{out} is not empty: choose another folder, or go on with --resume")
    before = read_manifest(out)
    then, now = (
        {"recipes": m["recipes"], "stack": "never", **m["settings"]} for m in (before, asked)
    )  # before there were stacks, there was none
    differing = [
        f"{key} was {then.get(key)}, now {now[key]}" for key in now if then.get(key) != now[key]
    ]
    if differing:
        raise ValueError(f"{out} holds another comparison: {'; '.join(differing)}")


def environment() -> dict[str, Any]:
    """Versions and machine, for manifests."""
    from evenhand import __version__

    return {
        "versions": {
            "evenhand": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def rows(results: Sequence[Result], recipes: Sequence[str], problem: Problem) -> tuple[Row, ...]:
    """A row per recipe: validation chooses, the test set is read once."""
    found = [_row([r for r in results if r.job.recipe == name], name) for name in recipes]
    by_name = {row.recipe: row for row in found}
    signs = {t: 1.0 if task.higher_is_better else -1.0 for t, task in problem.tasks.items()}
    complete = {row.recipe: row for row in found if set(row.test) == set(signs)}
    reference, baseline = complete.get(REFERENCE), by_name.get(BASELINE)
    ranks = _ranks(complete, signs)
    return tuple(
        replace(
            row,
            delta=_delta(row, reference, signs) if reference and row.recipe in complete else (),
            rank=ranks.get(row.recipe, math.nan),
            relative_time=_seconds(row) / _seconds(baseline) if baseline else math.nan,
        )
        for row in found
    )


def _row(results: Sequence[Result], name: str) -> Row:
    """Per set of tasks, the network label and rate with the lowest mean monitored value."""
    scores: dict[tuple[str, ...], dict[tuple[str, float], list[Result]]] = {}
    for result in results:
        candidates = scores.setdefault(result.tasks, defaultdict(list))
        candidates[result.job.label, result.job.rate].append(result)
    diverged = tuple(r for r in results if r.status != "finished")
    chosen: list[Result] = []
    rates: dict[str, float] = {}
    for candidates in scores.values():
        means = {c: statistics.mean(r.monitored for r in runs) for c, runs in candidates.items()}
        label, rate = min(means, key=means.__getitem__)
        if math.isfinite(means[label, rate]):
            rates[label] = rate
            chosen.extend(candidates[label, rate])
    test: dict[str, list[float]] = defaultdict(list)
    for result in chosen:
        for task, value in result.test.items():
            test[task].append(value)
    return Row(
        name, tuple(chosen), {t: tuple(v) for t, v in test.items()}, rates, diverged=diverged
    )


def _seconds(row: Row) -> float:
    """Seconds per epoch; networks that complete each other add up. NaN if there is none."""
    by_label: dict[str, list[float]] = defaultdict(list)
    for result in row.chosen:
        by_label[result.job.label].append(result.seconds)
    return math.fsum(map(statistics.median, by_label.values())) if by_label else math.nan


def _delta(row: Row, reference: Row, signs: Mapping[str, float]) -> tuple[float, ...]:
    """Δm per seed: 100/m Σ_i ± (M_i − M_i^single) / M_i^single (Maninis et al., CVPR 2019)."""
    means = {task: statistics.mean(values) for task, values in reference.test.items()}
    return tuple(
        100
        * statistics.mean(
            signs[task] * (value - means[task]) / (abs(means[task]) or math.nan)
            for task, value in zip(row.test, values, strict=True)
        )
        for values in zip(*row.test.values(), strict=True)
    )


def _ranks(complete: Mapping[str, Row], signs: Mapping[str, float]) -> dict[str, float]:
    """Mean over tasks of a recipe's rank by its mean test metric; ties share the mean rank."""
    from scipy.stats import rankdata

    values = [
        [-sign * statistics.mean(row.test[task]) for task, sign in signs.items()]
        for row in complete.values()
    ]
    if not values:
        return {}
    return dict(zip(complete, rankdata(values, axis=0).mean(axis=1).tolist(), strict=True))
