"""The chunks of files that lie in the destination, remembered.

    DEST/.tar_like/chunks/NAME.AVERAGE     a ChunkList

The name is the digest of the file's content where that is known, else what tells the file from
others now. A wrong list costs time only: what is made by it is compared with the file's digest.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable

from tar_like import chunks
from tar_like.chunks import ChunkList
from tar_like.dirfd import open_file
from tar_like.reading import fill
from tar_like.sparse import data_of


class ChunkCache:
    """Lists of chunks in a folder that is made when it is first needed."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def read(self, name: str, average: int) -> ChunkList | None:
        """A list; None when it is not there or damaged."""
        try:
            return ChunkList.from_bytes(self._data(name, average), average)
        except (OSError, ValueError):
            return None

    def has(self, name: str, average: int) -> bool:
        """Whether there is a list, damaged or not."""
        return os.path.exists(self._path(name, average))

    def read_bytes(self, name: str, average: int) -> bytes:
        """A list as it was written; empty when it is not there, or damaged."""
        try:
            return ChunkList.sealed(self._data(name, average))
        except (OSError, ValueError):
            return b""

    def _data(self, name: str, average: int) -> bytes:
        with open(open_file(self._path(name, average), os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, name: str, average: int, found: ChunkList) -> None:
        """Keep a list, if there is room for it."""
        temporary = os.path.join(self._folder, f"{secrets.token_hex(8)}.tmp")
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(found.to_bytes())
            os.replace(temporary, self._path(name, average))

    def keep(self, names: Iterable[str]) -> None:
        """Remove all other lists."""
        wanted = frozenset(names)
        with contextlib.suppress(OSError):
            for one in os.listdir(self._folder):
                if one.partition(".")[0] not in wanted:
                    os.unlink(os.path.join(self._folder, one))

    def _path(self, name: str, average: int) -> str:
        return os.path.join(self._folder, f"{name}.{average}")


def cut_file(fd: int, average: int, buffer: memoryview) -> ChunkList:
    """The chunks of a file as it is now; the buffer is for a near_window of it.

    Raises OSError, EOFError where it becomes shorter.
    """
    ranges = list(data_of(fd, os.fstat(fd).st_size))

    def read(start: int, stop: int) -> memoryview:
        return fill(fd, buffer[: stop - start], start)

    return ChunkList(ranges, chunks.cut(read, ranges, average))


def name_of_file(st: os.stat_result) -> str:
    """What tells a file whose content has no known digest from others."""
    return f"at-{st.st_ino:x}-{st.st_size:x}-{st.st_ctime_ns:x}"
