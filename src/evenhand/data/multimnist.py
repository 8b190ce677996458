"""Two MNIST digits on one picture, in three settings.

`multimnist` is Sener & Koltun's (arXiv 1810.04650): the left digit at (0, 0) and the right one at
(6, 6) of a 36×36 canvas, the stronger ink where they overlap, resized to 28×28 by nearest
neighbour, normalised with mean .1307 and deviation .3081; tell the left one, tell the right one.

`multimnist-redraw` is Nakamura, Grassi & Wolf's (arXiv 2204.06698): upper left and lower right of a
32×32 canvas, resized to 28×28 (by nearest neighbour, our choice: the paper does not say); tell the
upper-left digit, redraw the lower-right one (mean squared error over its 28×28 pixels in [0, 1]).

`multimnist-many` has eight tasks of different nature on the first setting's pictures: both
classes, both parities, which digit is larger, whether they are equal, their sum (regression), and
the right digit redrawn.

In every setting MNIST's training pictures are divided into 50,000 to train and 10,000 to validate
before they are paired, test pictures are paired among themselves; every picture is once the first
of a pair, its partner is drawn at random. The encoder is Sener & Koltun's LeNet: conv 5×5 (1→10),
pool, ReLU, conv 5×5 (10→20), channel dropout (first setting alone), pool, ReLU, dense 320→50, ReLU.
A class head is 50→50, ReLU, dropout ½ (first setting alone), →10. The decoder is ours, described
nowhere: 50→400, ReLU, →784. Dropout is torch's, which rescales what it keeps and draws a
mask per sample; the released code keeps a mask per batch, without rescaling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import sources
from evenhand.data import mnist
from evenhand.data.problem import Metric, Problem, Split, Task
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import mixed_seed

Resize = Literal["nearest", "bilinear"]
MEAN, DEVIATION = 0.1307, 0.3081
VALIDATION = 10_000
LATENT = 50


@dataclass(frozen=True)
class Drawing:
    """How two digits become a picture: `compose`'s arguments, and see `load_redraw`."""

    shift: int
    resize: Resize = "nearest"
    placed: bool = False


def load(seed: int = 0) -> Problem:
    """Left and right digit. Inputs [n, 1, 28, 28]; targets int64 [n]; outputs logits [n, 10]."""
    tasks = {"left": _classes(10), "right": _classes(10)}
    return _problem("multimnist", tasks, seed, Drawing(shift=8), drop=True)


def load_redraw(seed: int = 0, resize: Resize = "nearest", placed: bool = False) -> Problem:
    """The upper-left class and the lower-right picture, [n, 784] in [0, 1].

    Args:
        seed: of the division into training and validation and of the pairs.
        resize: how 32×32 becomes 28×28, see `compose`.
        placed: whether the picture to redraw is the digit where and as small as it stands on the
            input, or the digit as it is.
    """
    tasks = {"upper": _classes(10), "lower": _redrawing()}
    draw = Drawing(shift=4, resize=resize, placed=placed)
    return _problem("multimnist-redraw", tasks, seed, draw)


def load_many(seed: int = 0) -> Problem:
    """Eight tasks; the sum of the digits is divided by 18, to lie in [0, 1]."""
    tasks = {
        "left": _classes(10),
        "right": _classes(10),
        "left-parity": _classes(2),
        "right-parity": _classes(2),
        "larger": _classes(2),
        "equal": _classes(2),
        "sum": Task(functional.mse_loss, _squared_error, "MSE", False),
        "lower": _redrawing(),
    }
    return _problem("multimnist-many", tasks, seed, Drawing(shift=8))


OUTPUTS = {
    **{"left": 10, "right": 10, "upper": 10, "lower": 784},
    **{"left-parity": 2, "right-parity": 2, "larger": 2, "equal": 2, "sum": 1},
}


def _classes(number: int) -> Task:
    from torchmetrics.classification import MulticlassAccuracy

    metric: Callable[[], Metric] = partial(MulticlassAccuracy, number, average="micro")
    return Task(functional.cross_entropy, metric, "accuracy", True)


def _redrawing() -> Task:
    return Task(functional.mse_loss, _squared_error, "MSE", False)


def _squared_error() -> Metric:
    from torchmetrics import MeanSquaredError

    return MeanSquaredError()


