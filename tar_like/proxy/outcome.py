"""How work of a process of its own ended, where it did not end well."""

from __future__ import annotations

import json
import os
import sqlite3
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass

from tar_like.database import trouble
from tar_like.dirfd import open_file
from tar_like.errors import (
    CommitFailed,
    Conflict,
    IndexInvalid,
    NoSpace,
    TarLikeError,
    cause,
)
from tar_like.proxy.staging import mapped

COMMIT, PLANNING = "outcome.json", "planning.json"
"""Names of outcomes."""
_ROOM = "outcome.tmp"
_SIZE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a commit or a planning ended that did not come to its end."""

    token: str
    """Which request this answers."""
    revoked: int = 0
    error: str = ""
    http_status: int = 500

    def as_error(self) -> TarLikeError:
        """The error, for whoever asked for the work."""
        kinds = {kind.http_status: kind for kind in (Conflict, NoSpace)}
        return kinds.get(self.http_status, CommitFailed)(self.error)


def keep_room(path: str, name: str) -> None:
    """See that there is room for an outcome of this name, so that a full disk can be reported.

    ``path`` is the transfer's folder; whoever plans or commits it holds its lock. Raises OSError.
    """
    last, room = os.path.join(path, name), os.path.join(path, _ROOM)
    if os.path.exists(last):
        os.replace(last, room)
    elif not os.path.exists(room):
        with open(open_file(room, os.O_WRONLY | os.O_CREAT), "wb") as file:
            file.write(b" " * _SIZE)


def read_outcome(path: str, name: str) -> Outcome | None:
    """The last outcome of this name in a transfer's folder."""
    try:
        with open(open_file(os.path.join(path, name), os.O_RDONLY), "rb") as file:
            return Outcome(**json.loads(file.read()))
    except (OSError, ValueError, TypeError):
        return None


def write_outcome(path: str, name: str, outcome: Outcome) -> None:
    """Put an outcome where room was kept for it. Raises OSError."""
    room = os.path.join(path, _ROOM)
    with open(open_file(room, os.O_RDWR | os.O_CREAT), "r+b") as file:
        file.write(json.dumps(asdict(outcome)).encode().ljust(_SIZE))
    os.replace(room, os.path.join(path, name))


def attempt(work: Callable[[], Outcome | None]) -> Outcome | None:
    """Do the work; what goes wrong becomes an outcome, without a token."""
    try:
        return work()
    except IndexInvalid as error:  # whose text names the file, by a path of this machine
        what = str(error).rpartition("/")[2].rstrip(".")
        return Outcome(token="", error=f"The receiver's own records are damaged ({what}).")
    except TarLikeError as error:
        return Outcome(token="", error=str(error), http_status=error.http_status)
    except (OSError, sqlite3.Error) as error:
        return _failed(error)
    except BrokenExecutor:
        text = "A process of the receiver was killed, for want of memory maybe: run it again."
        return Outcome(token="", error=text)
    except Exception as error:  # noqa: BLE001 the last resort of a process: say so, on both sides
        traceback.print_exc()
        text = f"The receiver failed unexpectedly ({type(error).__name__}): see its log."
        return Outcome(token="", error=text)


def _failed(error: OSError | sqlite3.Error) -> Outcome:
    known = mapped(error)
    if isinstance(known, TarLikeError):
        return Outcome(token="", error=str(known), http_status=known.http_status)
    if isinstance(error, OSError):
        return Outcome(token="", error=f"The destination cannot be written: {cause(error)}.")
    return Outcome(
        token="", error=f"The destination's records cannot be written: {trouble(error)}."
    )
