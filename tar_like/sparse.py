"""Where a sparse file holds data. Source: lseek(2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges of an open file's first ``size`` bytes that hold data. Raises OSError."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        if start < position:
            yield start, position
