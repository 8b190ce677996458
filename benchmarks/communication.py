"""The numbers that a rank sends in a step, counted, beside the table of docs/scaling.md.

python benchmarks/communication.py          # counted, on this machine
python benchmarks/communication.py --paper  # the time it would take, from bandwidth and latency
"""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1] / "tests")

from ranks import spawned  # noqa: E402 - it lies in another folder
from traffic import MODES, ROUTES, network, sent, table  # noqa: E402

BANDWIDTH = 25e9
"""Bytes a second that a rank sends: 200 Gbit/s."""
LATENCY = 10e-6
"""Seconds of a message from one rank to the next."""


def on_paper(trunk: float = 25e6, heads: float = 1e6, m: int = 4, last: float = 2e6) -> str:
    """Milliseconds a step that collectives of numbers of 4 bytes take, if nothing overlaps.

    A ring has 2(R − 1) messages one behind the other, a tree 2 log₂ R; libraries take the tree for
    small sums and the ring for large ones, so the better of both is counted for each collective.

    Returns:
        The table of docs/scaling.md.
    """
    p = trunk + heads
    modes = {
        "the plain sum": [2 * p],
        "losses alone decide": [6 * m, 2 * p],
        '`at="representation"`': [6 * m, 2 * m**2, 2 * p],
        '`at="last_layer"`': [6 * m, m * last, 2 * m**2, 2 * p],
        "one product": [6 * m, 2 * m, 2 * p],
        '`at="parameters"`, plain': [6 * m, m * trunk, 2 * m**2, trunk, 2 * heads],
        '`at="parameters"`, wrapped': [6 * m, m * trunk, 2 * m**2, 2 * p],
        "`fully_shard`, the plain sum": [p, p],
        '`fully_shard`, `at="representation"`': [6 * m, 2 * m**2, p, p],
        '`fully_shard`, `at="parameters"`': [6 * m, 2 * m**2, p, *[trunk + heads / m] * m],
    }
    lines = ["| mode | 8 ranks | 64 | 1,024 |", "|---|---|---|---|"]
    for name, sends in modes.items():
        times = [sum(seconds(n, size) for n in sends) * 1e3 for size in (8, 64, 1024)]
        lines.append(f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in times) + " |")
    return "\n".join(lines)


def seconds(numbers: float, size: int) -> float:
    """Of one collective in which a rank sends f · `numbers` numbers."""
    ring = (size - 1) / size * numbers * 4 / BANDWIDTH + 2 * (size - 1) * LATENCY
    tree = math.log2(size) * (numbers * 4 / BANDWIDTH + 2 * LATENCY)
    return min(ring, tree)


def main() -> None:
    if "--paper" in sys.argv:
        print(on_paper())
        return
    warnings.simplefilter("ignore")
    modes = [(name, route) for name in MODES for route in ROUTES]
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
