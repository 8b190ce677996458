"""Evenhand: train one network on many tasks so that every task gets its due.

The public names are those of `evenhand.public`. They are loaded, and torch with them, when the
first one is used (PEP 562): what needs none of them, such as ``evenhand --help``, answers at once.
The estimators need scikit-learn, an extra; they are no part of ``from evenhand import *``.
"""

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

_ESTIMATORS = ("MultiTaskClassifier", "MultiTaskEstimator", "MultiTaskRegressor")


def __getattr__(name: str) -> object:
    dunder = name.startswith("__") and name != "__all__"
    # Rooms first: `from evenhand import recipes` asks here, and must not load the public names.
    if not dunder and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    if name in _ESTIMATORS:
        made: object = getattr(import_module("evenhand.estimators"), name)
        return made
    public = None if dunder else import_module("evenhand.public")
    if public is None or name not in {"__all__", *public.__all__}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(public, name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ESTIMATORS, *import_module("evenhand.public").__all__})
