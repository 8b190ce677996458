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
import itertools
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
    """All seeds at both starting rates, a stack for each method, side by side.

    Where the time is over before a stack is, the runs that have ended are kept, and the others as
    what they are: runs of as many epochs as there were.
    """
    ledger = Ledger(asked.out / "bellavia2026")
    size = {"epochs": 2, "samples": 300} if asked.small else {"epochs": 5_000}
    cells = alternation.cells("quadrants", RATES, 1 if asked.small else 11, **size)
    done = ledger.found(QUADRANTS)
    if all(key(cell) in done for cell in cells):
        return
    side_by_side = [
        stacks.Members([cell for cell in cells if cell["method"] == name], asked.device)
        for name in alternation.METHODS
    ]
    file = asked.out / "bellavia2026" / "stacks.pt"
    if file.exists():
        for stack, state in zip(side_by_side, torch.load(file, weights_only=True), strict=True):
            stack.load_state_dict(state)
    start = time.time()
    finished = stacks.run(side_by_side, asked.until, file if asked.keep else None)
    seconds = time.time() - start
    for stack in side_by_side:
        print(f"{stack.cells[0]['method']}: epoch {stack.epoch}, {seconds:.0f} s", flush=True)
    if not finished and asked.keep:
        return
    for stack in side_by_side:
        share = seconds / len(side_by_side)
        going = stack.going.tolist()
        for cell, values, goes in zip(stack.cells, stack.values(share), going, strict=True):
            told = {**cell, "epochs": stack.epoch} if goes and not finished else cell
            values |= {"device": card(asked.device), "tf32": asked.tf32}
            ledger.add(QUADRANTS, told, values, share / len(stack.cells))
    file.unlink(missing_ok=True)


def redrawn(asked: argparse.Namespace) -> None:
    """Table 3 of Nakamura et al. by the paper's rule, as stacks: all rates, then more seeds.

    Runs that have not ended when the time is over are kept as what they are: shorter ones.
    """
    names = ["Single upper", "Min-norm"] if asked.small else list(redraw.AGGREGATORS)
    rates, seeds = (table3.RATES[:1], [[1]]) if asked.small else (table3.RATES, _asked_seeds(asked))
    ledger = Ledger(asked.out / "nakamura2022")
    readings = [table3.READINGS[name] for name in asked.readings]
    if asked.small:
        readings = [replace(r, settings={**r.settings, "epochs": 1}) for r in readings]
    best: dict[tuple[str, str], float | None] = {}
    for reading in readings:
        first = [cell for row in names for cell in reading.cells(row, rates, [0])]
        known = stacked_runs(ledger, reading.experiment, first, asked)
        best |= {(reading.experiment, row): reading.chosen(row, rates, known) for row in names}
        more_seeds(ledger, reading, best, seeds[0], asked)
    for some in seeds[1:]:
        for reading in readings:
            more_seeds(ledger, reading, best, some, asked)


def _asked_seeds(asked: argparse.Namespace) -> list[list[int]]:
    return [[seed for seed in some if seed < asked.seeds] for some in FIVES]


def more_seeds(
    ledger: Ledger,
    reading: table3.Reading,
    best: Mapping[tuple[str, str], float | None],
    seeds: Sequence[int],
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
    stacked_runs(ledger, reading.experiment, cells, asked)


def stacked_runs(
    ledger: Ledger,
    experiment: str,
    cells: Sequence[dict[str, Any]],
    asked: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """What is known of these of Table 3's runs, trained as one stack."""
    done = ledger.found(experiment)
    known = {key(cell): done[key(cell)] for cell in cells if key(cell) in done}
    missing = [cell for cell in cells if key(cell) not in done]
    if not missing or time.time() >= asked.until:
        return known
    members, start = stacked.Members(missing, asked.device), time.time()
    finished = members.run(asked.until)
    taken = time.time() - start
    print(f"{experiment}: {len(missing)} runs, epoch {members.epoch}, {taken:.0f} s", flush=True)
    going = [] if finished else list(itertools.compress(members.cells, members.going.tolist()))
    found = members.values()
    for cell in missing:
        values = {**found[key(cell)], "device": card(asked.device), "tf32": asked.tf32}
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
    parser.add_argument("--tf32", action="store_true", help="products in TensorFloat-32")
    parser.add_argument(
        "--readings", nargs="+", choices=list(table3.READINGS), default=["fixed"], help="of Table 3"
    )
    parser.add_argument("--seeds", type=int, default=10, help="of Table 3 [10]")
    parser.add_argument(
        "--keep", action="store_true", help="stopped stacks go on later (hundreds of megabytes)"
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--papers", type=Path, default=HERE, help="where merge puts runs [here]")
    asked = parser.parse_args()
    asked.until = time.time() + 60 * asked.minutes
    if asked.tf32:
        torch.set_float32_matmul_precision("high")
    PARTS[asked.part](asked)


if __name__ == "__main__":
    main()
