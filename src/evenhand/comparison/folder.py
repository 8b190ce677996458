"""The folder of a comparison: its manifest, and whose it is."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenhand.asking import option
from evenhand.comparison.request import Settings
from evenhand.files import MEBIBYTE, is_empty, parsed, read_text, sweep, write_atomically
from evenhand.text import plain, quoted, steady

if TYPE_CHECKING:
    from evenhand.data.problem import Problem

MANIFEST, RESULT = "manifest.json", "result.json"


AS_ONE = "runs as one"
"""What the manifest says after their number."""


STACKED = "stack.safetensors"
"""The checkpoint of runs that are trained as one, in their group's folder until all are done."""


LATER: Mapping[str, Any] = {
    "stack": "never",
    "splits": 1,
    "design": "hold-out",
    "references": "none",
    "matters": 1.0,
    "options": {},
}
"""Settings that came later, and what there was before."""


@dataclass(frozen=True)
class Written:
    """The settings in a manifest; those that came later may be missing."""

    source: str
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    epochs: int | None
    patience: int | None
    optimizer: str
    weights_rate: float
    observe_every: int
    stack: str = ""
    jacobian: str | int = ""
    splits: int = 1
    design: str = ""
    references: str = ""
    matters: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Objects:
    """What a comparison was given as objects."""

    problem: bool
    recipes: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Data:
    """What is known of its data."""

    fingerprint: str
    labels: dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class Manifest:
    """What a manifest must hold: what was asked, and where it was made."""

    settings: Written
    recipes: tuple[str, ...]
    versions: dict[str, str]
    machine: dict[str, str | int | None]
    trained: dict[str, str] | None = None
    objects: Objects | None = None
    data: Data | None = None


def read_manifest(out: Path) -> dict[str, Any]:
    """What the comparison in the folder `out` was asked, and where it was made.

    Raises:
        ValueError: there is none, or it is damaged.
        OSError: it cannot be read.
    """
    try:
        text = read_text(out / MANIFEST, 64 * MEBIBYTE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{out} holds no comparison: no readable {MANIFEST}") from error
    parsed(Manifest, text, f"{out} holds no comparison: its {MANIFEST} is damaged")
    manifest: dict[str, Any] = json.loads(text)
    known = {entry.name for entry in fields(Written)}
    if unknown := [name for name in manifest["settings"] if name not in known]:
        raise ValueError(
            f"{out} was made by another version of Evenhand: this one knows no setting "
            f"{quoted(unknown[0])}"
        )
    return manifest


def begun(out: Path, resume: bool) -> bool:
    """Whether `out` holds a comparison to go on with; otherwise it is free.

    Raises:
        ValueError: `out` is neither.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder")
    if not out.exists() or is_empty(out):
        return False
    if not resume:
        raise ValueError(
            f"{out} is not empty: choose another folder, or go on with {option('resume', True)}"
        )
    read_manifest(out)
    return True


def claim(
    out: Path,
    settings: Settings,
    recipes: Sequence[str],
    resume: bool,
    chosen: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Take the folder `out` for a comparison, or find that it is the one to go on with.

    Args:
        out: the folder.
        settings: of the comparison.
        recipes: their names.
        resume: whether the folder may have been begun already.
        chosen: what else the manifest is to say.
        data: what `told_data` says of the data; other data than those of the manifest are refused.

    Raises:
        ValueError: `out` holds something else, or a comparison on other data.
    """
    asked: dict[str, Any] = {
        "settings": settings.written(),
        "recipes": list(recipes),
        "objects": told_objects(settings, tuple(data["labels"])),
    }
    resuming = begun(out, resume)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    if not resuming:
        manifest = {**asked, **chosen, "data": data, **environment()}
        write_atomically(out / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False))
        return
    before = read_manifest(out)
    then, now = (
        {
            "recipes": m["recipes"],
            "objects": m.get("objects", told_objects(Settings(settings.source), ())),
            **LATER,
            **m["settings"],
        }
        for m in (before, asked)
    )
    differing = [
        f"{key} was {plain(str(then.get(key)), 60)}, now {plain(str(now[key]), 60)}"
        for key in now
        if then.get(key) != now[key]
    ]
    if differing:
        raise ValueError(f"{out} holds another comparison: {'; '.join(differing)}")
    known = before.get("data", {}).get("fingerprint")
    if known != data["fingerprint"]:
        was, now = str(known)[:12], data["fingerprint"][:12]
        raise ValueError(
            f"the data of {settings.source} are not those that {out} was begun with (fingerprint "
            f"{was}, now {now}): its runs cannot be completed with others; choose another folder, "
            "or bring the old data back"
        )


def told_objects(settings: Settings, tasks: tuple[str, ...]) -> dict[str, Any]:
    """What a manifest says of objects that were given: without them, nothing can go on."""
    return {
        "problem": settings.given.problem is not None,
        "recipes": {
            name: {label: steady(parts) for label, parts in entry.compose(tasks).items()}
            for name, entry in settings.given.recipes.items()
        },
    }


def told_data(problem: Problem) -> dict[str, Any]:
    """What a manifest says of the data: their fingerprint, and how many labels each task has."""
    from evenhand.data.fingerprint import fingerprint

    counts = {
        task: {part: asdict(count) for part, count in parts.items()}
        for task, parts in problem.label_counts().items()
    }
    return {"fingerprint": fingerprint(problem), "labels": counts}


def environment() -> dict[str, Any]:
    """Versions and machine, for manifests."""
    import numpy as np
    import scipy
    import torch

    from evenhand import __version__

    return {
        "versions": {
            "evenhand": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }
