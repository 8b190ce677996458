"""What tells one data set from another: a hash of everything that a problem's parts hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from hashlib import _Hash

    from evenhand.data.problem import Problem, Split


@runtime_checkable
class Fingerprinted(Protocol):
    """A part that is not held in memory, and says itself what its data are."""

    def fingerprint(self) -> str:
        """Another text for other data."""
        ...


def fingerprint(problem: Problem) -> str:
    """A SHA-256 of the data of all parts, 64 hexadecimal digits, the same on every machine.

    Tensors in memory (a `Split`, a list of batches, a `TensorDataset`) go in with name, type, shape
    and every byte. Another part goes in as it says itself (`Fingerprinted`: pictures by the names
    and sizes of their files), or else by its type and length alone.
    """
    digest = hashlib.sha256()
    parts: Mapping[str, Any] = {
        "train": problem.train,
        "validation": problem.validation,
        "test": problem.test,
    }
    for name, part in parts.items():
        _told(digest, "part", name)
        _add(digest, part)
    return digest.hexdigest()


def of_files(files: Iterable[Path]) -> str:
    """A SHA-256 of the names of files (with the two folders above them) and of their sizes.

    Raises:
        OSError: a file is not there.
    """
    digest = hashlib.sha256()
    for file in files:
        _told(digest, "/".join(file.parts[-3:]), file.stat().st_size)
    return digest.hexdigest()


def _add(digest: _Hash, part: Any) -> None:
    from evenhand.data.problem import Split

    match part:
        case Split():
            _add_split(digest, part)
        case Fingerprinted():
            _told(digest, "told", part.fingerprint())
        case list() | tuple():
            _add_batches(digest, part)
        case DataLoader(dataset=TensorDataset(tensors=tensors)):
            _told(digest, "loader", part.batch_size, len(part))
            for tensor in tensors:
                _add_tensor(digest, tensor)
        case _:
            _told(digest, "length", type(part).__name__, len(part))


def _add_split(digest: _Hash, split: Split) -> None:
    _told(digest, "inputs")
    _add_tensor(digest, split.inputs)
    for task in sorted(split.targets):
        _told(digest, "targets", task)
        _add_tensor(digest, split.targets[task])


def _add_batches(digest: _Hash, batches: Sequence[Any]) -> None:
    for batch in batches:
        leaves, nest = tree_flatten(batch)
        _told(digest, "batch", str(nest))
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                _add_tensor(digest, leaf)
            else:
                _told(digest, "value", repr(leaf))


def _add_tensor(digest: _Hash, tensor: Tensor) -> None:
    _told(digest, str(tensor.dtype), list(tensor.shape))
    flat = tensor.detach().cpu().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data)


def _told(digest: _Hash, *words: Any) -> None:
    """Words with their boundaries, so that no two lists of words are one."""
    digest.update(json.dumps(words).encode() + b"\n")
