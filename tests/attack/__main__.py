"""Attack the tool, and print what came of it: ``python tests/attack [--share 0.1] [--seed 0]``.

Bounded to a temporary folder; no network. The n-th attack of a kind is the same for the same seed.
With ``--journal FILE`` each attack is a line of JSON there, with the commit that was attacked, and
those that are there are not made again. A run of all takes about an hour of one core;
benchmarks/results/attacks.jsonl has one, and docs/reliability.md its table. A fault anywhere ends
it with code 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import small
from attacks import KINDS
from ground import Ground
from harness import Tally

LATE = (
    *("evenhand.app.cli", "evenhand.app.exports", "evenhand.app.planning", "evenhand.app.report"),
    *("evenhand.comparison.single", "evenhand.tables.predicting", "jinja2", "matplotlib.pyplot"),
    *("safetensors.torch", "scipy.optimize", "scipy.stats", "sklearn.ensemble"),
    *("sklearn.linear_model", "tomllib", "torch._dynamo", "torchmetrics", "yaml"),
)
"""What commands import when they need it: here once, and not in a thousand children."""
FAULTS = ("tracebacks", "hangs", "orphans", "differing", "other")


def main() -> int:
    """All kinds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the attacks of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds whose name has this in it")
    parser.add_argument("--journal", type=Path, help="keep the attacks here, and go on from there")
    parser.add_argument("--again", action="store_true", help="make those again that found a fault")
    parser.add_argument("--epochs", type=int, default=25, help="of the comparison that is hit")
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from evenhand.text import plain

    for name in LATE:
        importlib.import_module(name)
    small.register(asked.epochs)
    made, commit = _made(asked.journal), _commit()
    if asked.again:
        made = [one for one in made if not any(one[fault] for fault in FAULTS)]
    known = {(one["kind"], one["number"]) for one in made}
    with tempfile.TemporaryDirectory(prefix="evenhand-attack-") as place:
        ground = Ground(Path(place))
        for kind, (attack, total) in KINDS.items():
            for number in range(max(1, round(asked.share * total))):
                if asked.kind not in kind or (kind, number) in known:
                    continue
                tally = Tally()
                attack(ground, tally, random.Random(f"{asked.seed} {kind} {number}"))
                tally.attack = plain(tally.attack, 100)
                made.append({"kind": kind, "number": number, "commit": commit, **asdict(tally)})
                for line in tally.said:
                    print(f"{kind} {number}: {line}", file=sys.stderr, flush=True)
                if asked.journal:
                    with asked.journal.open("a") as journal:
                        journal.write(json.dumps(made[-1]) + "\n")
    if asked.journal:
        asked.journal.write_text("".join(json.dumps(one) + "\n" for one in made))
    _show(made)
    return int(any(one[fault] for one in made for fault in FAULTS))


def _made(journal: Path | None) -> list[dict[str, Any]]:
    if journal is None or not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text().splitlines()]


def _commit() -> str:
    """The commit of the code that is attacked, "-dirty" where files differ from it."""
    words = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=9"]
    here = Path(__file__).parent
    run = subprocess.run(words, capture_output=True, text=True, cwd=here, check=False)
    return run.stdout.strip() or "no commit"


def _show(made: Sequence[dict[str, Any]]) -> None:
    """The table of docs/reliability.md."""
    print("| attack | attacks | traces | hangs | orphans | other bits | other faults |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in (*KINDS, "all"):
        mine = [one for one in made if name in ("all", one["kind"])]
        cells = [sum(bool(one[fault]) for one in mine) for fault in FAULTS]
        print(f"| {' | '.join(map(str, [name, len(mine), *cells]))} |")


if __name__ == "__main__":
    raise SystemExit(main())
