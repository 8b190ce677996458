"""An option is declared once: command, file, setting and the way on follow from that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import typer
from pydantic import Field, ValidationError
from typer.testing import CliRunner

from evenhand.app.config import Config
from evenhand.app.options import (
    Option,
    options_of,
    settings_of,
    takes_options,
    words_of_settings,
)
from evenhand.comparison.request import Settings


class Dimmed(Config):
    """The configuration with a made-up option more."""

    light: Annotated[float, Field(ge=0, le=1), Option("X", "How bright it is.", "shade")] = 1.0
    dark: Annotated[bool, Option("", "Whether it is night.")] = False


@pytest.fixture
def command() -> tuple[typer.Typer, list[dict[str, Any]]]:
    app, seen = typer.Typer(), []

    @app.command()
    @takes_options(Dimmed, "light", "dark", "lr", "out", dark="Whether the sun has set.")
    def shine(source: str, *, asked: dict[str, Any]) -> None:
        seen.append({"source": source} | asked)

    return app, seen


def test_a_command_takes_it(command) -> None:
    app, seen = command
    told = CliRunner().invoke(app, ["digits", "--light", "0.5", "--dark"])
    assert told.exit_code == 0, told.output
    (given,) = seen
    assert given == {"source": "digits", "light": "0.5", "dark": True, "lr": None, "out": None}
    text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert "--light" in text
    assert "How bright it is." in text
    assert "Whether the sun has set." in text
    assert "night" not in text


def test_an_option_that_takes_one_value_is_given_once() -> None:
    from evenhand.app import cli, door

    for words in ("compare --config a --config b", "train t.csv --lr 1 --lr 1", "methods"):
        told = CliRunner().invoke(cli.app, words.split())
        name = words.split()[-2] if " " in words else ""
        assert (f"{name} is given 2 times: give it once" in told.stderr) == bool(name)
        assert told.exit_code == 2 * bool(name)
    assert CliRunner().invoke(cli.app, ["report", "nowhere", "--delta", "--delta"]).exit_code == 2

    groups: list[Any] = [typer.main.get_command(cli.app)]
    while groups:
        for name, one in groups.pop().commands.items():
            groups += [one] if name == "new" else []
            assert name == "new" or isinstance(one, door.Command)


def test_a_file_has_its_key_within_bounds() -> None:
    assert Dimmed.model_validate({"source": "digits", "light": "0.25"}).light == 0.25
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Dimmed.model_validate({"source": "digits", "light": "1.5"})


def test_the_library_is_told() -> None:
    asked = Dimmed.model_validate({"source": "digits", "light": 0.25, "seeds": 3, "lr": "0.1,1"})
    told = settings_of(asked)
    assert told["shade"] == 0.25
    assert told["seeds"] == (0, 1, 2)
    assert told["rates"] == (0.1, 1.0)
    assert told["epochs"] is None
    assert "dark" not in told


def test_the_way_on_is_spelled_out() -> None:
    settings = SimpleNamespace(
        **vars(Settings("digits", seeds=(0, 1), rates=(0.1, 1.0))), shade=0.5
    )
    words = words_of_settings(Dimmed, settings)
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    assert pairs["--light"] == "0.5"
    assert pairs["--seeds"] == "2"
    assert pairs["--lr"] == "0.1,1"
    assert "--epochs" not in pairs


def test_every_setting_that_an_option_fills_is_one() -> None:
    names = {option.setting for option in options_of(Config).values()} - {""}
    assert names <= set(Settings.__dataclass_fields__)
