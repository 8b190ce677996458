"""The API reference: a page for each room."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import docstrings
from entries import member
from names import METHODS, TITLES, link, members, room_of, rooms, slug

import evenhand


def api_page(room: str, modules: tuple[ModuleType, ...]) -> str:
    parts = [f"# {TITLES.get(room, room.capitalize())}"]
    for module in modules:
        own = [(name, thing) for name, thing in members(module) if not _has_page(name, thing)]
        if not own and module.__name__ != f"evenhand.{room}":
            continue
        if len(modules) > 1 and module.__name__ != f"evenhand.{room}":
            parts.append(f"## `{module.__name__}`")
        about = inspect.getdoc(module)
        if about:
            parts.append(docstrings.markdown(about, link))
        parts += [member(name, thing) for name, thing in own]
    if room in ("weighting", "aggregation"):
        named = [name for name in METHODS if room_of(METHODS[name]) == room]
        parts.append("## Methods\n\nEach has [a page](../methods/index.md):")
        parts.append(", ".join(f"[{name}](../methods/{slug(name)}.md)" for name in sorted(named)))
    return "\n\n".join(parts) + "\n"


def _has_page(name: str, thing: Any) -> bool:
    return METHODS.get(name) is thing


def api_index() -> str:
    pages = "\n".join(rooms())
    return (
        "# API reference\n\nMade from the docstrings, in the order of the stair that data walks "
        "down. Public names are imported from `evenhand` itself; they are on the pages of their "
        f"rooms.\n\n{_public_list()}\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
    )


def _public_list() -> str:
    by_room: dict[str, list[str]] = {}
    for name in sorted(evenhand.public.__all__, key=str.lower):
        thing = getattr(evenhand.public, name)
        by_room.setdefault(room_of(thing), []).append(link(name))
    order = [*TITLES, *sorted(set(by_room) - set(TITLES))]
    return "\n".join(
        f"- [{TITLES.get(room, room)}]({room}.md): {', '.join(by_room[room])}"
        if room in by_room
        else f"- [{TITLES.get(room, room)}]({room}.md)"
        for room in order
        if room in rooms()
    )
