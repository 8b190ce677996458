"""What wants a GPU, in parts that fit the minutes there are; stopped parts go on where they were.

    python papers/gpu.py timing    --minutes 5  --out FOLDER     MGDA beside MGDA-UB on the device
    python papers/gpu.py quadrants --minutes 12 --out FOLDER     88 runs as stacks, to 5,000 epochs
    python papers/gpu.py multimnist --minutes 8 --workers 8 --out FOLDER   Table 3, 10 seeds
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
from collections.abc import Callable, Iterator, Mapping
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
import stacks
import staged
import table3
import timing
import torch
from ledger import Ledger, key

HERE = Path(__file__).parent
QUADRANTS = "quadrants, 5,000 epochs"
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
    """Each method's seeds and rates as one stack, the methods one after the other."""
    ledger = Ledger(asked.out / "bellavia2026")
    size = {"epochs": 3, "samples": 300} if asked.small else {"epochs": 5_000}
    cells = alternation.cells("quadrants", (1e-2, 1e-3), 2 if asked.small else 11, **size)
    for method in alternation.METHODS:
        mine = [cell for cell in cells if cell["method"] == method]
        done = ledger.found(QUADRANTS)
        if all(key(cell) in done for cell in mine):
            continue
        members = stacks.Members(method, mine, asked.device)
        file = asked.out / "bellavia2026" / f"{method}.pt"
        if file.exists():
            members.load_state_dict(torch.load(file, weights_only=True))
        start = time.perf_counter()
        finished = members.run(asked.until, file)
        seconds = time.perf_counter() - start
        print(f"{method}: epoch {members.epoch}, {seconds:.0f} s", flush=True)
        if not finished:
            return
        for cell, values in zip(mine, members.values(seconds), strict=True):
            values["device"] = card(asked.device)
            ledger.add(QUADRANTS, cell, values, seconds / len(mine))
        file.unlink(missing_ok=True)


def redrawn(asked: argparse.Namespace) -> None:
    """Table 3 of Nakamura et al. by the paper's rule, several runs on the device at a time."""
    names = ["Single upper", "Min-norm"] if asked.small else list(redraw.AGGREGATORS)
    rates, seeds = (table3.RATES[:1], 1) if asked.small else (table3.RATES, 10)
    with limited(asked, "nakamura2022") as ledger:
        for reading in table3.READINGS.values():
            if asked.small:
                reading = replace(reading, settings={**reading.settings, "epochs": 1})
            reading.complete(ledger, names, rates, seeds, asked.workers)


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
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--papers", type=Path, default=HERE, help="where merge puts runs [here]")
    asked = parser.parse_args()
    asked.until = time.time() + 60 * asked.minutes
    PARTS[asked.part](asked)


if __name__ == "__main__":
    main()
