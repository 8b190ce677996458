"""What every paper's reproduce.py shares: finished runs that are never lost, and result.json.

A run is told by a flat dictionary, its *cell*, such as {"row": "Uniform", "rate": 0.01, "seed": 3}.
`Ledger.complete` makes the runs that are not in `runs.jsonl` yet, several processes at a time, and
adds one line as each ends, so a killed study goes on with what is missing, on another day or
another machine; several studies may write to one folder at a time. `Ledger.write` sums up what the
script hands it in `result.json`, beside the command, the machine and the compute that the runs
took. `papers/table.py` reads that.

The files' shapes:

    expected.json   {"paper": …, "experiments": {name: {"source": …, "rows": ROWS}}}
    result.json     {"paper": …, "experiments": {name: {"rows": ROWS, "note": …, "command": …,
                     "date": …, "cpu_seconds": …, "cards": …, "versions": …, "machine": …}}}
    ROWS            {row: {quantity: [mean, standard deviation]}}; ours have the number of runs too

A spread that is not printed, or of a single run, is null.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from evenhand.comparison.folder import environment
from evenhand.training.records import write_atomically

Cell = Mapping[str, Any]
RUNS, RESULT, EXPECTED = "runs.jsonl", "result.json", "expected.json"


def summary(values: Iterable[float]) -> list[float | None]:
    """[mean, standard deviation with n − 1, n]; no deviation for a single run."""
    values = list(values)
    spread = statistics.stdev(values) if len(values) > 1 else None
    return [statistics.fmean(values), spread, len(values)]


class Ledger:
    """The finished runs of one paper, and what they come to.

    Args:
        folder: where runs.jsonl and result.json are; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lines = _lines(folder / RUNS)

    def found(self, experiment: str) -> dict[str, dict[str, Any]]:
        """The finished runs of an experiment: what `run` returned, by the cell's key."""
        return {
            key(line["cell"]): line["values"]
            for line in self.lines
            if line["experiment"] == experiment
        }

    def found_or_cut(self, experiment: str, epochs: int) -> dict[str, dict[str, Any]]:
        """The runs of at most so many epochs, and for want of one the longest that was cut short.

        The time that there was on some machine cuts runs, which then stand in the ledger as runs of
        fewer epochs. They are under the key that the whole run would have, and "cut" says so.
        """
        lines = [line for line in self.lines if line["experiment"] == experiment]
        lines.sort(key=lambda line: line["cell"]["epochs"])
        return {
            key({**line["cell"], "epochs": epochs}): {
                **line["values"],
                "cut": line["cell"]["epochs"] < epochs,
            }
            for line in lines
        }

    def cpu_seconds(self, experiment: str, **entries: Any) -> float:
        """What the finished runs of an experiment took, those whose cells have these entries."""
        return math.fsum(
            line["cpu_seconds"]
            for line in self.lines
            if line["experiment"] == experiment
            and all(line["cell"].get(k) == v for k, v in entries.items())
        )

    def cards(self, experiment: str) -> list[str]:
        """The GPUs that the runs of an experiment were made on: their time is those cards'."""
        runs = [line for line in self.lines if line["experiment"] == experiment]
        told = {run["values"].get("device", run["cell"].get("card", "CPU")) for run in runs}
        return sorted(told - {"CPU"})

    def complete(
        self,
        experiment: str,
        cells: Sequence[Cell],
        run: Callable[[dict[str, Any]], dict[str, Any]],
        workers: int = 1,
    ) -> dict[str, dict[str, Any]]:
        """Make the missing runs, in the order given; what `run` returns must be fit for JSON.

        Runs are made in `workers` processes of one thread each, a single one in this process. A run
        that raises ends the study; what was finished before is kept.
        """
        missing = [dict(cell) for cell in cells if key(cell) not in self.found(experiment)]
        done = len(cells) - len(missing)
        for cell, values, cost in _runs(run, missing, workers):
            done += 1
            self.add(experiment, cell, values, cost)
            told = " ".join(f"{k}={v}" for k, v in cell.items())
            print(f"{experiment} {done}/{len(cells)}  {told}  {cost:.0f} s", flush=True)
        found = self.found(experiment)
        return {key(cell): found[key(cell)] for cell in cells}

    def add(self, experiment: str, cell: Cell, values: Mapping[str, Any], cost: float) -> None:
        """Add a finished run and the CPU seconds that it took."""
        self.append(
            {
                "experiment": experiment,
                "cell": dict(cell),
                "values": dict(values),
                "cpu_seconds": round(cost, 1),
                "date": date.today().isoformat(),
                "torch": torch.__version__,
            }
        )

    def append(self, line: dict[str, Any]) -> None:
        """Add a line as it stands, made by this class."""
        with self._alone():  # another process may have added to the file since
            self.lines = [*_lines(self.folder / RUNS), line]
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            write_atomically(self.folder / RUNS, text)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process that uses this class writes to the folder meanwhile."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def write(
        self,
        experiment: str,
        rows: Mapping[str, Mapping[str, Sequence[float | None]]],
        paper: str,
        note: str = "",
        cpu_seconds: float | None = None,
        made_as: str | None = None,
    ) -> None:
        """Put an experiment's rows, {row: {quantity: [mean, std, n]}}, into result.json.

        Args:
            experiment: its name there.
            rows: its numbers.
            paper: whose they are beside.
            note: what a reader of the numbers must know.
            cpu_seconds: what they took; None: what all runs of the experiment took.
            made_as: the experiment's name in runs.jsonl, where it is another.
        """
        file = self.folder / RESULT
        runs = made_as or experiment
        if cpu_seconds is None:
            cpu_seconds = self.cpu_seconds(runs)
        entry = {
            "rows": rows,
            "note": note,
            "command": shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
            "date": date.today().isoformat(),
            "cpu_seconds": round(cpu_seconds, 1),
            "cards": self.cards(runs),
            **environment(),
        }
        with self._alone():
            result = json.loads(file.read_text()) if file.exists() else {"experiments": {}}
            result["paper"] = paper
            result["experiments"][experiment] = entry
            write_atomically(file, json.dumps(result, indent=1) + "\n")


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def key(cell: Cell) -> str:
    """A cell as a string, whatever the order of its entries."""
    return json.dumps(dict(cell), sort_keys=True)


def _runs(
    run: Callable[[dict[str, Any]], dict[str, Any]], cells: Sequence[dict[str, Any]], workers: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any], float]]:
    """(cell, what `run` returned, CPU seconds) of each run as it ends."""
    if workers <= 1:
        for cell in cells:
            yield cell, *_timed(run, cell)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = {pool.submit(_timed, run, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _timed(
    run: Callable[[dict[str, Any]], dict[str, Any]], cell: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    torch.set_num_threads(1)
    start = time.process_time()
    return run(cell), time.process_time() - start