def _problem(
    name: str, tasks: Mapping[str, Task], seed: int, draw: Drawing, drop: bool = False
) -> Problem:
    source = sources.source(name)
    train, validation, test = _splits(mnist.load(), tuple(tasks), seed, draw)
    return Problem(
        name=name,
        summary=source.summary,
        citation=source.citation,
        tasks=tasks,
        network=partial(network, drop=drop),
        train=train,
        validation=validation,
        test=test,
        batch_size=256,
        epochs=100,
    )


# The network ------------------------------------------------------------------------------------


def network(tasks: Sequence[str], drop: bool = False) -> MultiTaskNetwork:
    """The LeNet encoder, and a head for each of `tasks`."""
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.Dropout2d(0.5) if drop else nn.Identity()),
        *(nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(320, LATENT), nn.ReLU()),
    )
    return MultiTaskNetwork(trunk, {task: _head(OUTPUTS[task], drop) for task in tasks})


def _head(outputs: int, drop: bool) -> nn.Module:
    if outputs == OUTPUTS["lower"]:
        return nn.Sequential(nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, 784))
    dropout = nn.Dropout(0.5) if drop else nn.Identity()
    layers = (nn.Linear(LATENT, LATENT), nn.ReLU(), dropout, nn.Linear(LATENT, outputs))
    return nn.Sequential(*layers, *((nn.Flatten(0),) if outputs == 1 else ()))


# The pictures -----------------------------------------------------------------------------------


def _splits(digits: mnist.MNIST, tasks: tuple[str, ...], seed: int, draw: Drawing) -> list[Split]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, *b"multimnist"))
    made = parts(digits, generator)
    return [_paired(images, labels, tasks, generator, draw) for images, labels in made]


def parts(digits: mnist.MNIST, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Pictures and labels to train, to validate and to test, before they are paired."""
    order = torch.randperm(len(digits.train_images), generator=generator)
    held_out = min(VALIDATION, len(order) // 6)
    train, validation = order[held_out:], order[:held_out]
    return [
        (digits.train_images[train], digits.train_labels[train]),
        (digits.train_images[validation], digits.train_labels[validation]),
        (digits.test_images, digits.test_labels),
    ]


def _paired(
    images: Tensor,
    labels: Tensor,
    tasks: tuple[str, ...],
    generator: torch.Generator,
    draw: Drawing,
) -> Split:
    partner = torch.randint(len(images), (len(images),), generator=generator)
    pictures = compose(images, images[partner], draw.shift, draw.resize)
    blank = torch.zeros_like(images)

    def redrawn() -> Tensor:
        other = images[partner]
        return compose(blank, other, draw.shift, draw.resize) if draw.placed else other

    left, right = labels, labels[partner]
    targets: Mapping[str, Callable[[], Tensor]] = {
        "left": lambda: left,
        "upper": lambda: left,
        "right": lambda: right,
        "lower": lambda: redrawn().flatten(1).float() / 255,
        "left-parity": lambda: left % 2,
        "right-parity": lambda: right % 2,
        "larger": lambda: (left > right).long(),
        "equal": lambda: (left == right).long(),
        "sum": lambda: (left + right).float() / 18,
    }
    inputs = (pictures.float() / 255 - MEAN) / DEVIATION
    return Split(inputs.unsqueeze(1), {task: targets[task]() for task in tasks})


def compose(first: Tensor, second: Tensor, shift: int, resize: Resize = "nearest") -> Tensor:
    """Two digits [n, 28, 28] of bytes on a canvas of 28 + shift, as [n, 28, 28] of bytes.

    The first stands at the upper left; the second at (6, 6) of Sener & Koltun's canvas of 36, two
    pixels from its edge, and at the lower right of a smaller one. The canvas is made smaller by
    the nearest neighbour or by a triangle as wide as the reduction asks ("bilinear", as PIL and
    torchvision do it).
    """
    side = 28 + shift
    offset = min(shift, 6)
    canvas = functional.pad(first, (0, shift, 0, shift))
    room = shift - offset
    other = functional.pad(second, (offset, room, offset, room))
    both = torch.maximum(canvas, other)
    if resize == "nearest":
        nearest = torch.arange(28) * side // 28
        return both[:, nearest][:, :, nearest]
    smaller = functional.interpolate(both[:, None], (28, 28), mode="bilinear", antialias=True)
    return smaller[:, 0]
