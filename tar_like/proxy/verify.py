"""Verify staged files before anything gets a name.

    for each unit (whole files, about 64 MiB of the plan), on several processes:
        read each piece back > its digest > the digest of each block against its receipt
        the file's digest > against the index, where the index has one
        metadata of the staged file

A block that two units share is judged by the parent, from both units' piece digests. A block
that does not have its receipt's digest is revoked: its staged bytes are not what arrived.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from tar_like import beside, digest
from tar_like.beside import Beside
from tar_like.index import Index
from tar_like.layout import Entry, Extent
from tar_like.plan import Plan
from tar_like.process import large_buffer
from tar_like.proxy import durable
from tar_like.proxy.copying import copy_range
from tar_like.proxy.kept import Kept
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.receipts import Receipts
from tar_like.proxy.staging import Staging
from tar_like.reading import read_at

UNIT = 64 << 20
_MISSING = b""
"""Stands for the digest of a piece that cannot be read: no block has it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of the plan that begins and ends with a file."""

    start: int
    stop: int


class Twin(NamedTuple):
    """A file whose bytes are staged already: its own, or those of another that it is to have."""

    entry_id: int
    first: int
    """The entry under whose number they are staged."""
    digest: bytes


@dataclass(slots=True)
class UnitResult:
    """What was found in a unit."""

    verified: list[tuple[int, bytes]] = field(default_factory=list)
    """(entry id, digest of the file)."""
    changed: list[int] = field(default_factory=list)
    """Entries whose bytes are not those that the index has a digest of."""
    bad_blocks: list[int] = field(default_factory=list)
    shared: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(block, offset of the piece, its digest) of blocks that reach beyond the unit."""


def units(plan: Plan) -> Iterator[Unit]:
    """The plan, cut where files begin."""
    start: int | None = None
    for offset in plan.file_starts(UNIT):
        if start is not None:
            yield Unit(start, offset)
        start = offset
    if start is not None:
        yield Unit(start, plan.length)


