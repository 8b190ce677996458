"""Nakamura, Grassi & Wolf (2022): AND/XOR, Tables 1 and 2, Figure 6; MultiMNIST, Table 3.

    python papers/nakamura2022/reproduce.py --quick     seconds
    python papers/nakamura2022/reproduce.py --full      the paper's protocol and honest ones

MultiMNIST is table3.py in its first reading, what its source leaves open variations.py, the tension
rows at other α alpha.py. Finished runs are kept in runs.jsonl, so a study that was stopped goes on
with what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import and_xor
import figure6
import table3
from ledger import Ledger

HERE = Path(__file__).parent
FIGURE_6 = (
    "One order of the data, XOR times 10, rate 5e-2, at most 600 epochs: where the angle of a "
    "task's gradient to the common direction is above 90°. Part of drawing the figure."
)


def reproduce_and_xor(ledger: Ledger, quick: bool, workers: int) -> None:
    """Tables 1 and 2 by both protocols, and Figure 6."""
    start = time.perf_counter()
    cells = and_xor.cells(quick)
    values = ledger.complete("AND/XOR", cells, and_xor.run, workers)
    seconds = time.perf_counter() - start
    tables = and_xor.table(list(zip(cells, values.values(), strict=True)))
    for protocol, rows in tables.items():
        print(f"\n{protocol}")
        for name in rows:
            scales = (f"c={c}" for c in and_xor.SCALES if f"c={c} rate" in rows[name])
            print(f"  {name:34}" + "  ".join(_told(rows[name], scale) for scale in scales))
        cost = ledger.cpu_seconds("AND/XOR", protocol=protocol)
        ledger.write(f"AND/XOR, {protocol}", rows, and_xor.PAPER, cpu_seconds=cost)
    print(f"\n{seconds:.1f} s with {workers} workers")
    shares = figure6.draw(ledger.folder / "figures", epochs=60 if quick else 600)
    ledger.write("AND/XOR, Figure 6", shares, and_xor.PAPER, FIGURE_6, cpu_seconds=0)


def _told(row: dict, scale: str) -> str:
    share, rate = row[f"{scale} converged %"][0], row[f"{scale} rate"][0]
    mean, spread, _ = row.get(f"{scale} epochs", [float("nan"), float("nan"), 0])
    return f"{scale}: {share:5.1f} %  {mean:8.2f} ± {spread:6.2f} (rate {rate:g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--quick", action="store_true", help="few orders, one rate, few epochs")
    size.add_argument("--full", action="store_true", help="as many as the README says")
    parser.add_argument("--only", choices=sorted(EXPERIMENTS), help="one experiment")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time [2]")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results [here]")
    asked = parser.parse_args()
    ledger = Ledger(asked.out)
    for name in [asked.only] if asked.only else EXPERIMENTS:
        EXPERIMENTS[name](ledger, asked.quick, asked.workers)


def reproduce_multimnist(ledger: Ledger, quick: bool, workers: int) -> None:
    """Table 3 and Figure 9. No quick form: MNIST is not there in tests."""
    if not quick:
        rows = list(table3.redraw.AGGREGATORS)
        table3.READINGS["fixed"].complete(ledger, rows, table3.RATES, table3.SEEDS, workers)
        table3.sum_up("fixed", ledger)


EXPERIMENTS = {"and-xor": reproduce_and_xor, "multimnist": reproduce_multimnist}

if __name__ == "__main__":
    main()
