"""The folder of a comparison: its manifest, and whose it is."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenhand.comparison.request import Settings
from evenhand.training.records import write_atomically

if TYPE_CHECKING:
    from evenhand.data.problem import Problem
    from evenhand.recipes import Composition

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


def read_manifest(out: Path) -> dict[str, Any]:
    """What the comparison in the folder `out` was asked, and where it was made.

    Raises:
        ValueError: there is none.
    """
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{out} holds no comparison: no readable {MANIFEST}") from error
    return manifest


def begun(out: Path, resume: bool) -> bool:
    """Whether `out` holds a comparison to go on with; otherwise it is free.

    Raises:
        ValueError: `out` is neither.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder")
    if not out.exists() or not any(out.iterdir()):
        return False
    if not resume:
        raise ValueError(f"{out} is not empty: choose another folder, or go on with --resume")
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
    if not begun(out, resume):
        out.mkdir(parents=True, exist_ok=True)
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
        f"{key} was {then.get(key)}, now {now[key]}" for key in now if then.get(key) != now[key]
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
            name: {label: _described(parts) for label, parts in entry.compose(tasks).items()}
            for name, entry in settings.given.recipes.items()
        },
    }


def _described(parts: Composition) -> str:
    """The same text in every process: without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(parts))


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
