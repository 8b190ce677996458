"""Files: written whole or not at all, read within bounds, held by one process at a time."""

from __future__ import annotations

import builtins
import errno
import json
import os
import secrets
import socket
import stat
import sys
import types
import typing
import warnings
from collections import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from evenhand.text import LINE, plain, quoted

T = TypeVar("T")
MEBIBYTE = 1 << 20
LARGE = 1024 * MEBIBYTE
"""The most bytes of a file of text that are read."""
EXACT = 1 << 53
"""Integers up to here are numbers of double precision."""
LARGEST = (1 << 63) - 1
LOCK = ".evenhand-lock"
"""In a folder that a process writes to: who it is. It is gone when the process is."""
DRAFTS = (".evenhand-*.draft", ".*.tmp")
"""What a kill may leave of a file that was being written; the second, of earlier versions."""
_ONLY_OURS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NEVER_WAITING = getattr(os, "O_NONBLOCK", 0)


# Writing ----------------------------------------------------------------------------------------


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, meets the old content or the new one whole.

    The draft is a new file beside it, of a name that nobody can foresee. A symbolic link in its
    place is replaced, not followed. What UTF-8 cannot say is written as an escape.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    draft = path.with_name(f".evenhand-{secrets.token_hex(8)}.draft")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _ONLY_OURS
    with naming(path), os.fdopen(os.open(draft, flags, 0o666), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """See that files can be made in a folder, before work is done for one.

    Raises:
        OSError: they cannot.
    """
    trial = folder / f".evenhand-{secrets.token_hex(8)}.draft"
    with naming(folder):
        write_atomically(trial, b"")
        trial.unlink()


def append(path: Path, text: str) -> None:
    """Add to a file and see it written; a symbolic link is not followed.

    Raises:
        OSError: it cannot be written to.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _ONLY_OURS | _NEVER_WAITING
    with naming(path), os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(text.encode(errors="backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system names the file that was meant, and not its draft."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


# Reading ----------------------------------------------------------------------------------------


def require_file(path: Path) -> None:
    """See that there is a regular file: a pipe would wait, a device might never end.

    Raises:
        OSError: there is nothing, or it cannot be reached.
        ValueError: it is something else.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is no regular file")


def require_readable(path: Path) -> None:
    """The same of a file that a library is to open: some say of one that may not be read that it
    is not there.

    Raises:
        OSError, ValueError: as `require_file`; or it may not be read.
    """
    require_file(path)
    with naming(path):
        os.close(os.open(path, os.O_RDONLY | _NEVER_WAITING))


def read_bytes(path: Path, most: int = LARGE) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger.
    """
    require_file(path)
    with (
        naming(path),
        os.fdopen(os.open(path, os.O_RDONLY | _NEVER_WAITING), "rb") as file,
    ):
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path} has {size} bytes: at most {most} are read")
        return file.read(most)


def read_text(path: Path, most: int = LARGE) -> str:
    """The same of a file of text in UTF-8, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, larger, or other than UTF-8.
    """
    content = read_bytes(path, most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 (byte {content[error.start]:#04x} at {error.start})"
        ) from error


def parsed(kind: type[T], text: str, where: str) -> T:
    """What JSON says, as a dataclass. Keys that it does not know are left out.

    Raises:
        ValueError: it is no JSON, or it does not fit; the message begins with `where`.
    """
    try:
        found: T = _fitted(kind, json.loads(text), "")
    except _UnfitError as error:
        raise ValueError(f"{where}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where}: no JSON ({plain(str(error), LINE)})") from error
    return found


class _UnfitError(ValueError):
    """A value is not of the type that is declared for it."""

    def __init__(self, kind: Any, value: Any, at: str) -> None:
        wanted = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
        place = f"{plain(at[1:], LINE)} " if at else ""
        super().__init__(f"{place}must be {wanted}, and is {quoted(value, 40)}")


def _fitted(kind: Any, value: Any, at: str) -> Any:
    """A value of JSON as the type `kind`; `at` says where it stands."""
    inner = get_args(kind)
    match get_origin(kind):
        case types.UnionType:
            for one in inner:
                with suppress(_UnfitError):
                    return _fitted(one, value, at)
        case builtins.tuple if isinstance(value, list):
            each = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
            if len(each) == len(value):
                pairs = enumerate(zip(each, value, strict=True))
                return tuple(_fitted(one, entry, f"{at}.{k}") for k, (one, entry) in pairs)
        case builtins.dict | abc.Mapping if isinstance(value, dict):
            return {key: _fitted(inner[1], entry, f"{at}.{key}") for key, entry in value.items()}
        case None if is_dataclass(kind) and isinstance(value, dict):
            make: Any = kind
            return make(**_fields(kind, value, at))
        case typing.Literal if isinstance(value, str) and value in inner:
            return value
        case None if kind is Any:
            return value
        case None if kind is float and type(value) is int and abs(value) <= EXACT:
            return float(value)
        case None if type(value) is kind and not (kind is int and abs(value) > LARGEST):
            return value
    raise _UnfitError(kind, value, at)


def _fields(kind: Any, value: Mapping[str, Any], at: str) -> dict[str, Any]:
    found = {}
    for entry in fields(kind):
        if entry.name in value:
            hint = _hints(kind)[entry.name]
            found[entry.name] = _fitted(hint, value[entry.name], f"{at}.{entry.name}")
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise _UnfitError(_hints(kind)[entry.name], None, f"{at}.{entry.name}")
    return found


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


# Folders ----------------------------------------------------------------------------------------


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a kill may have left."""
    return all(entry.name == LOCK or _is_draft(entry) for entry in folder.iterdir())


def sweep(folder: Path) -> None:
    """Remove the drafts that a kill has left in a folder and those below it.

    Only for who holds the folder: a draft of somebody who is alive would be lost.
    """
    for pattern in DRAFTS:
        for entry in folder.rglob(pattern):
            entry.unlink(missing_ok=True)


def _is_draft(entry: Path) -> bool:
    return any(entry.match(pattern) for pattern in DRAFTS) and not entry.is_dir()


class BusyError(ValueError):
    """Another process writes to the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, no other process holds `folder`; it is made if need be.

    The lock is the system's (flock) on a file in the folder, so it ends with this process however
    that ends. Where the file system knows no locks, a warning says so. If nothing was written, the
    folder is gone again afterwards.

    Raises:
        BusyError: another process, or another part of this one, holds it; the message says which.
        OSError: the folder or the file cannot be made.
    """
    made = _made(folder)
    try:
        descriptor = _locked(folder / LOCK)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for parent in made:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


def _made(folder: Path) -> list[Path]:
    """Make a folder; those that were not there before, innermost first."""
    missing = []
    for parent in (folder, *folder.parents):
        if parent.exists():
            break
        missing.append(parent)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _locked(path: Path) -> int:
    """An open file with the lock on it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _ONLY_OURS | _NEVER_WAITING, 0o666)
        try:
            _lock(descriptor, path)
            if _is_still(descriptor, path):  # else its holder removed it meanwhile
                _say_who(descriptor, path)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _say_who(descriptor: int, path: Path) -> None:
    """Write into a lock whose it is; where that is not possible, the lock is gone again."""
    who = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, who.encode(), 0)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        warnings.warn(f"{path}: there are no such locks on Windows; {ALONE}", stacklevel=5)
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(
            f"{path.parent} is being written to by {_holder(descriptor)}: wait for it, stop it, "
            "or choose another folder"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        warnings.warn(f"{path}: this file system has no locks; {ALONE}", stacklevel=5)


ALONE = "see to it that nobody else writes to the folder"


def _holder(descriptor: int) -> str:
    try:
        who = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(who['pid'])} on {plain(str(who['host']), 80)}"
    except (ValueError, TypeError, KeyError):
        return "another process"  # it has not said yet who it is
