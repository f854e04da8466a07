"""A spool: chunks of a scan that are kept aside, of which few are asked for again.

    process that scans: keep > memory that both have > read: the process that began it
                        no room there, so passed on > add > a file > read

What is passed on has to wait until it is taken; what is kept has not.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from tar_like.reading import read_at

if TYPE_CHECKING:
    from typing import IO

IN_MEMORY = 64 << 20
"""Bytes that are kept in memory that is shared, and as many that were passed on."""


class Spool:
    """To be made before the process that scans is forked. Not thread-safe."""

    def __init__(self) -> None:
        self._shared = _shared_memory()
        self._used = 0
        self._file: IO[bytes] | None = None

    def keep(self, data: bytes) -> int:
        """Keep a chunk, in the process that scans; where it is, or -1: it is to be passed on."""
        place = self._used
        if self._shared == -1 or place + len(data) > IN_MEMORY:
            return -1
        try:
            if os.pwrite(self._shared, data, place) < len(data):
                return -1
        except OSError:  # no memory, say
            return -1
        self._used += len(data)
        return place

    def add(self, data: bytes | memoryview) -> int:
        """Keep a chunk that was passed on; where it is. Raises OSError."""
        if self._file is None:
            import tempfile  # which mostly nobody needs

            self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 closed by close
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        return IN_MEMORY + place

    def read(self, place: int, length: int) -> bytes:
        """A chunk of so many bytes that is kept there. Raises OSError."""
        if place < IN_MEMORY:
            data = memoryview(bytearray(length))
            if read_at(self._shared, data, place) < length:
                raise OSError(errno.EIO, "what was kept of a scan is gone")
            return bytes(data)
        assert self._file is not None
        self._file.seek(place - IN_MEMORY)
        return self._file.read(length)

    def close(self) -> None:
        """Give up what is kept. Idempotent."""
        shared, self._shared = self._shared, -1
        if shared != -1:
            os.ftruncate(shared, 0)  # processes that were forked since have it, too
            os.close(shared)
        if self._file is not None:
            self._file.close()


def _shared_memory() -> int:
    """A file of its own in memory; -1 where there are none."""
    try:
        return os.memfd_create("tar-like")
    except (AttributeError, OSError):
        return -1
