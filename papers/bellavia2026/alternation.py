"""ATE-SG against plain SG on a problem with two classification tasks, as the paper sets it up.

SG without momentum, the same rate for trunk and heads; a plateau of 50 epochs multiplies it by
0.75; early stopping after 350 epochs with the best weights restored. Both watch the validation
loss Σ L_i over all epochs, whatever the phase. Epochs of either kind count, and the cap holds
inside a phase. Batches are a fresh permutation per epoch, the last partial batch kept (Alg. A.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from best import Trained
from staged import with_few
from torch import Tensor
from torch.optim import SGD

from evenhand.comparison.request import load_problem
from evenhand.data import Problem
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import alternate_epochs, jointly
from evenhand.training.loop import Training
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import Record
from evenhand.training.stopping import EarlyStopping, Plateau, total

METHODS = {"ATE-SG, E = 1": 1, "ATE-SG, E = 10": 10, "ATE-SG, E = 100": 100, "SG": 0}
"""The epochs of a phase of either kind; none for plain training."""
METRICS = ("precision", "recall", "F1")


def cells(
    source: str, rates: tuple[float, ...], seeds: int, **how_long: int
) -> list[dict[str, Any]]:
    """The runs, whole seeds first; `epochs`, and `samples` where not all are used, are told.

    With `untrained`=True the network before training may be the best one; the paper has none.
    """
    return [
        {"source": source, "seed": seed, "rate": rate, "method": method, **how_long}
        for seed in range(seeds)
        for rate in rates
        for method in METHODS
    ]


def run(cell: dict[str, Any]) -> dict[str, Any]:
    """Train; the test metrics of the best epoch's weights, and how the training went."""
    problem = load_problem(cell["source"])
    if "samples" in cell:
        problem = with_few(problem, cell["samples"])
    torch.manual_seed(cell["seed"])
    network = problem.network(tuple(problem.tasks))
    length = METHODS[cell["method"]]
    training = Training(
        problem,
        network,
        Optimizers(network.blocks(), partial(SGD, lr=cell["rate"])),
        schedule=alternate_epochs(length, length) if length else jointly(),
        epochs=cell["epochs"],
        seed=cell["seed"],
        monitor=total,
        stopping=EarlyStopping(350) if cell.get("untrained") else Trained(350),
        plateau=Plateau(patience=50, factor=0.75),
    )
    records = list(training.run())
    return {
        "test": scores(network, problem),
        "best epoch": next(r.epoch for r in reversed(records) if r.best),
        "seconds per epoch": _rounded(sum(r.seconds for r in records[1:]) / (len(records) - 1)),
        **curves(records, tuple(problem.tasks)),
    }


def curves(records: list[Record], tasks: tuple[str, ...]) -> dict[str, list[float]]:
    """Per epoch: Σ of the validation losses and of the training losses, the rate, oscillation."""
    trained = records[1:]
    return {
        "validation": [_rounded(r.monitored) for r in records],
        "training": [_rounded(sum(r.losses.values())) for r in trained],
        "rate": [_rounded(next(iter(r.rates.values()))) for r in trained],
        "oscillation": [_rounded(sum(r.oscillation[t] for t in tasks) / 2) for r in trained],
    }


@torch.no_grad()
def scores(network: MultiTaskNetwork, problem: Problem) -> dict[str, dict[str, float]]:
    """Weighted precision, recall (the accuracy) and F1 of each task on the test set."""
    network.eval()
    return judged(network(problem.test.inputs), problem)


def judged(outputs: Mapping[str, Tensor], problem: Problem) -> dict[str, dict[str, float]]:
    """The same of outputs [n, …] for the test set."""
    from sklearn.metrics import precision_recall_fscore_support

    found = {}
    for task, logits in outputs.items():
        predicted = logits.argmax(dim=1) if logits.ndim > 1 else (logits > 0).long()
        values = precision_recall_fscore_support(
            problem.test.targets[task], predicted.cpu(), average="weighted", zero_division=0
        )
        found[task] = dict(zip(METRICS, map(float, values[:3]), strict=True))
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
