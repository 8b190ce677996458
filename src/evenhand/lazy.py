"""Packages whose names are loaded when they are used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec


def names_of(home: str, package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for `package`, whose public names are those of `home`.

    ``__all__`` is `home`'s, so ``from package import *`` works. A submodule is imported when it is
    used as an attribute, like the submodules of scipy.

    Args:
        home: name of the module that defines ``__all__`` and everything in it.
        package: name of the package.
    """

    def __getattr__(name: str) -> object:
        dunder = name.startswith("__") and name != "__all__"
        # Submodules first: `from package import submodule` asks here, and must not load `home`.
        if not dunder and find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        module = None if dunder else import_module(home)
        if module is None or name not in {"__all__", *module.__all__}:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)  # the next use does not come here
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *import_module(home).__all__})

    return __getattr__, __dir__
