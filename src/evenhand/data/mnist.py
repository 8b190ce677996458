"""MNIST: where it is looked for, how it is fetched, and how it is read.

LeCun, Cortes & Burges, "The MNIST database of handwritten digits": 60,000 pictures of 28×28 to
train and 10,000 to test, usually given as CC BY-SA 3.0. It is looked for in the folder that the
environment variable EVENHAND_DATA names, or in ``~/.cache/evenhand``, as the four original files
(``train-images-idx3-ubyte.gz`` …) or as ``mnist_train.npz`` and ``mnist_test.npz`` with arrays
``x`` and ``y``. ``evenhand data mnist`` downloads the original files and checks them.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from evenhand.files import read_bytes, require_readable, write_atomically

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {
    "train-images-idx3-ubyte.gz": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
    ),
    "train-labels-idx1-ubyte.gz": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
    ),
}
"""The SHA-256 of each original file."""


class MNIST(NamedTuple):
    """Pictures uint8 [n, 28, 28] and classes int64 [n], to train and to test."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def folder() -> Path:
    """Where data sets are kept: $EVENHAND_DATA, or ~/.cache/evenhand."""
    named = os.environ.get("EVENHAND_DATA")
    return Path(named) if named else Path.home() / ".cache" / "evenhand"


def load(where: Path | None = None) -> MNIST:
    """MNIST from the folder `where`, by default `folder()`.

    Raises:
        ValueError: it is not there (the message says how to get it), or a file is damaged.
    """
    where = folder() if where is None else where
    if all((where / f"mnist_{part}.npz").exists() for part in ("train", "test")):
        pairs = [_npz(where / f"mnist_{part}.npz") for part in ("train", "test")]
        return MNIST(*(array for pair in pairs for array in pair))
    missing = [name for name in FILES if not (where / name).exists()]
    if missing:
        raise ValueError(
            f"MNIST is not in {where} ({missing[0]} is missing): `evenhand data mnist` downloads "
            "it there; EVENHAND_DATA names another folder"
        )
    return MNIST(*(_idx(where / name) for name in FILES))


def fetch(
    where: Path | None = None,
    told: Callable[[str], None] = lambda line: None,
    mirror: str | None = None,
) -> Path:
    """Download what is missing of the four original files, check them, keep them; the folder.

    Args:
        where: the folder, made if need be; by default `folder()`.
        told: gets a line per file.
        mirror: the address before the files' names; by default `MIRROR`.

    Raises:
        ValueError: the mirror cannot be read, or gave something else than the original.
    """
    where = folder() if where is None else where
    mirror = MIRROR if mirror is None else mirror
    where.mkdir(parents=True, exist_ok=True)
    for name, digest in FILES.items():
        if (where / name).is_file() and _sha256(read_bytes(where / name, LARGEST)) == digest:
            told(f"{name} is there")
            continue
        try:
            with urlopen(mirror + name, timeout=60) as answer:
                content = answer.read(LARGEST)
        except (OSError, HTTPException) as error:  # a broken connection may be either
            raise ValueError(
                f"{mirror}{name} cannot be read: {error}; nothing of it was kept"
            ) from error
        if _sha256(content) != digest:
            raise ValueError(
                f"{mirror}{name} is not the original file: its SHA-256 is {_sha256(content)}, it "
                f"should be {digest}; nothing was kept"
            )
        write_atomically(where / name, content)
        told(f"{name} downloaded and checked")
    return where


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _npz(file: Path) -> tuple[Tensor, Tensor]:
    require_readable(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise ValueError(f"{file} holds no arrays x and y ({error}): {AGAIN}") from error
    if x.dtype != np.uint8 or x.shape != (len(x), 28, 28) or y.shape != (len(x),):
        raise ValueError(
            f"{file} has x {x.dtype} {x.shape} and y {y.shape}, not uint8 [n, 28, 28] and [n]: "
            f"{AGAIN}"
        )
    if not np.issubdtype(y.dtype, np.integer) or not ((y >= 0) & (y <= 9)).all():
        raise ValueError(f"{file} has classes that are no digits: {AGAIN}")
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def _idx(file: Path) -> Tensor:
    """An idx file: two zero bytes, the type (8: unsigned byte), the rank, the sizes, the data."""
    packed = read_bytes(file, LARGEST)
    if _sha256(packed) != FILES[file.name]:
        raise ValueError(f"{file} is damaged, or not the original file: {AGAIN}")
    content = gzip.decompress(packed)
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", count=rank, offset=4).astype(int)
    start = 4 + 4 * rank
    if content[:3] != b"\0\0\x08" or len(content) != start + sizes.prod():
        raise ValueError(f"{file} is damaged: {AGAIN}")
    values = np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy()
    array = torch.from_numpy(values)
    return array if rank == 3 else array.long()


AGAIN = "delete it and run `evenhand data mnist`"
LARGEST = 64 << 20
"""The most bytes of one of the files."""
