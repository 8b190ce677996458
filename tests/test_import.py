"""What `import evenhand` costs: torch, numpy and the bare scipy package, nothing else."""

from __future__ import annotations

import subprocess
import sys
from functools import cache


@cache
def loaded(statement: str) -> frozenset[str]:
    """The modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return frozenset(run.stdout.split())


def test_nothing_is_loaded_beyond_the_base() -> None:
    added = loaded("import evenhand") - loaded("import torch, numpy, scipy")
    foreign = {
        name
        for name in added
        if name.partition(".")[0] not in {"evenhand", "numpy", *sys.stdlib_module_names}
    }
    assert not foreign


def test_no_submodule_of_scipy_is_loaded_beyond_those_of_the_bare_package() -> None:
    # Torch or numpy may load some themselves; this library adds none to what they do.
    added = loaded("import evenhand") - loaded("import torch, numpy, scipy")
    assert not {name for name in added if name.startswith("scipy")}


def test_the_library_does_not_load_the_tool() -> None:
    every = loaded(
        "import evenhand.comparison.compare, evenhand.ensemble.training, evenhand.training.loop"
    )
    assert not {name for name in every if name.startswith("evenhand.app")}
    extras = {"typer", "rich", "pydantic", "matplotlib", "jinja2", "sklearn", "torchmetrics"}
    extras |= {"safetensors", "yaml", "pandas"}
    assert not extras & {name.partition(".")[0] for name in every}


def test_every_public_name_is_there() -> None:
    import evenhand

    assert len(set(evenhand.__all__)) == len(evenhand.__all__)
    assert all(hasattr(evenhand, name) for name in evenhand.__all__)
