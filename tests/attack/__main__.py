"""Attack the tool, and print what came of it: ``python tests/attack [--share 0.1] [--seed 0]``.

Bounded to a temporary folder; no network. A run of all takes about an hour of one core; the
results are in docs/reliability.md. One defect anywhere ends it with code 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import small
from attacks import KINDS, Ground
from harness import Tally


def main() -> int:
    """All kinds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the attacks of each kind")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each kind at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds whose name has this in it")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    small.register()
    total = Tally()
    print("| attack | attacks | traces | hangs | orphans | other bits | other faults | seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    place = tempfile.TemporaryDirectory(prefix="evenhand-attack-")
    ground = Ground(Path(place.name))
    for name, (attack, number) in KINDS.items():
        if asked.kind not in name:
            continue
        begun = time.monotonic()
        tally = Tally(until=begun + 60 * asked.minutes)
        chance = random.Random(f"{asked.seed} {name}")
        attack(ground, tally, max(1, round(asked.share * number)), chance)
        print(_row(name, tally, time.monotonic() - begun), flush=True)
        for line in tally.said:
            print(f"  {name}: {line}", file=sys.stderr)
        for key in ("attacks", "tracebacks", "hangs", "orphans", "differing", "other"):
            setattr(total, key, getattr(total, key) + getattr(tally, key))
    place.cleanup()
    print(_row("all", total, 0.0))
    return int(total.tracebacks + total.hangs + total.orphans + total.differing + total.other > 0)


def _row(name: str, t: Tally, seconds: float) -> str:
    cells = (
        name,
        t.attacks,
        t.tracebacks,
        t.hangs,
        t.orphans,
        t.differing,
        t.other,
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    raise SystemExit(main())
