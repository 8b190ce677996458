"""Cityscapes: 5,000 street scenes of 2048×1024 with a class and an instance for each pixel.

Cordts et al., "The Cityscapes dataset for semantic urban scene understanding" (CVPR 2016). For
non-commercial use under the terms on https://www.cityscapes-dataset.com/license; those who register
there get leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip, disparity_trainvaltest.zip.
`cityscapes` in the folder that EVENHAND_DATA names has, for every split, city and frame,

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png   (and …_instanceIds.png)
    disparity/train/aachen/aachen_000000_000019_disparity.png      (`cityscapes-scene` alone)

`cityscapes` is the setting of Pascal et al. (arXiv 2109.11678): seven tasks, each telling a group
of classes from all the rest, void included; a U-Net on pictures of 256×128 in [0, 1].

`cityscapes-scene` is that of Sener & Koltun (arXiv 1810.04650): the 19 classes, the way from each
pixel to the middle of its instance, the disparity. Their trunk is a ResNet-50 pretrained on
ImageNet with pyramid pooling; here it is the U-Net, as above, which makes it another experiment.

The labels of the official test part are withheld. What is published as `val` (500) is the test set
here, and whole cities of `train` (2,975), at least a tenth of it, drawn by the seed, validate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from evenhand import sources
from evenhand.data import unet
from evenhand.data.mnist import folder
from evenhand.data.pictures import (
    Averaged,
    Counted,
    Overlap,
    Pictures,
    Sample,
    colours,
    nearest,
    numbers,
)
from evenhand.data.problem import Problem, Task
from evenhand.network import MultiTaskNetwork
from evenhand.schedules import mixed_seed

PAGE = "https://www.cityscapes-dataset.com"
HEIGHT = 128
GROUPS: Mapping[str, tuple[int, ...]] = {
    "flat": (7, 8),
    "construction": (11, 12, 13),
    "object": (17, 19, 20),
    "nature": (21, 22),
    "sky": (23,),
    "human": (24, 25),
    "vehicle": (26, 27, 28, 31, 32, 33),
}
"""The label numbers of each group: the 19 classes that are evaluated, by official category."""
CLASSES = tuple(label for labels in GROUPS.values() for label in labels)
VOID = 255
UNIT = 128
"""Full-size pixels in which the way to the middle of an instance is told to the network."""
DEVIATION = 2729.068 / 256
"""Of the disparities, in pixels of the full-size picture: what Sener & Koltun's code divides by."""


Floats = npt.NDArray[np.float32]


class Frame(NamedTuple):
    """The files of a scene."""

    picture: Path
    labels: Path
    instances: Path
    disparity: Path


def load(
    seed: int = 0,
    where: Path | None = None,
    *,
    batch: int = 24,
    workers: int = 0,
    device: str = "cpu",
    height: int = HEIGHT,
) -> Problem:
    """Seven groups of classes. Inputs [n, 3, h, 2h]; targets 0.0 or 1.0 and logits, [n, h, 2h].

    Args:
        seed: draws the cities that validate.
        where: the folder; by default `cityscapes` in `mnist.folder()`.
        batch: scenes per batch, in training and in testing.
        workers: processes that read files ahead; 0 reads them in this one.
        device: where batches are put.
        height: of the pictures; the width is twice that.

    Raises:
        ValueError: a file is missing; the message says where to get it.
    """
    loss = functional.binary_cross_entropy_with_logits
    tasks = dict.fromkeys(GROUPS, Task(loss, partial(Counted, "IoU"), "IoU", True))
    options = Options(seed, where, batch, workers, device, height)
    return _problem("cityscapes", tasks, group_network, Grouped, options)


def load_scene(
    seed: int = 0,
    where: Path | None = None,
    *,
    batch: int = 8,
    workers: int = 0,
    device: str = "cpu",
    height: int = HEIGHT,
) -> Problem:
    """Classes, instances, disparity; arguments and errors as for `load`.

    Targets are the class, int64 [n, h, 2h] (255 is void); the way (down, right) to the middle of
    the pixel's instance in full-size pixels over 128, [n, 2, h, 2h]; the disparity in full-size
    pixels, [n, h, 2h]. Pixels without instance or disparity are NaN, and count nowhere.
    """
    tasks = {
        "semantic": Task(
            _class_loss,
            partial(Overlap, len(CLASSES)),
            "mIoU",
            True,
            missing=VOID,
            gaps="loss",
        ),
        "instance": Task(
            partial(_known_mean, scale=1.0),
            partial(_error, UNIT),
            "instance error, px",
            False,
            gaps="loss",
        ),
        "disparity": Task(
            partial(_known_mean, scale=1 / DEVIATION),
            partial(_error, 1.0),
            "disparity error, px",
            False,
            gaps="loss",
        ),
    }
    options = Options(seed, where, batch, workers, device, height)
    return _problem("cityscapes-scene", tasks, scene_network, Scene, options)


@dataclass(frozen=True)
class Options:
    """The arguments of `load`."""

    seed: int
    where: Path | None
    batch: int
    workers: int
    device: str
    height: int


def _problem(
    name: str,
    tasks: Mapping[str, Task],
    network: Callable[[Sequence[str]], MultiTaskNetwork],
    reader: Callable[[Sequence[Frame], int], Callable[[int], Sample]],
    options: Options,
) -> Problem:
    source = sources.source(name)
    where = folder() / "cityscapes" if options.where is None else options.where
    disparity = "disparity" in tasks
    known, held = apart(frames(where, "train", disparity), options.seed)
    train, validation, test = (
        Pictures(
            reader(those, options.height),
            len(those),
            options.batch,
            options.workers,
            options.device,
            [file for frame in those for file in (frame if disparity else frame[:2])],
        )
        for those in (known, held, frames(where, "val", disparity))
    )
    return Problem(
        name=name,
        summary=source.summary,
        citation=source.citation,
        tasks=tasks,
        network=network,
        train=train.shuffled(),
        validation=validation,
        test=test,
        batch_size=options.batch,
        epochs=150,
        optimizer="adam",
        rates=(1e-4, 5e-4, 1e-3),
    )


