"""What a table of 5,000 rows and 30 columns with three targets takes, from the command line.

    python benchmarks/table_times.py              # measures, and writes results/table_times.json
    python benchmarks/table_times.py --only verify
    python benchmarks/table_times.py --table      # the page's table, from the results

Each command runs in a process of its own, as a user starts it. Beside the wall's time stands the
processor's, that of its worker processes included, and the load of the machine, the mean number of
processes that wanted a core: where that is above the number of cores the wall's time is that of a
busy machine. Two tables: one whose targets share much of what they need, and one whose targets
share nothing, with a network of one unit, so that the doctor climbs its whole ladder.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from evenhand.comparison.folder import environment

RESULTS = Path(__file__).parent / "results" / "table_times.json"
ROWS, COLUMNS, CORES = 5_000, 30, 2
TARGETS = ["--target", "a", "--target", "b", "--target", "c"]
COMMANDS: dict[str, tuple[list[str], float]] = {
    "doctor": (["doctor", "shared.csv", *TARGETS], 60),
    "verify": (["doctor", "shared.csv", *TARGETS, "--verify"], 300),
    "whole ladder": (
        ["doctor", "apart.csv", *TARGETS, "--verify", "--network", "mlp(width=1,depth=1)"],
        300,
    ),
    "compare": (["compare", "shared.csv", *TARGETS, "--splits", "5"], 360),
}
"""What is run, and the seconds that it may take on two cores."""
BEGIN, END = "<!-- table of benchmarks/table_times.py -->", "<!-- end of the table -->"


def table(file: Path, shared: bool) -> None:
    """Two numbers and a yes or no, made of waves of the columns, nine together or one each."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, COLUMNS))
    waves = np.tanh(x @ random.normal(size=(COLUMNS, 9)) / np.sqrt(COLUMNS) * 1.5)
    mixed = random.normal(size=(9, 3)) if shared else np.eye(9, 3)
    signal = waves @ mixed
    signal = signal / signal.std(axis=0) + 0.3 * random.normal(size=(ROWS, 3))
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow([*(f"x{k}" for k in range(COLUMNS)), "a", "b", "c"])
        for inputs, (a, b, c) in zip(x, signal, strict=True):
            yes = "yes" if c > 0 else "no"
            writer.writerow([*(f"{v:.5f}" for v in inputs), f"{a:.5f}", f"{b:.5f}", yes])


def spent() -> float:
    """Processor seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(name: str, folder: Path) -> dict[str, Any]:
    """One command's times, and what it said."""
    words, may = COMMANDS[name]
    tool = shutil.which("evenhand", path=str(Path(sys.executable).parent)) or "evenhand"
    loads, before, begun = [os.getloadavg()[0]], spent(), time.perf_counter()
    with (folder / "said.txt").open("w") as said:
        running = subprocess.Popen([tool, *words], cwd=folder, stdout=said, stderr=said)
        while running.poll() is None:
            time.sleep(1)
            loads.append(os.getloadavg()[0])
    wall, processor = time.perf_counter() - begun, spent() - before
    text = (folder / "said.txt").read_text()
    if running.returncode:
        raise SystemExit(text)
    verdicts = [line for line in text.splitlines() if line.partition(":")[0].isupper()]
    verdicts += [line for line in text.splitlines() if "left out" in line or "given up" in line]
    return {
        "command": " ".join(["evenhand", *words]),
        "may_take": may,
        "wall": round(wall, 1),
        "processor": round(processor, 1),
        "load": round(float(np.mean(loads)), 1),
        "cores": os.cpu_count(),
        "said": [line.strip() for line in verdicts][:3],
        "made": environment(),
    }


def page(results: dict[str, Any]) -> str:
    """The times as the page has them."""
    rows = [
        "| | promised | wall, s | processor, s | load |",
        "|---|---|---|---|---|",
    ]
    for name, (_, may) in COMMANDS.items():
        one = results.get(name)
        told = (
            "not measured | | "
            if one is None
            else f"{one['wall']:.0f} | {one['processor']:.0f} | {one['load']:.1f}"
        )
        rows.append(f"| {name} | {may:g} | {told} |")
    cores = sorted({one["cores"] for one in results.values()})
    note = (
        f"{ROWS:,} rows, {COLUMNS} columns, three targets, {', '.join(map(str, cores))} cores; "
        "`whole ladder` is `--verify` where a harm is found and every rung is climbed, `compare` "
        "the five usual recipes at five splits. The load is the mean number of processes that "
        "wanted a core meanwhile, these included. Above the number of cores the wall's time is "
        "that of a busy machine, and the processor's says more."
    )
    if all(one["load"] > one["cores"] for one in results.values()):
        note += " On an idle machine none of these has been measured yet."
    return "\n".join([*rows, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=COMMANDS, action="append")
    parser.add_argument("--table", action="store_true", help="print what there is, and stop")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if asked.table:
        print(page(results))
        return
    with tempfile.TemporaryDirectory() as folder:
        table(Path(folder) / "shared.csv", shared=True)
        table(Path(folder) / "apart.csv", shared=False)
        for name in asked.only or COMMANDS:
            results[name] = measured(name, Path(folder))
            kept = {known: results[known] for known in COMMANDS if known in results}
            RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            print(
                name,
                {k: results[name][k] for k in ("wall", "processor", "load", "said")},
                flush=True,
            )


if __name__ == "__main__":
    main()
