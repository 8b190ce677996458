"""Obeying the permissions of files, as root too."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
VERSION = 0x20080522
"""Of Linux' capabilities."""
KEEP_NO_ROOT = (28, 1)
"""prctl's PR_SET_SECUREBITS and SECBIT_NOROOT: programs that this thread starts are not root's."""


def give_up_rights() -> None:
    """From now on this thread, and what it starts, may do only what its user may; on Linux."""
    system = ctypes.CDLL(None)
    system.prctl(*KEEP_NO_ROOT)
    header, none = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    if system.capset(header, none):
        raise OSError("the system does not let rights be given up")


def without_rights(call: Callable[[], T]) -> T:
    """What a call gives in a thread that has given its rights up."""
    found: list[T] = []

    def called() -> None:
        give_up_rights()
        found.append(call())

    thread = threading.Thread(target=called)
    thread.start()
    thread.join()
    (answer,) = found
    return answer
