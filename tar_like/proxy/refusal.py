"""Why an entry cannot be put in place.

An error that one name meets is that entry's failure; one that every name would meet ends the
commit, which can be run again.
"""

from __future__ import annotations

import errno
import os

from tar_like.errors import cause, shown
from tar_like.layout import Entry
from tar_like.wire import Failure

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENFILE, errno.EMFILE)
NO_TIME = "has a modification time that the destination's filesystem cannot hold"
NOT_EMPTY = (
    "cannot be put in place: a directory that is not empty has its name, which only gives way "
    "where --delete may delete"
)


class Refused(Exception):
    """An entry that cannot be put in place; the text says why."""

    def __init__(self, text: str, *, source: bool = False) -> None:
        super().__init__(text)
        self.source = source
        """Whether the source is the reason."""


def with_time(entry: Entry, st: os.stat_result) -> os.stat_result:
    """What a name is like by now, with the time that it was given. Raises Refused."""
    if st.st_mtime_ns != entry.mtime:
        raise Refused(NO_TIME)
    return st


def failed(path: bytes, error: Refused | OSError) -> Failure:
    """What is in the way of one entry. Raises the error where it is in the way of every one."""
    if isinstance(error, Refused):
        return Failure(shown(path), str(error), source=error.source)
    if error.errno in _OF_THE_DISK:
        raise error
    reason = f"cannot be put in place: {cause(error)}"
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        reason = NOT_EMPTY
    return Failure(shown(path), reason, source=False)
