"""What wants a GPU, in parts that fit the minutes there are; stopped parts go on where they were.

    python papers/gpu.py timing    --minutes 5  --out FOLDER     MGDA beside MGDA-UB on the device
    python papers/gpu.py quadrants --minutes 12 --out FOLDER     88 runs as stacks, to 5,000 epochs
    python papers/gpu.py multimnist --minutes 8 --out FOLDER     Table 3 as stacks, 10 seeds
    python papers/gpu.py sener     --minutes 12 --workers 8 --out FOLDER   100 epochs with decay
    python papers/gpu.py merge --out FOLDER     finished runs into the papers' own runs.jsonl

FOLDER has a folder for each paper with its runs.jsonl, and checkpoints. Every run keeps the name of
the device that it was made on. `--small` makes everything tiny, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "sener2018"))
sys.path.insert(0, str(Path(__file__).parent / "nakamura2022"))
sys.path.insert(0, str(Path(__file__).parent / "bellavia2026"))
sys.path.insert(0, str(Path(__file__).parent))

import alternation
import multimnist
import redraw
import running
import stacked
import stacks
import staged
import table3
import timing
import torch
from ledger import Ledger, key

HERE = Path(__file__).parent
QUADRANTS = "quadrants, 5,000 epochs"
RATES = (1e-2, 1e-3)
FIVES = range(1, 5), range(5, 10)
"""Table 3's seeds beside seed 0: five of the paper's ten in all, then the rest."""
TIMING = "timing, GPU"
OWNERS = {
    "bellavia2026": (QUADRANTS,),
    "nakamura2022": tuple(reading.experiment for reading in table3.READINGS.values()),
    "sener2018": (TIMING, multimnist.LONG),
}
"""The experiments that are made here, by the paper that they belong to."""


def card(device: str) -> str:
    """What a run says about where it was made."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def quadrants(asked: argparse.Namespace) -> None:
    """All methods and seeds of a starting rate as one stack, the rates one after the other.

    Where the time is over before a stack is, the runs that have ended are kept, and the others as
    what they are: runs of as many epochs as there were.
    """
    if asked.tf32:
        torch.set_float32_matmul_precision("high")
    ledger = Ledger(asked.out / "bellavia2026")
    size = {"epochs": 2, "samples": 300} if asked.small else {"epochs": 5_000}
    seeds = 1 if asked.small else 11
    for number, rate in enumerate(RATES):
        cells = alternation.cells("quadrants", (rate,), seeds, **size)
        done = ledger.found(QUADRANTS)
        if all(key(cell) in done for cell in cells):
            continue
        members = stacks.Members(cells, asked.device)
        file = asked.out / "bellavia2026" / f"{rate}.pt"
        if file.exists():
            members.load_state_dict(torch.load(file, weights_only=True))
        start = time.time()
        # The last reading gets what is left.
        share = (asked.until - start) / (len(RATES) - number)  # of the time that is left
        finished = members.run(start + share, file if asked.keep else None)
        seconds = time.time() - start
        print(f"rate {rate}: epoch {members.epoch}, {seconds:.0f} s", flush=True)
        if not finished and asked.keep:
            return
        for k, (cell, values) in enumerate(zip(cells, members.values(seconds), strict=True)):
            if not finished and bool(members.going[k]):
                cell["epochs"] = members.epoch
            values |= {"device": card(asked.device), "tf32": asked.tf32}
            ledger.add(QUADRANTS, cell, values, seconds / len(cells))
        file.unlink(missing_ok=True)


def redrawn(asked: argparse.Namespace) -> None:
    """Table 3 of Nakamura et al. by the paper's rule, as stacks: all rates, then more seeds.

    Runs that have not ended when the time is over are kept as what they are: shorter ones.
    """
    names = ["Single upper", "Min-norm"] if asked.small else list(redraw.AGGREGATORS)
    rates, seeds = (table3.RATES[:1], [[1]]) if asked.small else (table3.RATES, FIVES)
    ledger = Ledger(asked.out / "nakamura2022")
    readings = list(table3.READINGS.values())
    if asked.small:
        readings = [replace(r, settings={**r.settings, "epochs": 1}) for r in readings[:2]]
    best: dict[tuple[str, str], float | None] = {}
    for number, reading in enumerate(readings):
        # The last reading gets what is left.
        share = (asked.until - time.time()) / max(1, len(readings) - 1 - number)
        first = [cell for row in names for cell in reading.cells(row, rates, [0])]
        known = stacked_runs(ledger, reading.experiment, first, 0.6 * share, asked)
        best |= {(reading.experiment, row): reading.chosen(row, rates, known) for row in names}
        more_seeds(ledger, reading, best, seeds[0], 0.4 * share, asked)
    for some in seeds[1:]:
        for reading in readings:
            more_seeds(ledger, reading, best, some, asked.until - time.time(), asked)


