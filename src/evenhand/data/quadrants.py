"""Points in a square: which quadrant, and inside the unit circle or not.

The synthetic experiment of Bellavia, Della Santa & Papini (arXiv 2312.16340): points uniform in
a square around the origin; task one is the quadrant (four classes, cross-entropy), task two is
whether the point lies in the unit circle (binary cross-entropy from logits). The network is the
paper's: a trunk of three dense layers of 512 with ReLU (526,848 parameters), heads 512-512-4
(527,364) and 512-512-1 (525,825), batches of 256. Our reading, where our copy of the paper has
lost the number: half-side 2; 10,000 points, of which 5,600 train, 1,400 validate and 3,000 test
(the printed recalls fit multiples of 3,000 alone: `papers/bellavia2026/sizes.py`).

The paper's metrics are weighted precision, recall and F1; weighted recall is the accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand.data.problem import Metric, Problem, Split, Task
from evenhand.data.splits import Parts, Pool, strata
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import mixed_seed

HALF_SIDE = 2.0
SIZES = [5_600, 1_400, 3_000]
WIDTH = 512
BATCH = 256


def load(seed: int = 0) -> Problem:
    """The quadrants problem, its points drawn by `seed`; inputs standardised on the training part.

    Inputs are [n, 2]; targets are the quadrant, counted counter-clockwise from the positive one,
    int64 [n], and inside (1) or not (0), int64 [n]. Outputs are logits [n, 4] and [n].
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, *b"quadrants"))
    points = HALF_SIDE * (2 * torch.rand(sum(SIZES), 2, generator=generator) - 1)
    _, validation, test = (size / len(points) for size in SIZES)
    classes = strata(list(_classes(points).values()))
    pool = Pool(len(points), partial(_problem, points), strata=classes, shares=(test, validation))
    parts = torch.split(torch.arange(len(points)), SIZES)
    return replace(_problem(points, Parts(*parts)), pool=pool)


def _problem(points: Tensor, parts: Parts) -> Problem:
    from torchmetrics.classification import MulticlassRecall

    def quadrant_recall() -> Metric:
        return MulticlassRecall(num_classes=4, average="weighted")

    def circle_recall() -> Metric:
        return OfSign(MulticlassRecall(num_classes=2, average="weighted"))

    train, validation, test = _sides(points, parts)
    return Problem(
        name="quadrants",
        summary="points in a square: the quadrant, and inside the unit circle or not",
        citation="Bellavia, Della Santa & Papini, Optim. Methods Softw. 2026, arXiv 2312.16340",
        tasks={
            "quadrant": Task(functional.cross_entropy, quadrant_recall, "weighted recall", True),
            "circle": Task(_binary_cross_entropy, circle_recall, "weighted recall", True),
        },
        network=network,
        train=train,
        validation=validation,
        test=test,
        batch_size=BATCH,
        epochs=100,
        scaled=scaled,
    )


def network(tasks: Sequence[str]) -> MultiTaskNetwork:
    """The paper's network, with the heads of `tasks`."""
    return scaled(tasks, 1.0)


def scaled(tasks: Sequence[str], width: float) -> MultiTaskNetwork:
    """The network, every hidden layer so many times as wide, and one unit at least."""
    units = max(1, round(width * WIDTH))
    trunk = nn.Sequential(*_dense(2, units), *_dense(units, units), *_dense(units, units))
    return MultiTaskNetwork(trunk, {task: HEADS[task](units) for task in tasks})


def _dense(inputs: int, units: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, units), nn.ReLU()


def _head(units: int, *outputs: nn.Module) -> nn.Module:
    return nn.Sequential(*_dense(units, units), *_dense(units, units), *outputs)


HEADS: Mapping[str, Callable[[int], nn.Module]] = {
    "quadrant": lambda units: _head(units, nn.Linear(units, 4)),
    "circle": lambda units: _head(units, nn.Linear(units, 1), nn.Flatten(0)),
}


@dataclass
class OfSign:
    """A metric of classes 0 and 1 read off the sign of one logit.

    torchmetrics' binary metrics take a batch of floats that happens to lie in [0, 1] for
    probabilities; logits can.
    """

    metric: Metric

    def update(self, preds: Tensor, target: Tensor) -> Any:
        return self.metric.update((preds > 0).long(), target)

    def compute(self) -> Tensor:
        return self.metric.compute()


def _binary_cross_entropy(logits: Tensor, inside: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, inside.to(logits.dtype))


def _sides(points: Tensor, parts: Parts) -> list[Split]:
    targets = _classes(points)
    first = points[parts.train]
    standard = (points - first.mean(dim=0)) / first.std(dim=0)
    return [
        Split(standard[part], {task: classes[part] for task, classes in targets.items()})
        for part in (parts.train, parts.validation, parts.test)
    ]


def _classes(points: Tensor) -> dict[str, Tensor]:
    x, y = points.unbind(dim=1)
    above = (y >= 0).long()
    quadrant = 2 * (1 - above) + ((x >= 0).long() + above) % 2
    return {"quadrant": quadrant, "circle": (points.square().sum(dim=1) < 1).long()}
