"""A mistake in what was asked is one line on stderr, and exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def refusing() -> Iterator[None]:
    """A mistake in what was asked ends the command."""
    try:
        yield
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(2) from error


def complain(message: str) -> None:
    """A line on stderr."""
    typer.echo(f"evenhand: {message}", err=True)
