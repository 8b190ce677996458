"""What a worker of another machine is sent, and what it does with it."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from evenhand import theirs
from evenhand.comparison.execute import execute
from evenhand.comparison.job import Unit, WorkerEndedError
from evenhand.comparison.request import Settings
from evenhand.files import BusyError, held

LOCKS = ".workers"
"""In the comparison's folder: a folder for each unit that is being trained, with a lock."""


@dataclass(frozen=True)
class Sent:
    """Trains a unit wherever it is called, if the same folders are there.

    Attributes:
        settings: the comparison's, pickled: what they name may lie beside the user's own script.
        out: the comparison's folder, absolute.
        folder: where the comparison was asked for; names of files are relative to it.
        path: where modules were found there.
    """

    settings: bytes
    out: str
    folder: str
    path: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings, out: Path) -> Sent:
        """What the workers of a comparison are sent.

        Raises:
            ValueError: objects were given that cannot be pickled.
        """
        settings.given.require_picklable()
        return cls(pickle.dumps(settings), str(out.resolve()), str(Path.cwd()), tuple(sys.path))

    def __call__(self, unit: Unit) -> BaseException | None:
        """Train a unit; what it raised is returned, since few engines send errors as they are.

        Two workers never train one unit: a lost one may live on where nobody sees it.
        """
        try:
            os.chdir(self.folder)
            sys.path += [entry for entry in self.path if entry not in sys.path]
            torch.set_num_threads(1)
            out = Path(self.out)
            with held(out / LOCKS / unit.jobs[0].folder):
                execute(unit, _settings(self.settings), out, lambda job, event: None)
        except BusyError as error:
            return WorkerEndedError(str(error))
        except Exception as error:  # noqa: BLE001  # raised again where the comparison runs
            theirs.carry(error)
            return _travelling(error)
        return None


@lru_cache(maxsize=1)
def _settings(pickled: bytes) -> Settings:
    """They may hold data; a worker that trains several units reads them once."""
    found: Settings = pickle.loads(pickled)
    return found


def _travelling(error: Exception) -> Exception:
    """The error, or what it says where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except (pickle.PicklingError, TypeError, AttributeError, ImportError):
        told = RuntimeError(f"{type(error).__name__}: {error}")
        setattr(told, theirs.PLACE, theirs.place(error))
        return told
    return error