def more_seeds(
    ledger: Ledger,
    reading: table3.Reading,
    best: Mapping[tuple[str, str], float | None],
    seeds: Sequence[int],
    seconds: float,
    asked: argparse.Namespace,
) -> None:
    """Runs of each row at its rate."""
    mine = {row: rate for (of, row), rate in best.items() if of == reading.experiment}
    cells = [
        cell
        for row, rate in mine.items()
        if rate is not None
        for cell in reading.cells(row, [rate], seeds)
    ]
    stacked_runs(ledger, reading.experiment, cells, seconds, asked)


def stacked_runs(
    ledger: Ledger,
    experiment: str,
    cells: Sequence[dict[str, Any]],
    seconds: float,
    asked: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """What is known of these of Table 3's runs, after as many seconds of training as one stack."""
    done = ledger.found(experiment)
    known = {key(cell): done[key(cell)] for cell in cells if key(cell) in done}
    missing = [cell for cell in cells if key(cell) not in done]
    until = min(asked.until, time.time() + seconds)
    if not missing or time.time() >= until:
        return known
    members, start = stacked.Members(missing, asked.device), time.time()
    finished = members.run(until)
    taken = time.time() - start
    print(f"{experiment}: {len(missing)} runs, epoch {members.epoch}, {taken:.0f} s", flush=True)
    going = [] if finished else [c for k, c in enumerate(members.cells) if bool(members.going[k])]
    found = members.values()
    for cell in missing:
        values = {**found[key(cell)], "device": card(asked.device)}
        told = {**cell, "epochs": members.epoch} if cell in going else cell
        ledger.add(experiment, told, values, taken / len(missing))
    return {**known, **found}


def sener(asked: argparse.Namespace) -> None:
    """Sener & Koltun's MultiMNIST for 100 epochs with the decay of the rate."""
    study = multimnist.LONG_STUDY
    if asked.small:
        few = {name: study.rows[name] for name in ("sg", "mgda")}
        study = replace(study, rows=few, rates=(1e-2,), seeds=1, epochs=1, samples=100)
    with limited(asked, "sener2018") as ledger:
        staged.complete(ledger, multimnist.LONG, study, asked.workers)


@contextmanager
def limited(asked: argparse.Namespace, paper: str) -> Iterator[Ledger]:
    """A paper's ledger, for runs that `running.py` makes on the device until the time is over."""
    os.environ |= {
        "EVENHAND_DEVICE": asked.device,
        "EVENHAND_UNTIL": str(asked.until),
        "EVENHAND_RUNS": str(asked.out.resolve() / paper / "checkpoints"),
    }
    try:
        yield Ledger(asked.out / paper)
    except running.OutOfTime as over:
        print(f"out of time: {over}", flush=True)


def step_times(asked: argparse.Namespace) -> None:
    """A step of MGDA beside one of MGDA-UB, with 3 and 40 tasks, and with decoders."""
    ledger = Ledger(asked.out / "sener2018")
    batch, rounds = (1, 2) if asked.small else (256, 7)
    cells: list[dict[str, Any]] = [
        {"tasks": tasks, "batch": batch} for tasks in ((3,) if asked.small else (3, 40))
    ]
    cells += [
        {"tasks": 3, "batch": max(1, batch // 8), "width": width}
        for width in ((8,) if asked.small else (32, 64, 128, 192))
    ]
    where = {"rounds": rounds, "device": asked.device, "card": card(asked.device)}
    ledger.complete(TIMING, [{**cell, **where} for cell in cells], timing.run)


def merge(asked: argparse.Namespace) -> None:
    """Finished runs that the papers' own ledgers lack, with what they cost."""
    for paper, experiments in OWNERS.items():
        if not (asked.out / paper).exists():
            continue
        own = Ledger(asked.papers / paper)
        for line in Ledger(asked.out / paper).lines:
            known = own.found(line["experiment"])
            if line["experiment"] in experiments and key(line["cell"]) not in known:
                own.append(line)
                print(f"{paper}: {line['experiment']} {line['cell']}", flush=True)


PARTS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "timing": step_times,
    "quadrants": quadrants,
    "multimnist": redrawn,
    "sener": sener,
    "merge": merge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and checkpoints")
    parser.add_argument("--minutes", type=float, default=5.0, help="then stop [5]")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu [cuda]")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time [1]")
    parser.add_argument("--tf32", action="store_true", help="quadrants' products in TensorFloat-32")
    parser.add_argument(
        "--keep", action="store_true", help="stopped stacks go on later (hundreds of megabytes)"
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--papers", type=Path, default=HERE, help="where merge puts runs [here]")
    asked = parser.parse_args()
    asked.until = time.time() + 60 * asked.minutes
    PARTS[asked.part](asked)


if __name__ == "__main__":
    main()
