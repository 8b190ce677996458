"""CelebA: 202,599 faces with 40 attributes each, every attribute a task.

Liu, Luo, Wang & Tang, "Deep learning face attributes in the wild" (ICCV 2015). For non-commercial
research under the agreement on https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, where the files
are; they are fetched by hand. `celeba` in the folder that EVENHAND_DATA names has

    img_align_celeba/000001.jpg …     list_attr_celeba.txt     list_eval_partition.txt

also where the official download puts them, in Img, Anno and Eval. The partition is the official
one (162,770 to train, 19,867 to validate, 19,962 to test), whatever the seed.

Pictures (178×218) are squeezed to 64×64, in [0, 1], as in the code that Pascal et al. (arXiv
2109.11678) released. The default network is theirs: seven 3×3 convolutions 64-128-128-256-256-512-
512, each with BatchNorm and ReLU, max pooling after the first, third and fifth, mean pooling after
the last, and two dense layers of 512 with BatchNorm and ReLU; a linear unit per attribute. Their
BatchNorm uses the batch's statistics in testing too, ours the running ones. `resnet18` is the
trunk of Sener & Koltun (arXiv 1810.04650), as released: its first convolution is 3×3 with stride 1
and no pooling follows it, the last maps of 8×8 are averaged in four quarters, 2,048 features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import sources
from evenhand.data.mnist import folder
from evenhand.data.pictures import Counted, Pictures, Sample, colours
from evenhand.data.problem import Problem, Task
from evenhand.files import read_text
from evenhand.network import MultiTaskNetwork

PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
ATTRIBUTES, PARTITION, IMAGES = (
    "list_attr_celeba.txt",
    "list_eval_partition.txt",
    "img_align_celeba",
)
SIDE = 64


def load(
    seed: int = 0,
    where: Path | None = None,
    *,
    batch: int = 256,
    workers: int = 0,
    device: str = "cpu",
) -> Problem:
    """40 binary tasks. Inputs [n, 3, 64, 64]; targets 0.0 or 1.0 and logits, both [n].

    Args:
        seed: changes nothing, the partition is given.
        where: the folder; by default `celeba` in `mnist.folder()`.
        batch: samples per batch, in training and in testing.
        workers: processes that read pictures ahead; 0 reads them in this one.
        device: where batches are put.

    Raises:
        ValueError: a file is missing (the message says where to get it) or damaged.
    """
    source = sources.source("celeba")
    where = folder() / "celeba" if where is None else where
    names, attributes, labels = read_attributes(_found(where, ATTRIBUTES))
    part = read_partition(_found(where, PARTITION), names)
    images = _found(where, IMAGES)
    parts = []
    for number in range(3):
        index = (part == number).nonzero().flatten()
        faces = Faces(images, [names[int(i)] for i in index], attributes, labels[index])
        files = [_found(where, ATTRIBUTES), *(images / name for name in faces.names)]
        parts.append(Pictures(faces, len(index), batch, workers, device, files))
    return Problem(
        name="celeba",
        summary=source.summary,
        citation=source.citation,
        tasks=dict.fromkeys(attributes, attribute("F1")),
        network=network,
        train=parts[0].shuffled(),
        validation=parts[1],
        test=parts[2],
        official_test=True,
        batch_size=batch,
        epochs=15,
        optimizer="adam",
        rates=(1e-4, 5e-4, 1e-3),
    )


def attribute(quantity: str) -> Task:
    """The task of an attribute, scored by one of `pictures.QUANTITIES`."""
    loss = functional.binary_cross_entropy_with_logits
    return Task(loss, partial(Counted, quantity), quantity, "error" not in quantity)


def scored(problem: Problem, quantity: str) -> Problem:
    """The same problem, its tasks scored by another of `pictures.QUANTITIES`."""
    return replace(problem, tasks=dict.fromkeys(problem.tasks, attribute(quantity)))


@dataclass(frozen=True)
class Faces:
    """Face i and its attributes, `labels` bool [n, attributes]; read when called."""

    images: Path
    names: Sequence[str]
    attributes: Sequence[str]
    labels: Tensor

    def __call__(self, index: int) -> Sample:
        picture = colours(self.images / self.names[index], SIDE, SIDE)
        return picture, dict(zip(self.attributes, self.labels[index].float(), strict=True))


# Files ------------------------------------------------------------------------------------------


def read_attributes(file: Path) -> tuple[list[str], tuple[str, ...], Tensor]:
    """Names of the pictures, names of the attributes, labels bool [pictures, attributes].

    The file has the number of pictures, the attributes' names, and a line for each picture: its
    name, and 1 or -1 for each attribute.

    Raises:
        ValueError: the file is laid out otherwise; the message names the line.
    """
    lines = read_text(file).splitlines()
    attributes = tuple(lines[1].split()) if len(lines) > 1 else ()
    rows = [line.split() or ["an empty line"] for line in lines[2:]]
    for number, (name, *values) in enumerate(rows, start=3):
        if len(values) != len(attributes) or not set(values) <= {"1", "-1"}:
            raise ValueError(
                f"{file}, line {number}: {name} should have 1 or -1 for each of the "
                f"{len(attributes)} attributes"
            )
    if not rows or lines[0].strip() != str(len(rows)):
        raise ValueError(f"{file} has {len(rows)} pictures and announces {lines[:1]}: cut off?")
    labels = torch.tensor([[value == "1" for value in values] for _, *values in rows])
    return [row[0] for row in rows], attributes, labels


def read_partition(file: Path, names: Sequence[str]) -> Tensor:
    """For each picture in `names` 0 (train), 1 (validate) or 2 (test), int64.

    Raises:
        ValueError: the file is laid out otherwise, or lacks a picture.
    """
    parts: dict[str, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        match line.split():
            case [name, ("0" | "1" | "2") as part]:
                parts[name] = int(part)
            case _:
                raise ValueError(f"{file}, line {number}: a name and 0, 1 or 2 should stand there")
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(f"{file} does not say which part {missing[0]} belongs to")
    return torch.tensor([parts[name] for name in names])


def _found(where: Path, name: str) -> Path:
    official = {ATTRIBUTES: "Anno", PARTITION: "Eval", IMAGES: "Img"}[name]
    for place in (where / name, where / official / name):
        if place.exists():
            return place
    raise ValueError(
        f"CelebA is not in {where} ({name} is missing): fetch it from {PAGE} (for non-commercial "
        "research); it belongs into the folder celeba of the one that EVENHAND_DATA names"
    )


# Networks ---------------------------------------------------------------------------------------


def network(
    tasks: Sequence[str], trunk: Callable[[], tuple[nn.Module, int]] | None = None
) -> MultiTaskNetwork:
    """A trunk and a linear unit for each of `tasks`.

    Args:
        tasks: names of attributes.
        trunk: makes the trunk, and says how many features it has; by default `convolutional`.
    """
    shared, features = (trunk or convolutional)()
    heads: Mapping[str, nn.Module] = {
        task: nn.Sequential(nn.Linear(features, 1), nn.Flatten(0)) for task in tasks
    }
    return MultiTaskNetwork(shared, heads)


def convolutional() -> tuple[nn.Module, int]:
    """Pascal et al.'s trunk, 512 features."""

    def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)

    def dense() -> tuple[nn.Module, ...]:
        return nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True)

    trunk = nn.Sequential(
        *(*convolution(3, 64), nn.MaxPool2d(2)),
        *(*convolution(64, 128), *convolution(128, 128), nn.MaxPool2d(2)),
        *(*convolution(128, 256), *convolution(256, 256), nn.MaxPool2d(2)),
        *(*convolution(256, 512), *convolution(512, 512), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(*dense(), *dense()),
    )
    return trunk, 512


def resnet18() -> tuple[nn.Module, int]:
    """Sener & Koltun's trunk, 2,048 features of pictures of 64×64."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Residual(inputs, outputs, stride), Residual(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten()), 2_048


class Residual(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a way round them: 1×1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)),
            nn.ReLU(),
            *(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.round: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shorter = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.round = nn.Sequential(shorter, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.way(x) + self.round(x))
