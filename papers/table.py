"""papers/README.md: every printed number beside ours.

    python papers/table.py            writes it
    python papers/table.py --check    says whether it is up to date

Reads each paper's expected.json and result.json, whose shapes are in ledger.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from ledger import EXPECTED, RESULT  # noqa: E402

from evenhand.records import write_atomically  # noqa: E402

HEAD = """# The papers, reproduced

Each folder has the experiment's details and our deviations (`README.md`), the command
(`reproduce.py`), what the paper prints (`expected.json`), every run of ours (`runs.jsonl`) and what
they come to (`result.json`). This page is written by `python papers/table.py`. "Inside ±": our mean
is within one printed standard deviation of the printed mean; otherwise the difference is given
relative to the printed number. What has no printed counterpart is in the papers' own pages.
"""


def page(folder: Path = HERE) -> str:
    """The whole of papers/README.md."""
    parts = [HEAD]
    for paper in sorted(file.parent for file in folder.glob(f"*/{EXPECTED}")):
        parts.append(_section(paper))
    return "\n".join(parts)


def _section(folder: Path) -> str:
    expected = json.loads((folder / EXPECTED).read_text())
    file = folder / RESULT
    result = json.loads(file.read_text()) if file.exists() else {"experiments": {}}
    lines = [f"## [{folder.name}]({folder.name}/README.md)\n", f"{expected['paper']}.\n"]
    for name, ours in result["experiments"].items():
        printed = expected["experiments"].get(name, {"rows": {}})
        lines.append(f"**{name}**{_source(printed)}. {_cost(ours)} {ours['note']}".rstrip() + "\n")
        rows = list(_rows(printed["rows"], ours["rows"]))
        if rows:
            lines.append("| row | quantity | printed | ours | runs | agreement |")
            lines.append("|---|---|---|---|---|---|")
            lines.extend("| " + " | ".join(row) + " |" for row in rows)
            lines.append("")
    for name, printed in expected["experiments"].items():
        if name not in result["experiments"]:
            lines.append(f"**{name}**{_source(printed)}: not run here.\n")
    return "\n".join(lines)


def _source(printed: Mapping[str, Any]) -> str:
    return f" ({printed['source']})" if printed.get("source") else ""


def _cost(ours: Mapping[str, Any]) -> str:
    minutes = ours["cpu_seconds"] / 60
    took = f"{minutes:.0f} minutes" if minutes >= 2 else f"{ours['cpu_seconds']:.0f} seconds"
    return f"`{ours['command']}`, {ours['date']}, {took} of one core."


def _rows(
    printed: Mapping[str, Mapping[str, Sequence[float | None]]],
    ours: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> Iterator[tuple[str, ...]]:
    """(row, quantity, printed, ours, runs, agreement), for every printed number."""
    for row, quantities in printed.items():
        for quantity, (mean, spread) in quantities.items():
            found = ours.get(row, {}).get(quantity)
            if mean is None:
                continue
            if found is None or found[0] is None:
                yield row, quantity, _number(mean, spread), "–", "–", "not run, or never"
                continue
            got, deviation, runs = found
            told = _number(mean, spread), _number(got, deviation), f"{runs:g}"
            yield row, quantity, *told, _agreement(mean, spread, got)


def _agreement(printed: float, spread: float | None, ours: float) -> str:
    if ours == printed:
        return "equal"
    if spread is not None and abs(ours - printed) <= spread:
        return "inside ±"
    if printed == 0:
        return f"{ours:+.3g}"
    return f"{100 * (ours - printed) / abs(printed):+.2g} %"


def _number(mean: float, spread: float | None) -> str:
    if not math.isfinite(mean):
        return "–"
    digits = 4 if abs(mean) < 10 else 2
    if float(mean).is_integer() and spread is None:
        return f"{mean:g}"
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    file, text = HERE / "README.md", page()
    if not parser.parse_args().check:
        write_atomically(file, text)
    elif not file.exists() or file.read_text() != text:
        sys.exit(f"{file} is not up to date: python papers/table.py")


if __name__ == "__main__":
    main()
