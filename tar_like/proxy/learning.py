"""Learning: what the next sync would read first is read after a commit, while nobody waits.

    large files that the commit has put in place and whose chunks are not remembered, the last ones
    first, a GiB at the most > their chunks > chunkcache

So the first sync after one that has brought a large file reads it along its chunks, as later ones
do.
"""

from __future__ import annotations

import os
from contextlib import closing

from tar_like import chunks
from tar_like.chunks import SMALLEST_FILE, ChunkList
from tar_like.dirfd import Walker, open_file
from tar_like.process import large_buffer
from tar_like.proxy.chunkcache import ChunkCache, cut_file
from tar_like.proxy.ledger import Ledger, Row
from tar_like.proxy.place import Destination

MOST = 1 << 30
"""Bytes of files that are read after one commit: what is likely to be in memory still."""


def learn_chunks(destination: Destination, since: float, most: int = MOST) -> None:
    """Remember the chunks of files that have come since, by Destination.now.

    Raises OSError, sqlite3.Error.
    """
    cache = ChunkCache(destination.chunks)
    with closing(Ledger(destination.ledger)) as ledger, Walker(destination.root) as walker:
        for row in ledger.landed_since(since * 1e9, SMALLEST_FILE, most):
            average = chunks.average(row.size)
            if row.size > most or cache.has(row.digest.hex(), average):
                continue
            most -= row.size
            found = _chunks_of(walker, row, average)
            if found is not None:
                cache.write(row.digest.hex(), average, found)


def _chunks_of(walker: Walker, row: Row, average: int) -> ChunkList | None:
    """The chunks of a file; None where it is not what it was."""
    try:
        parent, name = walker.split(row.path)
        fd = open_file(name, os.O_RDONLY, dir_fd=parent)
    except OSError:
        return None
    try:
        if not row.is_of(os.fstat(fd)):
            return None
        found = cut_file(fd, average, large_buffer(chunks.near_window(average)))
        return found if row.is_of(os.fstat(fd)) else None
    except (EOFError, OSError):
        return None
    finally:
        os.close(fd)
