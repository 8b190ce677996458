"""Evenhand: train one network on many tasks so that every task gets its due.

The public names are those of `evenhand.public`. They are loaded, and torch with them, when the
first one is used: what needs none of them, such as ``evenhand --help``, answers at once.
"""

from typing import TYPE_CHECKING

from evenhand.lazy import names_of

__version__ = "0.1.0"

if TYPE_CHECKING:  # a type checker sees plain imports, and still finds a misspelt name
    from evenhand import public
    from evenhand.public import *  # noqa: F403

    __all__: list[str] = []
    __all__ += public.__all__
else:
    __getattr__, __dir__ = names_of("evenhand.public", __name__)
