"""What data sets of picture files share: they are read when they are asked for, and scored.

Pillow reads the files; it comes with the extra `data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evenhand.data.fingerprint import of_files
from evenhand.data.problem import Batch
from evenhand.files import require_file
from evenhand.schedules import mixed_seed

Sample = tuple[Tensor, dict[str, Tensor]]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pictures(Dataset[Sample]):
    """Samples that are read from their files each time they are asked for.

    Attributes:
        read: the number of a sample, from 0 -> its input, and its target in each task.
        count: how many samples there are.
        batch: the most that are held at a time.
        workers: processes that read ahead; 0 reads in this one, when asked.
        device: where batches are put.
        files: those that are read; the data are known again by them.
    """

    read: Callable[[int], Sample]
    count: int
    batch: int
    workers: int = 0
    device: str = "cpu"
    files: Sequence[Path] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def in_order(self, size: int) -> Iterator[Batch]:
        """All samples in order, at most `size` or `batch` at a time."""
        return iter(Batches(self, min(size, self.batch)))

    def fingerprint(self) -> str:
        """Of the number of samples, and of the names and sizes of their files."""
        return f"{self.count} {of_files(self.files)}"

    def shuffled(self) -> Batches:
        """Batches to train on: a fresh order in each epoch, without a last smaller batch.

        Raises:
            ValueError: there is less than one batch.
        """
        if self.count < self.batch:
            raise ValueError(f"{self.count} samples do not make one batch of {self.batch}")
        return Batches(self, self.batch, shuffle=True)


class Batches:
    """An iterable of batches with a length, each put on the pictures' device as it comes."""

    def __init__(self, pictures: Pictures, size: int, shuffle: bool = False) -> None:
        self.device = torch.device(pictures.device)
        self._pictures = pictures
        self._loader = DataLoader(
            pictures,
            batch_size=size,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=pictures.workers,
            pin_memory=self.device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._loader)

    def fingerprint(self) -> str:
        """That of the pictures."""
        return self._pictures.fingerprint()

    def __iter__(self) -> Iterator[Batch]:
        for inputs, targets in self._loader:
            moved = {t: y.to(self.device, non_blocking=True) for t, y in targets.items()}
            yield inputs.to(self.device, non_blocking=True), moved


# Files ------------------------------------------------------------------------------------------


def colours(file: Path, height: int, width: int) -> Tensor:
    """The picture in a file, resized bilinearly: RGB in [0, 1], float [3, height, width].

    Raises:
        ValueError: there is no such file, it holds no picture, or Pillow is not installed.
    """
    with _opened(file) as picture:
        return _shrunk(picture.convert("RGB"), height, width)


def shrunk(array: Array, height: int, width: int) -> Tensor:
    """Bytes [h, w, 3] resized bilinearly: in [0, 1], float [3, height, width]."""
    return _shrunk(_pillow().fromarray(np.ascontiguousarray(array)), height, width)


