"""What one step costs against an older version of the library, side by side.

    git worktree add ../before COMMIT
    python benchmarks/against.py ../before/src [--cases a,b,c,d,e,f] [--rounds 5] [--pairs 3]

Two processes, one for each version, take turns: in every round each runs every way of taking a step
for the same number of times, and the ratio of their processor times is taken within the round.
There are several such pairs for each network, since processes of the same code differ by some
percent, as their memory happens to lie. Printed is the median over the rounds of all pairs, in
brackets the middle half. Results go to benchmarks/results/against.json by default (`--out`).

Both processes keep the memory that they have freed (`KEEPING`). By itself glibc gives large blocks
back to the kernel or keeps them, as the heap happens to lie, and what is given back is faulted in
again: processes of the same code then differ by more than the versions do.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "results" / "against.json"
SECONDS = 0.25  # of each way in each round
WAYS = ("plain sum", "exact", "features")
CASES = "f,a,b,d,e,c"
KEEPING = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}


# In a process of one version -------------------------------------------------------------------


def step_of(case: str, way: str) -> Callable[[], None]:
    """A user's step; only what every version has is used."""
    import torch
    from networks import CASES as NETWORKS

    from evenhand import MGDA, Balancer

    torch.manual_seed(0)
    made = NETWORKS[case]()
    network = made.network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    places = {"exact": "parameters", "features": "representation"}
    aggregator = MGDA(at=places[way]) if way in places else None
    balancer = Balancer(aggregator=aggregator, model=network)

    def step() -> None:
        optimizer.zero_grad()
        outputs = network(made.inputs)
        features = {} if way == "exact" else {"features": outputs}
        balancer.backward(made.losses(outputs), **features)
        optimizer.step()

    return step


def serve() -> None:
    """Answer requests of the form [case, way, times], one a line, with processor seconds."""
    import torch

    torch.set_num_threads(1)
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    for line in sys.stdin:
        case, way, times = json.loads(line)
        if (case, way) not in steps:
            steps.clear()
            steps[case, way] = step_of(case, way)
        step, start = steps[case, way], time.process_time()
        for _ in range(times):
            step()
        sys.stdout.write(f"{time.process_time() - start}\n")
        sys.stdout.flush()


# In the process that asks ----------------------------------------------------------------------


class Version:
    """A process with the library of one source folder."""

    def __init__(self, source: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **KEEPING, "PYTHONPATH": str(source.resolve())},
        )

    def seconds(self, case: str, way: str, times: int) -> float:
        """What so many steps take."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([case, way, times]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """Let the process go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measured(
    before: Version, now: Version, case: str, way: str, rounds: int
) -> list[tuple[float, float]]:
    """Seconds of a step before and now, in every round of a pair of processes."""
    for version in (before, now):
        version.seconds(case, way, 20)
    once = before.seconds(case, way, 5) / 5
    times = max(1, round(SECONDS / once))
    return [
        (before.seconds(case, way, times) / times, now.seconds(case, way, times) / times)
        for _ in range(rounds)
    ]


def row_of(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How much longer a step takes now."""
    ratios = [new / old for old, new in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "milliseconds before": 1e3 * statistics.median(old for old, _ in pairs),
        "milliseconds now": 1e3 * statistics.median(new for _, new in pairs),
        "ratio": statistics.median(ratios),
        "middle half": [low, high],
    }


def main() -> None:
    if "--serve" in sys.argv:
        return serve()
    parser = argparse.ArgumentParser(description="A step against an older version.")
    parser.add_argument("source", type=Path, help="the src folder of the older version")
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--rounds", type=int, default=5, help="of each pair of processes [5]")
    parser.add_argument("--pairs", type=int, default=3, help="of processes, for each network [3]")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for case in options.cases.split(","):
        seen: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(options.pairs):
            before, now = Version(options.source), Version(HERE.parent / "src")
            for way in WAYS:
                seen[way] += measured(before, now, case, way, options.rounds)
            before.end()
            now.end()
        for way in WAYS:
            row = found[f"{case}, {way}"] = row_of(seen[way])
            print(
                f"({case}) {way:10} {row['milliseconds before']:9.2f} ms -> "
                f"{row['milliseconds now']:9.2f} ms  {row['ratio']:.3f} "
                f"[{row['middle half'][0]:.3f}, {row['middle half'][1]:.3f}]",
                flush=True,
            )
    whole = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0],
        "rounds": options.rounds,
        "pairs": options.pairs,
        "rows": found,
    }
    options.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
