"""What a look saw of each directory: the next one only sees whether that is still the same.

    looks/sights = chunk: whose they are > chunks of sights > chunk: are these all > BLAKE3 of all
    chunk        = length:u32  marshal
    sight        = a directory, and the digest of its names, with what lstat says of each

A sight is kept only of a directory in which everything was as the ledger says, and nothing besides,
and only as long as the ledger is that one. It proves nothing but sameness: where a digest is
another one, the ledger's rows tell what changed. The file is not synced; what is torn or damaged is
as good as none.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from operator import attrgetter
from typing import Any, BinaryIO, NamedTuple

from blake3 import blake3

from tar_like.dirfd import open_file
from tar_like.source.folder import RESERVED, RUN, sorted_names

STRETCH = 256
"""Names of a directory whose state is held in memory at a time."""
CHUNK = 1000
"""Sights that are written at a time."""
_VERSION = 1
_LENGTH = struct.Struct("<I")
_DIGEST = 32
_FORMAT = 2
"""Of marshal: equal values give equal bytes, wherever they come from (there are no references)."""

State = tuple[int, int, int, int, int, int, int]
"""Inode, ctime, mtime, size, mode, owner, group; of a directory only what a commit sets."""
state: Callable[[os.stat_result], State] = attrgetter(
    "st_ino", "st_ctime_ns", "st_mtime_ns", "st_size", "st_mode", "st_uid", "st_gid"
)


class Sight(NamedTuple):
    """A directory as it was."""

    path: bytes
    digest: bytes
    names: int
    """How many names it had."""
    folders: tuple[int, ...]
    """Which of them, in order, are directories; the root is the first name of its own."""


def _of_folder(seen: State) -> State:
    """Of a directory: its inode, size and ctime are other ones after each commit."""
    _, _, mtime, _, mode, uid, gid = seen
    return 0, 0, mtime, 0, mode, uid, gid


class Taking:
    """A sight that is being taken, name by name, in order."""

    def __init__(self) -> None:
        self._names: list[bytes] = []
        self._states: list[State] = []
        self._folders: list[int] = []
        self._count = 0
        self._digest = b""

    def add(self, names: list[bytes], states: list[State]) -> None:
        """The next names; directories' as ``add_folder`` has them."""
        self._names += names
        self._states += states
        while len(self._names) >= STRETCH:
            self._end_stretch()

    def add_folder(self, name: bytes, seen: State) -> None:
        """The next name, which is a directory's."""
        self._folders.append(self._count + len(self._names))
        self.add([name], [_of_folder(seen)])

    def _end_stretch(self) -> None:
        """Always as many, however they came: the digest depends on it."""
        names, states = self._names[:STRETCH], self._states[:STRETCH]
        data = marshal.dumps((self._digest, names, states), _FORMAT)
        self._digest = blake3(data).digest()
        self._count += len(names)
        self._names, self._states = self._names[STRETCH:], self._states[STRETCH:]

    def sight(self, path: bytes) -> Sight:
        """All names have come."""
        if self._names:
            self._end_stretch()
        return Sight(path, self._digest, self._count, tuple(self._folders))


def is_same(sight: Sight, fd: int) -> bool:
    """Whether a directory, open as ``fd`` (O_PATH suffices), is as it was. Raises OSError."""
    taking, lstat, folders, first = Taking(), os.lstat, sight.folders, 0
    names = _names(sight, fd)
    while first <= sight.names and (stretch := list(islice(names, STRETCH))):
        states = [state(lstat(name, dir_fd=fd)) for name in stretch]
        stop = first + len(stretch)
        for at in folders[bisect_left(folders, first) : bisect_left(folders, stop)]:
            states[at - first] = _of_folder(states[at - first])
        taking.add(stretch, states)
        first = stop
    return taking.sight(sight.path).digest == sight.digest


class Writing:
    """A file of sights that is being written; it is not synced. Everything raises OSError."""

    def __init__(self, path: str, ledger: str) -> None:
        """``path`` is where it is written; ``ledger``: which file of the ledger was looked at."""
        self.empty = True
        """Nothing was added."""
        self._path = path
        self._chunk: list[Sight] = []
        self._digest = blake3()
        self._file = open(path, "wb")  # noqa: SIM115 closed by close()
        self._put(_whose(ledger))

    def add(self, sight: Sight) -> None:
        """One more."""
        self.empty = False
        self._chunk.append(sight)
        if len(self._chunk) == CHUNK:
            self._put_chunk()

    def publish(self, final: str, *, whole: bool) -> None:
        """They are all; ``whole``: of each directory of that ledger there is one."""
        self._put_chunk()
        self._put(whole)
        self._file.write(self._digest.digest())
        self._file.close()
        os.replace(self._path, final)

    def close(self) -> None:
        """Give the file up, unless it is published. Idempotent."""
        with contextlib.suppress(OSError):
            self._file.close()
            os.unlink(self._path)

    def _put_chunk(self) -> None:
        self._put(list(map(tuple, self._chunk)))
        self._chunk.clear()

    def _put(self, value: str | bool | list[tuple[Any, ...]]) -> None:
        data = marshal.dumps(value, _FORMAT)
        chunk = _LENGTH.pack(len(data)) + data
        self._digest.update(chunk)
        self._file.write(chunk)


class Remembered:
    """The sights of one ledger's directories, out of a file; none where they cannot be believed."""

    def __init__(self, path: str, ledger: str) -> None:
        """``ledger``: which file of the ledger it is."""
        self.whole = False
        """There is one of each directory."""
        self._file: BinaryIO | None = None
        self._first = 0
        with contextlib.suppress(OSError):
            file = open(open_file(path, os.O_RDONLY), "rb")  # noqa: SIM115 closed by close()
            if _is_sound(file) and _read(file) == _whose(ledger):
                self._file, self._first = file, file.tell()
            else:
                file.close()

    def __iter__(self) -> Iterator[Sight]:
        """Each of them, in the order of the directories, what is in one first. Raises OSError."""
        if self._file is None:
            return
        self._file.seek(self._first)
        while isinstance(chunk := _read(self._file), list):
            yield from map(Sight._make, chunk)
        self.whole = chunk

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _whose(ledger: str) -> str:
    """What must be the same for sights to hold: whether an owner is right depends on who asks."""
    groups = sorted({os.getegid(), *os.getgroups()})
    return json.dumps([_VERSION, sys.hexversion, ledger, os.geteuid(), groups])


def _is_sound(file: BinaryIO) -> bool:
    """Whether a file is as it was written; it is at its start afterwards."""
    size, digest = os.fstat(file.fileno()).st_size, blake3()
    left = max(0, size - _DIGEST)
    while left and (data := file.read(min(left, 1 << 20))):
        digest.update(data)
        left -= len(data)
    sound = size > _DIGEST and file.read() == digest.digest()
    file.seek(0)
    return sound


def _read(file: BinaryIO) -> Any:
    """The next chunk of a file that is sound."""
    return marshal.loads(file.read(_LENGTH.unpack(file.read(_LENGTH.size))[0]))


def _names(sight: Sight, fd: int) -> Iterator[bytes]:
    """A directory's names in order, as a look goes by them."""
    path = b"/proc/self/fd/%d/" % fd
    if sight.names < RUN:
        names: Iterable[bytes] = sorted(os.listdir(path))
    else:
        with os.scandir(path) as entries:
            names = sorted_names(entries)
    if sight.path:
        return iter(names)
    return chain((b".",), (name for name in names if name != RESERVED))
