"""Where every recipe goes on the toy landscape, for the figures of its page.

    python benchmarks/landscape.py [--only RECIPE,…]

walks them all (some minutes), or some again, and writes benchmarks/results/landscape.json, from
which the documentation draws. The setting is that of `evenhand methods --figure`: a tenth of the
papers' 35,000 steps at ten times their rate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evenhand.data import toy

RESULT = Path(__file__).parent / "results" / "landscape.json"
SETTING = {"lr": 0.01, "steps": 3_500, "every": 70}


def walked(name: str, steps: int = SETTING["steps"]) -> list[list[list[float]]]:
    """θ of a recipe at every 70th step, from each start: [k][s][2], to two decimals."""
    run = lambda *slots: toy.trajectory(*slots, **{**SETTING, "steps": steps})  # noqa: E731
    path = toy.paths([name], run)[name]
    return [[[round(v, 2) for v in point] for point in points] for points in path.theta.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="walk these again, and keep the others' paths")
    only = [name for name in parser.parse_args().only.split(",") if name]
    known = toy.recipe_names()
    if strange := [name for name in only if name not in known]:
        parser.error(f"no path for {', '.join(strange)}; there is one for {', '.join(known)}")
    kept = json.loads(RESULT.read_text())["paths"] if only else {}
    paths = {}
    for name in known:
        paths[name] = kept[name] if only and name in kept and name not in only else walked(name)
        print(name, paths[name][-1], flush=True)
    RESULT.write_text(json.dumps({"setting": SETTING, "paths": paths}, separators=(",", ":")))


if __name__ == "__main__":
    main()
