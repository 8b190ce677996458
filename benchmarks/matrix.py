"""The tests on other versions of Python and torch, and what came out.

    python benchmarks/matrix.py --python python3.11,python3.13 --torch 2.6.0,2.13.0 [--tests FILE,…]
    python benchmarks/matrix.py --environment DIR/bin/python    # one that is made already
    python benchmarks/matrix.py --table                         # docs/versions.md's

Makes a virtual environment for every pair, installs this project with that torch and the newest
versions of everything else, runs the tests, and adds a row to benchmarks/results/matrix.json. An
environment takes several gigabytes where torch brings CUDA; it is deleted afterwards. What could
not be installed or begun is a row too, with the reason. This is not part of CI.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "matrix.json"
PAGE = ROOT / "docs" / "versions.md"
BEGIN, END = "<!-- table of benchmarks/matrix.py -->", "<!-- end of the table -->"

VERSIONS = """
import json, platform
from importlib.metadata import version
names = ("torch", "numpy", "scipy")
print(json.dumps({"python": platform.python_version(), **{n: version(n) for n in names}}))
"""


def ran(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """A finished command with what it said."""
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )


def installed(python: str, torch: str, folder: Path) -> Path | str:
    """The interpreter of a new environment with this project in it, or why there is none."""
    made = ran([python, "-m", "venv", folder])
    if made.returncode:
        return f"no environment: {_last(made)}"
    interpreter = folder / "bin" / "python"
    install = [interpreter, "-m", "pip", "install", "--quiet", f"torch=={torch}"]
    got = ran([*install, "-e", f"{ROOT}[app,dev]"])
    return interpreter if got.returncode == 0 else f"not installed: {_last(got)}"


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def tested(interpreter: Path, tests: Sequence[str], workers: int) -> dict[str, Any]:
    """What the tests said under an interpreter."""
    versions = json.loads(ran([interpreter, "-c", VERSIONS]).stdout)
    environment = {**os.environ, "CI": "true"}
    environment["PYTHONPATH"] = str(ROOT / "src")
    done = ran(
        [interpreter, "-m", "pytest", "-q", "-n", workers, "--dist", "worksteal", *tests],
        cwd=ROOT,
        env=environment,
    )
    last = _last(subprocess.CompletedProcess([], done.returncode, done.stdout, ""))
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", last)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return {"versions": versions, "tests": list(tests), "counts": counts, "failed": failed}


def kept() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(RESULT.read_text()) if RESULT.exists() else []
    return rows


def add(row: dict[str, Any]) -> None:
    """Keep a row, in place of an earlier one of the same versions and tests."""
    row["date"] = datetime.now(UTC).date().isoformat()
    same = ("asked", "tests")
    rows = [old for old in kept() if any(old.get(key) != row.get(key) for key in same)]
    RESULT.write_text(json.dumps([*rows, row], indent=1) + "\n")
    print(row.get("counts") or row["reason"], *row.get("failed", []), sep="\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for every row."""
    lines = ["| Python | torch | numpy | scipy | tests | came out |", "|---|---|---|---|---|---|"]
    for row in rows:
        versions = row.get("versions", {})
        python = versions.get("python", row["asked"]["python"])
        torch = versions.get("torch", row["asked"]["torch"])
        what = "all" if not row["tests"] else ", ".join(Path(t).stem for t in row["tests"])
        counts = ", ".join(f"{n} {kind}" for kind, n in row.get("counts", {}).items())
        cells = [python, torch, versions.get("numpy", "–"), versions.get("scipy", "–"), what]
        lines.append(f"| {' | '.join([*cells, counts or row['reason']])} |")
    return "\n".join(lines)


def write_table() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(kept())}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="interpreters, with commas")
    parser.add_argument("--torch", default="2.6.0", help="versions, with commas")
    parser.add_argument("--tests", default="", help="files, with commas; all by default")
    parser.add_argument("--environment", type=Path, help="an interpreter that has everything")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="write the page's table, run nothing")
    options = parser.parse_args()
    tests = [name for name in options.tests.split(",") if name]
    if options.table:
        write_table()
    elif options.environment:
        found = tested(options.environment, tests, options.workers)
        asked = {key: found["versions"][key] for key in ("python", "torch")}
        add({"asked": asked, **found})
    else:
        for python in options.python.split(","):
            for torch in options.torch.split(","):
                asked = {"python": Path(python).name, "torch": torch}
                with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
                    interpreter = installed(python, torch, Path(folder))
                    if isinstance(interpreter, str):
                        add({"asked": asked, "tests": tests, "reason": interpreter})
                    else:
                        add({"asked": asked, **tested(interpreter, tests, options.workers)})
    if not options.table:
        write_table()


if __name__ == "__main__":
    main()
