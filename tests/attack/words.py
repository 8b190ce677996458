"""Attacks by what is typed: command lines, configurations and the environment."""

from __future__ import annotations

import json
import random
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import typer
from ground import Ground
from harness import Tally, fresh, run

WRONG = (
    *("3e6", "1:30:00", "1" + "0" * 20, "-1", "0", "nan", "inf", "-inf", "1e400", "0x10", "٣", "½"),
    *("true", "null", "~", "[]", "{}", "[1, [2]]", "{a: 1}", "''", '"\\0"', '"\\e[2J"'),
    *("2020-01-01", "!!python/name:os.system ''", "!!binary x", "&a [*a]", "*a", "<<", "? x"),
    *("- 1", "a: b: c", "x" * 3000, "all,bogus", ",", "sg,sg", "1," * 3000, "[" * 900, "{" * 900),
    *("..", "/", "%", "\t", "", " ", "１２", "1_000", "+5", "0b1", "1e-400", "१", "Ⅷ", "-0", "--"),
    *("\x1b]0;x\x07", "\u202e", "\udcff", "日本", "a\nb", "\0", "0" * 3000, "9" * 4000, "(" * 3000),
    *("sg" + "(" * 2000, "ate-sg(shared=1e300)", "ate-sg(shared=-1)", "ate-sg(shared=nan)"),
    *("ate-sg(shared=true)", "ate-sg(shared=1,shared=2)", "ate-sg(", "ate-sg)", "ate-sg()()"),
    *("tchebycheff(weights=1)", "grid(steps=1000000)", "cagrad(c=1e400)", "multi-krum(off=99)"),
    *("mgda(at=nowhere)", "stch(mu=0)", "rlw(__class__=1)", "adam(lr=1)", "adamw(betas=1)"),
    *("sgd(momentum=-1)", "mlp(width=1e9)", "mlp(depth=-1)", "mlp(width=10000000,depth=1000)"),
    *("cagrad(c=nan)", "grid(steps=60)", "mlp(depth=100000)", "adam(amsgrad=3)", "pbi(theta=-inf)"),
    *("1e999h", "0s", "10 years", "٣m", ".", "-5m", "1h30m", "," * 4000, "a=b=c", "=", "a=", "=b"),
)
ENOUGH = {"compare": "seeds", "train": "epochs", "doctor": "epochs"}
"""An option that is 0 at the end, so that nothing is ever trained."""
SOURCES = ("quadrants", "digits", "t.csv", "t.csv", "mine.py:problem", "quadrant", "..", "a:b")
ENVIRONMENT = {
    "EVENHAND_DATA": ("", "/dev/zero", "x" * 5000, "a\nb", "\udcff", "~"),
    "COLUMNS": ("0", "-1", "1", "9" * 30, "x", ""),
    "LINES": ("0", "x"),
    "TERM": ("", "dumb", "x" * 500, "unknown"),
    "HOME": ("", "/nowhere", "/dev/null"),
    "TMPDIR": ("/nowhere", "/dev/null"),
    "LANG": ("C", "xx_YY.UTF-99"),
    "TZ": ("x" * 300, ":/dev/zero"),
    "NO_COLOR": ("", "1"),
    "FORCE_COLOR": ("1",),
}


@cache
def _parameters() -> dict[str, list[Any]]:
    """Every command's parameters, as the tool itself knows them."""
    from evenhand.app.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: list(command.params) for name, command in commands.items()}


