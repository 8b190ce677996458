"""How the command line spells what is asked for, for sentences from below, see `asking`."""

from __future__ import annotations

from typing import Any

from evenhand.app.config import Config, for_shell
from evenhand.app.options import options_of
from evenhand.app.source_options import words_of


class OnCommandLine:
    """`--splits 5`, `--kind town=category`: the options of `evenhand compare`."""

    def option(self, name: str, value: Any) -> str:
        for flag, known in options_of(Config).items():
            if known.setting == name and value is not None:
                return f"--{flag} {for_shell(known.written(value))}"
            if known.setting == name:
                return f"--{flag}"
        return self.of_table(name, value)

    def of_table(self, name: str, value: Any) -> str:
        words = words_of({name: True if value is None else value})
        return " ".join(map(for_shell, words))
