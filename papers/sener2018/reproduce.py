"""Sener & Koltun (2018): MultiMNIST, the cost of MGDA beside MGDA-UB, and the toy figures.

    python papers/sener2018/reproduce.py --quick     seconds: the timing and the toy figures, short
    python papers/sener2018/reproduce.py --full      as much as the README says; needs MNIST

CelebA and Cityscapes, the paper's data, are run by official.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import multimnist
import timing
import toy
from ledger import Ledger, key

HERE = Path(__file__).parent
GPU = "timing, GPU"
PAPER = "Sener & Koltun, NeurIPS 2018, arXiv 1810.04650"


def reproduce_multimnist(ledger: Ledger, quick: bool, workers: int) -> None:
    """The table and the accuracy plane. No quick form: MNIST is not there in tests."""
    if not quick:
        multimnist.reproduce(ledger, PAPER, workers)


def sum_up_gpu(ledger: Ledger, quick: bool, workers: int) -> None:
    """What `papers/gpu.py timing` has measured on a GPU, if it was run; nothing is run here."""
    runs = [line for line in ledger.lines if line["experiment"] == GPU]
    if not runs:
        return
    steps = {r["cell"]["tasks"]: r["values"] for r in runs if "width" not in r["cell"]}
    maps = {r["cell"]["width"]: r["values"] for r in runs if "width" in r["cell"]}
    note = (
        f"As they are timed on CPUs, but on an {runs[0]['cell']['card']}, batches of 256 (with "
        "decoders 32), the time on the wall until the device has done all of a step."
    )
    ledger.write(GPU, {**timing.rows(steps), **timing.shares(maps)}, PAPER, note)


def reproduce_timing(ledger: Ledger, quick: bool, workers: int) -> None:
    """A step of MGDA beside one of MGDA-UB, one process at a time."""
    counts, batch, rounds = ((3,), 1, 2) if quick else ((3, 40), 8, 7)
    cells = [{"tasks": tasks, "batch": batch, "rounds": rounds} for tasks in counts]
    found = ledger.complete("timing", cells, timing.run)
    table = timing.rows({cell["tasks"]: found[key(cell)] for cell in cells})
    widths, batch_of_maps = ((8,), 1) if quick else ((32, 64, 128, 192), 2)
    maps = [
        {"tasks": 3, "batch": batch_of_maps, "rounds": rounds, "width": width} for width in widths
    ]
    found = ledger.complete("timing", maps, timing.run)
    table |= timing.shares({cell["width"]: found[key(cell)] for cell in maps})
    for row, quantities in table.items():
        print(f"  {row:10}" + "  ".join(f"{q} {v[0]:.4g}" for q, v in quantities.items()))
    note = (
        f"ResNet-18 on 64×64, batches of {batch} (with decoders {batch_of_maps}), one thread, CPU "
        "time; the paper's are a GPU's."
    )
    ledger.write("timing", table, PAPER, note)


def draw_toys(ledger: Ledger, quick: bool, workers: int) -> None:
    """The min-norm point of two gradients, and the way to a Pareto front."""
    toy.draw(ledger.folder / "figures", steps=100 if quick else 3_500)


EXPERIMENTS = {
    "toy": draw_toys,
    "timing": reproduce_timing,
    "gpu": sum_up_gpu,
    "multimnist": reproduce_multimnist,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="seconds")
    size.add_argument("--full", action="store_true", help="as much as the README says")
    parser.add_argument("--only", choices=sorted(EXPERIMENTS), help="one experiment")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time [1]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results [here]")
    asked = parser.parse_args()
    ledger = Ledger(asked.out)
    for name in [asked.only] if asked.only else EXPERIMENTS:
        EXPERIMENTS[name](ledger, asked.quick, asked.workers)


if __name__ == "__main__":
    main()
