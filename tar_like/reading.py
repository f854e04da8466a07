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
