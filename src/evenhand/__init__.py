"""Evenhand: train one network on many tasks so that every task gets its due.

The public names are those of `evenhand.public`. They are loaded, and torch with them, when the
first one is used (PEP 562): what needs none of them, such as ``evenhand --help``, answers at once.
"""

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    dunder = name.startswith("__") and name != "__all__"
    # Rooms first: `from evenhand import recipes` asks here, and must not load the public names.
    if not dunder and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    public = None if dunder else import_module("evenhand.public")
    if public is None or name not in {"__all__", *public.__all__}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(public, name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("evenhand.public").__all__})
