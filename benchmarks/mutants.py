"""Plant bugs in a copy of the source, one at a time, and see whether the tests notice.

    make mutants                                       # the planted ones, and 25 drawn by chance
    python benchmarks/mutants.py --planted             # the list in tests/mutants/planted.toml
    python benchmarks/mutants.py --drawn 40 --seed 3   # mutants drawn by operator and place

A drawn mutant is one small change of the program's text: a comparison, a sign, a constant, an
argument, a statement left out. Rooms take turns, so that a large file does not get them all; within
a room the operator is drawn first and then the place. The tests of a room run until the first one
fails. A mutant that no test of its room notices is a survivor and printed with its place: some are
harmless (the same numbers by another way), the others want a test.

Nothing of this runs in CI: it takes a quarter of an hour and more on one core.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "evenhand"
PLANTED = ROOT / "tests" / "mutants" / "planted.toml"
LIMIT = 600
"""Seconds for the tests of one mutant; what hangs is noticed."""

ROOMS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "comparison": (
        ("comparison/*.py",),
        ("test_arithmetic", "test_kept", "test_golden", "test_chance", "test_app"),
    ),
    "training": (
        ("training/*.py", "data/problem.py", "data/labels.py", "data/fingerprint.py"),
        (
            "test_labels",
            "test_stopping",
            "test_chance",
            "test_kept",
            "test_data",
            "test_savings",
            "test_resume",
            "test_schedules",
        ),
    ),
    "ensemble": (("ensemble/*.py",), ("test_chance", "test_kept", "test_ensemble", "test_stacked")),
    "recipes": (("recipes.py",), ("test_golden", "test_app")),
    "autodiff": (
        ("autodiff/*.py", "balancer.py"),
        ("test_door", "test_chance", "test_balancer", "test_modes", "test_layers", "test_savings"),
    ),
    "report": (
        ("app/findings.py", "app/table.py", "app/report.py", "app/diagnostics.py"),
        ("test_arithmetic", "test_app"),
    ),
}
"""Room: its files, and the tests that are to notice a change of them, the quickest first."""


# Operators --------------------------------------------------------------------------------------

COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
NAMES: Mapping[str, str] = {
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "all": "any",
    "any": "all",
    "mean": "sum",
    "median": "mean",
    "fsum": "max",
    "stdev": "variance",
    "append": "extend",
    "clamp_min": "clamp_max",
    "unsqueeze": "squeeze",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
}


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for k, operator in enumerate(node.ops):
            if type(operator) in COMPARISONS:
                changed = deepcopy(node)
                changed.ops[k] = COMPARISONS[type(operator)]()
                yield changed


def _arithmetic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        changed = deepcopy(node)
        changed.op = ARITHMETIC[type(node.op)]()
        yield changed
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield deepcopy(node.operand)


def _logic(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        changed = deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield changed
    if isinstance(node, ast.IfExp):
        yield deepcopy(node.body)
        yield deepcopy(node.orelse)


def _constant(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Constant):
        match node.value:
            case bool(value):
                yield ast.Constant(not value)
            case int(value) | float(value):
                yield ast.Constant(value + 1)
                if value not in (0, 1):
                    yield ast.Constant(-value)


def _name(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        match node.func:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in NAMES:
                changed = deepcopy(node)
                if isinstance(changed.func, ast.Name):
                    changed.func.id = NAMES[name]
                elif isinstance(changed.func, ast.Attribute):
                    changed.func.attr = NAMES[name]
                yield changed


def _argument(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Call):
        return
    for k, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            changed = deepcopy(node)
            del changed.keywords[k]
            yield changed
    if len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        changed = deepcopy(node)
        changed.args[0], changed.args[1] = changed.args[1], changed.args[0]
        yield changed


def _statement(node: ast.AST) -> Iterator[ast.AST]:
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if call or isinstance(node, ast.AugAssign | ast.Continue | ast.Break):
        yield ast.Pass()
    if isinstance(node, ast.Return) and node.value is not None:
        match node.value:
            case ast.Tuple(elts=[first, second]):
                yield ast.Return(ast.Tuple([deepcopy(second), deepcopy(first)]))


def _condition(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.comprehension):
        for k in range(len(node.ifs)):
            changed = deepcopy(node)
            del changed.ifs[k]
            yield changed


OPERATORS: Mapping[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "comparison": _comparison,
    "arithmetic": _arithmetic,
    "logic": _logic,
    "constant": _constant,
    "name": _name,
    "argument": _argument,
    "statement": _statement,
    "condition": _condition,
}


# Mutants ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """A change of one file, and the tests that are to notice it."""

    name: str
    file: str
    content: str
    tests: tuple[str, ...]


def planted() -> list[Mutant]:
    """The bugs on the list.

    Raises:
        ValueError: the place of one is gone, or there are several.
    """
    found = []
    for bug in tomllib.loads(PLANTED.read_text())["bug"]:
        text = (SOURCE / bug["file"]).read_text()
        if text.count(bug["old"]) != 1:
            raise ValueError(f"{bug['name']}: {bug['old']!r} is not once in {bug['file']}")
        changed = text.replace(bug["old"], bug["new"])
        found.append(Mutant(bug["name"], bug["file"], changed, (bug["kills"],)))
    return found


def drawn(number: int, seed: int, rooms: list[str]) -> list[Mutant]:
    """Mutants by room, operator and place."""
    chance = random.Random(seed)
    places = {room: _places(room) for room in rooms}
    found: list[Mutant] = []
    taken: set[str] = set()
    while len(found) < number:
        room = rooms[len(found) % len(rooms)]
        operator = chance.choice(sorted(places[room]))
        file, node, new = chance.choice(places[room][operator])
        before = ast.unparse(node)
        name = f"{file}:{node.lineno} {operator}: {before[:70]!r} -> {ast.unparse(new)[:70]!r}"
        if name not in taken:
            taken.add(name)
            tests = tuple(f"tests/{test}.py" for test in ROOMS[room][1])
            found.append(Mutant(name, file, _replaced(SOURCE / file, node, new), tests))
    return found


Place = tuple[str, ast.expr | ast.stmt, ast.AST]


def _places(room: str) -> dict[str, list[Place]]:
    """Every change that an operator can make in the files of a room."""
    found: dict[str, list[Place]] = defaultdict(list)
    for pattern in ROOMS[room][0]:
        for path in sorted(SOURCE.glob(pattern)):
            file = str(path.relative_to(SOURCE))
            for node in _walked(ast.parse(path.read_text())):
                for operator, change in OPERATORS.items():
                    for new in change(node):
                        if isinstance(node, ast.expr | ast.stmt):
                            found[operator].append((file, node, new))
    return found


def _walked(node: ast.AST) -> Iterator[ast.AST]:
    """The program's nodes: no annotations, messages, imports or texts."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walked(child)


