"""Names of a folder that are looked at in one go, of however many directories.

    a directory's names > lstat, the directories in it > columns of the whole batch > stretches

No work in Python for a file with one name and no holes: the hot path of a scan.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from tar_like.dirfd import Walker
from tar_like.layout import PAGE, round_up
from tar_like.lstat import MANY, Lstats
from tar_like.source.stretch import FORMAT, Stretch
from tar_like.sparse import data_of

_FILE, _DIRECTORY, _SYMLINK, _OTHER = range(4)
_TYPES = bytes(
    {stat.S_IFREG: _FILE, stat.S_IFDIR: _DIRECTORY, stat.S_IFLNK: _SYMLINK}.get(
        high << 8 & FORMAT, _OTHER
    )
    for high in range(256)
)
"""The type of what has a mode, by the byte of it that has the bits of the type."""
_ONE, _NO_SIZE = struct.pack("<I", 1), bytes(8)
_ANY_SYMLINK = struct.pack("<I", stat.S_IFLNK | 0o777)
Segments = tuple[tuple[int, int], ...]


class _Part(NamedTuple):
    """What a batch has of one directory."""

    directory: bytes
    names: list[bytes]
    files: int
    targets: dict[int, bytes]


class Batch:
    """Names that were looked at, and of which there are no stretches yet."""

    def __init__(self, walker: Walker) -> None:
        """``walker`` goes to their directories."""
        self._walker = walker
        self._lstats = Lstats()
        self._parts: list[_Part] = []
        self._folders: list[int] = []
        self._symlinks: list[int] = []
        """Positions in the batch."""

    def has_room(self, count: int) -> bool:
        """Whether so many names more can be looked at; there is for STRETCH in an empty one."""
        return self._lstats.count + count <= MANY

    def add(self, directory: bytes, names: list[bytes], parent: int) -> list[bytes] | None:
        """Look at names of a directory, open as ``parent``: the paths of the directories in it.

        None, and nothing is added, where they must be looked at one by one: where there is what
        is neither file, directory nor symlink, or not to be looked at, or of a time out of range.
        """
        start = self._lstats.count
        try:
            folders = self._add(directory, names, parent)
        except OSError:
            folders = None
        if folders is None:
            self._lstats.forget(start)
        return folders

    def _add(self, directory: bytes, names: list[bytes], parent: int) -> list[bytes] | None:
        lstats = self._lstats
        start = lstats.count
        lstats.look(names, parent)
        if not lstats.fit(start):
            return None
        types = lstats.types(start).translate(_TYPES)
        files = types.count(_FILE)
        targets: dict[int, bytes] = {}
        folders: list[bytes] = []
        if files < len(names):
            prefix = directory + b"/" if directory else b""
            at: list[int] = []
            for position, kind in enumerate(types):
                if kind == _FILE:
                    continue
                if kind == _DIRECTORY:
                    folders.append(prefix + names[position])
                    at.append(start + position)
                elif kind == _SYMLINK:
                    targets[position] = os.readlink(names[position], dir_fd=parent)
                else:
                    return None
            self._folders += at
            self._symlinks += map(start.__add__, targets)
        self._parts.append(_Part(directory, names, files, targets))
        return folders

    def taken(self) -> list[Stretch]:
        """A stretch of each addition, in order. They are forgotten."""
        lstats, parts = self._lstats, self._parts
        count = lstats.count
        modes, sizes, links = map(bytearray, (lstats.modes, lstats.sizes, lstats.links))
        for at in self._folders:
            sizes[8 * at : 8 * at + 8] = _NO_SIZE
            links[4 * at : 4 * at + 4] = _ONE
        for at in self._symlinks:
            sizes[8 * at : 8 * at + 8] = _NO_SIZE
            modes[4 * at : 4 * at + 4] = _ANY_SYMLINK
        ctimes, mtimes = lstats.times()
        quads = bytes(sizes), mtimes, ctimes, lstats.inos, lstats.devs
        words = bytes(modes), lstats.uids, lstats.gids, bytes(links)
        numbers = struct.unpack(f"<{count}q", sizes)
        linked = struct.unpack(f"<{count}I", links) if links != _ONE * count else ()
        holes = lstats.blocks() if lstats.may_have_holes(sizes) else ()
        stretches = []
        first = 0
        for stop, part in zip(accumulate(len(part.names) for part in parts), parts, strict=True):
            size, mtime, ctime, ino, dev = [column[8 * first : 8 * stop] for column in quads]
            mode, uid, gid, link = [column[4 * first : 4 * stop] for column in words]
            length = numbers[first:stop]
            stretches.append(Stretch(
                part.directory,
                part.names,
                b"".join((mode, size, mtime, uid, gid)),
                b"".join((ctime, ino, dev, link)),
                part.files,
                sum(length),
                [at for at, number in enumerate(linked[first:stop]) if number > 1],
                part.targets,
                dict(self._segments(part, length, holes[first:stop])) if holes else {},
                {},
                [],
            ))  # fmt: skip
            first = stop
        for some in (parts, self._folders, self._symlinks):
            some.clear()
        lstats.forget()
        return stretches

    def _segments(
        self, part: _Part, sizes: tuple[int, ...], blocks: tuple[int, ...]
    ) -> Iterator[tuple[int, Segments]]:
        """By position: those of files that have holes."""
        for position, (has, size) in enumerate(zip(blocks, sizes, strict=True)):
            if has * 512 < size:
                try:
                    parent = self._walker.dirfd(part.directory)
                except OSError:
                    return  # reading them will say what is wrong
                found = segments_of(part.names[position], parent, size)
                if found is not None:
                    yield position, found


def segments_of(name: bytes, parent: int, size: int) -> Segments | None:
    """The ranges of a sparse file that hold data, widened to pages; None when it is not read."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except OSError:
        return None  # reading it will say what is wrong
    try:
        widened = ((start // PAGE * PAGE, round_up(stop)) for start, stop in data_of(fd, size))
        return tuple(_merged((start, min(stop, size)) for start, stop in widened)) or ((0, 0),)
    except OSError:
        return None
    finally:
        os.close(fd)


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = stop = 0
    for first, last in ranges:
        if first > stop:
            if start != stop:
                yield start, stop
            start = first
        stop = last
    if start != stop:
        yield start, stop
