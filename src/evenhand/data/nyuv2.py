"""NYU Depth v2: 1,449 rooms with a class, a depth and a surface normal for each pixel.

Silberman, Hoiem, Kohli & Fergus, "Indoor segmentation and support inference from RGBD images"
(ECCV 2012), https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; the site states no licence.
Read is the form that the field shares, prepared by Liu, Johns & Davison (MTAN, CVPR 2019) and used
by LibMTL too: https://github.com/lorenmt/mtan links to it. `nyuv2` in the folder that EVENHAND_DATA
names has, for train (795 pictures) and val (654), numbered from 0,

    train/image/0.npy    [288, 384, 3], in [0, 1]
    train/label/0.npy    [288, 384], classes 0 to 12, −1 where there is none
    train/depth/0.npy    [288, 384, 1], in metres, 0 where there is none
    train/normal/0.npy   [288, 384, 3], unit vectors, 0 where there is none

(The official nyu_depth_v2_labeled.mat, which has no normals, is read by `nyuv2_official.py`.)
`val` is the test set; a tenth of `train`, a row of neighbours whose place the seed draws,
validates. Neighbours often show one room, so only the ends of that row have relatives among the
training pictures.

The setting is that of Pascal et al. (arXiv 2109.11678), as released: a U-Net; a binary
cross-entropy for each of the 13 classes, where a pixel without class belongs to none; the mean
absolute error of the depth; 1 − the mean cosine of the normals. (Their normals come from other
files, with components moved to [0, 1], and so do their products; ours are cosines.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand import sources
from evenhand.data import unet
from evenhand.data.mnist import folder
from evenhand.data.pictures import (
    Array,
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
CLASSES = 13
NONE = 255
DIMENSIONS = {"image": (3, 3), "label": (2, 2), "depth": (2, 3), "normal": (3, 3)}
KINDS = tuple(DIMENSIONS)


def load(
    seed: int = 0,
    where: Path | None = None,
    *,
    batch: int = 8,
    workers: int = 0,
    device: str = "cpu",
) -> Problem:
    """Segmentation, depth, normals of pictures [n, 3, h, w].

    Targets are classes, int64 [n, h, w] (255 where there is none), metres [n, h, w] and unit
    vectors [n, 3, h, w], both NaN where there is none. Outputs are logits [n, 13, h, w], metres,
    and unit vectors.

    Args:
        seed: draws which pictures validate.
        where: the folder; by default `nyuv2` in `mnist.folder()`.
        batch: pictures per batch, in training and in testing.
        workers: processes that read files ahead; 0 reads them in this one.
        device: where batches are put.

    Raises:
        ValueError: a file is missing; the message says where to get it.
    """
    source = sources.source("nyuv2")
    where = folder() / "nyuv2" if where is None else where
    known, held = apart(count(where, "train"), seed)
    train, validation, test = (
        Pictures(
            Rooms(where / split, index),
            len(index),
            batch,
            workers,
            device,
            [where / split / kind / f"{k}.npy" for k in index for kind in KINDS],
        )
        for split, index in (
            *(("train", known), ("train", held)),
            ("val", range(count(where, "val"))),
        )
    )
    return Problem(
        name="nyuv2",
        summary=source.summary,
        citation=source.citation,
        tasks={
            "segmentation": Task(class_loss, partial(Overlap, CLASSES), "mIoU", True),
            "depth": Task(
                depth_loss, partial(Averaged, depth_errors), "error, m", False, gaps="loss"
            ),
            "normal": Task(normal_loss, partial(Averaged, angles), "error, °", False, gaps="loss"),
        },
        network=network,
        train=train.shuffled(),
        validation=validation,
        test=test,
        batch_size=batch,
        epochs=500,
        optimizer="adam",
        rates=(1e-4, 2e-4),
    )


def network(tasks: Sequence[str], width: int = unet.WIDTH) -> MultiTaskNetwork:
    """A U-Net, and the maps of `tasks`; normals are made unit vectors."""
    maps = {"segmentation": CLASSES, "depth": 1, "normal": 3}
    made = unet.network({task: maps[task] for task in tasks}, width)
    if "normal" not in tasks:
        return made
    heads = dict(zip(made.tasks, made.heads, strict=True))
    heads["normal"] = nn.Sequential(heads["normal"], Unit())
    return MultiTaskNetwork(made.trunk, heads)


class Unit(nn.Module):
    """[n, 3, h, w] -> the same directions, of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1)


# Losses and errors ------------------------------------------------------------------------------


def class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over samples, classes and pixels."""
    present = classes.unsqueeze(1) == torch.arange(CLASSES, device=classes.device)[:, None, None]
    return functional.binary_cross_entropy_with_logits(logits, present.to(logits.dtype))


def depth_loss(depth: Tensor, metres: Tensor) -> Tensor:
    """Mean |error| over the pixels that have a depth; 0 if none has."""
    errors = depth_errors(depth, metres)
    return errors.sum() / max(len(errors), 1)


def depth_errors(depth: Tensor, metres: Tensor) -> Tensor:
    """|error| at each pixel that has a depth."""
    known = metres.isfinite()
    return (depth[known] - metres[known]).abs()


def normal_loss(normals: Tensor, vectors: Tensor) -> Tensor:
    """1 − the mean cosine over the pixels that have a normal; 1 if none has."""
    cosines = _cosines(normals, vectors)
    return 1 - cosines.sum() / max(len(cosines), 1)


def angles(normals: Tensor, vectors: Tensor) -> Tensor:
    """The angle in degrees at each pixel that has a normal."""
    return _cosines(normals, vectors).clamp(-1, 1).acos().rad2deg()


def _cosines(normals: Tensor, vectors: Tensor) -> Tensor:
    # Chosen before they are multiplied: 0 · NaN would be a gradient.
    known = vectors.isfinite().all(dim=1)
    return (normals.movedim(1, -1)[known] * vectors.movedim(1, -1)[known]).sum(dim=-1)


# Files ------------------------------------------------------------------------------------------


def count(where: Path, split: str) -> int:
    """How many pictures a split has.

    Raises:
        ValueError: there is none, or one lacks a file.
    """
    told = (
        f"NYUv2 is not complete in {where}; fetch the prepared files that {PAGE} links to; they "
        "belong into the folder nyuv2 of the one that EVENHAND_DATA names"
    )
    return counted(where / split, KINDS, told)


def apart(number: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """(train, validation) of the first `number` pictures: a row of a tenth validates."""
    return row_apart(number, seed, "nyuv2")


@dataclass(frozen=True)
class Rooms:
    """The picture with the i-th of the numbers in `index`, and its targets; read when called."""

    where: Path
    index: Sequence[int]

    def __call__(self, i: int) -> Sample:
        image, label, depth, normal = (self._array(kind, self.index[i]) for kind in KINDS)
        classes = torch.from_numpy(label).round().long()
        metres = torch.from_numpy(depth).float().reshape(depth.shape[:2])
        vectors = torch.from_numpy(normal).float().permute(2, 0, 1)
        targets = {
            "segmentation": torch.where(classes < 0, NONE, classes),
            "depth": metres.where(metres > 0, math.nan),
            "normal": vectors.where(vectors.abs().sum(dim=0) > 0, math.nan),
        }
        return torch.from_numpy(image).float().permute(2, 0, 1), targets

    def _array(self, kind: str, number: int) -> Array:
        return stored(self.where / kind / f"{number}.npy", DIMENSIONS[kind], kind)
