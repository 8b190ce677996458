"""What a shell offers for a word that is begun; `evenhand --install-completion` sets it up."""

from __future__ import annotations

from evenhand.recipes import RECIPES
from evenhand.sources import SOURCES


def source_names(incomplete: str) -> list[str]:
    """Data sets; where none begins so, the shell offers files."""
    return [entry.name for entry in SOURCES if entry.name.startswith(incomplete)]


def recipe_names(incomplete: str) -> list[str]:
    """Recipes, the last of a list that is begun."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{r.name}" for r in RECIPES if r.name.startswith(last)]
