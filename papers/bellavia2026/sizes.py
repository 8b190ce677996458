"""The sizes of the data sets, recovered from the printed digits.

    python papers/bellavia2026/sizes.py          prints them, and writes sizes.json
    python papers/bellavia2026/sizes.py --check  says whether sizes.json is up to date

The numbers of samples are lost in our copy of the paper. A printed recall is the mean of 11 seeds
of (right answers) / n, n the size of the test set. So it is k / (11 n) for a whole k, rounded to
six digits, and a size n for which a printed number has no such k is none. Each number alone lets
about 11 n / 10⁶ of all sizes pass, 16 numbers together let few.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ledger import EXPECTED

from evenhand.training.records import write_atomically

HERE = Path(__file__).parent
FILE = HERE / "sizes.json"
SEEDS = 11
SIZES = range(500, 40_001)
HALF = Fraction(1, 2_000_000)
"""Half of the last printed digit."""
TEST_SHARE = Fraction(30, 100)
EXPERIMENTS = ("Quadrants and circle", "Wireless signals, RadCom over-the-air")
KINDS, EACH, SNRS = 9, 700, 20
"""RadCom over-the-air: kinds of signals, samples of a kind at an SNR, SNRs (−20, −18, … 18 dB)."""


def fits(printed: Fraction, size: int) -> bool:
    """Whether the mean of `SEEDS` recalls on `size` samples can round to `printed`."""
    answers = SEEDS * size
    nearest = round(printed * answers)
    return abs(Fraction(nearest, answers) - printed) <= HALF


def sizes(recalls: Iterable[Fraction], candidates: Iterable[int] = SIZES) -> list[int]:
    """The test sizes for which every recall is possible."""
    known = list(recalls)
    return [size for size in candidates if all(fits(recall, size) for recall in known)]


def recalls(experiment: str) -> list[Fraction]:
    """All printed recalls of an experiment, exactly as printed."""
    rows = json.loads((HERE / EXPECTED).read_text())["experiments"][experiment]["rows"]
    return [
        Fraction(str(numbers[0]))
        for row in rows.values()
        for quantity, numbers in row.items()
        if quantity.endswith("recall")
    ]


def derived() -> dict[str, Any]:
    """What sizes.json holds."""
    found: dict[str, Any] = {
        name: {"recalls": len(recalls(name)), "test sizes": sizes(recalls(name))}
        for name in EXPERIMENTS
    }
    at_an_snr = KINDS * EACH
    found["RadCom, SNRs used"] = {
        str(size): str(Fraction(size) / TEST_SHARE / at_an_snr)
        for size in found[EXPERIMENTS[1]]["test sizes"]
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    asked = parser.parse_args()
    text = json.dumps(derived(), indent=1) + "\n"
    print(text, end="")
    if not asked.check:
        write_atomically(FILE, text)
    elif not FILE.exists() or FILE.read_text() != text:
        sys.exit(f"{FILE} is not up to date: python papers/bellavia2026/sizes.py")


if __name__ == "__main__":
    main()
