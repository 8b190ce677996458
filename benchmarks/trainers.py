"""The examples for trainers, held against the bare loop bit for bit.

    make trainers    # in an environment of its own, with the trainers that examples/trainers pins

Every trainer trains one network with every method: plainly (with clipping, and an evaluation after
every epoch), with micro-batches that are balanced alone, with micro-batches that are balanced
together, in bfloat16, and in two halves with a checkpoint between them. The network, learned
weights and all that the balancer remembers must then be what the bare loop says, to the last bit.
This is not part of CI.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "trainers.json"
PAGE = ROOT / "docs" / "howto" / "trainer.md"
BEGIN, END = "<!-- table of benchmarks/trainers.py -->", "<!-- end of the table -->"

TRAINERS: Mapping[str, tuple[str, str]] = {
    "Lightning": ("lightning_module", "lightning"),
    "Hugging Face Trainer": ("hugging_face", "transformers"),
    "Accelerate": ("accelerate_loop", "accelerate"),
    "Fabric": ("fabric_loop", "lightning"),
}
"""Names, with the example and the package."""
CASES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "micro-batches alone": {"micro_batches": 2},
    "micro-batches together": {"micro_batches": 2, "together": True},
    "bfloat16": {"bf16": True},
    "resumed": {"epochs": 4},
}
LEFT_OUT = {("Hugging Face Trainer", "micro-batches together")}
"""That Trainer calls `backward` for every micro-batch, and has no other way."""


def check() -> dict[str, Any]:
    """What every trainer's network is, in every case: "same" or what differs."""
    import bare
    import points
    import torch

    def fresh(method: str) -> tuple[Any, Any]:
        torch.manual_seed(0)
        network = points.make_network()
        torch.manual_seed(1)
        return network, points.METHODS[method](network)

    found: dict[str, Any] = {name: {} for name in TRAINERS}
    sums: dict[str, dict[str, float]] = {}
    for case, settings in CASES.items():
        for method in points.METHODS:
            wanted = fresh(method)
            bare.train(*wanted, method, **settings)
            sums.setdefault(case, {})[method] = float(wanted[0].heads[1].weight.detach().sum())
            for name, (module, _) in TRAINERS.items():
                if (name, case) in LEFT_OUT:
                    continue
                train = importlib.import_module(module).train
                got = fresh(method)
                with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                    if case == "resumed":
                        half = train(*got, method, folder=Path(folder), epochs=2)
                        got = fresh(method)
                        train(*got, method, folder=Path(folder), epochs=4, resume=half)
                    else:
                        train(*got, method, folder=Path(folder), **settings)
                differs = differences(wanted, got)
                found[name].setdefault(case, {})[method] = differs or "same"
                print(f"{name}, {case}, {method}: {differs or 'same'}", flush=True)
    for case, by_method in sums.items():  # or the cases would prove nothing
        assert len(set(by_method.values())) == len(by_method), (case, by_method)
    assert len({tuple(by_method.values()) for by_method in sums.values()}) == len(sums)
    return found


def differences(wanted: tuple[Any, Any], got: tuple[Any, Any]) -> list[str]:
    """The entries of network and balancer that are not the same bits."""
    import torch

    different = []
    for one, other in zip(wanted, got, strict=True):
        left, right = one.state_dict(), other.state_dict()
        assert left.keys() == right.keys()
        for key, value in left.items():
            tensor = isinstance(value, torch.Tensor)
            if not (torch.equal(value, right[key]) if tensor else value == right[key]):
                different.append(key)
    return different


def table(results: Mapping[str, Any]) -> str:
    """Trainers by cases: with how many methods the bits are the same."""
    lines = ["| | version | " + " | ".join(CASES) + " |", "|---" * (len(CASES) + 2) + "|"]
    for name, (_, package) in TRAINERS.items():
        cells = []
        for case in CASES:
            by_method = results["trainers"][name].get(case)
            same = 0 if by_method is None else sum(v == "same" for v in by_method.values())
            cells.append("–" if by_method is None else f"{same} of {len(by_method)}")
        lines.append(f"| {name} | {results['versions'][package]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(ROOT / "examples" / "trainers"))
    import torch

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    found = check()
    packages = ("evenhand", "torch", "lightning", "transformers", "accelerate")
    results = {
        "command": "make trainers",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in packages},
        "trainers": found,
    }
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}")
    wrong = sum(v != "same" for cases in found.values() for c in cases.values() for v in c.values())
    print(f"{wrong} differ" if wrong else "every trainer's bits are the bare loop's")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
