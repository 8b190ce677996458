"""Arguments of the wrong kind, told by name before they are used."""

from __future__ import annotations

import inspect
import math
import types
from collections import abc
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache, wraps
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from evenhand.text import quoted, unknown

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which refuses arguments that are not what its annotations say.

    Numbers, words, truth values, classes, and tuples, sequences and mappings of them are looked
    at; a protocol, a function's own arguments and what is generic otherwise are not.

    Raises:
        TypeError: from the function: an argument is of another kind; the message names it.
        ValueError: from the function: a number is NaN.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checking(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        hints = _hints(function)
        for name, value in given.items():
            if name in hints:
                require_kind(name, value, hints[name])
        return function(*args, **kwargs)

    return checking


def require_kind(name: str, value: Any, hint: Any) -> None:
    """See that an argument is of a kind.

    Raises:
        TypeError: it is of another one.
        ValueError: it is NaN.
    """
    if (type(value) is hint and hint is not float) or _fits(value, hint):
        return
    message = f"{name}={quoted(value)}: must be {_told(hint)}"
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(message)
    raise TypeError(message)


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Its annotations; a class that is imported for type checkers alone may be anything."""
    unseen: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(function, localns=unseen)
        except NameError as error:
            unseen[str(error.name)] = Any


@cache
def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@cache
def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """What is generic in a hint, and what it is filled with."""
    return get_origin(hint), get_args(hint)


def _is_word(hint: Any) -> bool:
    return get_origin(hint) is Literal


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    parts = _parts(hint)
    if len(parts) > 1:
        return any(_fits(value, part) for part in parts)
    origin, inner = _taken_apart(hint)
    if hint in (int, float):
        kind = Integral if hint is int else Real
        return type(value) is not bool and isinstance(value, kind) and value == value
    if origin is Literal:
        return isinstance(value, str) or value in inner  # which words there are, the function says
    if origin in (tuple, abc.Sequence):
        fits = isinstance(value, tuple | list if origin is tuple else abc.Sequence)
        return fits and not isinstance(value, str) and all(_fits(v, inner[0]) for v in value)
    if origin is abc.Iterable:
        return isinstance(value, abc.Iterable) and not isinstance(value, str)
    if origin is abc.Mapping:
        # Of NaN among the values the function says which it is.
        return isinstance(value, abc.Mapping) and all(
            _fits(k, inner[0]) and (_fits(v, inner[1]) or (isinstance(v, float) and math.isnan(v)))
            for k, v in value.items()
        )
    if origin is abc.Callable:
        return callable(value)
    if isinstance(hint, type) and origin is None and _is_asked(hint):
        return isinstance(value, hint)
    return True


def _is_asked(hint: type) -> bool:
    """Whether a value can be asked if it is one: of protocols, those that say so."""
    said = vars(hint)
    return not said.get("_is_protocol") or bool(said.get("_is_runtime_protocol"))


def _told(hint: Any) -> str:
    """A kind in words."""
    names = {
        Any: "anything",
        int: "an integer",
        float: "a number",
        bool: "True or False",
        type(None): "None",
    }
    parts, inner = _parts(hint), get_args(hint)
    if len(parts) > 1:
        return " or ".join(map(_told, parts))
    if _is_word(hint):
        return f"one of {', '.join(map(repr, inner))}"
    origin = get_origin(hint)
    if abc.Callable in (origin, hint):
        return "a function"
    if origin in (tuple, abc.Sequence, abc.Iterable):
        return f"several ({_told(inner[0])} each), not a single one or a text"
    if origin is abc.Mapping:
        return f"a mapping of keys ({_told(inner[0])} each) to values ({_told(inner[1])} each)"
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")


def several(
    argument: str, names: Iterable[str], known: Iterable[str], what: str
) -> tuple[str, ...]:
    """Names, each of which must be known.

    Args:
        argument: what the caller calls them.
        names: them.
        known: those that there are.
        what: what has a name, in words.

    Raises:
        TypeError: a single text is given.
        ValueError: one is not known; the message says the nearest.
    """
    if isinstance(names, str):
        raise TypeError(f"{argument}={quoted(names)}: must be several, not a text")
    given, there = tuple(names), set(known)
    for name in given:
        if name not in there:
            raise ValueError(unknown(name, known, what, argument))
    return given


def require_fields(made: Any) -> None:
    """`require_kind` for every field of a dataclass.

    Raises:
        TypeError, ValueError: as `require_kind` does.
    """
    kind: Any = type(made)
    for name, hint, default in _kinds(kind):
        value = getattr(made, name)
        if value is not default:
            require_kind(name, value, hint)


@cache
def _kinds(made: Any) -> tuple[tuple[str, Any, Any], ...]:
    """The fields of a dataclass, what they must be, and what they are by default."""
    hints = _hints(made)
    return tuple((entry.name, hints[entry.name], entry.default) for entry in fields(made))
