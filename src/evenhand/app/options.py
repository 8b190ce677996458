"""Options of commands, made from the configuration that they fill.

An option is declared once, as a field of `config.Config`: its type and bounds are pydantic's, and
an `Option` beside them says how a command spells it. The key of a configuration file, the option of
every command that takes it, and the word of the command line that goes on with a run follow. What
the library is told, and a manifest keeps, is the field of `Settings` that the option names.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

Command = TypeVar("Command", bound=Callable[..., Any])


def spelled(value: Any) -> str:
    """A value as it is written on a command line: numbers short, several with commas."""
    if isinstance(value, float):  # as short as it can be said and still be the same number
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ",".join(map(spelled, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Option:
    """How a command spells a field of a configuration.

    Attributes:
        metavar: what stands for the value in the help; "" for a switch.
        help: what it does, with its default in brackets.
        setting: the field of `Settings` that it fills; "" where the command alone uses it.
        told: the option's value -> that of the setting.
        written: the setting's value -> as it is typed.
        complete: what a shell offers for a word that is begun.
    """

    metavar: str
    help: str
    setting: str = ""
    told: Callable[[Any], Any] = lambda value: value
    written: Callable[[Any], str] = spelled
    complete: Callable[[str], list[str]] | None = None

    def annotation(self, name: str, text: str) -> Any:
        """The type of a command's parameter. All values are read by the configuration."""
        flag = f"--{name.replace('_', '-')}"
        if not self.metavar:
            return Annotated[bool | None, typer.Option(flag, help=text)]
        kind = Path if self.metavar in ("DIR", "FILE") else str  # shells complete paths
        option = typer.Option(flag, metavar=self.metavar, help=text, autocompletion=self.complete)
        return Annotated[kind | None, option]


def options_of(model: type[BaseModel]) -> dict[str, Option]:
    """The options that the fields of a configuration declare, by name, in order."""
    return {
        name: option
        for name, field in model.model_fields.items()
        for option in field.metadata
        if isinstance(option, Option)
    }


def takes_options(
    model: type[BaseModel], *names: str, **other_help: str
) -> Callable[[Command], Command]:
    """Give a command the options of a configuration; it gets them in its parameter `asked`.

    Args:
        model: the configuration.
        names: which of them; all by default.
        other_help: help that differs in this command, by name.
    """
    known = options_of(model)
    chosen = {name: known[name] for name in names or known}

    added = {
        name: option.annotation(name, other_help.get(name, option.help))
        for name, option in chosen.items()
    }
    return lambda command: with_options(command, added, "asked", first=True)


def with_options(
    command: Command, added: Mapping[str, Any], into: str, *, first: bool = False
) -> Command:
    """A command with further options, which it gets as one mapping.

    Args:
        command: called by names alone, as typer does; it has a keyword parameter called `into`.
        added: the type of each option, as typer wants it, by name.
        into: the parameter that gets what was given, by name.
        first: whether the help shows them before the command's own options.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for name, p in signature.parameters.items() if name != into]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in added.items()
    ]
    at = sum(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in own) if first else len(own)
    parameters = [*own[:at], *more, *own[at:]]

    @functools.wraps(command)
    def called(**given: Any) -> Any:
        told = {name: given.pop(name) for name in added}
        return command(**given, **{into: told})

    # What typer reads; the rest of the function is as it was.
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    del called.__wrapped__
    return called  # type: ignore[return-value]  # it is called by names alone, as typer does


def settings_of(asked: BaseModel) -> dict[str, Any]:
    """What the library is told: by the name of the setting; None where nothing was said."""
    found = {}
    for name, option in options_of(type(asked)).items():
        if option.setting:
            value = getattr(asked, name)
            found[option.setting] = None if value is None else option.told(value)
    return found


def words_of_settings(model: type[BaseModel], settings: object, *names: str) -> list[str]:
    """The words of a command line that say these settings; by default all that options fill."""
    words = []
    for name, option in options_of(model).items():
        if names and name not in names:
            continue
        value = getattr(settings, option.setting) if option.setting else None
        if value is not None:
            words += [f"--{name.replace('_', '-')}", option.written(value)]
    return words
