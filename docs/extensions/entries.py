"""Entries of the reference: a class or function with its signature and its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import docstrings
from names import full_name, link


def member(name: str, thing: Any) -> str:
    kind = "class" if inspect.isclass(thing) else "function"
    content = docstrings.markdown(inspect.getdoc(thing) or "", link)
    if kind == "class":
        content += "".join(f"\n\n{method}" for method in methods_of(thing))
    return directive(kind, full_name(name, thing), thing, content)


def methods_of(thing: type) -> Iterator[str]:
    for name, part in vars(thing).items():
        plain = part.__func__ if isinstance(part, classmethod | staticmethod) else part
        if name.startswith("_"):
            continue
        if isinstance(part, property) and part.__doc__:
            text = docstrings.markdown(inspect.cleandoc(part.__doc__), link)
            yield fenced("py:attribute", name, [], text, colons=4)
        elif inspect.isfunction(plain) and plain.__doc__:
            text = docstrings.markdown(inspect.cleandoc(plain.__doc__), link)
            arguments = signature(plain, bound=not isinstance(part, staticmethod))
            yield fenced("py:method", name + arguments, [], text, colons=4)


def directive(kind: str, name: str, thing: Any, content: str) -> str:
    options = []
    if f"{thing.__module__}.{thing.__name__}" != name:
        options.append(f":canonical: {thing.__module__}.{thing.__name__}")
    return fenced(f"py:{kind}", name + signature(thing), options, content)


def fenced(directive: str, argument: str, options: list[str], content: str, colons: int = 5) -> str:
    fence = ":" * colons
    head = "\n".join([f"{fence}{{{directive}}} {argument}", *options])
    return f"{head}\n\n{content}\n{fence}"


def signature(thing: Any, bound: bool = False) -> str:
    """The arguments as the source writes them, without `self`."""
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except ValueError:  # what is written in C tells no signature
        return ""
    parameters = parameters[1:] if bound else parameters
    shown = []
    star = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        star |= p.kind is p.VAR_POSITIONAL
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        text = prefix + p.name
        if p.default is not p.empty:
            text += f"={_default(p.default)}"
        shown.append(text)
    return f"({', '.join(shown)})"


def _default(value: Any) -> str:
    text = repr(value)
    return "…" if "<" in text or len(text) > 30 else text
