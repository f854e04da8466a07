"""New files, read while the receiver works at a patch: their digests are told unasked.

    stretches that the receiver lacks > files that are newer than all it has > read, their digests

The receiver would ask for some of them: of those that may be the same as what it has. Which these
are only it knows; but few small files are read in less time than it takes to ask. Their content is
kept for the blocks.
"""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice

from tar_like import digest
from tar_like.errors import TarLikeError
from tar_like.layout import Piece
from tar_like.source import WasRead, open_source
from tar_like.source.stretch import FORMAT, Stretch, unpack_told
from tar_like.wire import MOST_TOLD

_MOST_BYTES = 16 << 20


class Telling:
    """Reads files of a folder on a thread, while it is used as a context."""

    def __init__(self, url: str, stretches: Iterable[Stretch], newest: int) -> None:
        """``newest`` is the last mtime (ns) that the receiver has."""
        self._url = url
        self._stretches = stretches
        self._newest = newest
        self.files: dict[bytes, WasRead] = {}
        """By path: what could be read; of many or large files nothing. Once it has ended."""
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Telling:
        return self

    def begin(self) -> None:
        """Now there is time to read. Idempotent."""
        if self._thread.ident is None:
            with contextlib.suppress(RuntimeError):  # more threads than there may be
                self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _read(self) -> None:
        files = list(islice(self._files(), MOST_TOLD + 1))
        if not files or len(files) > MOST_TOLD or sum(one.size for one in files) > _MOST_BYTES:
            return
        with contextlib.suppress(TarLikeError, MemoryError):  # who has to read them says what it is
            content = memoryview(bytearray(sum(one.size for one in files)))
            with closing(open_source(self._url)) as source:
                _, omissions = source.read(files, content)
            self.files = dict(_read(files, content, {one.piece for one in omissions}))

    def _files(self) -> Iterator[Piece]:
        newest = self._newest
        for stretch in self._stretches:
            modes, sizes, mtimes, _, _ = unpack_told(stretch.told, len(stretch.names))
            prefix = stretch.directory + b"/" if stretch.directory else b""
            for name, mode, size, mtime in zip(stretch.names, modes, sizes, mtimes, strict=True):
                if size and mtime > newest and mode & FORMAT == stat.S_IFREG:
                    yield Piece(0, prefix + name, 0, size, size, mtime, b"")


def _read(
    files: list[Piece], content: memoryview, left_out: set[int]
) -> Iterator[tuple[bytes, WasRead]]:
    start = 0
    for number, file in enumerate(files):
        if number not in left_out:
            own = content[start : start + file.size]
            yield file.path, WasRead(file.mtime, own, digest.of(digest.DEFAULT, own))
            start += file.size
