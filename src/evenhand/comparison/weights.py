"""The best weights of every run: kept in its folder, and made a network again.

A run whose tasks are each tested at their own best epoch keeps the weights of all these epochs, in
a folder each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from evenhand import data
from evenhand.comparison.job import Job
from evenhand.comparison.references import REFERENCES
from evenhand.data.problem import Problem
from evenhand.files import parsed, require_readable, write_atomically
from evenhand.network import MultiTaskNetwork
from evenhand.recipes import Recipe, sharing_of
from evenhand.sharing.base import Sharing
from evenhand.text import quoted
from evenhand.training.checkpoint import digest
from evenhand.training.loop import Training

BEST = "best.safetensors"
"""In the folder of a finished run: the weights of its best epoch."""
PREPARED = "preparation.json"
"""Beside it, where the data are a table: what turns its rows into inputs and outputs into cells."""
EPOCH = "epoch"
"""Before an epoch's number: the folder of its weights, where tasks have epochs of their own."""
FORMAT = "evenhand-weights-1"


State = Mapping[str, torch.Tensor]
"""A network's `state_dict`."""


def keep_weights(
    run: Training,
    job: Job,
    folder: Path,
    epoch: int,
    weights: State | None = None,
    serves: Sequence[str] | None = None,
) -> None:
    """Write the weights of a run's best epoch with what they are of, at once or not at all.

    The file is the network's `state_dict` in safetensors. Its metadata say what builds the network
    again: the name of the problem, tasks, what the job is (recipe, label, seed, rate, split), best
    epoch and version, JSON under "evenhand"; and a SHA-256 of all this, and of what prepares rows.

    Args:
        run: whose network it is.
        job: what the run is of.
        folder: the run's.
        epoch: of the weights.
        weights: by default, the run's best.
        serves: the tasks whose answers are taken from these weights; by default all.
    """
    from safetensors.torch import save

    from evenhand import __version__

    about = {
        "format": FORMAT,
        "version": __version__,
        "source": run.problem.name,
        "tasks": list(run.tasks),
        "serves": list(run.tasks if serves is None else serves),
        **asdict(job),
        "epoch": epoch,
    }
    tensors = {
        name: value.detach().cpu().contiguous().clone()  # a file does not share memory
        for name, value in (run.best_weights if weights is None else weights).items()
    }
    if run.problem.preparation is not None:
        prepared = run.problem.preparation.to_json()
        about["preparation"] = hashlib.sha256(prepared.encode()).hexdigest()
        write_atomically(folder / PREPARED, prepared)
    about["sha256"] = digest(json.dumps(about), tensors)
    # One entry, since safetensors writes several in any order.
    write_atomically(folder / BEST, save(tensors, metadata={"evenhand": json.dumps(about)}))


def keep_by_task(
    run: Training, job: Job, folder: Path, best: Mapping[str, tuple[int, State]]
) -> None:
    """Write the weights of each task's own best epoch, into `folder / "epoch<k>"` of every such k.

    Args:
        run: whose network it is.
        job: what the run is of.
        folder: the run's.
        best: by task, the epoch and its weights.
    """
    for epoch, weights in dict(best.values()).items():
        serves = [task for task, (own, _) in best.items() if own == epoch]
        inside = folder / f"{EPOCH}{epoch}"
        inside.mkdir(exist_ok=True)
        keep_weights(run, job, inside, epoch, weights, serves)


def read_weights(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights that `keep_weights` wrote into a run's folder, and what they are of.

    Raises:
        ValueError: the run is not finished, has diverged, or chooses an epoch for each task (the
            message says which folder is of which task); or the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / BEST
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    if not file.exists():
        if inside := sorted(folder.glob(f"{EPOCH}*/{BEST}")):
            served = {f.parent: read_weights(f.parent)[1]["serves"] for f in inside}
            told = "; ".join(f"{f} for {quoted(', '.join(t))}" for f, t in served.items())
            raise ValueError(f"{folder} has weights for each task by itself. Name one: {told}")
        raise ValueError(
            f"{folder} has no {BEST}: its run is not finished, has diverged, or is of a reference "
            "that is no network"
        )
    require_readable(file)
    try:
        with safe_open(file, framework="pt") as opened:
            told = (opened.metadata() or {}).get("evenhand", "{}")
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    parsed(_About, told, f"{file} holds no weights of a run ({FORMAT})")
    about: dict[str, Any] = json.loads(told)
    known = about.pop("sha256", None)
    if known is not None and known != digest(json.dumps(about), weights):
        raise ValueError(f"{file} is damaged: its checksum is another")
    return weights, about


@dataclass(frozen=True)
class _About:
    """What weights must say of themselves; files of earlier versions have no checksums."""

    format: Literal["evenhand-weights-1"]
    source: str
    tasks: tuple[str, ...]
    serves: tuple[str, ...]
    recipe: str
    label: str
    seed: int
    rate: float
    split: int
    preparation: str = ""


def load_network(
    folder: Path, problem: Problem | None = None, recipe: Recipe | None = None
) -> MultiTaskNetwork:
    """The network of a finished run with the weights of its best epoch, in eval mode.

    Args:
        folder: the run's, for example `out/mgda/split0/seed0-lr0.01`; `comparison.out /
            result.job.folder` of one of its results. Where each task has an epoch of its own
            (`sg-own-epochs`), the folder of one of these epochs inside.
        problem: what makes the network; by default the problem of the name that the run was of.
            Its data play no part.
        recipe: a recipe of one's own that the run was of, where it makes another network than the
            problem's own (`Recipe.of(network=…)`).

    Raises:
        ValueError: there are no weights in the folder; the problem is not known by its name; or
            the network has other parameters than the one that was trained.
    """
    weights, about = read_weights(folder)
    made = data.problem(about["source"]) if problem is None else problem
    job = Job(**{entry.name: about[entry.name] for entry in fields(Job)})
    with torch.random.fork_rng(devices=[]):
        network = _sharing_of(job, made, recipe).network(made, tuple(about["tasks"]))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the network of {made.name} is not the one whose weights are in {folder} (of a recipe "
            f"of one's own that makes another, give recipe=): {error}"
        ) from error
    return network.eval()


def _sharing_of(job: Job, problem: Problem, mine: Recipe | None) -> Sharing:
    """What was made of the problem's network for a run."""
    reference = REFERENCES.get(job.recipe)
    if reference is not None and reference.composed is not None:  # of another width, maybe
        return reference.composed(job, problem).network
    return sharing_of(job.recipe, job.label, tuple(problem.tasks), mine)
