"""Cityscapes in the form that the field shares: small arrays, 7 classes and a depth.

Cordts et al., "The Cityscapes dataset for semantic urban scene understanding" (CVPR 2016), for
non-commercial use; prepared by Liu, Johns & Davison (MTAN, CVPR 2019), https://github.com/lorenmt/mtan
links to it, and used by LibMTL too. `cityscapes-prepared` in the folder that EVENHAND_DATA names
has, for train (2,975 pictures) and val (500), numbered from 0,

    train/image/0.npy    [128, 256, 3], in [0, 1]
    train/label/0.npy    [128, 256], classes 0 to 6, −1 where there is none; or in train/label_7
    train/depth/0.npy    [128, 256, 1], the inverse depth, 0 where there is none

`val` is the test set; a tenth of `train`, a row of neighbours whose place the seed draws,
validates. Frames lie there in the order of cities, so only the ends of that row have relatives
among the training pictures.

Losses are MTAN's: cross-entropy of the classes over the pixels that have one, and the mean absolute
error of the inverse depth over those that have one. The network is the U-Net of `unet.py`, theirs
are a SegNet (MTAN) and a ResNet-50 with dilated convolutions (LibMTL).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from evenhand import sources
from evenhand.data import unet
from evenhand.data.mnist import folder
from evenhand.data.pictures import (
    Averaged,
    Overlap,
    Pictures,
    Sample,
    counted,
    row_apart,
    stored,
)
from evenhand.data.problem import Problem, Task
from evenhand.network import MultiTaskNetwork

PAGE = "https://github.com/lorenmt/mtan"
CLASSES = 7
NONE = 255
LABELS = ("label", "label_7")
"""Folders in which the seven classes may be."""


def load(
    seed: int = 0,
    where: Path | None = None,
    *,
    batch: int = 8,
    workers: int = 0,
    device: str = "cpu",
) -> Problem:
    """Segmentation and inverse depth of pictures [n, 3, h, w].

    Targets are classes, int64 [n, h, w] (255 where there is none), and inverse depths [n, h, w] (0
    where there is none). Outputs are scores [n, 7, h, w] and inverse depths.

    Args:
        seed: draws which pictures validate.
        where: the folder; by default `cityscapes-prepared` in `mnist.folder()`.
        batch: pictures per batch, in training and in testing.
        workers: processes that read files ahead; 0 reads them in this one.
        device: where batches are put.

    Raises:
        ValueError: a file is missing; the message says where to get it.
    """
    source = sources.source("cityscapes-prepared")
    where = folder() / "cityscapes-prepared" if where is None else where
    sizes = {split: count(where, split) for split in ("train", "val")}
    known, held = row_apart(sizes["train"], seed, source.name)
    train, validation, test = (
        Pictures(Frames(where / split, index), len(index), batch, workers, device)
        for split, index in (
            *(("train", known), ("train", held)),
            ("val", range(sizes["val"])),
        )
    )
    return Problem(
        name=source.name,
        summary=source.summary,
        citation=source.citation,
        tasks={
            "segmentation": Task(
                class_loss, partial(Overlap, CLASSES), "mIoU", True, missing=NONE, gaps="loss"
            ),
            "depth": Task(
                depth_loss,
                partial(Averaged, depth_errors),
                "error, 1/depth",
                False,
                missing=0,
                gaps="loss",
            ),
        },
        network=network,
        train=train.shuffled(),
        validation=validation,
        test=test,
        batch_size=batch,
        epochs=200,
        optimizer="adam",
        rates=(1e-4, 5e-4),
    )


def network(tasks: Sequence[str], width: int = unet.WIDTH) -> MultiTaskNetwork:
    """A U-Net, and the maps of `tasks`."""
    maps = {"segmentation": CLASSES, "depth": 1}
    return unet.network({task: maps[task] for task in tasks}, width)


def class_loss(scores: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, the mean over the pixels that have a class; 0 if none has."""
    summed = functional.cross_entropy(scores, classes, ignore_index=NONE, reduction="sum")
    return summed / (classes != NONE).sum().clamp(min=1)


def depth_loss(depth: Tensor, target: Tensor) -> Tensor:
    """Mean |error| over the pixels that have a depth; 0 if none has."""
    errors = depth_errors(depth, target)
    return errors.sum() / max(len(errors), 1)


def depth_errors(depth: Tensor, target: Tensor) -> Tensor:
    """|error| at each pixel that has a depth."""
    known = target != 0
    return (depth[known] - target[known]).abs()


def labels(where: Path) -> str:
    """The folder of a split's classes."""
    return next((name for name in LABELS if (where / name).exists()), LABELS[0])


def count(where: Path, split: str) -> int:
    """How many pictures a split has.

    Raises:
        ValueError: there is none, or one lacks a file.
    """
    told = (
        f"the prepared Cityscapes is not complete in {where}; fetch the files of 128×256 that "
        f"{PAGE} links to; they belong into the folder cityscapes-prepared of the one that "
        "EVENHAND_DATA names"
    )
    return counted(where / split, ("image", labels(where / split), "depth"), told)


@dataclass(frozen=True)
class Frames:
    """The picture with the i-th of the numbers in `index`, and its targets; read when called."""

    where: Path
    index: Sequence[int]

    def __call__(self, i: int) -> Sample:
        name = f"{self.index[i]}.npy"
        image = stored(self.where / "image" / name, (3, 3), "image")
        label = stored(self.where / labels(self.where) / name, (2, 2), "label")
        depth = stored(self.where / "depth" / name, (2, 3), "depth")
        classes = torch.from_numpy(label).round().long()
        if int(classes.max()) >= CLASSES:
            raise ValueError(
                f"{self.where / labels(self.where) / name} has the class {int(classes.max())}; "
                f"there should be {CLASSES} classes, from 0"
            )
        targets = {
            "segmentation": torch.where(classes < 0, NONE, classes),
            "depth": torch.from_numpy(depth).float().reshape(depth.shape[:2]),
        }
        return torch.from_numpy(image).float().permute(2, 0, 1), targets
