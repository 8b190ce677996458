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

sys.path.insert(0, str(Path(__file__).parent))

from ledger import EXPECTED, RESULT

from evenhand.training.records import write_atomically

HERE = Path(__file__).parent
HEAD = """# The papers, reproduced

Each folder has the experiment's details, our deviations and what comes out (`README.md`), the
command (`reproduce.py`), what the paper prints (`expected.json`), every run of ours (`runs.jsonl`)
and what they come to (`result.json`). This page is written by `python papers/table.py`.

What wants a GPU is in `papers/gpu.py`, in parts that fit the minutes there are. A run of it keeps
the card's name, and what it made has the time of the card.

How a printed number and ours are compared:

- Where the paper prints a ±, ours is *inside* if our mean is within one ± of the printed mean.
- Where it prints none, there is no "inside ±". What can be said is whether the printed mean is
  within one standard deviation of our own runs; the two are counted apart.
- A share of runs that converge which is 100 % in print and here tells little, and is counted apart.

Differences are relative to the printed number, and in units of the ± that they are compared with.
Whoever trains for fewer epochs than the paper cannot meet its numbers: read the note beside them.
What has no printed counterpart (–) is in the papers' own pages.

"""
COLUMNS = (
    *("paper", "experiment", "printed numbers", "± printed: inside", "outside"),
    *("no ±: within ours", "not", "both 100 %", "time, of one core where no card is named"),
)
GRADES = "inside", "outside", "within ours", "not within ours", "both 100 %"
Numbers = Sequence[float | None]
Rows = Mapping[str, Mapping[str, Numbers]]


def page(folder: Path = HERE) -> str:
    """The whole of papers/README.md."""
    papers = sorted(file.parent for file in folder.glob(f"*/{EXPECTED}"))
    counts = "".join(line for paper in papers for line in _counts(paper))
    head = f"{HEAD}| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    return "\n".join([head + counts, *map(_section, papers)])


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is printed, and what came out here."""
    expected = json.loads((folder / EXPECTED).read_text())
    file = folder / RESULT
    return expected, json.loads(file.read_text()) if file.exists() else {"experiments": {}}


def _counts(folder: Path) -> Iterator[str]:
    """A line for each experiment: how many printed numbers are met, and how closely."""
    expected, result = _read(folder)
    printed = {name: of["rows"] for name, of in expected["experiments"].items()}
    for name in dict.fromkeys([*result["experiments"], *printed]):
        ours = result["experiments"].get(name)
        numbers = sum(map(len, printed.get(name, {}).values()))
        cells = [str(numbers or "–"), *["–"] * len(GRADES), _took(ours) if ours else "not run"]
        if ours and numbers:
            grades = [_grade(*told) for _, *told in _pairs(printed[name], ours["rows"])]
            cells[1:-1] = (str(grades.count(grade)) for grade in GRADES)
        yield f"| [{folder.name}]({folder.name}/README.md) | {name} | {' | '.join(cells)} |\n"


def _section(folder: Path) -> str:
    expected, result = _read(folder)
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
    return f"`{ours['command']}`, {ours['date']}, {_took(ours, 'one core')}."


def _took(ours: Mapping[str, Any], core: str = "") -> str:
    """How long the runs took, and of what: the cards, else `core`."""
    minutes, of = ours["cpu_seconds"] / 60, " and ".join(ours.get("cards", [])) or core
    told = f"{minutes:.0f} minutes" if minutes >= 2 else f"{ours['cpu_seconds']:.0f} seconds"
    return f"{told} of {of}" if of else told


def _pairs(printed: Rows, ours: Rows) -> Iterator[tuple[str, str, Numbers, Numbers | None]]:
    """(row, quantity, printed, ours), for every printed number; None where ours is missing."""
    for row, quantities in printed.items():
        for quantity, numbers in quantities.items():
            yield row, quantity, numbers, ours.get(row, {}).get(quantity)


def _rows(printed: Rows, ours: Rows) -> Iterator[tuple[str, ...]]:
    """(row, quantity, printed, ours, runs, agreement), for every printed number."""
    for row, quantity, numbers, found in _pairs(printed, ours):
        digits = _digits(numbers[0])
        told = row, quantity, _number(*numbers, digits)
        if found is None:
            yield *told, "–", "–", "not run, or never"
        else:
            got, deviation, runs = found
            agreement = _agreement(quantity, numbers, found)
            yield *told, _number(got, deviation, digits), f"{runs:g}", agreement


def _grade(quantity: str, printed: Numbers, ours: Numbers | None) -> str:
    """One of `GRADES`, or "missing"."""
    if ours is None:
        return "missing"
    (mean, spread), (got, deviation, _) = printed, ours
    if quantity.endswith("%") and mean == got == 100:
        return "both 100 %"
    difference = abs(got - mean)
    if spread is not None:
        return "inside" if difference <= spread else "outside"
    return "within ours" if difference <= (deviation or 0) else "not within ours"


def _agreement(quantity: str, printed: Numbers, ours: Numbers) -> str:
    """The grade in words, with the difference where there is one."""
    grade = _grade(quantity, printed, ours)
    (mean, spread), (got, deviation, _) = printed, ours
    if grade in ("inside", "both 100 %"):
        return "inside ±" if grade == "inside" else grade
    if got == mean:
        return "equal"
    relative = f"{100 * (got - mean) / abs(mean):+.2g} %" if mean else f"{got:+.3g}"
    if grade == "within ours":
        return f"{relative}, within ours"
    unit, whose = (spread, "±") if spread is not None else (deviation, "of our ±")
    return f"{relative}, {abs(got - mean) / unit:.2g} {whose}" if unit else relative


def _digits(printed: float) -> int:
    """How many digits behind the point a printed number and ours are given."""
    if abs(printed) >= 10:
        return 2
    return 6 if round(printed, 4) != printed else 4


def _number(mean: float, spread: float | None, digits: int) -> str:
    if not math.isfinite(mean):
        return "–"
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
