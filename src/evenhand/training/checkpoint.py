"""Everything that makes a run resume bit for bit, in one file that holds no code.

A checkpoint is a safetensors file: tensors as they are, the rest of the state as JSON in its
metadata. It is written atomically.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenhand.training.records import write_atomically

FORMAT = "evenhand-1"


def save(state: dict[str, Any], path: Path) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises:
        TypeError: something else is among them; the message says where.
    """
    from safetensors.torch import save as to_bytes

    tensors: dict[str, Tensor] = {}
    structure = _encode(state, "state", tensors)
    metadata = {"format": FORMAT, "structure": json.dumps(structure)}
    write_atomically(path, to_bytes(tensors, metadata=metadata))


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote. Nothing is unpickled.

    Raises:
        ValueError: the file is not a checkpoint of this kind, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no checkpoint: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no {FORMAT} checkpoint")
    state: dict[str, Any] = _decode(json.loads(metadata["structure"]), tensors)
    return state


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
