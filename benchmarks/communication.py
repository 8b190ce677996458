"""The numbers that a rank sends in a step, counted, beside the table of docs/scaling.md.

python benchmarks/communication.py
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1] / "tests")

from ranks import spawned  # noqa: E402 - it lies in another folder
from traffic import MODES, network, sent, table  # noqa: E402


def main() -> None:
    warnings.simplefilter("ignore")
    modes = [(name, route) for name in MODES for route in ("plain", "wrapped")]
    model = network()
    trunk = sum(p.numel() for p in model.trunk.parameters())
    print(f"trunk T = {trunk}, heads H = {sum(p.numel() for p in model.heads.parameters())}, m = 4")
    print(f"{'mode':28} {'ranks':>5} {'sent':>8} {'table':>8} {'small':>6} {'calls':>5}")
    for world in (2, 3):
        found = spawned(world, [(sent, mode) for mode in modes])
        for k, mode in enumerate(modes):
            numbers, calls = found[k][0]
            expected, small = table(mode, world)
            counts = f"{numbers:8.0f} {expected:8.0f} {small:6.0f} {calls:5}"
            print(f"{', '.join(mode):28} {world:5} {counts}")


if __name__ == "__main__":
    main()
