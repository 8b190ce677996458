"""Plant bugs in a copy of the source, one at a time, and see whether the tests notice.

    make mutants                                       # the planted ones, and 25 drawn by chance
    python benchmarks/mutants.py --planted             # the list in tests/mutants/planted.toml
    python benchmarks/mutants.py --drawn 40 --seed 3   # mutants drawn by operator and place

A drawn mutant is one small change of the program's text: a comparison, a sign, a constant, an
argument, a statement left out. Rooms take turns, so that a large file does not get them all; within
a room the operator is drawn first and then the place. The tests of the whole room run until the
first one fails: those named below, and every other test file that imports a module of the room. The
test that fails must pass without the mutant, else nothing is said at all. A mutant that no test
notices is a survivor and printed with its place: some are harmless (the same numbers by another
way), the others want a test.

Every try is a fork of a process that has imported all but the source under test. Nothing of this
runs in CI: it takes an hour and more on one core.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "evenhand"
PLANTED = ROOT / "tests" / "mutants" / "planted.toml"
PRELOADED = (
    *("torch", "torch.utils.flop_counter", "torch.func", "numpy", "scipy.stats", "scipy.optimize"),
    *("sklearn.datasets", "sklearn.ensemble", "torchmetrics.classification"),
    *("safetensors.torch", "rich.progress", "typer.testing", "jinja2", "matplotlib.pyplot"),
    *("pydantic", "yaml", "PIL.Image"),
)
LIMIT = 3_600
"""Seconds for the tests of one mutant; what hangs is noticed."""


@dataclass(frozen=True)
class Room:
    """Files, and the tests that are to notice a change of them.

    Attributes:
        files: patterns under src/evenhand.
        tests: those that take seconds.
        more: those that take a minute and more; asked if the others notice nothing, and after them
            whatever else imports the room (`_importing`).
    """

    files: tuple[str, ...]
    tests: tuple[str, ...]
    more: tuple[str, ...]


ROOMS: Mapping[str, Room] = {
    "comparison": Room(
        ("comparison/*.py",),
        ("test_arithmetic", "test_kept", "test_golden", "test_inference", "test_splits"),
        ("test_verdict", "test_objects", "test_app"),
    ),
    "training": Room(
        ("training/*.py", "data/problem.py", "data/labels.py", "data/fingerprint.py"),
        ("test_labels", "test_stopping", "test_chance", "test_kept", "test_data"),
        ("test_savings", "test_resume", "test_schedules", "test_laws"),
    ),
    "ensemble": Room(
        ("ensemble/*.py",), ("test_chance", "test_kept", "test_ensemble"), ("test_stacked",)
    ),
    "recipes": Room(("recipes.py",), ("test_golden", "test_objects"), ("test_app",)),
    "autodiff": Room(
        ("autodiff/*.py", "balancing/*.py", "balancer.py"),
        ("test_chance", "test_balancer", "test_state"),
        ("test_programs", "test_loss", "test_modes", "test_layers", "test_savings", "test_laws"),
    ),
    "report": Room(
        ("app/findings.py", "app/table.py", "app/report.py", "app/diagnostics.py"),
        ("test_arithmetic",),
        ("test_app",),
    ),
}


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
    more: tuple[str, ...] = ()


def planted() -> list[Mutant]:
    """The bugs on the list.

    Raises:
        ValueError: the place of one is gone, or there are several; or its test is gone.
    """
    found = []
    for bug in tomllib.loads(PLANTED.read_text())["bug"]:
        text = (SOURCE / bug["file"]).read_text()
        if text.count(bug["old"]) != 1:
            raise ValueError(f"{bug['name']}: {bug['old']!r} is not once in {bug['file']}")
        file, _, test = bug["kills"].partition("::")
        if f"def {test}(" not in (ROOT / file).read_text():
            raise ValueError(f"{bug['name']}: there is no test {bug['kills']}")
        changed = text.replace(bug["old"], bug["new"])
        found.append(Mutant(bug["name"], bug["file"], changed, (bug["kills"],)))
    return found


def drawn(number: int, seed: int, rooms: list[str]) -> list[Mutant]:
    """Mutants by room, operator and place.

    Raises:
        ValueError: a test of a room is gone.
    """
    for room in rooms:
        for test in (*ROOMS[room].tests, *ROOMS[room].more):
            if not (ROOT / "tests" / f"{test}.py").exists():
                raise ValueError(f"room {room}: there is no tests/{test}.py")
    asked = {room: tests_of(ROOMS[room]) for room in rooms}
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
            changed = _replaced(SOURCE / file, node, new)
            found.append(Mutant(name, file, changed, *asked[room]))
    return found


def tests_of(room: Room) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files that are asked of a change in a room: the quick ones, and all the others."""
    more = dict.fromkeys((*room.more, *_importing(room)))
    return tuple(f"tests/{test}.py" for test in room.tests), tuple(
        f"tests/{test}.py" for test in more if test not in room.tests
    )


