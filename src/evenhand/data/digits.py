"""Two handwritten digits on one picture, and three tasks that want different things of it.

scikit-learn's 1,797 digits of 8×8 pixels (the test part of Alpaydin & Kaynak's set), in pairs:
the left one at 0.7 of its strength, the right one in full four columns further, the stronger
ink where they overlap. The tasks: the class of the left one (cross-entropy), the class of the
right one (cross-entropy), and the right one redrawn (the negative logarithm of a Gaussian
likelihood of deviation σ = 0.5, Σ (ŷ − y)²/2σ² over its 64 pixels; the metric is the mean square).

The gradients of redrawing are the largest, the trunk passes on 12 numbers only, and redrawing has
a use for all of them: the plain sum leaves the faint digit 15 points behind a network of its own.
On the test set of one split, `load(0)`, mean of three seeds (Adam, the rate chosen by validation
from .001, .003, .01); `evenhand compare digits` draws other parts, with classes in equal shares:

                    left    right   redraw
    single-task     .947    .940    .0163
    sg              .802    .931    .0205
    mgda            .796    .934    .0331
    mgda-ub         .733    .918    .0273
    central         .839    .941    .0228
    gradnorm        .869    .912    .0224
    io-groups       .859    .933    .0224
    ate-sg          .413    .915    .0239      (ten epochs of every twenty move the trunk)

The problem was made to show this, and so that within its 40 epochs every recipe learns something of
every task: strength, width, σ and the number of pairs were chosen among some thirty settings, with
an eye on numbers like these. A smaller σ puts the sum further behind, but then a recipe that
follows the largest loss alone never comes to the left digit. SGD with momentum, whose steps are
not scaled to each parameter, is another problem: the sum itself leaves the left digit near chance
(.141; `--optimizer sgd --lr 1e-2,3e-2,1e-1`, one seed), and so do most recipes that weight losses
up as they fall.

The digits are divided into train, validation and test first and paired within each part, so no
digit stands on two sides; those of one part meet several times, in different pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand.data.problem import Metric, Problem, Split, Task
from evenhand.data.splits import Parts, Pool, strata
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import mixed_seed

SIDE = 8
OFFSET = 4
FAINT = 0.7
FEATURES = 12
DEVIATION = 0.5
DIGITS = [1_077, 360, 360]
PAIRS = (1_600, 800, 800)
OUTPUTS = {"left": 10, "right": 10, "redraw": SIDE * SIDE}


def load(seed: int = 0) -> Problem:
    """The digits problem, its split and pairs drawn by `seed`.

    Inputs are pictures in [0, 1], [n, 8, 12]; targets are two classes, int64 [n], and the right
    digit's pixels in [0, 1], float [n, 64]. Outputs are logits [n, 10] twice, and pixels [n, 64].
    """
    images, classes = _digits()
    generator = torch.Generator().manual_seed(mixed_seed(seed, *b"digits"))
    parts = torch.split(torch.randperm(len(images), generator=generator), DIGITS)
    pool = Pool(len(images), partial(_divided, images, classes), strata=strata([classes]))
    return replace(_problem(images, classes, Parts(*parts), generator), pool=pool)


def _divided(images: Tensor, classes: Tensor, parts: Parts) -> Problem:
    generator = torch.Generator().manual_seed(mixed_seed(0, *b"pairs"))
    return _problem(images, classes, parts, generator)


def _problem(images: Tensor, classes: Tensor, parts: Parts, generator: torch.Generator) -> Problem:
    from torchmetrics import MeanSquaredError
    from torchmetrics.classification import MulticlassAccuracy

    def accuracy() -> Metric:
        return MulticlassAccuracy(num_classes=10, average="micro")

    sides = (parts.train, parts.validation, parts.test)
    train, validation, test = (
        _pairs(images[part], classes[part], number, generator)
        for part, number in zip(sides, PAIRS, strict=True)
    )
    return Problem(
        name="digits",
        summary="two handwritten digits on one picture: classify both, redraw the right one",
        citation=(
            "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0)"
        ),
        tasks={
            "left": Task(functional.cross_entropy, accuracy, "accuracy", True),
            "right": Task(functional.cross_entropy, accuracy, "accuracy", True),
            "redraw": Task(gaussian, MeanSquaredError, "MSE", False),
        },
        network=network,
        train=train,
        validation=validation,
        test=test,
        batch_size=64,
        epochs=40,
        optimizer="adam",
        rates=(1e-3, 3e-3, 1e-2),
        units=(len(parts.train) + len(parts.validation), len(parts.test)),
        scaled=scaled,
    )


def network(tasks: Sequence[str]) -> MultiTaskNetwork:
    """A narrow trunk, 96-64-12, and a head 12-32-outputs for each of `tasks`; tanh between."""
    return scaled(tasks, 1.0)


def scaled(tasks: Sequence[str], width: float) -> MultiTaskNetwork:
    """The network, every hidden layer so many times as wide, and one unit at least."""
    wide, narrow, head = (max(1, round(width * units)) for units in (64, FEATURES, 32))
    trunk = nn.Sequential(
        nn.Flatten(),
        nn.Linear(SIDE * (SIDE + OFFSET), wide),
        nn.Tanh(),
        nn.Linear(wide, narrow),
        nn.Tanh(),
    )
    heads = {
        task: nn.Sequential(nn.Linear(narrow, head), nn.Tanh(), nn.Linear(head, OUTPUTS[task]))
        for task in tasks
    }
    return MultiTaskNetwork(trunk, heads)


def gaussian(drawn: Tensor, pixels: Tensor) -> Tensor:
    """Σ (ŷ − y)²/2σ² over the pixels, mean over the samples."""
    return (drawn - pixels).square().sum(dim=1).mean() / (2 * DEVIATION**2)


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long()


def _pairs(images: Tensor, classes: Tensor, number: int, generator: torch.Generator) -> Split:
    left, right = torch.randint(len(images), (2, number), generator=generator)
    faint = functional.pad(FAINT * images[left], (0, OFFSET))
    strong = functional.pad(images[right], (OFFSET, 0))
    targets = {
        "left": classes[left],
        "right": classes[right],
        "redraw": images[right].flatten(1),
    }
    return Split(torch.maximum(faint, strong), targets)