def _replaced(path: Path, node: ast.expr | ast.stmt, new: ast.AST) -> str:
    """The file's text with `node` written anew; every other character as it was."""
    lines = path.read_bytes().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    text = b"".join(lines)
    begin = starts[node.lineno - 1] + node.col_offset
    end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
    written = ast.unparse(new)
    if isinstance(node, ast.expr):
        written = f"({written})"
    return (text[:begin] + written.encode() + text[end:]).decode()


# Trying them ------------------------------------------------------------------------------------


def tried(mutant: Mutant, copy: Path) -> tuple[str, float]:
    """What noticed it, or "", and how long that took."""
    target = copy / "src" / "evenhand" / mutant.file
    original = target.read_text()
    start = time.monotonic()
    try:
        target.write_text(mutant.content)
        return _noticed(mutant.tests, copy), time.monotonic() - start
    finally:
        target.write_text(original)


def _noticed(tests: tuple[str, ...], copy: Path) -> str:
    there = [test for test in tests if (copy / test.partition("::")[0]).exists()]
    options = ("-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider")
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "CI": "true"}
    command = [sys.executable, "-m", "pytest", *options, "-o", "addopts=--import-mode=importlib"]
    try:
        done = subprocess.run(
            [*command, *there],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} s"
    if done.returncode == 0:
        return ""
    if done.returncode not in (1, 2):  # 2: a file could not be imported
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    failed = [
        line.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR ")
        for line in done.stdout.splitlines()
        if line.startswith(("FAILED ", "ERROR "))
    ]
    return failed[0] if failed else f"pytest ended with {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--planted", action="store_true", help="those of the list")
    parser.add_argument("--drawn", type=int, default=0, metavar="N", help="so many by chance")
    parser.add_argument("--seed", type=int, default=0, help="of the draw [0]")
    parser.add_argument("--rooms", default=",".join(ROOMS), help="of the drawn ones [all]")
    parser.add_argument("--out", type=Path, help="write what happened to this file, JSON")
    asked = parser.parse_args()
    mutants = planted() if asked.planted else []
    mutants += drawn(asked.drawn, asked.seed, asked.rooms.split(","))
    survivors, told = 0, []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "*.egg-info", "__pycache__", ".hypothesis"
        )
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutant in mutants:
            noticed, seconds = tried(mutant, copy)
            survivors += not noticed
            print(f"{'noticed ' if noticed else 'SURVIVED'} {mutant.name}", flush=True)
            print(f"         {noticed or 'by no test of its room'} ({seconds:.0f} s)", flush=True)
            what = {name: value for name, value in asdict(mutant).items() if name != "content"}
            told.append({**what, "noticed": noticed})
    print(f"{len(mutants)} mutants, {survivors} survived")
    if asked.out is not None:
        asked.out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