class Verifier:
    """Reads units of one transfer back. One a process."""

    def __init__(self, path: str) -> None:
        """``path`` is the transfer's folder."""
        index_path = os.path.join(path, "index.db")
        self._index = Index(index_path)
        self._plan = Plan(os.path.join(path, "plan.db"), index_path)
        self._staging = Staging(os.path.join(path, "stage"))
        self._receipts = Receipts(os.path.join(path, "receipts"))
        self._receipts.refresh()
        self._omitted = self._receipts.omitted_entries()
        self._has_xattrs = bool(self._index.xattr_names)
        self._metadata = Metadata(self._index.xattr_names)
        self._algorithm = self._index.digest
        self._kept = Kept(os.path.join(path, "kept.db"))
        self._buffer = large_buffer(self._plan.block_size)

    @cached_property
    def _rooms(self) -> list[memoryview]:
        return beside.rooms()

    def __call__(self, unit: Unit) -> UnitResult:
        result = UnitResult()
        judge = _BlockJudge(self._plan, self._receipts, unit, result)
        omitted, read = self._omitted, self._read
        for entry, extents in self._plan.files_between(unit.start, unit.stop):
            file_digest = read(entry, extents, judge)
            wanted = self._kept.assembled(entry.id) or entry.hash
            if entry.id in omitted:
                continue
            if wanted and wanted != file_digest:
                result.changed.append(entry.id)
            else:
                result.verified.append((entry.id, file_digest))
        judge.finish()
        return result

    def copies(self, twins: list[Twin]) -> UnitResult:
        """Files without extents of their own: give them their bytes and their metadata.

        Each is read back, also what was proven when it was staged: that may be long ago.
        """
        result = UnitResult()
        for twin in twins:
            entry = self._index.entry(twin.entry_id)
            try:
                fd = self._own_copy(entry, twin.first)
            except FileNotFoundError:
                result.changed.append(entry.id)
                continue
            try:
                if self._hash_staged(fd, entry) != twin.digest:
                    result.changed.append(entry.id)
                    continue
                xattrs = self._index.xattrs(entry.id) if self._has_xattrs else ()
                self._metadata.apply(fd, entry, os.fstat(fd), xattrs)
            finally:
                os.close(fd)
            result.verified.append((entry.id, twin.digest))
        return result

    def _own_copy(self, entry: Entry, first: int) -> int:
        """A staged file, which gets the bytes of another one. Raises FileNotFoundError."""
        if first != entry.id:
            with self._reading(first) as source:
                self._staging.remove(entry.id)
                target = self._staging.create(entry.id)
                try:
                    copy_range(source, 0, target, 0, entry.size)
                finally:
                    os.close(target)
        return self._staging.reopen(entry.id)

    @contextlib.contextmanager
    def _reading(self, entry_id: int) -> Iterator[int]:
        """A staged file that has its mode already, which stays. Raises FileNotFoundError."""
        mode: int | None = None
        try:
            fd = self._staging.open(entry_id)
        except PermissionError:  # even reading it is closed to us, a plain user
            fd = self._staging.reopen(entry_id)
            mode = self._index.entry(entry_id).mode
        try:
            yield fd
        finally:
            if mode is not None:
                os.fchmod(fd, mode)
            os.close(fd)

    def _hash_staged(self, fd: int, entry: Entry) -> bytes:
        """The digest of a staged file; empty for one that has not its size."""
        if os.fstat(fd).st_size != entry.size:
            return b""
        with Beside(self._algorithm, self._rooms) as hasher:
            self._hash_local(fd, hasher, 0, entry.size)
            return hasher.digest()

    def _read(self, entry: Entry, extents: list[Extent], judge: _BlockJudge) -> bytes:
        """Hash a staged file, once a byte where it can be; give it its metadata."""
        if entry.id in self._omitted:
            self._read_omitted(entry, extents, judge)
            return b""
        try:
            fd, st = self._staging.examine(entry.id)
        except FileNotFoundError:
            judge.missing(extents)
            return b""
        try:
            if st.st_size != entry.size:
                os.ftruncate(fd, entry.size)
                st = os.fstat(fd)
            whole = self._hash(fd, entry, extents, judge)
            xattrs = self._index.xattrs(entry.id) if self._has_xattrs else ()
            self._metadata.apply(fd, entry, st, xattrs)
            return whole
        finally:
            os.close(fd)

    def _hash(self, fd: int, entry: Entry, extents: list[Extent], judge: _BlockJudge) -> bytes:
        if len(extents) > 1 or not judge.holds_whole(extents[0], entry.size):
            return self._hash_large(fd, entry, extents, judge)
        try:
            view = self._pread(fd, 0, entry.size)
        except OSError:
            judge.missing(extents)
            return b""
        piece = digest.of_piece(view)
        judge.piece(extents[0], piece)
        return piece if self._algorithm == "blake3" else digest.of(self._algorithm, view)

    def _hash_large(
        self, fd: int, entry: Entry, extents: list[Extent], judge: _BlockJudge
    ) -> bytes:
        """The file's digest, holes included, and those of its pieces."""
        # What was not sent is a hole, or was staged from local content: the digest tells.
        local = self._kept.assembled(entry.id) is not None
        hash_gap = self._hash_local if local else self._hash_hole
        position = 0
        with Beside(self._algorithm, self._rooms) as hasher:
            for extent in extents:
                hash_gap(fd, hasher, position, extent.start)
                for piece in judge.cut(extent):
                    judge.piece(piece, self._hash_piece(fd, hasher, piece.start, piece.stop))
                position = extent.stop
            hash_gap(fd, hasher, position, entry.size)
            return hasher.digest()

    @staticmethod
    def _hash_piece(fd: int, hasher: Beside, start: int, stop: int) -> bytes:
        """The digest of a piece, which its file's hasher gets too."""
        own = digest.piece_hasher()
        try:
            for view in hasher.read(fd, start, stop):
                own.update(view)
        except OSError:  # a bad sector, say: its block comes again
            return _MISSING
        return own.digest()

    @staticmethod
    def _hash_local(fd: int, hasher: Beside, start: int, stop: int) -> None:
        """Bytes that were put there from the destination's own content."""
        for _ in hasher.read(fd, start, stop):
            pass

    def _hash_hole(self, fd: int, hasher: Beside, start: int, stop: int) -> None:
        """Bytes that were never sent must be zeros: what is not a hole there is made so."""
        position = start
        while position < stop:
            try:
                position = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # nothing but a hole up to the file's end
            step = min(stop, position + len(self._buffer))
            if step > position:
                view = self._pread(fd, position, step)
                if any(view):
                    durable.write_all(fd, bytes(len(view)), position)
            position = step if step > position else stop
        digest.add_zeros(hasher, stop - start)

    def _pread(self, fd: int, start: int, stop: int) -> memoryview:
        view = self._buffer[: stop - start]
        if read_at(fd, view, start) < stop - start:
            raise OSError(errno.EIO, "short read of a staged file")
        return view

    def _read_omitted(self, entry: Entry, extents: list[Extent], judge: _BlockJudge) -> None:
        """Pieces of a file that will not be committed, only to judge their blocks."""
        for piece in (piece for extent in extents for piece in judge.cut(extent)):
            reason = judge.omitted(piece)
            if reason:
                judge.piece(piece, digest.of_omission(reason))
                continue
            try:
                fd = self._staging.open(entry.id)
            except FileNotFoundError:
                judge.piece(piece, _MISSING)
                continue
            try:
                judge.piece(piece, digest.of_piece(self._pread(fd, piece.start, piece.stop)))
            finally:
                os.close(fd)


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What reading a whole transfer back came to."""

    bad_blocks: list[int]
    changed: list[int]
    """See UnitResult."""


def read_back(
    results: Iterable[UnitResult],
    receipts: Receipts,
    take: Callable[[list[tuple[int, bytes]]], object],
) -> ReadBack:
    """Judge what all units of a transfer gave; ``take`` gets what is verified, a unit at a time."""
    shared: dict[int, list[tuple[int, bytes]]] = {}
    found = ReadBack([], [])
    for result in results:
        take(result.verified)
        found.changed.extend(result.changed)
        found.bad_blocks.extend(result.bad_blocks)
        for block, offset, piece in result.shared:
            shared.setdefault(block, []).append((offset, piece))
    for block, pieces in shared.items():
        if not block_holds(receipts, block, [piece for _, piece in sorted(pieces)]):
            found.bad_blocks.append(block)
    return found


class _BlockJudge:
    """Collects piece digests, and compares each finished block with its receipt."""

    def __init__(self, plan: Plan, receipts: Receipts, unit: Unit, result: UnitResult) -> None:
        self._size = plan.block_size
        self._plan = plan
        self._receipts = receipts
        self._unit = unit
        self._result = result
        self._block = -1
        self._pieces: list[tuple[int, bytes]] = []

    def holds_whole(self, extent: Extent, size: int) -> bool:
        """Whether an extent is a whole file of this size, and lies in one block."""
        offset, _, start, stop = extent
        return stop - start == size and offset % self._size + size <= self._size

    def cut(self, extent: Extent) -> Iterator[Extent]:
        """An extent's pieces, block by block."""
        offset, entry_id, start, stop = extent
        while start < stop:
            room = self._size - offset % self._size
            end = min(stop, start + room)
            yield Extent(offset, entry_id, start, end)
            offset += end - start
            start = end

    def piece(self, extent: Extent, piece_digest: bytes) -> None:
        block = extent.offset // self._size
        if block != self._block:
            self._close()
            self._block = block
        self._pieces.append((extent.offset, piece_digest))

    def omitted(self, piece: Extent) -> int:
        """Why the source did not give this piece; 0 where it did."""
        block = piece.offset // self._size
        return self._receipts.omitted_piece(block, piece.entry_id, piece.start)

    def missing(self, extents: list[Extent]) -> None:
        """A staged file is not there although its blocks have receipts."""
        for extent in extents:
            for piece in self.cut(extent):
                self.piece(piece, _MISSING)

    def finish(self) -> None:
        self._close()

    def _close(self) -> None:
        if not self._pieces:
            return
        block, pieces = self._block, self._pieces
        start, stop = block * self._size, (block + 1) * self._size
        if start < self._unit.start or min(stop, self._plan.length) > self._unit.stop:
            self._result.shared += [(block, offset, piece) for offset, piece in pieces]
        elif not block_holds(self._receipts, block, [piece for _, piece in pieces]):
            self._result.bad_blocks.append(block)
        self._pieces = []


def block_holds(receipts: Receipts, block_no: int, pieces: list[bytes]) -> bool:
    """Whether piece digests make up a digest that the block has a receipt for."""
    return digest.of_block(pieces) in receipts.digests(block_no)
