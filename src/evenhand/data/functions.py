"""Problems that a function of the user's makes: `package.module:function`, `mine.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from evenhand import theirs
from evenhand.data.problem import Problem


def called(text: str) -> Problem | Callable[[int], Problem]:
    """What `module:function` stands for.

    A function without arguments is called, and gives the problem, divided; where the problem has a
    pool, splits are drawn from it. A function that takes one argument is given the number of a
    split, and divides the data itself.

    Raises:
        ValueError: there is no such module or function, or what it gives is no `Problem`.
    """
    module, _, name = text.rpartition(":")
    function = getattr(_module(module), name, None)
    if not callable(function):
        raise ValueError(f"{module} has no function {name!r}")
    number = _arguments(function, text)
    if number == 0:
        return _checked(text, function())
    return _Checked(text, function)


class _Checked:
    """The function, and a look at what it gives."""

    def __init__(self, text: str, function: Callable[[int], Any]) -> None:
        self._text, self._function = text, function

    def __call__(self, split: int) -> Problem:
        return _checked(self._text, self._function(split))


def _checked(text: str, made: Any) -> Problem:
    if not isinstance(made, Problem):
        raise ValueError(
            f"{text} gave a {type(made).__name__}: it must return an evenhand.data.Problem"
        )
    return made


def _arguments(function: Callable[..., Any], text: str) -> int:
    """How many arguments it wants, none or one."""
    wanted = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    needed = [parameter for parameter in wanted if parameter.default is parameter.empty]
    if len(needed) > 1:
        names = ", ".join(parameter.name for parameter in needed)
        raise ValueError(
            f"{text} wants {len(needed)} arguments ({names}): it is called with none, or with the "
            "number of a split"
        )
    return 1 if wanted else 0


def _module(name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _of_file(Path(name))
        if "" not in sys.path:  # a console script does not look where one stands
            sys.path.insert(0, "")
        _note_folder(name)
        module = importlib.import_module(name)
        theirs.known(module.__file__)
        return module
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        raise ValueError(f"there is no module {name!r} here: {error}") from error


def _note_folder(name: str) -> None:
    """Of a module that is going to be imported, so that an error on the way is told with its place.

    Only the top of a package is found without importing anything.
    """
    spec = importlib.util.find_spec(name.partition(".")[0])
    if spec is not None:
        theirs.known(spec.origin)


def _of_file(file: Path) -> ModuleType:
    """The module in a file, run once in a process; its folder can be imported from."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    file = file.resolve()
    theirs.known(str(file))
    name = f"evenhand_file_{abs(hash(str(file))):x}"
    loaded = sys.modules.get(file.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
