"""Stretches: names in a row of one directory, up to STRETCH of them, in columns.

    listing, sorted > stretches, each before those below its directories > in order: Found, Skipped

The columns are made, packed and compared by whole calls, not name by name: that is what scanning a
million small files takes. The root is a stretch of its own, with an empty name.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice, repeat
from operator import and_
from typing import Any, Generic, NamedTuple, TypeVar

from tar_like.lanes import any_less, tops
from tar_like.layout import DIRECTORY, FILE, SYMLINK
from tar_like.source.contract import Found, Skipped

STRETCH = 1024
"""Names in a stretch, of which only the last one of a directory may have less. Ids depend on it."""
TYPES = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK}
KINDS = {bits: kind for kind, bits in TYPES.items()}
FORMAT = 0o170000
BITS = 0o7777
_TOLD, _KEPT = "IqqII", "qqqI"
"""Of the packed columns, the types of struct."""
AGES_AGO, AGES_TO_COME = -(1 << 63), (1 << 63) - 1
"""The first and the last time that there may be, in ns."""
_ONE_LINK = struct.pack("<I", 1)
_U32 = struct.Struct("<I")

T = TypeVar("T")
Column = Iterable[int]
Packed = bytes | bytearray


class Stretch(NamedTuple):
    """Names in a row of one directory. Plain values, so that it can be marshalled as a tuple.

    What few names have lies by the name's position in the stretch.
    """

    directory: bytes
    names: list[bytes]
    told: bytes
    """Columns that tell one tree from another, packed: see ``pack_told``."""
    kept: bytes
    """ctime, inode, device (i64) and number of links (u32): columns, packed."""
    files: int
    file_bytes: int
    linked: list[int]
    """Positions of what has further names, which may be hard links within the tree."""
    targets: dict[int, bytes]
    segments: dict[int, tuple[tuple[int, int], ...]]
    xattrs: dict[int, tuple[tuple[bytes, bytes], ...]]
    skipped: list[tuple[int, tuple[bytes, str, str]]]
    """What is no part of the tree (Skipped), each with the position of the name it comes before."""

    def folders(self) -> list[bytes]:
        """The paths of the directories in it."""
        if self.files == len(self.names):
            return []
        modes = struct.unpack_from(f"<{len(self.names)}I", self.told)
        prefix = self.directory + b"/" if self.directory else b""
        return [
            prefix + name
            for name, mode in zip(self.names, modes, strict=True)
            if mode & FORMAT == stat.S_IFDIR
        ]

    def folders_at(self, positions: Iterable[int]) -> Iterator[bytes]:
        """The paths of those of these names that are directories'."""
        prefix = self.directory + b"/" if self.directory else b""
        for at in positions:
            (mode,) = _U32.unpack_from(self.told, 4 * at)
            if mode & FORMAT == stat.S_IFDIR:
                yield prefix + self.names[at]

    @property
    def mtimes(self) -> bytes:
        """The column of mtimes, packed."""
        count = len(self.names)
        return self.told[12 * count : 20 * count]

    @property
    def versions(self) -> bytes:
        """The columns of ctimes and of inodes, packed."""
        return self.kept[: 16 * len(self.names)]

    def inodes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The columns of devices and of inodes."""
        _, inos, devs, _ = self._kept()
        return devs, inos

    def without(self, further: Iterable[int]) -> tuple[bytes, int, int]:
        """``told`` with further names of hard links at these positions.

        Also how many of them are files, and the bytes of these.
        """
        columns = unpack_told(self.told, len(self.names))
        modes, sizes = list(columns[0]), list(columns[1])
        files = size = 0
        for position in further:
            files += stat.S_ISREG(modes[position])
            size += sizes[position]
            modes[position] &= BITS
            sizes[position] = 0
        return pack_told(modes, sizes, *columns[2:]), files, size

    def found(self) -> Iterator[Found | Skipped]:
        """What is in the stretch, in order."""
        if not self.skipped:
            return self._found()
        return self._with_skipped()

    def _with_skipped(self) -> Iterator[Found | Skipped]:
        found, done = self._found(), 0
        for position, skipped in self.skipped:
            yield from islice(found, position - done)
            done = position
            yield Skipped(*skipped)
        yield from found

    def _found(self) -> Iterator[Found | Skipped]:
        modes, sizes, mtimes, uids, gids = unpack_told(self.told, len(self.names))
        ctimes, inos, devs, links = self._kept()
        prefix = self.directory + b"/" if self.directory else b""
        paths = [prefix + name for name in self.names]
        kinds = map(KINDS.get, map(and_, modes, repeat(FORMAT)))
        fields = zip(
            paths, kinds, sizes, map(and_, modes, repeat(BITS)), mtimes, uids, gids,
            self._few(self.targets, b""), ctimes, inos, devs, links, repeat(b""),
            self._few(self.segments, None), self._few(self.xattrs, ()), strict=False,
        )  # fmt: skip
        return map(partial(tuple.__new__, Found), fields)

    def _few(self, values: dict[int, Any], none: object) -> Iterator[Any]:
        return map(values.get, range(len(self.names)), repeat(none)) if values else repeat(none)

    def _kept(self) -> list[tuple[int, ...]]:
        return _unpack(_kept_format(len(self.names)), 4, self.kept)


def newest_of(stretches: Iterable[Stretch], so_far: int) -> int:
    """The last mtime of these names, or ``so_far``, if that is later."""
    mtimes = b"".join(stretch.mtimes for stretch in stretches)
    count = len(mtimes) // 8
    lanes, top = int.from_bytes(mtimes, "little"), tops(count)
    if so_far >= 0 and not lanes & top:  # none is before 1970
        before = int.from_bytes(so_far.to_bytes(8, "little") * count, "little")
        if not any_less(before, lanes, top):  # as mostly
            return so_far
    times: tuple[int, ...] = struct.unpack(f"<{count}q", mtimes)
    return max((so_far, *times))


def pack_told(modes: Column, sizes: Column, mtimes: Column, uids: Column, gids: Column) -> bytes:
    """Modes with type bits (u32), sizes (i64), mtimes (i64), uids and gids (u32), little-endian.

    Raises struct.error for a number that does not fit.
    """
    modes = [*modes]
    return struct.pack(_told_format(len(modes)), *modes, *sizes, *mtimes, *uids, *gids)


def starts_of(count: int) -> tuple[int, int, int, int, int]:
    """Where the columns of so many names begin in what ``pack_told`` gives."""
    return 0, 4 * count, 12 * count, 20 * count, 24 * count


def unpack_told(told: bytes, count: int) -> list[tuple[int, ...]]:
    """The columns again."""
    return _unpack(_told_format(count), 5, told)


def _unpack(form: str, columns: int, packed: bytes) -> list[tuple[int, ...]]:
    numbers = struct.unpack(form, packed)
    count = len(numbers) // columns
    return [numbers[column * count : (column + 1) * count] for column in range(columns)]


def _told_format(count: int) -> str:
    return "<" + "".join(f"{count}{code}" for code in _TOLD)


def _kept_format(count: int) -> str:
    return "<" + "".join(f"{count}{code}" for code in _KEPT)


def stretch_of(
    directory: bytes, names: list[bytes], told: Iterable[Packed], kept: Iterable[Packed],
    files: int,
    *,
    targets: dict[int, bytes] | None = None,
    segments: dict[int, tuple[tuple[int, int], ...]] | None = None,
    xattrs: dict[int, tuple[tuple[bytes, bytes], ...]] | None = None,
    skipped: list[tuple[int, tuple[bytes, str, str]]] | None = None,
) -> Stretch:  # fmt: skip
    """A stretch of the packed columns of ``told`` and ``kept``; ``files`` of the names are files.

    Sizes are 0 but for files; directories have one link.
    """
    _, sizes, _, _, _ = told = tuple(told)
    *_, links = kept = tuple(kept)
    form = f"<{len(names)}q"
    linked = []
    if links != _ONE_LINK * len(names):
        numbers = struct.unpack(f"<{len(names)}I", links)
        linked = [at for at, number in enumerate(numbers) if number > 1]
    return Stretch(
        directory,
        names,
        b"".join(told),
        b"".join(kept),
        files,
        sum(struct.unpack(form, sizes)),
        linked,
        targets or {},
        segments or {},
        xattrs or {},
        skipped or [],
    )


def stretch_of_found(directory: bytes, items: Iterable[Found | Skipped]) -> Stretch:
    """A stretch of what was looked at name by name."""
    found: list[Found] = []
    skipped = []
    for item in items:
        if isinstance(item, Skipped):
            skipped.append((len(found), (item.path, item.kind, item.detail)))
        else:
            found.append(item)
    cut = len(directory) + 1 if directory else 0
    columns = list(zip(*(
        (TYPES[one.kind] | one.mode, one.size, one.mtime, one.uid, one.gid,
         one.ctime, one.ino, one.dev, one.links)
        for one in found
    ), strict=True)) or [()] * 9  # fmt: skip
    packed = [
        struct.pack(f"<{len(found)}{code}", *column)
        for code, column in zip(_TOLD + _KEPT, columns, strict=True)
    ]
    return stretch_of(
        directory,
        [one.path[cut:] for one in found],
        packed[: len(_TOLD)],
        packed[len(_TOLD) :],
        sum(one.kind == FILE for one in found),
        targets={at: one.target for at, one in enumerate(found) if one.target},
        segments={at: one.segments for at, one in enumerate(found) if one.segments is not None},
        xattrs={at: one.xattrs for at, one in enumerate(found) if one.xattrs},
        skipped=skipped,
    )


class InOrder(Generic[T]):
    """Goes through the names of stretches in canonical order.

    Each stretch is given before those below its directories, and after all before it. As many
    are open at a time as the tree is deep.
    """

    def __init__(self, opened: Callable[[Stretch], T]) -> None:
        """``opened`` makes of a stretch what stands for it."""
        self._opened = opened
        self._stack: list[tuple[Stretch, T]] = []
        self._passed: list[int] = []
        """How many names of each were passed."""

    def push(self, stretch: Stretch) -> Iterator[tuple[T, int | None]]:
        """What is passed until this stretch begins: an open stretch, and how many more names of it.

        None for all the rest: that stretch is done then. To be consumed before the next call.
        """
        directory, stack, passed = stretch.directory, self._stack, self._passed
        parent, _, name = directory.rpartition(b"/")
        while stack:
            top, value = stack[-1]
            if top.directory == parent and directory != parent:
                position = top.names.index(name, passed[-1]) + 1
                count, passed[-1] = position - passed[-1], position
                yield value, count
                break
            stack.pop()
            passed.pop()
            yield value, None
            if top.directory == directory:
                break
        stack.append((stretch, self._opened(stretch)))
        passed.append(0)

    def end(self) -> Iterator[tuple[T, None]]:
        """The rest."""
        while self._stack:
            self._passed.pop()
            yield self._stack.pop()[1], None


class FoundInOrder:
    """The names of stretches, as they are pushed, in canonical order."""

    def __init__(self) -> None:
        self._order = InOrder(lambda stretch: (stretch.found(), bool(stretch.skipped)))

    def push(self, stretches: Iterable[Stretch]) -> Iterator[Found | Skipped]:
        """What is passed until the last of these begins. To be consumed before the next call."""
        passed = chain.from_iterable(map(self._order.push, stretches))
        return chain.from_iterable(_part(*opened, count) for opened, count in passed)

    def end(self) -> Iterator[Found | Skipped]:
        """The rest."""
        return chain.from_iterable(found for (found, _), _ in self._order.end())


def _part(
    found: Iterator[Found | Skipped], some_skipped: bool, count: int | None
) -> Iterator[Found | Skipped]:
    """So many names, or all, with what was skipped before each."""
    if count is None:
        return found
    return _counting(found, count) if some_skipped else islice(found, count)


def _counting(found: Iterator[Found | Skipped], count: int) -> Iterator[Found | Skipped]:
    while count:
        one = next(found)
        count -= isinstance(one, Found)
        yield one


def found_in_order(stretches: Iterable[Stretch]) -> Iterator[Found | Skipped]:
    """The names of stretches in canonical order."""
    order = FoundInOrder()
    return chain(order.push(stretches), order.end())
