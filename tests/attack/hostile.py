"""Attacks by folders, files and tables that are not what they should be."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from ground import Ground, table
from harness import Tally, fresh, run

from rights import give_up_rights


def _place(folder: Path, chance: random.Random) -> tuple[Path, str]:
    """A path at which nothing can be written, or read."""
    here = folder / f"place{chance.randrange(10**9)}"
    kind = chance.choice(list(PLACES))
    return PLACES[kind](here, chance), kind


def _file(here: Path, chance: random.Random) -> Path:
    here.write_text("a file")
    return here


def _below_a_file(here: Path, chance: random.Random) -> Path:
    return _file(here, chance) / "below" / "it"


def _loop(here: Path, chance: random.Random) -> Path:
    here.symlink_to(here)
    return here


def _dangling(here: Path, chance: random.Random) -> Path:
    here.symlink_to("/proc/evenhand/dangling")
    return here


def _pipe(here: Path, chance: random.Random) -> Path:
    os.mkfifo(here)
    return here


def _socket(here: Path, chance: random.Random) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(here, Path.cwd())[:100])
    return here


def _theirs(here: Path, chance: random.Random) -> Path:
    here.mkdir()
    (here / "theirs").write_text("something else")
    return here


def _device(here: Path, chance: random.Random) -> Path:
    return Path(chance.choice(["/dev/zero", "/dev/full", "/dev/null", "/proc/evenhand/x"]))


def _long(here: Path, chance: random.Random) -> Path:
    return here.with_name("n" * chance.randint(256, 4000))


def _strange(here: Path, chance: random.Random) -> Path:
    name = chance.choice(["a\nb", "\x1b[2J", "\udcff", "-x", "*", "a\rb", "\u202e"])
    return here.with_name(name) / "none" / "x.png"


def _closed(here: Path, chance: random.Random) -> Path:
    """A folder that may not be entered, or not be written to."""
    here.mkdir()
    here.with_name("t.csv").rename(here / "t.csv")
    shutil.copy(here / "t.csv", here.with_name("t.csv"))
    here.chmod(chance.choice([0o000, 0o444, 0o555]))
    return here


def _unreadable(here: Path, chance: random.Random) -> Path:
    for file in (here, here.with_name(f"{here.name}.csv")):
        _file(file, chance).chmod(0o200)
    return here


Place = Callable[[Path, random.Random], Path]
PLACES: dict[str, Place] = {
    "a file": _file,
    "below a file": _below_a_file,
    "a loop": _loop,
    "a dangling link": _dangling,
    "a pipe": _pipe,
    "a socket": _socket,
    "another's folder": _theirs,
    "a device": _device,
    "a long name": _long,
    "a strange name": _strange,
    "a closed folder": _closed,
    "an unreadable file": _unreadable,
}
COMMANDS: tuple[Callable[[str], list[str]], ...] = (
    lambda place: ["report", place],
    lambda place: ["compare", "--config", place],
    lambda place: ["compare", f"{place}.csv", "--target", "a"],
    lambda place: ["compare", f"{place}.py:problem"],
    lambda place: ["compare", "multimnist", "--out", place],  # there is no MNIST
    lambda place: ["compare", "quadrants", "--resume", "--out", place],
    lambda place: ["compare", "t.csv", "--target", "wage", "--test", place],
    lambda place: ["train", "--config", place],
    lambda place: ["train", "t.csv", "--target", "wage", "--resume", "--out", place],
    lambda place: ["predict", place, "t.csv"],
    lambda place: ["predict", "kept", place],
    lambda place: ["predict", "kept", f"{place}.csv"],
    lambda place: ["predict", "kept", "t.csv", "--out", f"{place}/x.csv"],
    lambda place: ["export", place],
    lambda place: ["doctor", "multimnist", "--out", place],
    lambda place: ["new", "problem", f"{place}/x.py"],
    lambda place: ["methods", "--recipes", "sg", "--figure", f"{place}/x.png"],
    lambda place: ["data", place],
    lambda place: ["data", "mnist", "--out", f"{place}/below"],
)
NOWHERE = {
    **{"EVENHAND_DATA": "nowhere", "HOME": "/nowhere"},
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
}
"""No data, and no way out of this machine."""


def places(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """Paths of every wrong kind for every option that is one."""
    kept, folder = ground.kept, fresh(ground.root)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    os.chdir(folder)
    place, kind = _place(folder, chance)
    command = chance.choice(COMMANDS)(str(place))
    os.chdir("/")
    tally.attack = f"{kind}: {' '.join(command).replace(str(place), 'PLACE')}"
    # Some places are fit for a figure, a file or a download.
    fit = {"methods": [0, 2], "data": [1, 2], "new": [0, 2]}.get(command[0], [2])
    fit = [0, 2] if "--out" in command and command[0] == "predict" else fit
    ended = run(command, folder, before=give_up_rights, environment=NOWHERE)
    if kind == "a closed folder":
        place.chmod(0o700)
    tally.judge(ended, tally.attack, fit, 6)
    tally.expect(ended.processor < 60, f"{tally.attack}: {ended.processor:.0f} s of computing")


def _damaged(content: bytes, chance: random.Random) -> tuple[bytes, str]:
    """The content of a file, spoilt."""
    how = chance.choice(["cut", "bytes", "noise", "short", "line", "numbers", "value", "value"])
    if how == "cut":
        return content[: chance.randrange(len(content) + 1)], how
    if how == "bytes":
        spoilt = bytearray(content)
        for _ in range(min(len(content), chance.randint(1, 20))):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        return bytes(spoilt), how
    if how == "noise":
        return chance.randbytes(chance.randrange(1, 2000)), how
    if how == "line":
        lines = content.splitlines(keepends=True)
        at = chance.randrange(max(1, len(lines)))
        lines[at : at + 1] = chance.choice([[], lines[at : at + 1] * 2, [b"\n"], [b"\xff\n"]])
        return b"".join(lines), how
    if how == "numbers":
        wild = chance.choice([b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1", b"9" * 400])
        digits = [k for k, letter in enumerate(content) if letter in b"0123456789"]
        if digits:
            at = chance.choice(digits)
            return content[:at] + wild + content[at + 1 :], how
    if how == "value":
        return _other_value(content, chance), how
    return chance.choice([b"", b"[" * 100_000, b"\xff\xfe{", b"null", b'{"a":1}\n', b"{}"]), how


WILD = (None, True, -1, 0, 1e300, 10**400, float("nan"), float("inf"), "", "\udcff\x1b[2J", [], {})


def _other_value(content: bytes, chance: random.Random) -> bytes:
    """JSON in which one value, anywhere, is another one or gone; or a line of it."""
    try:
        lines = [json.loads(line) for line in content.splitlines()]
    except ValueError:
        lines = []
    try:
        found = lines or [json.loads(content)]
    except ValueError:
        return content[::-1]
    spot = [found]
    inside = chance.choice(found)
    for _ in range(chance.randint(1, 4)):
        if isinstance(inside, dict | list) and inside:
            spot.append(inside)
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            last = chance.choice(list(keys))
            inside = inside[last]
    if len(spot) > 1:
        if chance.random() < 0.2:
            del spot[-1][last]
        else:
            spot[-1][last] = chance.choice(WILD)
    return "\n".join(json.dumps(one) for one in found).encode()


def _spoil(file: Path, chance: random.Random) -> str:
    """Do something to a file."""
    how = chance.randrange(13)
    if how == 12:
        file.chmod(0)
        return "unreadable"
    if how > 4:
        content, said = _damaged(file.read_bytes(), chance)
        file.write_bytes(content)
        return said
    if how == 4:
        with file.open("r+b") as sparse:
            sparse.truncate(1 << 40)
        return "a terabyte"
    file.unlink()
    if how == 0:
        os.mkfifo(file)
    elif how == 1:
        to = chance.choice(["/dev/zero", str(file), "/proc/self/mem", "nowhere"])
        file.symlink_to(to)
        return f"a link to {to if to[0] == '/' and len(to) < 16 else 'itself or nothing'}"
    elif how == 2:
        file.mkdir()
    return ["a pipe", "", "a folder", "gone"][how]


def files(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """Files of a comparison damaged, or exchanged, and read back by going on, or a report."""
    words = ground.asked(1, chance.choice(["never", "always"]))
    folder = fresh(ground.root)
    shutil.copytree(ground.root / "whole", folder / "out")
    found = [p for p in sorted((folder / "out").rglob("*")) if p.is_file()]
    lost = chance.choice(found)
    if chance.random() < 0.5:  # so that its run is gone on with
        (lost.parent / "result.json").unlink(missing_ok=True)
    found = [p for p in found if p.exists()]
    file = chance.choice(found)
    if chance.random() < 0.2:
        other = chance.choice([p for p in found if p.suffix == file.suffix])
        content, kept = file.read_bytes(), other.read_bytes()
        file.write_bytes(kept)
        other.write_bytes(content)
        what = f"exchanged with {other.relative_to(folder)}"
    else:
        what = _spoil(file, chance)
    command = ["report", "out"] if chance.random() < 0.5 else [*words, "--resume"]
    tally.attack = f"{command[0]}, {file.relative_to(folder)}: {what}"
    ended = run(command, folder, before=give_up_rights)
    tally.judge(ended, tally.attack, [0, 1, 2])


CELLS = (
    *("", "nan", "inf", "-inf", "1e400", "-1e308", "1e-320", "0x10", "٣", "½", "1,5", '"', "''"),
    *("\0", "\x1b[2J", "\udcff", "\u202e", "a\r\nb", "x" * 200_000, "2020-13-45", "true", ";", "|"),
    *("=1+1", "<script>alert(1)</script>", "9" * 5000, "NaT", "None", "-0", "1e5000", "日本"),
)


def _table(chance: random.Random) -> tuple[bytes, str]:
    """A table that is not what it should be."""
    rows = [line.split(",") for line in table(chance, chance.choice([3, 30, 120])).splitlines()]
    how = chance.choice(["cells", "column", "header", "ragged", "many", "bytes", "encoding"])
    cell = chance.choice(CELLS)
    if how == "cells":
        for _ in range(chance.randint(1, 20)):
            rows[chance.randrange(1, len(rows))][chance.randrange(4)] = cell
    elif how == "column":
        at = chance.randrange(4)
        for row in rows[1:]:
            row[at] = chance.choice(CELLS) if chance.random() < 0.5 else cell
    elif how == "header":
        rows[0][chance.randrange(4)] = cell
    elif how == "ragged":
        row = rows[chance.randrange(len(rows))]
        row[:] = row * chance.randint(2, 50) if chance.random() < 0.5 else row[:2]
    elif how == "many":
        for k, row in enumerate(rows):
            row += [f"c{j}" if k == 0 else str(j) for j in range(chance.choice([300]))]
    text = "\n".join(",".join(row) for row in rows)
    encoding = chance.choice(["utf-16", "latin-1", "utf-7"]) if how == "encoding" else "utf-8"
    content = text.encode(encoding, "replace" if how == "encoding" else "surrogatepass")
    if how == "bytes":
        content, how = _damaged(content, chance)
    return content, f"{how} {cell[:20]!r}"


def tables(ground: Ground, tally: Tally, chance: random.Random) -> None:
    """Tables that are not what they should be, to train on and to predict."""
    kept, folder = ground.kept, fresh(ground.root)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    content, how = _table(chance)
    (folder / "t.csv").write_bytes(content)
    if chance.random() < 0.3:
        file = chance.choice([p for p in sorted((folder / "kept").iterdir()) if p.is_file()])
        how = f"{file.name}: {_spoil(file, chance)}"
        shutil.copy(kept / "t.csv", folder / "t.csv")
        command = ["predict", "kept", "t.csv"]
    elif chance.random() < 0.4:
        command = ["predict", "kept", "t.csv"]
    elif chance.random() < 0.5:
        command = ["compare", "t.csv", "--target", "wage", "--plan"]
    else:
        command = ["train", "t.csv", "--targets", "wage,kind", "--epochs", "1", "--lr", "0.01"]
        command += ["--out", "new"]
    tally.attack = f"{command[0]}, {how}"
    ended = run(command, folder, before=give_up_rights)
    notes = 40 if ended.code == 0 else 6  # what was decided about columns is told
    tally.judge(ended, tally.attack, [0, 1, 2], notes)
    shown = ended.out + ended.err
    tally.expect(
        all(c.isprintable() or c in "\n\r\t" for c in shown), f"{tally.attack}: unprintable"
    )
