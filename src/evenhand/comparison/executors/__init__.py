"""Where the runs of a comparison are trained: in processes of this machine, by Ray, or by Slurm.

`base` has what they share: who is sent which runs, what is tried again, and how it is seen how far
they are. An executor is one class in a file of its own. Nothing here loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from evenhand.spelling import Spelled
from evenhand.text import plain, quoted

if TYPE_CHECKING:
    from evenhand.comparison.executors.base import Executor

LOCAL = "local"


@dataclass(frozen=True)
class Known:
    """An executor with a name.

    Attributes:
        kind: its class, in the file of this package that has its name.
        package: what must be installed for it, with the extra of its name; "" for nothing.
    """

    kind: str
    package: str = ""


EXECUTORS = {
    LOCAL: Known("Local"),
    "ray": Known("Ray", "ray"),
    "slurm": Known("Slurm", "submitit"),
}


def require_executor(spelled: str) -> Spelled:
    """The name and the options of an executor that can be had.

    Raises:
        ValueError: there is no such executor, or its extra is not installed.
    """
    asked = Spelled.of(spelled)
    if asked.name not in EXECUTORS:
        raise ValueError(f"executor={quoted(asked.name)}: must be one of {', '.join(EXECUTORS)}")
    package = EXECUTORS[asked.name].package
    if package and find_spec(package) is None:
        raise ValueError(
            f"executor={asked.name} needs {package}: pip install 'evenhand[{asked.name}]'"
        )
    return asked


def executor_of(asked: str | Executor) -> Executor:
    """The executor that is spelled `ray(cpus=2)`; one that was made already is itself.

    Raises:
        ValueError: as `require_executor`; or it has no such option, or one of another kind.
        TypeError: `asked` is neither.
    """
    if not isinstance(asked, str):
        if not callable(getattr(type(asked), "run", None)):
            raise TypeError(
                f"executor= is a {type(asked).__name__}: must be a name ({', '.join(EXECUTORS)}) "
                "or an object with the method `run` of evenhand.comparison.executors.base.Executor"
            )
        return asked
    spelled = require_executor(asked)
    module = import_module(f"{__name__}.{spelled.name}")
    kind = getattr(module, EXECUTORS[spelled.name].kind)
    try:
        made: Executor = kind(**spelled.options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"executor={plain(str(spelled), 60)}: {plain(str(error), 100)}") from error
    return made
