"""A training killed with SIGKILL, wherever that hits it, goes on bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import evenhand as eh
from evenhand import alternate_epochs
from evenhand.data import Stream
from evenhand.recipes import Composition
from evenhand.schedules import in_groups, nested
from evenhand.training import checkpoint
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers, Scheduled
from evenhand.training.records import RecordFile
from evenhand.training.stopping import EarlyStopping, Plateau
from samplers import mixed, same

FOREVER = 10**6

COMPOSITIONS = {
    # Windows of norms, phases, groups with moments of their own, batches drawn with replacement.
    "tension": lambda tasks: Composition(
        tasks,
        aggregator=eh.Tension(eh.CentralDirection(), period=3),
        schedule=nested(alternate_epochs(2, 1), in_groups(2, redraw="epoch"), ("shared",)),
    ),
    # Learned weights with their optimizer, chance, losses after the update, several batches.
    "learned": lambda tasks: Composition(
        tasks, weighting=eh.GradNorm(), aggregator=eh.PCGrad(), schedule=alternate_epochs(1, 1)
    ),
    "sampled": lambda tasks: Composition(tasks, weighting=eh.FAMO(), aggregator=eh.MoDo()),
}


def made(name: str, epochs: int) -> Training:
    """The training that both processes make."""
    problem = mixed()
    parts = COMPOSITIONS[name](tuple(problem.tasks))
    torch.manual_seed(0)
    network = problem.network(parts.tasks)
    balancer = eh.Balancer(parts.weighting, parts.aggregator, tasks=parts.tasks)
    decaying = Scheduled(
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99),
    )
    optimizers = Optimizers(
        network.blocks(),
        decaying,
        partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        weights=partial(torch.optim.Adam, lr=0.025),
        learned=balancer.parameters(),
        groups=len(parts.schedule.groups(len(parts.tasks))),
    )
    return Training(
        problem,
        network,
        optimizers,
        balancer,
        parts.schedule,
        epochs=epochs,
        stopping=EarlyStopping(patience=FOREVER),
        plateau=Plateau(patience=2),
        replacement=name == "tension",
        observe_every=2,
        seed=3,
    )


def run_forever(name: str, folder: Path) -> None:
    """What the process that is killed does."""
    for record in made(name, FOREVER).run(folder, checkpoint_every=2):
        print(record.epoch, flush=True)  # noqa: T201


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_killed_run_resumes_bit_for_bit(name, tmp_path) -> None:
    code = f"from test_resume import *; run_forever({name!r}, Path({str(tmp_path)!r}))"
    command = [sys.executable, "-c", "import torch; torch.set_num_threads(1); " + code]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < 5:
            pass
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    reached = checkpoint.load(tmp_path / "checkpoint.safetensors")["epoch"]
    assert reached >= 4
    logged = list(RecordFile(tmp_path / "records.jsonl"))
    assert logged[-1].epoch >= 5

    epochs = reached + 4
    resumed = made(name, epochs)
    records = list(resumed.run(tmp_path, checkpoint_every=2))
    whole = made(name, epochs)
    expected = list(whole.run())
    assert [replace(r, seconds=0) for r in records] == [replace(r, seconds=0) for r in expected]
    assert same(resumed.state_dict(), whole.state_dict())
    assert list(RecordFile(tmp_path / "records.jsonl")) == records


def test_a_finished_run_is_not_trained_again(tmp_path) -> None:
    first = list(made("tension", 3).run(tmp_path))
    again = made("tension", 3)
    assert list(again.run(tmp_path)) == first


def test_a_folder_without_a_checkpoint_starts_afresh(tmp_path) -> None:
    run = made("tension", 4)
    for record in run.run(tmp_path, checkpoint_every=100):
        if record.epoch == 2:
            break
    records = list(made("tension", 4).run(tmp_path))
    assert [record.epoch for record in records] == [0, 1, 2, 3, 4]


def test_a_checkpoint_that_is_damaged_is_refused(tmp_path) -> None:
    list(made("tension", 2).run(tmp_path))
    saved = tmp_path / "checkpoint.safetensors"
    saved.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        list(made("tension", 2).run(tmp_path))


def test_batches_are_known_by_their_number() -> None:
    problem = mixed()
    for replacement in (False, True):
        one, other = (Stream(problem.train, 16, 5, replacement) for _ in range(2))
        forth = [one.batch(k) for k in range(7)]
        back = [other.batch(k) for k in reversed(range(7))]
        assert same(forth, back[::-1])
