"""What the README shows runs as shown, and so do the examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_readmes_code_runs(capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    weights = capsys.readouterr().out
    assert weights.startswith("tensor([")


def test_what_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_the_readme_is_short_and_says_what_sg_is_before_it_uses_it() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 80
    assert text.index("(`sg`:") == text.index("`sg`") - 1


def test_the_hooks_run_what_ci_runs() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    targets = [t for t in re.findall(r"^make (\w+)", run, re.MULTILINE) if t != "venv"]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    recipes = (ROOT / "Makefile").read_text()
    assert targets
    for target in targets:
        (recipe,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", recipes, re.MULTILINE)
        tools = re.findall(r"\$\(BIN\)/(\w+(?: \w+)?)(?= |$)", recipe, re.MULTILINE)
        itself = f"entry: make {target}\n" in hooks
        assert itself or all(f".venv/bin/{tool}" in hooks for tool in tools), target


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example_runs(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
