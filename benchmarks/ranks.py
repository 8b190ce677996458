"""Every method, slot and place on several processes against one: what `make ranks` runs.

    python benchmarks/ranks.py [--worlds 2 3] [--every 1] [--methods mgda upgrad]

Each is trained for three steps in float64, with every way to share out a batch and every route, and
must agree with one process to 1e-10, and all ranks with each other bit for bit.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).parents[1] / "tests")  # this file has the other's name

from ranks import ROUTES, SHARES, Variation, differences, spawned, train, variations  # noqa: E402 - it lies in another folder


def crossed(methods: list[str] | None) -> list[Variation]:
    return [
        Variation(v.method, v.slot, v.at, share, route)
        for v in variations()
        if methods is None or v.method in methods
        for share in SHARES
        for route in ROUTES
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--every", type=int, default=1, help="take every nth variation")
    parser.add_argument("--methods", nargs="+")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = crossed(options.methods)[:: options.every]
    alone = {v: train(v, 0, 1) for v in dict.fromkeys(v.alone for v in chosen)}
    bad = 0
    for world in options.worlds:
        begun = time.perf_counter()
        found = spawned(world, [(train, variation) for variation in chosen])
        seconds = time.perf_counter() - begun
        wrong = 0
        for k, variation in enumerate(chosen):
            told = differences(found[k], alone[variation.alone])
            if told:
                wrong += 1
                print(f"  {variation}: {'; '.join(told[:3])[:400]}", flush=True)
        right = len(chosen) - wrong
        print(f"{world} ranks: {right} of {len(chosen)} agree with one ({seconds:.0f} s)")
        bad += wrong
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
