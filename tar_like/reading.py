"""Reading of a file's bytes at a place, also where the system gives fewer at a time."""

from __future__ import annotations

import os


def read_at(fd: int, into: memoryview, start: int) -> int:
    """Fill a buffer, unless the file ends before; returns how many bytes came. Raises OSError."""
    got = os.preadv(fd, [into], start)
    while 0 < got < len(into):
        more = os.preadv(fd, [into[got:]], start + got)
        if not more:
            break
        got += more
    return got


def fill(fd: int, view: memoryview, start: int) -> memoryview:
    """The view, filled. Raises OSError, EOFError where the file ends before."""
    if read_at(fd, view, start) < len(view):
        raise EOFError
    return view
