"""What methods are set to, in words that ranks can compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def settings(methods: Mapping[str, nn.Module]) -> dict[str, str]:
    """The kind of each method, by its slot, and its options, those of methods inside it too.

    An option is a public attribute or a buffer. A function is told by its name, any other object by
    its kind, so that what a process alone can know (an address, a device) does not count.
    """
    found = {}
    for slot, method in methods.items():
        for path, module in method.named_modules(prefix=slot):
            found[path] = type(module).__qualname__
            for name, value in _options(module):
                found[f"{path}.{name}"] = _told(value)
    return found


def difference(mine: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The first setting in which two differ, and both values; "nothing" stands for none."""
    for name in [*mine, *(name for name in other if name not in mine)]:
        one, two = mine.get(name, "nothing"), other.get(name, "nothing")
        if one != two:
            return name, one, two
    return None


def _options(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if not name.startswith("_") and name != "training":
            yield name, value
    yield from module.named_buffers(recurse=False)


def _told(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_told(k)}: {_told(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_told, value)) + ")"
    return str(getattr(value, "__qualname__", type(value).__qualname__))