def group_network(tasks: Sequence[str], width: int = unet.WIDTH) -> MultiTaskNetwork:
    """A U-Net, and a map of logits for each of the groups `tasks`."""
    return unet.network(dict.fromkeys(tasks, 1), width)


def scene_network(tasks: Sequence[str], width: int = unet.WIDTH) -> MultiTaskNetwork:
    """A U-Net, and the maps of `tasks`."""
    maps = {"semantic": len(CLASSES), "instance": 2, "disparity": 1}
    return unet.network({task: maps[task] for task in tasks}, width)


def _class_loss(scores: Tensor, classes: Tensor) -> Tensor:
    return functional.cross_entropy(scores, classes, ignore_index=VOID)


def _known_mean(values: Tensor, target: Tensor, scale: float) -> Tensor:
    """Scale · mean |values − target| over the targets that are known; 0 if none is."""
    known = target.isfinite()
    return scale * (values[known] - target[known]).abs().sum() / known.sum().clamp(min=1)


def _error(scale: float) -> Averaged:
    return Averaged(partial(_known_errors, scale=scale))


def _known_errors(values: Tensor, target: Tensor, scale: float) -> Tensor:
    known = target.isfinite()
    return scale * (values[known] - target[known]).abs()


# Files ------------------------------------------------------------------------------------------


def frames(where: Path, split: str, disparity: bool = False) -> list[Frame]:
    """The scenes of a split, in the order of their names.

    Raises:
        ValueError: there is none, or one lacks a file.
    """
    found = []
    for picture in sorted((where / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        city, stem = picture.parent.name, picture.name.removesuffix("_leftImg8bit.png")
        fine = where / "gtFine" / split / city
        found.append(
            Frame(
                picture,
                fine / f"{stem}_gtFine_labelIds.png",
                fine / f"{stem}_gtFine_instanceIds.png",
                where / "disparity" / split / city / f"{stem}_disparity.png",
            )
        )
    needed = ("labels", "instances", "disparity") if disparity else ("labels",)
    absent = [getattr(f, kind) for f in found for kind in needed if not getattr(f, kind).exists()]
    if not found or absent:
        missing = absent[0] if absent else Path("leftImg8bit", split)
        raise ValueError(
            f"Cityscapes is not complete in {where} ({missing} is missing): fetch it from {PAGE} "
            "(free for non-commercial use, after registration); it belongs into the folder "
            "cityscapes of the one that EVENHAND_DATA names"
        )
    return found


def apart(scenes: Sequence[Frame], seed: int) -> tuple[list[Frame], list[Frame]]:
    """(train, validation): whole cities, drawn by the seed, until they have a tenth of the scenes.

    Raises:
        ValueError: there is only one city.
    """
    cities = sorted({scene.picture.parent.name for scene in scenes})
    if len(cities) < 2:
        raise ValueError(f"all scenes to train are from {cities[0]}: two cities are needed")
    generator = torch.Generator().manual_seed(mixed_seed(seed, *b"cityscapes"))
    held: set[str] = set()
    validation: list[Frame] = []
    for k in torch.randperm(len(cities), generator=generator)[:-1]:
        if 10 * len(validation) >= len(scenes):
            break
        held.add(cities[int(k)])
        validation = [scene for scene in scenes if scene.picture.parent.name in held]
    return [scene for scene in scenes if scene.picture.parent.name not in held], validation


@dataclass(frozen=True)
class Grouped:
    """Scene i and whether each pixel is of each group; read when called."""

    scenes: Sequence[Frame]
    height: int

    def __call__(self, index: int) -> Sample:
        scene, size = self.scenes[index], (self.height, 2 * self.height)
        labels = nearest(numbers(scene.labels), *size)
        targets = {
            group: torch.from_numpy(np.isin(labels, those)).float()
            for group, those in GROUPS.items()
        }
        return colours(scene.picture, *size), targets


@dataclass(frozen=True)
class Scene:
    """Scene i, its classes, instances and disparity; read when called."""

    scenes: Sequence[Frame]
    height: int

    def __call__(self, index: int) -> Sample:
        scene, size = self.scenes[index], (self.height, 2 * self.height)
        labels, disparity = numbers(scene.labels), numbers(scene.disparity).astype(np.float32)
        classes = np.full(256, VOID)
        classes[list(CLASSES)] = range(len(CLASSES))
        steps = np.where(disparity > 0, (disparity - 1) / 256, np.nan).astype(np.float32)
        down, right = middles(numbers(scene.instances))
        ways = np.stack([nearest(down, *size), nearest(right, *size)])
        targets = {
            "semantic": torch.from_numpy(classes[nearest(labels, *size)]),
            "instance": torch.from_numpy(ways) / UNIT,
            "disparity": torch.from_numpy(nearest(steps, *size)),
        }
        return colours(scene.picture, *size), targets


def middles(instances: npt.NDArray[np.integer]) -> tuple[Floats, Floats]:
    """How far each pixel is from the middle of its instance, down and to the right, in pixels.

    An instance has the number 1000 · class + k; pixels of none, and of void, are NaN.
    """
    down = np.full(instances.shape, np.nan, np.float32)
    right = down.copy()
    for number in np.unique(instances[np.isin(instances // 1000, CLASSES)]):
        rows, columns = np.nonzero(instances == number)
        down[rows, columns] = rows.mean() - rows
        right[rows, columns] = columns.mean() - columns
    return down, right
