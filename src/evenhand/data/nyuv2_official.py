"""NYU Depth v2 as published: the labelled pictures in one MATLAB file, classes and depths.

Silberman, Hoiem, Kohli & Fergus, "Indoor segmentation and support inference from RGBD images"
(ECCV 2012), https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; the site states no licence.
`nyuv2-official` in the folder that EVENHAND_DATA names has

    nyu_depth_v2_labeled.mat   images, depths in metres (filled in), labels 1 to 894, 0 for none
    splits.mat                 trainNdxs (795) and testNdxs (654), numbered from 1
    classMapping40.mat         mapClass: which of 40 classes each of the 894 is
    class13Mapping.mat         classMapping13: which of 13 classes each of the 40 is

The first two are from that site, the others from https://github.com/ankurhanda/nyuv2-meta-data. The
first is an HDF5 file (MATLAB 7.3) whose arrays are stored with their dimensions the other way
round: images [1449, 3, 640, 480]. It has no surface normals; `nyuv2`, the prepared files, has.

`testNdxs` is the test set; a tenth of `trainNdxs`, a row of neighbours whose place the seed draws,
validates. Pictures are made smaller, to 288×384 as in the prepared files: colours bilinearly,
classes and depths by the nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evenhand import sources
from evenhand.data import nyuv2, unet
from evenhand.data.mnist import folder
from evenhand.data.pictures import (
    Array,
    Averaged,
    Overlap,
    Pictures,
    Sample,
    nearest,
    row_apart,
    shrunk,
)
from evenhand.data.problem import Problem, Task
from evenhand.files import require_readable
from evenhand.network import MultiTaskNetwork

PAGE = "https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html"
META = "https://github.com/ankurhanda/nyuv2-meta-data"
LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
MAPPINGS = {"classMapping40.mat": "mapClass", "class13Mapping.mat": "classMapping13"}
SIZES = (13, 40)
HEIGHT = 288


def load(
    seed: int = 0,
    where: Path | None = None,
    *,
    classes: int = 13,
    batch: int = 8,
    workers: int = 0,
    device: str = "cpu",
    height: int = HEIGHT,
) -> Problem:
    """Segmentation and depth of pictures [n, 3, h, 4 h / 3].

    Targets are classes, int64 [n, h, w] (255 where there is none), and metres [n, h, w] (0 where
    there is none). Outputs are logits [n, classes, h, w] and metres.

    Args:
        seed: draws which pictures validate.
        where: the folder; by default `nyuv2-official` in `mnist.folder()`.
        classes: 13 or 40.
        batch: pictures per batch, in training and in testing.
        workers: processes that read the file ahead; 0 reads it in this one.
        device: where batches are put.
        height: of the pictures, a multiple of 3.

    Raises:
        ValueError: a file is missing (the message says where to get it) or laid out otherwise, or
            `classes` or `height` is out of range.
    """
    source = sources.source("nyuv2-official")
    if classes not in SIZES:
        raise ValueError(f"classes={classes}: must be 13 or 40")
    if height < 3 or height % 3:
        raise ValueError(f"height={height}: must be a multiple of 3, for pictures of 3 to 4")
    where = folder() / "nyuv2-official" if where is None else where
    file, mapping = _found(where, LABELED, PAGE), read_mapping(where, classes)
    train, test = read_splits(_found(where, SPLITS, PAGE))
    known, held = ([train[k] for k in part] for part in row_apart(len(train), seed, source.name))
    parts = [
        Pictures(Rooms(file, index, mapping, height), len(index), batch, workers, device)
        for index in (known, held, test)
    ]
    loss = partial(class_loss, classes=classes)
    return Problem(
        name=source.name,
        summary=source.summary,
        citation=source.citation,
        tasks={
            "segmentation": Task(loss, partial(Overlap, classes), "mIoU", True),
            "depth": Task(
                nyuv2.depth_loss,
                partial(Averaged, nyuv2.depth_errors),
                "error, m",
                False,
                gaps="loss",
            ),
        },
        network=partial(network, classes=classes),
        train=parts[0].shuffled(),
        validation=parts[1],
        test=parts[2],
        batch_size=batch,
        epochs=500,
        optimizer="adam",
        rates=(1e-4, 2e-4),
    )


def network(tasks: Sequence[str], width: int = unet.WIDTH, classes: int = 13) -> MultiTaskNetwork:
    """A U-Net, and the maps of `tasks`."""
    maps = {"segmentation": classes, "depth": 1}
    return unet.network({task: maps[task] for task in tasks}, width)


def class_loss(logits: Tensor, target: Tensor, classes: int) -> Tensor:
    """Binary cross-entropy, the mean over samples, classes and pixels; none is no class."""
    present = target.unsqueeze(1) == torch.arange(classes, device=target.device)[:, None, None]
    return functional.binary_cross_entropy_with_logits(logits, present.to(logits.dtype))


# Files ------------------------------------------------------------------------------------------


def read_splits(file: Path) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to train and to test on, from 0.

    Raises:
        ValueError: the file is laid out otherwise, or a picture is in both.
    """
    stored = _matlab(file)
    parts = []
    for name in ("trainNdxs", "testNdxs"):
        if name not in stored:
            raise ValueError(f"{file} has no {name}")
        parts.append([int(k) - 1 for k in np.asarray(stored[name]).reshape(-1)])
    if both := set(parts[0]) & set(parts[1]):
        raise ValueError(f"{file}: picture {min(both) + 1} is to train and to test")
    return parts[0], parts[1]


