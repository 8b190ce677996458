"""Evenhand: train one network on many tasks so that every task gets its due.

The public names are those of `evenhand.public`. They are loaded, and torch with them, when the
first one is used: what needs none of them, such as ``evenhand --help``, answers at once.
"""

from evenhand.lazy import names_of

__version__ = "0.1.0"

__getattr__, __dir__ = names_of("evenhand.public", __name__)
