"""Code that a user has given by name, and errors that come from it.

An error in somebody's own function is told with its place there, not with ours.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path

PLACE = "evenhand_place"
"""What an error carries from a worker process, which cannot send its trace."""
_folders: list[str] = []
_OURS = str(Path(__file__).parent)
_INSTALLED = ("site-packages", "dist-packages")


def known(file: str | None) -> None:
    """From now on the module in `file`, and what lies in its folder, is the user's."""
    if file is not None:
        folder = os.fspath(Path(file).resolve().parent)
        if folder not in _folders:
            _folders.append(folder)


def place(error: BaseException) -> str:
    """Where in the user's code an error arose: `mine.py:12, in problem`; "" if it did not.

    Of several places it is the innermost: what that line calls may be anybody's.
    """
    carried = getattr(error, PLACE, "")
    if carried:
        return str(carried)
    if isinstance(error, SyntaxError) and error.filename and _theirs(error.filename):
        return f"{Path(error.filename).name}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _theirs(frame.filename):
            return f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
    return ""


def carry(error: BaseException) -> None:
    """Let an error remember its place on its way to another process."""
    if found := place(error):
        setattr(error, PLACE, found)


def named(error: BaseException) -> str:
    """An error with its kind and, if it is in the user's code, its place."""
    where = place(error)
    said = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    return f"{where}: {said}" if where else said


def _theirs(file: str) -> bool:
    path = Path(file)
    if not path.is_absolute() or path.is_relative_to(_OURS):
        return False
    for folder in _folders:
        if path.is_relative_to(folder):
            return not any(part in _INSTALLED for part in path.relative_to(folder).parts)
    return False
