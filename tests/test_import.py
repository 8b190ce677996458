"""What `import evenhand` costs, and what the tool loads before it knows that it has work to do."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest


@cache
def loaded(statement: str) -> frozenset[str]:
    """The modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return frozenset(run.stdout.split())


EVERYTHING = "from evenhand import *"


def test_nothing_is_loaded_beyond_the_base() -> None:
    added = loaded(EVERYTHING) - loaded("import torch, numpy, scipy")
    assert "evenhand.balancer" in added
    foreign = {
        name
        for name in added
        if name.partition(".")[0] not in {"evenhand", "numpy", *sys.stdlib_module_names}
    }
    assert not foreign


def test_no_submodule_of_scipy_is_loaded_beyond_those_of_the_bare_package() -> None:
    # Torch or numpy may load some themselves; this library adds none to what they do.
    added = loaded(EVERYTHING) - loaded("import torch, numpy, scipy")
    assert not {name for name in added if name.startswith("scipy")}


def test_the_library_does_not_load_the_tool() -> None:
    every = loaded(
        "import evenhand.comparison.compare, evenhand.ensemble.training, evenhand.training.loop;"
        "import evenhand.comparison.single, evenhand.tables.arrays, evenhand.tables.predicting"
    )
    assert not {name for name in every if name.startswith("evenhand.app")}
    extras = {"typer", "rich", "pydantic", "matplotlib", "jinja2", "sklearn", "torchmetrics"}
    extras |= {"safetensors", "yaml", "pandas"}
    assert not extras & {name.partition(".")[0] for name in every}


def test_every_public_name_is_there() -> None:
    import evenhand

    assert len(set(evenhand.__all__)) == len(evenhand.__all__)
    assert all(hasattr(evenhand, name) for name in evenhand.__all__)
    assert set(evenhand.__all__) <= set(dir(evenhand))


# Public names come late -----------------------------------------------------------------------

HEAVY = {"torch", "numpy", "scipy", "matplotlib"}


def test_the_package_alone_loads_nothing_heavy() -> None:
    assert not HEAVY & loaded("import evenhand")
    assert not HEAVY & loaded("from evenhand import recipes, sources; recipes.recipe('mgda')")


def test_a_public_name_and_a_room_come_when_they_are_used() -> None:
    assert "torch" in loaded("import evenhand; evenhand.MGDA")
    assert "torch" in loaded("import evenhand; evenhand.weighting.MGDA")
    assert "evenhand.weighting" in loaded("import evenhand.weighting")


def test_what_is_not_public_is_not_there() -> None:
    import evenhand

    for name in ("MGDAA", "Mapping", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"'evenhand' has no attribute '{name}'"):
            getattr(evenhand, name)


# The tool -------------------------------------------------------------------------------------

TOOL = """
import sys
from typer.testing import CliRunner
from evenhand.app.cli import app
result = CliRunner().invoke(app, sys.argv[1:])
print(result.exit_code, *sys.modules)
print(result.output, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("compare --help", 0),
        ("methods --help", 0),
        ("datasets --help", 0),
        ("data --help", 0),
        ("report --help", 0),
        ("doctor --help", 0),
        ("train --help", 0),
        ("predict --help", 0),
        ("export --help", 0),
        ("new --help", 0),
        ("datasets", 0),
        ("compare", 2),
        ("compare digit", 2),
        ("compare digits --recipes mgd", 2),
        ("compare digits --seeds 0", 2),
        ("compare digits --lr 0.1,0.1", 2),
        ("compare digits --optimizer rms", 2),
        ("compare digits --stack maybe", 2),
        ("compare digits --jacobian fast", 2),
        ("compare digits --resume", 2),
        ("compare digits --out .", 2),
        ("compare --config none.yaml", 2),
        ("compare digits --nothing", 2),
        ("compare t.csv --target y --kind x", 2),
        ("compare t.csv --target y --kind x=colour", 2),
        ("compare t.csv --target y --network cnn", 2),
        ("compare t.csv --target y --budget soon", 2),
        ("train t.csv --recipe sgg", 2),
        ("methods --recipes mgd", 2),
        ("methods --figure picture", 2),
        ("data digits", 2),
        ("doctor", 2),
        ("doctor digit", 2),
        ("doctor digits --splits 0", 2),
        ("doctor digits --out .", 2),
        ("report .", 2),
    ],
)
def test_help_lists_and_refusals_load_nothing_heavy(command, code, tmp_path) -> None:
    (tmp_path / "file").touch()
    ended, modules = _tool(command, tmp_path)
    assert ended == code
    assert not HEAVY & modules


def test_a_column_that_is_not_there_is_told_before_torch_is_loaded(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    ended, modules = _tool("compare t.csv --target c", tmp_path)
    assert ended == 2
    assert "torch" not in modules


def _tool(command: str, folder: Path) -> tuple[int, set[str]]:
    """How a command ends, and what it has loaded."""
    words = [sys.executable, "-c", TOOL, *command.split()]
    run = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=True)
    code, *modules = run.stdout.split()
    return int(code), set(modules)