def read_mapping(where: Path, classes: int) -> Array:
    """The class, from 0, of each of the labels 0 to 894; `nyuv2.NONE` for label 0.

    Raises:
        ValueError: a file is missing or laid out otherwise.
    """
    needed = list(MAPPINGS.items())[: 1 + (classes == 13)]
    found = np.arange(-1, 894) + 1  # label -> label
    for name, variable in needed:
        file = _found(where, name, META)
        stored = _matlab(file)
        if variable not in stored:
            raise ValueError(f"{file} has no {variable}")
        array = stored[variable]
        if array.dtype.names:  # a struct; its first field is the list
            array = array[0, 0][0]
        numbers = np.asarray(array).reshape(-1).astype(int)
        if len(numbers) < found.max():
            raise ValueError(f"{file} maps {len(numbers)} classes, not {found.max()}")
        found = np.concatenate([[0], numbers])[found]
    if found.max() > classes or found.min() < 0:
        raise ValueError(f"{where}: the mappings end in {found.min()} to {found.max()}")
    return np.where(found == 0, nyuv2.NONE, found - 1)


@dataclass(frozen=True)
class Rooms:
    """The picture with the i-th of the numbers in `index`, and its targets; read when called."""

    file: Path
    index: Sequence[int]
    mapping: Array
    height: int

    def __call__(self, i: int) -> Sample:
        size = self.height, self.height * 4 // 3
        image, labels, depth = self._arrays(self.index[i])
        classes = self.mapping[nearest(labels, *size)]
        targets = {
            "segmentation": torch.from_numpy(classes).long(),
            "depth": torch.from_numpy(nearest(depth, *size)).float(),
        }
        return shrunk(image, *size), targets

    def _arrays(self, number: int) -> tuple[Array, Array, Array]:
        """[h, w, 3], [h, w], [h, w]: MATLAB's order, which the file has the other way round."""
        try:
            import h5py
        except ImportError as error:
            raise ValueError("reading HDF5 needs h5py: pip install 'evenhand[data]'") from error
        dimensions = {"images": 4, "labels": 3, "depths": 3}
        try:
            require_readable(self.file)
            with h5py.File(self.file, "r") as stored:  # opened anew: a handle cannot be sent
                for name, wanted in dimensions.items():
                    if name not in stored or stored[name].ndim != wanted:
                        raise ValueError(f"{self.file} has no {name} with {wanted} dimensions")
                    if number >= len(stored[name]):
                        raise ValueError(f"{self.file} has {len(stored[name])} of {name} only")
                image, labels, depth = (np.asarray(stored[name][number]) for name in dimensions)
        except OSError as error:
            raise ValueError(f"{self.file} is no HDF5 (MATLAB 7.3) file: {error}") from error
        return image.transpose(2, 1, 0), labels.T, depth.T


def _found(where: Path, name: str, page: str) -> Path:
    if not (where / name).exists():
        raise ValueError(
            f"{where / name} is missing: fetch it from {page}; it belongs into the folder "
            "nyuv2-official of the one that EVENHAND_DATA names"
        )
    return where / name


def _matlab(file: Path) -> dict[str, Any]:
    """The variables in a MATLAB file older than 7.3."""
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(str(file))
    except (NotImplementedError, ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return found
