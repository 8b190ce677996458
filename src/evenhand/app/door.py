"""The door: whatever happens inside, a command ends with a line that says what, and a code.

2: nothing was begun. 1: work was begun; what is kept, and the command that goes on, follow.
128 + n: signal n. ``--debug``, anywhere on the line, shows the trace as well.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from evenhand import theirs
from evenhand.app.spelled import OnCommandLine
from evenhand.asking import asked_as
from evenhand.comparison.job import WorkerEndedError
from evenhand.signals import ENDING
from evenhand.text import plain, warned

FAULTS = (OSError, MemoryError, ValueError, TypeError, ArithmeticError, ImportError)
"""What a user, a machine or a file can be the cause of; anything else is a defect of ours."""
LONGEST = 4096
"""The most characters of one argument."""
MOST_WORDS = 5_000
"""The most arguments: to parse a hundred thousand takes a minute."""
WORD, WORDS = 160, 1000
"""The most characters of a word (a path) in a line about a fault, and of the line."""
USAGE = cast("type[typer.BadParameter]", typer.BadParameter.__base__)
"""What is raised for a wrong command line; typer exports but its child."""


class Stopped(KeyboardInterrupt):  # as its base
    """A signal has asked for an end.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Door(TyperGroup):
    """The commands, with one handler around them all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[DEBUG] = "--debug" in args[:end] or bool(os.environ.get("EVENHAND_DEBUG"))
        args = [word for word in args[:end] if word != "--debug"] + args[end:]
        with _short_usage():
            if len(args) > MOST_WORDS:
                raise typer.BadParameter(f"{len(args):,} arguments: at most {MOST_WORDS:,}")
            for word in args:
                if len(word) > LONGEST:
                    raise typer.BadParameter(f"{plain(word, 40)}: at most {LONGEST} characters")
            try:
                return super().parse_args(ctx, args)  # it prints help and version
            except OSError as error:
                _end(error, 1, ctx.meta[DEBUG])

    def invoke(self, ctx: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            with _short_usage(), _warnings_in_a_line(), asked_as(OnCommandLine()):
                found = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            _end(error, _code(error), ctx.meta[DEBUG])
        except FAULTS as error:
            _end(error, getattr(error, BEFORE, 1), ctx.meta[DEBUG])
        except Exception as error:
            foreseen = isinstance(error, WorkerEndedError) or _lacks_memory(error)
            if isinstance(error, typer.Exit | USAGE) or not (foreseen or theirs.place(error)):
                raise
            _end(error, getattr(error, BEFORE, 1), ctx.meta[DEBUG])
        return found


class Command(TyperCommand):
    """A command that refuses an option given twice, where it would take the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        taking_one = [p for p in given if not p.multiple and p.nargs == 1 and not switch(p)]
        for name, count in Counter(p.opts[-1] for p in taking_one).items():
            if count > 1:
                raise USAGE(f"{name} is given {count:,} times: give it once", ctx)
        return super().parse_args(ctx, args)


def switch(parameter: Any) -> bool:
    """Whether a parameter is an option without a value."""
    return bool(getattr(parameter, "is_flag", False))


DEBUG = "evenhand.debug"
BEFORE = "before_work"


@contextmanager
def before_work() -> Iterator[None]:
    """A fault inside ends the command with code 2: nothing was begun."""
    try:
        yield
    except Exception as error:
        setattr(error, BEFORE, 2)
        raise


@contextmanager
def at_work(kept: Callable[[], str]) -> Iterator[None]:
    """Inside, signals that ask for an end raise `Stopped`; a fault is told with what is kept."""
    with stoppable():
        try:
            yield
        except BaseException as error:
            error.add_note(kept())
            raise


def complain(message: str) -> None:
    """Say a line about what is wrong; where it cannot be said, the exit code says it alone."""
    with suppress(OSError):
        typer.echo(f"evenhand: {message}", err=True)


def told(error: BaseException) -> str:
    """A fault in a line."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if _lacks_memory(error):
        return "there is not enough memory"
    if theirs.place(error):
        return _in_a_line(theirs.named(error))
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{plain(os.fsdecode(error.filename))}: "
        return _in_a_line(f"{where}{error.strerror}")
    kind = "" if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: "
    return _in_a_line(f"{kind}{error}")


def _in_a_line(text: str) -> str:
    """Without line ends, words that are longer than a line, and more of it than a screen."""
    return plain(
        re.sub(rf"\S{{{WORD},}}", lambda word: plain(word[0], WORD), " ".join(text.split())), WORDS
    )


def unforeseen(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A defect, as `sys.excepthook` gets it: a line, where it is, and how to see more."""
    if "--debug" in sys.argv or os.environ.get("EVENHAND_DEBUG"):
        traceback.print_exception(kind, error, trace)
        return
    frames = traceback.extract_tb(trace)
    at = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    line = f"a defect of ours{at}: {told(error)} (--debug shows the trace; please report it)"
    complain(_with_notes(line, error))


def _end(error: BaseException, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # nobody reads what is left
    complain(_with_notes(told(error), error))
    raise typer.Exit(code) from error


def _with_notes(line: str, error: BaseException) -> str:
    return "; ".join([line, *getattr(error, "__notes__", ())])


def _code(error: KeyboardInterrupt) -> int:
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def _lacks_memory(error: BaseException) -> bool:
    words = ("allocate memory", "out of memory")  # torch raises RuntimeError for it
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


@contextmanager
def _short_usage() -> Iterator[None]:
    """What is said about a wrong command line quotes at most a line of it.

    Where nothing was asked, the help is what is said, and stays as it is.
    """
    try:
        yield
    except USAGE as error:
        if error.ctx is None or error.message != error.ctx.get_help():
            error.message = plain(error.message, 200)
        raise


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """What the library warns of is a line on stderr, like everything else that a command says."""
    before = warnings.formatwarning
    warnings.formatwarning = warned
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, signals that ask for an end raise `Stopped`, so that what is held is let go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in ENDING}
    before = {n: h for n, h in found.items() if h not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
