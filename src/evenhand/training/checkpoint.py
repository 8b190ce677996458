"""Everything that makes a run resume bit for bit, in one file that holds no code.

A checkpoint is a safetensors file: tensors as they are, the rest of the state as JSON in its
metadata, and what it is of: the run, how far its records had come, and a SHA-256 of it all. It is
written atomically.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenhand.files import parsed, require_readable, write_atomically
from evenhand.text import plain
from evenhand.training.records import Mark

FORMAT = "evenhand-2"


@dataclass(frozen=True)
class About:
    """What a checkpoint is of.

    Attributes:
        run: what tells the run from others, by name (`Training.identity`).
        records: how far each of its files of records had come, by name.
    """

    run: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, Mark] = field(default_factory=dict)

    def require(self, run: Mapping[str, str], path: Path) -> None:
        """See that the checkpoint at `path` is one of this run.

        Raises:
            ValueError: it is another's; the message says what differs.
        """
        for name in {**run, **self.run}:
            then, now = self.run.get(name, "nothing"), run.get(name, "nothing")
            if then != now:
                raise ValueError(
                    f"{path} is of another run: its {name} was {plain(then, 80)}, here it is "
                    f"{plain(now, 80)}. Choose another folder, or {AGAIN}"
                )


AGAIN = "delete it, and the run begins anew, to the same numbers"


def save(state: dict[str, Any], path: Path, about: About | None = None) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises:
        TypeError: something else is among them; the message says where.
        OSError: it cannot be written.
    """
    from safetensors.torch import save as to_bytes

    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encode(state, "state", tensors))
    told = json.dumps(asdict(about or About()))
    metadata = {"format": FORMAT, "structure": structure, "about": told}
    metadata["sha256"] = digest(f"{structure}\0{told}", tensors)
    write_atomically(path, to_bytes(tensors, metadata=metadata))


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote. Nothing is unpickled.

    Raises:
        ValueError: the file is not a checkpoint of this kind, or it is damaged.
        OSError: it cannot be read.
    """
    return read(path)[0]


def read(path: Path) -> tuple[dict[str, Any], About]:
    """The same, and what it is of."""
    from safetensors import SafetensorError, safe_open

    require_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({error}): {AGAIN}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no {FORMAT} checkpoint: {AGAIN}")
    structure, told = metadata.get("structure", ""), metadata.get("about", "")
    if metadata.get("sha256") != digest(f"{structure}\0{told}", tensors):
        raise ValueError(f"{path} is damaged (its checksum is another): {AGAIN}")
    state: dict[str, Any] = _decode(json.loads(structure), tensors)
    return state, parsed(About, told, str(path))


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a file says, whatever the order of the tensors in it."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        content: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()  # not copied
        found.update(content)
    return found.hexdigest()


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor():
            tensors[where] = value.detach().cpu().contiguous().clone()
            return {"tensor": where}
        case dict():
            pairs = [[k, _encode(v, f"{where}.{k}", tensors)] for k, v in value.items()]
            return {"dict": pairs}
        case list() | tuple():
            items = [_encode(v, f"{where}.{k}", tensors) for k, v in enumerate(value)]
            return {"list" if isinstance(value, list) else "tuple": items}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": pairs}:
            return {key: _decode(item, tensors) for key, item in pairs}
        case {"list": items}:
            return [_decode(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
    return value


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a module's state that further training does not touch."""
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }
