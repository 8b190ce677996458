"""The console entry: until there is work, a signal ends the tool with a line and no trace.

Nothing is imported here that takes long, so that this holds from the first moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from evenhand.signals import ENDING


def main() -> None:
    """The console entry."""
    stand_in()
    quiet()
    from evenhand.app import cli

    cli.main()


def stand_in() -> None:
    """Put the null device in the place of standard streams that are closed (`>&-`).

    Otherwise the next file that is opened, a user's perhaps, would get a stream's number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115  # for good


def quiet() -> None:
    """From now on a signal that is not ignored ends this process with a line."""
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception would surface wherever an import happens to be, and some swallow it.
    os.write(2, b"evenhand: stopped\n")
    os._exit(128 + number)
