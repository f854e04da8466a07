"""Where a sparse file holds data. Source: lseek(2)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges of an open file's first ``size`` bytes that hold data. Raises OSError.

    A file that has blocks for all its bytes is not asked, as in a scan: a tmpfs, say, would go
    through all its pages to find no hole.
    """
    st = os.fstat(fd)
    if 0 < size <= st.st_size <= st.st_blocks * 512:
        yield 0, size
        return
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
