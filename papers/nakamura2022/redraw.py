"""One run of Table 3, and what its source leaves open as settings.

The settings that a cell must have, with the values that `SETTINGS` gives them, are

    row        a row of the table, or a single task of it (`AGGREGATORS`)
    rate, seed
    batch      samples per batch
    momentum   of SGD
    resize     "nearest" or "bilinear": how 32×32 becomes 28×28
    placed     whether the digit to redraw stands where it stands on the input
    scaled     whether inputs are standardised by (.1307, .3081), or lie in [0, 1]
    dropout    whether encoder and class head have Sener & Koltun's dropout
    decoder    one of `DECODERS`
    watched    "loss" or "metric": early stopping and the choice of the epoch watch the mean over
               tasks of the validation loss (of the error rate and the squared error) over its
               value before training
    epochs     the cap
    patience   epochs without improvement after which a run stops

and, where it is not the usual, `fresh`: whether training pictures are paired anew in every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from and_xor import ReleasedMinNorm
from best import Trained
from running import device, records
from torch import nn
from torch.optim import SGD

import evenhand as eh
from evenhand.autodiff.gradients import NonFiniteError
from evenhand.data import mnist, multimnist
from evenhand.data.problem import Batch, Problem, Split
from evenhand.schedules import mixed_seed
from evenhand.training.loop import Training, evaluate
from evenhand.training.optimizers import Optimizers
from evenhand.training.records import Record
from evenhand.training.stopping import Monitor, relative

BOTH = ("upper", "lower")
AGGREGATORS: Mapping[str, tuple[tuple[str, ...], Callable[[], eh.Weighting]]] = {
    "Single upper": (("upper",), eh.Equal),
    "Single lower": (("lower",), eh.Equal),
    "Uniform": (BOTH, lambda: eh.Equal(mean=True)),
    "Min-norm": (BOTH, ReleasedMinNorm),
    "Min-norm (exact)": (BOTH, eh.MGDA),
    "Central": (BOTH, eh.CentralDirection),
    "Min-norm + tension": (BOTH, lambda: eh.Tension(ReleasedMinNorm())),
    "Min-norm (exact) + tension": (BOTH, lambda: eh.Tension(eh.MGDA())),
    "Central + tension": (BOTH, lambda: eh.Tension(eh.CentralDirection())),
}
SETTINGS: Mapping[str, Any] = {
    **{"batch": 64, "momentum": 0.9, "resize": "nearest", "placed": False, "scaled": True},
    **{"dropout": False, "decoder": "400", "watched": "metric", "epochs": 100, "patience": 10},
}


def _dense(*sizes: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


def _mirrored() -> nn.Module:
    """The encoder turned round."""
    return nn.Sequential(
        *(nn.Linear(50, 320), nn.ReLU(), nn.Unflatten(1, (20, 4, 4)), nn.Upsample(scale_factor=2)),
        *(nn.ConvTranspose2d(20, 10, 5), nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(nn.ConvTranspose2d(10, 1, 5), nn.Flatten()),
    )


DECODERS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(50, 784),
    "400": lambda: nn.Sequential(*_dense(50, 400, 784)),
    "400, sigmoid": lambda: nn.Sequential(*_dense(50, 400, 784), nn.Sigmoid()),
    "mirrored": _mirrored,
}


def cell(row: str, rate: float, seed: int, **settings: Any) -> dict[str, Any]:
    """One run, told by itself."""
    if unknown := settings.keys() - {*SETTINGS, "fresh"}:
        raise ValueError(f"no such settings: {', '.join(sorted(unknown))}")
    return {"row": row, "rate": rate, "seed": seed, **SETTINGS, **settings}


def run(cell: dict[str, Any]) -> dict[str, Any]:
    """Train one network; its metrics at the best epoch, and its curves.

    Where, until when and how resumably says `running.py`; raises OutOfTime.
    """
    tasks, aggregator = AGGREGATORS[cell["row"]]
    made = problem(cell["resize"], cell["placed"], cell["scaled"], device())
    torch.manual_seed(cell["seed"])
    # Channels last changes rounding alone, and takes a third of the time from a CPU's convolutions.
    built = network(tasks, cell["dropout"], cell["decoder"])
    built = built.to(device(), memory_format=torch.channels_last)
    if cell.get("fresh"):
        how = cell["resize"], cell["scaled"], device(), cell["placed"]
        made = replace(made, train=Fresh(cell["batch"], *how))
    training = Training(
        replace(made, batch_size=cell["batch"]),
        built,
        Optimizers(built.blocks(), partial(SGD, lr=cell["rate"], momentum=cell["momentum"])),
        eh.Balancer(aggregator=aggregator(), tasks=tasks),
        tasks=tasks,
        epochs=cell["epochs"],
        seed=cell["seed"],
        monitor=MONITORS[cell["watched"]],
        stopping=Trained(cell["patience"]),
    )
    try:
        trained = records(training, cell)
    except NonFiniteError as error:
        return {"diverged": str(error).partition(";")[0], "monitored": None, "test": {}}
    best = next(record for record in reversed(trained) if record.best)
    _, test = evaluate(training.network, made, made.test, tasks)
    return {
        "monitored": best.monitored,
        "best epoch": best.epoch,
        "epochs": trained[-1].epoch,
        "validation": dict(best.metrics),
        "test": test,
        "curves": {t: [_rounded(r.metrics[t]) for r in trained] for t in tasks},
        "losses": {t: [_rounded(r.validation[t]) for r in trained] for t in tasks},
        "weights": {t: [_rounded(r.weights[t]) for r in trained[1:]] for t in tasks},
    }


def network(tasks: Sequence[str], dropout: bool, decoder: str) -> eh.MultiTaskNetwork:
    """The paper's encoder, the class head, and one of the decoders."""
    made = multimnist.network(tasks, dropout)
    heads = {t: DECODERS[decoder]() if t == "lower" else made.head(t) for t in tasks}
    return eh.MultiTaskNetwork(made.trunk, heads)