def _importing(room: Room) -> list[str]:
    """The test files that import a module of the room, the shortest first.

    What is imported by its public name is not seen: nearly every test imports a balancer so.
    """
    modules = {
        ".".join(("evenhand", *path.relative_to(SOURCE).with_suffix("").parts))
        for pattern in room.files
        for path in SOURCE.glob(pattern)
    }
    modules |= {name.removesuffix(".__init__") for name in modules}
    files = sorted((ROOT / "tests").glob("test_*.py"), key=lambda file: file.stat().st_size)
    return [file.stem for file in files if modules & _imported(ast.parse(file.read_text()))]


def _imported(program: ast.AST) -> set[str]:
    """The modules that a program imports, and what it imports from them as if it were modules."""
    found: set[str] = set()
    for node in ast.walk(program):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


Place = tuple[str, ast.expr | ast.stmt, ast.AST]


def _places(room: str) -> dict[str, list[Place]]:
    """Every change that an operator can make in the files of a room."""
    found: dict[str, list[Place]] = defaultdict(list)
    for pattern in ROOMS[room].files:
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


def tried(mutant: Mutant, copy: Path, quick: bool) -> tuple[str, float]:
    """What noticed it, or "", and how long that took."""
    target = copy / "src" / "evenhand" / mutant.file
    original = target.read_text()
    start = time.monotonic()
    try:
        target.write_text(mutant.content)
        found = _noticed(mutant.tests, copy)
        if not found and mutant.more and not quick:
            found = _noticed(mutant.more, copy)
    finally:
        target.write_text(original)
    if "::" in found and (anyway := _noticed((found,), copy)):
        raise RuntimeError(f"without any mutant {anyway} fails")  # it would notice everything
    return found, time.monotonic() - start


def _noticed(tests: tuple[str, ...], copy: Path) -> str:
    """The first test that fails, in a process of its own."""
    said = copy / "said.txt"
    child = os.fork()
    if child == 0:
        _run_tests(tests, copy, said)
    code = _waited(child)
    if code == 0:
        return ""
    if code is None:
        return f"no end within {LIMIT} s"
    if code not in (1, 2):  # 2: a file could not be imported
        raise RuntimeError(f"pytest ended with {code}:\n{said.read_text()}")
    failed = [
        line.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR ")
        for line in said.read_text().splitlines()
        if line.startswith(("FAILED ", "ERROR "))
    ]
    return failed[0] if failed else f"pytest ended with {code}"


def _run_tests(tests: tuple[str, ...], copy: Path, said: Path) -> NoReturn:
    """In the child: run them on the copy, and end with pytest's code, whatever happens."""
    code = 70
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = str(copy / "src")
        sys.path[:0] = [str(copy / "src"), str(copy / "tests")]
        options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        code = int(pytest.main([*options, "-o", "addopts=--import-mode=importlib", *tests]))
    except BaseException:  # noqa: BLE001  the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # and leave the parent's folder alone


def _waited(child: int) -> int | None:
    """The child's code, or None if it had to be stopped."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _preload() -> None:
    """Import what the tests import, but not what is changed: children begin with it."""
    if any(name.partition(".")[0] == "evenhand" for name in sys.modules):
        raise RuntimeError("evenhand is imported already: its changes would not be seen")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"  # before torch loads, as in tests/conftest.py
    os.environ["CI"] = "true"  # the same examples every time
    for name in PRELOADED:
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--planted", action="store_true", help="those of the list")
    parser.add_argument("--only", default="", metavar="REGEX", help="of the list, by their names")
    parser.add_argument("--drawn", type=int, default=0, metavar="N", help="so many by chance")
    parser.add_argument("--seed", type=int, default=0, help="of the draw [0]")
    parser.add_argument("--rooms", default=",".join(ROOMS), help="of the drawn ones [all]")
    parser.add_argument("--quick", action="store_true", help="only the tests that take seconds")
    parser.add_argument("--out", type=Path, help="write what happened to this file, JSON lines")
    asked = parser.parse_args()
    mutants = planted() if asked.planted or asked.only else []
    mutants = [mutant for mutant in mutants if re.search(asked.only, mutant.name)]
    mutants += drawn(asked.drawn, asked.seed, asked.rooms.split(","))
    survivors = 0
    if asked.out is not None:
        asked.out.write_text("")
    _preload()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "*.egg-info", "__pycache__", ".hypothesis"
        )
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutant in mutants:
            noticed, seconds = tried(mutant, copy, asked.quick)
            survivors += not noticed
            print(f"{'noticed ' if noticed else 'SURVIVED'} {mutant.name}", flush=True)
            print(f"         {noticed or 'by no test of its room'} ({seconds:.0f} s)", flush=True)
            if asked.out is not None:  # at once: what is known already outlasts a kill
                said = {"mutant": mutant.name, "noticed": noticed}
                with asked.out.open("a") as file:
                    file.write(json.dumps(said, ensure_ascii=False) + "\n")
    print(f"{len(mutants)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
