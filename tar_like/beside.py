"""Hashing beside reading: this thread reads a file, another one hashes what it has read.

    with Beside(algorithm, rooms) as hasher:
        for view in hasher.read(fd, start, stop): ...   more of the same, holes, and so on
        hasher.digest()

    with Lagging(hasher) as hasher:                     for who reads by other means
        hasher.update(data) ... hasher.digest()

Of reading and hashing only the slower one takes time.
"""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from tar_like import digest
from tar_like.digest import Buffer, Hasher
from tar_like.reading import read_at

T = TypeVar("T")
STEP = 1 << 20
"""Bytes that are hashed at a time, of whatever parts: with less, changing over takes the time."""
_ROOMS = 4


def rooms() -> list[memoryview]:
    """Buffers for one hasher at a time."""
    return [memoryview(bytearray(STEP)) for _ in range(_ROOMS)]


class _Hashing(Generic[T]):
    """A thread that hashes what it is given, while this is used as a context.

    What is given takes a token along, which is free again once that is hashed: whoever has one may
    change the bytes that went with it.
    """

    def __init__(self, hasher: Hasher, tokens: Iterable[T]) -> None:
        self._hasher = hasher
        self._given: queue.SimpleQueue[tuple[Buffer, T] | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[tuple[T, BaseException | None]] = queue.SimpleQueue()
        for token in tokens:
            self._free.put((token, None))
        self._thread = threading.Thread(target=self._hash, daemon=True)

    def _take(self) -> T:
        """A token, as soon as one is free. Raises what went wrong beside."""
        token, error = self._free.get()
        if error is not None:
            self._free.put((token, None))
            raise error
        return token

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._given.put(None)
        self._thread.join()

    def _hash(self) -> None:
        while (given := self._given.get()) is not None:
            data, token = given
            error: BaseException | None = None
            try:
                self._hasher.update(data)
            except BaseException as caught:  # noqa: BLE001 for whoever waits
                error = caught
            self._free.put((token, error))


class Beside(_Hashing[memoryview]):
    """A hasher with a thread of its own, while it is used as a context. One file each."""

    def __init__(self, algorithm: str, rooms: list[memoryview]) -> None:
        super().__init__(digest.hasher(algorithm), rooms)
        self._room, self._used = self._take(), 0
        self._rooms = len(rooms)

    def read(self, fd: int, start: int, stop: int) -> Iterator[memoryview]:
        """Read bytes of a file and hash them; each part is valid until the next one is asked for.

        Raises OSError, also where the file is shorter: what was read until then is hashed.
        """
        while start < stop:
            if self._used == STEP:
                self._give()
            view = self._room[self._used : self._used + stop - start]
            _fill(fd, view, start)
            self._used += len(view)
            start += len(view)
            yield view

    def update(self, data: Buffer) -> None:
        """Hash bytes that nobody changes any more."""
        self._give()
        self._given.put((data, self._room))
        self._room = self._take()

    def _give(self) -> None:
        """Have what was read hashed, and take another room."""
        if self._used:
            self._given.put((self._room[: self._used], self._room))
            self._room, self._used = self._take(), 0

    def digest(self) -> bytes:
        """The digest; nothing can be hashed any more."""
        self._give()
        for _ in range(self._rooms - 1):
            self._take()
        return self._hasher.digest()


class Lagging(_Hashing[None]):
    """A hasher whose updates are done by a thread of its own, while it is used as a context.

    ``update`` returns when all that was given before is hashed: what it is given must stay as it
    is until the next one, or the digest.
    """

    def __init__(self, hasher: Hasher) -> None:
        super().__init__(hasher, [None])

    def update(self, data: Buffer, /) -> None:
        """Have bytes hashed."""
        self._given.put((data, self._take()))

    def digest(self) -> bytes:
        """The digest of all; nothing can be hashed any more."""
        self._take()
        return self._hasher.digest()


def _fill(fd: int, view: memoryview, start: int) -> None:
    if read_at(fd, view, start) < len(view):
        raise OSError(errno.EIO, "a file is shorter than it should be")