def _shrunk(picture: Any, height: int, width: int) -> Tensor:
    small = picture.resize((width, height), _pillow().Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def numbers(file: Path) -> Array:
    """The numbers in a picture of one channel (class numbers, disparities), [height, width].

    Raises:
        ValueError: as `colours` does; or the picture has several channels.
    """
    with _opened(file) as picture:
        array = np.array(picture)
    if array.ndim != 2:
        raise ValueError(f"{file} has {array.ndim} dimensions; one number per pixel is expected")
    return array


def nearest(array: Array, height: int, width: int) -> Array:
    """[h, w] -> [height, width] by nearest neighbour: the pixel under each new one's centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip((height, width), array.shape, strict=True)
    )
    return np.ascontiguousarray(array[rows][:, columns])


def _opened(file: Path) -> Any:
    pillow = _pillow()
    try:
        require_file(file)
        return pillow.open(file)
    except FileNotFoundError as error:
        raise ValueError(f"{file} is missing") from error
    except (pillow.UnidentifiedImageError, pillow.DecompressionBombError) as error:
        raise ValueError(f"{file} holds no picture that can be read") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError("reading pictures needs Pillow: pip install 'evenhand[data]'") from error
    return Image


def stored(file: Path, dimensions: tuple[int, int], kind: str) -> Array:
    """The array in an .npy file that should be of a `kind` with so many dimensions, at least and
    at most.

    Raises:
        ValueError: it cannot be read, or has others.
    """
    try:
        require_file(file)
        array: Array = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not dimensions[0] <= array.ndim <= dimensions[1]:
        raise ValueError(f"{file} has the shape {array.shape}, not that of a {kind}")
    return array


def counted(where: Path, kinds: Sequence[str], told: str) -> int:
    """How many samples a folder has: 0.npy, 1.npy, … in a folder for each of `kinds`.

    Raises:
        ValueError: there is none, or one lacks a file; the message names it, and ends on `told`.
    """
    number = len(list((where / kinds[0]).glob("*.npy")))
    files = [where / kind / f"{k}.npy" for k in range(number) for kind in kinds]
    absent = [file for file in files if not file.exists()]
    if not number or absent:
        raise ValueError(f"{absent[0] if absent else where / kinds[0]} is missing: {told}")
    return number


def row_apart(number: int, seed: int, name: str) -> tuple[Sequence[int], Sequence[int]]:
    """(train, validation) of `number` samples: a row of a tenth, drawn by the seed, validates."""
    size = max(1, number // 10)
    generator = torch.Generator().manual_seed(mixed_seed(seed, *name.encode()))
    first = int(torch.randint(number - size + 1, (), generator=generator))
    held = range(first, first + size)
    return [k for k in range(number) if k not in held], held


# Scores -----------------------------------------------------------------------------------------


QUANTITIES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "precision": lambda tp, fp, fn, tn: tp / (tp + fp),
    "recall": lambda tp, fp, fn, tn: tp / (tp + fn),
    "F1": lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn),
    "IoU": lambda tp, fp, fn, tn: tp / (tp + fp + fn),
    "error %": lambda tp, fp, fn, tn: 100 * (fp + fn) / (tp + fp + fn + tn),
}
"""By the numbers of true positives, false positives, false negatives and true negatives."""


class Counted:
    """A metric of yes-or-no predictions, counted over everything it is shown; 0 where it is 0/0.

    Args:
        quantity: one of `QUANTITIES`, of the positive class.

    Example:
        >>> metric = Counted("F1")
        >>> metric.update(torch.tensor([2.0, 1.0, -1.0, 3.0]), torch.tensor([1.0, 0.0, 1.0, 1.0]))
        >>> round(float(metric.compute()), 4)
        0.6667
    """

    def __init__(self, quantity: str) -> None:
        self._quantity = QUANTITIES[quantity]
        self._counts = torch.zeros(2, 2, dtype=torch.float64)  # [target, prediction]

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits and targets 0 or 1 of equal shape; a logit of 0 or more says yes."""
        pairs = 2 * target.flatten().long() + (preds.flatten() >= 0).long()
        self._counts += torch.bincount(pairs, minlength=4).reshape(2, 2).cpu()

    def compute(self) -> Tensor:
        (tn, fp), (fn, tp) = self._counts
        return self._quantity(tp, fp, fn, tn).nan_to_num(0.0)


class Overlap:
    """Mean IoU over the classes that occur, in targets or predictions, of all pixels shown.

    Args:
        classes: their number; targets of other values (void) do not count.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._counts = torch.zeros(classes, classes, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add scores [b, classes, h, w] and class numbers [b, h, w]."""
        known = target < self._classes
        pairs = self._classes * target[known] + preds.argmax(dim=1)[known]
        counts = torch.bincount(pairs, minlength=self._classes**2).cpu()
        self._counts += counts.reshape(self._classes, self._classes)

    def compute(self) -> Tensor:
        both = self._counts.diagonal()
        either = self._counts.sum(dim=0) + self._counts.sum(dim=1) - both
        return (both / either)[either > 0].mean()


class Averaged:
    """The mean of what `errors` makes of predictions and targets, over all values shown."""

    def __init__(self, errors: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._errors = errors
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = 0

    def update(self, preds: Tensor, target: Tensor) -> None:
        errors = self._errors(preds, target)
        self._sum += errors.double().sum().cpu()
        self._count += errors.numel()

    def compute(self) -> Tensor:
        return self._sum / self._count
