"""What Table 3's source leaves open, varied one thing at a time on the single-task row.

    EVENHAND_DATA=… python papers/nakamura2022/variations.py

Whoever misses the single-task row misses the table, and a single task is the cheapest to train.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import redraw
from ledger import Ledger

HERE = Path(__file__).parent
NAME = "MultiMNIST, variations"
CLASS = "Single upper", 1e-2
PICTURE = "Single lower", 1e-1
VARIED: tuple[tuple[tuple[str, float], dict[str, Any]], ...] = (
    (CLASS, {}),
    (CLASS, {"dropout": True}),
    (CLASS, {"resize": "bilinear"}),
    (CLASS, {"fresh": True}),
    (PICTURE, {}),
    (PICTURE, {"decoder": "mirrored"}),
    (CLASS, {"watched": "loss"}),
    (PICTURE, {"placed": True}),
    (CLASS, {"dropout": True, "resize": "bilinear"}),
    (PICTURE, {"decoder": "400, sigmoid"}),
    (CLASS, {"batch": 256, "rate": 5e-2}),
    (CLASS, {"momentum": 0.5}),
    (PICTURE, {"batch": 16}),
    (CLASS, {"scaled": False}),
    (PICTURE, {"decoder": "linear"}),
    (PICTURE, {"resize": "bilinear"}),
    (PICTURE, {"dropout": True}),
)
"""What is trained, at which rate, and in which it differs from `redraw.SETTINGS`; the order is that
in which the runs are made."""


def cells() -> list[dict[str, Any]]:
    """Seed 0 of each variation."""
    return [
        redraw.cell(row, **{"rate": rate, "seed": 0, **settings})
        for (row, rate), settings in VARIED
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results [here]")
    asked = parser.parse_args()
    Ledger(asked.out).complete(NAME, cells(), redraw.run)


if __name__ == "__main__":
    main()
