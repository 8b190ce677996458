"""What wants a GPU, in parts that fit the minutes there are; stopped parts go on where they were.

    python papers/gpu.py speed     --minutes 1  --out FOLDER     which way of the stacks is fastest
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
from functools import partial
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
    if asked.tf32:
        torch.set_float32_matmul_precision("high")
    ledger = Ledger(asked.out / "bellavia2026")
    cells = quadrants_cells(asked)
    done = ledger.found(QUADRANTS)
    if all(key(cell) in done for cell in cells):
        return
    side_by_side = quadrants_stacks(asked, cells)
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


def quadrants_cells(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The 88 runs."""
    size = {"epochs": 2, "samples": 300} if asked.small else {"epochs": 5_000}
    return alternation.cells("quadrants", RATES, 1 if asked.small else 11, **size)


def quadrants_stacks(
    asked: argparse.Namespace, cells: Sequence[Mapping[str, Any]]
) -> list[stacks.Members]:
    """One for each method."""
    return [
        stacks.Members(
            [cell for cell in cells if cell["method"] == name],
            asked.device,
            asked.compiled,
            asked.beside,
        )
        for name in alternation.METHODS
    ]


def redrawn(asked: argparse.Namespace) -> None:
    """Table 3 of Nakamura et al. by the paper's rule, as stacks: all rates, then more seeds.

    Runs that have not ended when the time is over are kept as what they are: shorter ones.
    """
    if asked.tf32:
        torch.set_float32_matmul_precision("high")
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
    members, start = stacked.Members(missing, asked.device, way(asked)), time.time()
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


def way(asked: argparse.Namespace) -> stacked.Way:
    """How Table 3's steps are computed."""
    return stacked.Way(asked.rows, asked.compiled, asked.pieces)


def speed(asked: argparse.Namespace) -> None:
    """Milliseconds of Table 3's steps and of the quadrants' epochs, in every way there is.

    A way that fails is told, and the others go on.
    """
    names = list(redraw.AGGREGATORS)
    rates = table3.RATES[:1] if asked.small else table3.RATES
    first, then = (
        [cell for row in names for cell in table3.READINGS["fixed"].cells(row, of, seeds)]
        for of, seeds in ((rates, [0]), (rates[:1], range(1, 3 if asked.small else 5)))
    )
    ways = {
        "eager, rows": (stacked.Way(True, False, 16), "highest"),
        "eager, columns": (stacked.Way(False, False, 16), "highest"),
        "compiled, rows": (stacked.Way(True, True, 16), "highest"),
        "compiled, columns": (stacked.Way(False, True, 16), "highest"),
        "compiled, rows, 64 pieces": (stacked.Way(True, True, 64), "highest"),
        "compiled, rows, TF32": (stacked.Way(True, True, 16), "high"),
    }
    jobs: list[tuple[str, Callable[[], str]]] = [
        (f"Table 3, {len(cells)}, {name}", partial(_stack_speed, asked, cells, *how))
        for cells, few in ((first, ways), (then, {n: ways[n] for n in list(ways)[:3:2]}))
        for name, how in few.items()
    ]
    jobs[2:2] = [
        ("quadrants, eager", partial(_quadrants_speed, asked, False, True)),
        ("quadrants, compiled", partial(_quadrants_speed, asked, True, True)),
        ("quadrants, compiled, in turn", partial(_quadrants_speed, asked, True, False)),
    ]
    for name, job in jobs:
        if time.time() > asked.until:
            print(f"{name}: no time left", flush=True)
            continue
        start = time.time()
        try:
            told = job()
        except RuntimeError as error:
            told = f"{type(error).__name__}: {str(error)[:300]}"
        print(f"{name}: {told} ({time.time() - start:.1f} s in all)", flush=True)


def _stack_speed(
    asked: argparse.Namespace, cells: Sequence[dict[str, Any]], how: stacked.Way, precision: str
) -> str:
    torch.set_float32_matmul_precision(precision)
    members = stacked.Members(cells, asked.device, how)
    members.data.draw(0)
    members._moving.copy_(members.rates)
    step = members._steps[members.batch]

    def steps() -> None:
        members._position.zero_()
        step()

    told = f"{1000 * _timed(asked, steps):.3f} ms a step"
    told += f", {1000 * _timed(asked, members._validate):.1f} ms a validation"
    if not members.parameters.isfinite().all():
        told += ", some parameters are not finite"
    told += f", {_apart(members):.1e} from float64"
    if asked.device.startswith("cuda"):
        told += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        torch.cuda.reset_peak_memory_stats()
    return told


def _apart(members: stacked.Members) -> float:
    """The greatest relative difference of the trunk's gradients from those in float64."""
    where = torch.zeros((), dtype=torch.int64, device=members.device)
    pictures, upper, lower = members.data.batch(where, members.batch)
    found = members.gradients(pictures, upper, lower)[1].double()
    members.parameters, members.way = members.parameters.double(), stacked.Way(rows=False)
    members._make_room()
    true = members.gradients(pictures.double(), upper, lower.double())[1]
    return float(((found - true).norm(dim=-1) / true.norm(dim=-1).clamp_min(1e-12)).max())


def _quadrants_speed(asked: argparse.Namespace, compiled: bool, beside: bool) -> str:
    torch.set_float32_matmul_precision("high")
    asked = argparse.Namespace(**{**vars(asked), "compiled": compiled, "beside": beside})
    several = quadrants_stacks(asked, quadrants_cells(asked))
    start = time.time()
    stacks.run(several, time.time())  # no epoch
    orders = stacks.Orders(several[0].problem, several[0].seeds, asked.device.startswith("cuda"))
    first = orders.of(0)

    def epoch() -> None:
        for stack in several:
            stack.train_epoch(first)

    seconds = _timed(asked, epoch, warm=12, most=60)  # E = 10 has had its heads' turn
    told = f"{1000 * seconds:.1f} ms an epoch of {sum(len(s.cells) for s in several)}"
    for stack in several:
        curve = stack.curves["validation"][: stack.epoch + 1].mean(1)
        told += f"; {stack.cells[0]['method']} {curve[0]:.4f} to {curve[-1]:.4f}"
    return f"{told} ({time.time() - start:.1f} s)"


def _timed(
    asked: argparse.Namespace, action: Callable[[], Any], warm: int = 4, most: int = 400
) -> float:
    """Mean seconds of an action that is asked for many times in a row."""
    wait = torch.cuda.synchronize if asked.device.startswith("cuda") else (lambda: None)
    few = 1 if asked.small else 8
    for _ in range(1 if asked.small else warm):
        action()
    wait()
    start, count = time.perf_counter(), 0
    while count < most and (count == 0 or (time.perf_counter() - start < 1.2 and not asked.small)):
        for _ in range(few):
            action()
        count += few
        wait()
    return (time.perf_counter() - start) / count


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
    "speed": speed,
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
    parser.add_argument("--compiled", action="store_true", help="fuse by torch.compile")
    parser.add_argument(
        "--in-turn", dest="beside", action="store_false", help="the quadrants' stacks one by one"
    )
    parser.add_argument("--columns", dest="rows", action="store_false", help="see stacked.Way")
    parser.add_argument("--pieces", type=int, default=16, help="see stacked.Way [16]")
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