@lru_cache(maxsize=1)
def problem(resize: multimnist.Resize, placed: bool, scaled: bool, device: str = "cpu") -> Problem:
    """The pictures, one set for all seeds."""
    made = multimnist.load_redraw(resize=resize, placed=placed)

    def used(split: Any) -> Split:
        inputs = split.inputs if scaled else split.inputs * multimnist.DEVIATION + multimnist.MEAN
        return Split(inputs, split.targets).to(device)

    parts = {name: used(getattr(made, name)) for name in ("train", "validation", "test")}
    return replace(made, **parts)


class Fresh:
    """Batches of the training pictures in a fresh order, each with a partner drawn anew."""

    def __init__(
        self,
        size: int,
        resize: multimnist.Resize,
        scaled: bool,
        device: str = "cpu",
        placed: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(mixed_seed(0, *b"multimnist"))
        self.images, self.labels = multimnist.parts(mnist.load(), generator)[0]
        self.size, self.resize, self.scaled, self.device = size, resize, scaled, device
        self.placed = placed

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.size)

    def __iter__(self) -> Iterator[Batch]:
        # The stream of batches sets torch's global stream for the first batch, by seed and epoch.
        seed = int(torch.randint(2**62, ()))
        generator = torch.Generator().manual_seed(seed)
        number = len(self.images)
        order = torch.randperm(number, generator=generator)
        partner = torch.randint(number, (number,), generator=generator)
        for index in torch.split(order, self.size):
            other = self.images[partner[index]]
            made = multimnist.compose(self.images[index], other, 4, self.resize).float() / 255
            inputs = (made - multimnist.MEAN) / multimnist.DEVIATION if self.scaled else made
            if self.placed:
                other = multimnist.compose(torch.zeros_like(other), other, 4, self.resize)
            lower = other.flatten(1).float() / 255
            targets = {"upper": self.labels[index], "lower": lower}
            yield (
                inputs[:, None].to(self.device),
                {task: target.to(self.device) for task, target in targets.items()},
            )


def errors(record: Record, first: Record) -> float:
    """Mean over tasks of the error rate or squared error over its value before training."""
    now, then = _errors(record), _errors(first)
    return math.fsum(now[task] / max(then[task], 1e-12) for task in now) / len(now)


def _errors(record: Record) -> dict[str, float]:
    return {t: 1 - value if t == "upper" else value for t, value in record.metrics.items()}


MONITORS: Mapping[str, Monitor] = {"loss": relative, "metric": errors}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