def _line(chance: random.Random) -> tuple[list[str], list[int]]:
    """A command line that is wrong, or asks for nothing to be done; its exit codes."""
    known = _parameters()
    name = chance.choice(["compare"] * 6 + list(known))
    words, fit = [name], [2]
    if chance.random() < 0.03:
        return [chance.choice(WRONG) or "x", *words], fit
    positional = [p for p in known[name] if p.param_type_name == "argument"]
    options = [p for p in known[name] if p.param_type_name == "option"]
    for option in chance.sample(options, min(len(options), chance.randint(0, 4))):
        spelled = option.opts[-1]
        for _ in range(1 if chance.random() < 0.9 else chance.choice([2, 300, 20_000])):
            words.append(spelled if option.is_flag else f"{spelled}={chance.choice(WRONG)}")
    if chance.random() < 0.05:
        words.append(f"--{chance.choice(WRONG)}")
    for argument in positional:
        right = SOURCES if argument.name == "source" else ("kept", "t.csv", "mnists", "x.py")
        words.append(chance.choice(right if chance.random() < 0.6 else WRONG) or "x")
    if name in ENOUGH:
        words.append(f"--{ENOUGH[name]}=0")
    if name == "methods" and any(w.startswith("--figure") for w in words):
        words.append("--recipes=bogus")
    if name in ("methods", "datasets", "new", "predict", "report", "export"):
        fit = [0, 2]
    if name == "data":
        words = ["data", f"not-{words[-1]}"]
    return [word.replace("\0", "") for word in words], fit


def _file(folder: Path, chance: random.Random) -> list[str]:
    """A configuration that is wrong, in YAML or TOML, for a command that takes one."""
    command = chance.choice(["compare", "compare", "train"])
    keys = ["source", "workers", "budget", "targets", "kinds", "metrics", "inputs", "recipes"]
    keys += ["lr", "splits", "out", "resume", "network", "batch", "test", "missing", "stack"]
    keys += ["jacobian", "references", "matters", "optimizer", "patience", "design", "encoding"]
    values = {key: chance.choice(WRONG) for key in chance.sample(keys, chance.randint(1, 5))}
    values |= {"source": chance.choice(["quadrants", "t.csv"]), ENOUGH[command]: "0"}
    toml = chance.random() < 0.3
    lines = []
    for key, value in values.items():
        if toml and chance.random() < 0.7:
            value = json.dumps(value)
        lines.append(f"{key} = {value}" if toml else f"{key}: {value}")
    if chance.random() < 0.2:
        lines.append(chance.choice(lines))
    if chance.random() < 0.1:
        names = ",".join(f"n{k}" for k in range(chance.choice([1000, 100_000])))
        lines.append(f'drop = "{names}"' if toml else f"drop: {names}")
    chance.shuffle(lines)
    encoding = chance.choice(["utf-8"] * 6 + ["utf-16", "utf-32", "latin-1", "utf-8-sig"])
    file = folder / ("c.toml" if toml else "c.yaml")
    file.write_bytes("\n".join(lines).encode(encoding, errors="replace"))
    return [command, "--config", file.name]


def options(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """A line within a second of computing, and nothing begun."""
    folder = fresh(ground.root)
    (folder / "t.csv").write_bytes((ground.kept / "t.csv").read_bytes())
    if chance.random() < 0.5:
        command, codes = _file(folder, chance), [2]
        told = (folder / command[-1]).read_bytes().decode(errors="replace")[:300]
    else:
        command, codes = _line(chance)
        told = ""
    environment = {}
    if chance.random() < 0.2:
        name = chance.choice(list(ENVIRONMENT))
        environment = {name: chance.choice(ENVIRONMENT[name])}
    tally.attack = f"{shlex.join(command)[:300]} {environment or ''} {told}".strip()
    before = sorted(folder.rglob("*"))
    ended = run(command, folder, environment=environment)
    tally.judge(ended, tally.attack, codes, 6)
    tally.expect(ended.processor < 1, f"{tally.attack}: {ended.processor:.2f} s of computing")
    tally.expect(len(ended.err) < 3000, f"{tally.attack}: {len(ended.err)} characters")
    printable = all(c.isprintable() or c in "\n\r\t" for c in ended.err)
    tally.expect(printable, f"{tally.attack}: what no terminal should be sent: {ended.err!r}")
    made = [p for p in sorted(folder.rglob("*")) if p not in before and p.suffix != ".py"]
    tally.expect(not made, f"{tally.attack}: {made} was made")
