"""Receipts: the records that blocks arrived and verified.

    T/receipts/<host>-<pid>-<random>.log     one writer a file, append only; the truth is the union

    record = type:u8 length:u32 payload xxh3_64(type length payload):u64     (little-endian)
      H  host and boot id              the log's first record
      B  block:u64 epoch:u32 digest    a block's bytes are in the staged files
      O  block:u64 epoch:u32 entry:u64 start:u64 reason:u32
                                   a source could not give this piece (or, start = 2^64-1, gave
                                   other bytes of this entry later); goes before its block
      C  position:u64                  what the records before this position speak of is synced
      D                                the ``C`` before it is synced too: those are durable
      R  block:u64 epoch:u32           receipts up to this epoch are void (verification failed)

A record is appended after the bytes it speaks of were written; ``C`` after they were synced,
``D`` after the log was. A torn tail is no record. After a crash of the machine only what a ``C``
covers counts: the log knows the boot it was written in. Until then only what a ``D`` covers is
called durable: a ``C`` may be seen before it is on the disk.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from tar_like.codec import REASONS
from tar_like.dirfd import open_file
from tar_like.proxy.durable import machine, may_be_lost, write_all

_HEAD = struct.Struct("<cI")
_SUM = struct.Struct("<Q")
_BLOCK = struct.Struct("<QI32s")
_OMIT = struct.Struct("<QIQQI")
NO_PIECE = (1 << 64) - 1
_REVOKE = struct.Struct("<QI")
_CHECKPOINT = struct.Struct("<Q")
_CHECKPOINT_SIZE = _HEAD.size + _CHECKPOINT.size + _SUM.size
_DURABLE_SIZE = _HEAD.size + _SUM.size
_MAX_PAYLOAD = 4096


class Omitted(NamedTuple):
    """A piece of a block that a source could not give."""

    block_no: int
    epoch: int
    entry_id: int
    start: int
    """Where the piece starts in its file; NO_PIECE where the entry as a whole is in doubt."""
    reason: int


class Receipt(NamedTuple):
    """A block arrived with this digest."""

    epoch: int
    digest: bytes


class ReceiptLog:
    """This process's own log of one transfer. Thread-safe."""

    _fd: int | None = None

    def __init__(self, directory: str) -> None:
        """Create the log. Raises OSError."""
        self._directory = directory
        self._lock = threading.Lock()
        with self._lock:
            self._begin()

    def _begin(self) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.log"
        self.path = os.path.join(self._directory, name)
        fd = open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        head = _record(b"H", machine())
        try:
            write_all(fd, head, 0)
        except OSError:  # a log without its head would be believed after a power cut
            os.close(fd)
            os.unlink(self.path)
            raise
        self._fd = fd
        self._end = self._synced = len(head)

    @property
    def dirty(self) -> int:
        """Bytes of records that no checkpoint covers."""
        return self._end - self._synced

    def add_block(self, block_no: int, epoch: int, digest: bytes, omitted: list[Omitted]) -> None:
        """Record a block whose bytes are written, and the entries it omits. Raises OSError."""
        records = [_record(b"O", _OMIT.pack(*one)) for one in omitted]
        records.append(_record(b"B", _BLOCK.pack(block_no, epoch, digest)))
        with self._lock:
            self._append(b"".join(records))

    def omit(self, omitted: list[Omitted]) -> None:
        """Record entries that a source could not give consistently. Raises OSError."""
        with self._lock:
            self._append(b"".join(_record(b"O", _OMIT.pack(*one)) for one in omitted))

    def revoke(self, blocks: list[tuple[int, int]]) -> None:
        """Void the receipts of blocks up to the given epochs, durably. Raises OSError."""
        with self._lock:
            os.fsync(self._append(b"".join(_record(b"R", _REVOKE.pack(*pair)) for pair in blocks)))

    def mark(self) -> int:
        """The position that a sync started now will cover."""
        return self._end

    def checkpoint(self, mark: int) -> None:
        """Call after the filesystem was synced since ``mark``.

        Raises OSError: where the log itself cannot be synced, what no checkpoint covers is gone.
        """
        with self._lock:
            fd = self._append(_record(b"C", _CHECKPOINT.pack(mark)))
            try:
                os.fsync(fd)
            except OSError:
                self._cut()
                raise
            self._append(_record(b"D", b""))
            nothing_since = mark + _CHECKPOINT_SIZE + _DURABLE_SIZE == self._end
            self._synced = self._end if nothing_since else mark

    def distrust(self) -> None:
        """After a failed sync: drop every record since the last checkpoint. Raises OSError.

        The log ends there; what comes goes to a new one, so that whoever has read further sees
        for ever that this one was cut. One that cannot be cut is removed.
        """
        with self._lock:
            self._cut()

    def _cut(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                os.ftruncate(fd, self._synced)
            except OSError:
                os.unlink(self.path)
            finally:
                self._end = self._synced = 0
                os.close(fd)

    def close(self) -> None:
        """Close the file; done by itself when nobody has this object any more."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    __del__ = close

    def _append(self, records: bytes) -> int:
        """Write records behind the last one; returns the log's fd."""
        if self._fd is None:
            self._begin()
        fd = self._fd
        assert fd is not None
        try:
            write_all(fd, records, self._end)
        except OSError:
            os.ftruncate(fd, self._end)
            raise
        self._end += len(records)
        return fd


class Receipts:
    """The union of all logs of a transfer. Thread-safe."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._machine = machine()
        self._clear()

    def _clear(self) -> None:
        self._logs: dict[str, _LogState] = {}
        self._blocks: dict[int, Receipt] = {}
        self._others: dict[int, set[bytes]] = {}
        self._durable: set[int] = set()
        self._void: dict[int, int] = {}
        self._omitted: dict[int, list[Omitted]] = {}

    def refresh(self) -> None:
        """Read what was appended since the last time. Raises OSError."""
        with self._lock:
            names = sorted(name for name in os.listdir(self._directory) if name.endswith(".log"))
            if any(self._shrank(name) for name in self._logs):
                self._clear()
            for name in names:
                self._read(name)

    def find(self, block_no: int) -> Receipt | None:
        """The receipt of a block, if it has a valid one."""
        return self._blocks.get(block_no)

    def digests(self, block_no: int) -> set[bytes]:
        """All digests under which a block arrived; more than one after a race."""
        receipt = self._blocks.get(block_no)
        if receipt is None:
            return set()
        return {receipt.digest} | self._others.get(block_no, set())

    def epoch(self, block_no: int) -> int:
        """The epoch that a new receipt of this block must bear."""
        return self._void.get(block_no, -1) + 1

    @property
    def received(self) -> int:
        """How many blocks have a valid receipt."""
        return len(self._blocks)

    @property
    def durable(self) -> int:
        """How many of them survive a power cut."""
        return len(self._durable)

    def blocks(self) -> list[int]:
        """Numbers of the received blocks."""
        with self._lock:
            return list(self._blocks)

    def durable_blocks(self) -> list[int]:
        """Numbers of the durable blocks."""
        with self._lock:
            return list(self._durable)

    def omitted_entries(self) -> dict[int, int]:
        """Entry id -> reason (codec.REASONS) of what sources could not give."""
        with self._lock:
            return {one.entry_id: one.reason for many in self._omitted.values() for one in many}

    def omitted_piece(self, block_no: int, entry_id: int, start: int) -> int:
        """Why a block lacks a piece; 0 where it does not."""
        for one in self._omitted.get(block_no, ()):
            if (one.entry_id, one.start) == (entry_id, start):
                return one.reason
        return 0

    def _shrank(self, name: str) -> bool:
        try:
            return os.path.getsize(os.path.join(self._directory, name)) < self._logs[name].position
        except FileNotFoundError:
            return True

    def _read(self, name: str) -> None:
        path = os.path.join(self._directory, name)
        state = self._logs.get(name)
        if state is not None and os.path.getsize(path) == state.position:
            return
        if state is None:
            state = self._logs[name] = _LogState()
        with open(open_file(path, os.O_RDONLY), "rb") as file:
            file.seek(state.position)
            data = file.read()
        start = state.position
        for kind, payload, end in _records(data):
            self._apply(state, kind, payload)
            state.position = start + end

    def _apply(self, state: _LogState, kind: bytes, payload: bytes) -> None:
        if kind == b"H":
            state.lost = may_be_lost(payload, self._machine)
        elif kind == b"B":
            block_no, epoch, digest = _BLOCK.unpack(payload)
            state.pending.append((state.position, block_no, Receipt(epoch, digest)))
            if not state.lost:
                self._add(block_no, Receipt(epoch, digest))
        elif kind == b"C":
            self._cover(state, *_CHECKPOINT.unpack(payload))
        elif kind == b"D":
            self._end_checkpoint(state)
        elif kind == b"O":
            self._omit(Omitted._make(_OMIT.unpack(payload)))
        elif kind == b"R":
            self._revoke(*_REVOKE.unpack(payload))

    def _cover(self, state: _LogState, mark: int) -> None:
        for position, block_no, receipt in state.pending:
            if position < mark and self._add(block_no, receipt):
                state.covered.append((block_no, receipt))
        state.pending = [waiting for waiting in state.pending if waiting[0] >= mark]
        if state.lost:  # what is read after a crash is on the disk
            self._end_checkpoint(state)

    def _end_checkpoint(self, state: _LogState) -> None:
        for block_no, receipt in state.covered:
            known = self._blocks.get(block_no)
            if known is not None and known.epoch == receipt.epoch:
                self._durable.add(block_no)
        state.covered = []

    def _add(self, block_no: int, receipt: Receipt) -> bool:
        if receipt.epoch <= self._void.get(block_no, -1):
            return False
        known = self._blocks.get(block_no)
        if known is None or known.epoch < receipt.epoch:
            self._forget(block_no)  # it is void: the log that says so is yet to be read
            self._blocks[block_no] = receipt
        elif known.epoch > receipt.epoch:
            return False
        elif known.digest != receipt.digest:
            self._others.setdefault(block_no, set()).add(receipt.digest)
        return True

    def _omit(self, omitted: Omitted) -> None:
        if omitted.epoch > self._void.get(omitted.block_no, -1):
            self._omitted.setdefault(omitted.block_no, []).append(omitted)

    def _revoke(self, block_no: int, epoch: int) -> None:
        self._void[block_no] = max(epoch, self._void.get(block_no, -1))
        remaining = [one for one in self._omitted.pop(block_no, ()) if one.epoch > epoch]
        if remaining:
            self._omitted[block_no] = remaining
        known = self._blocks.get(block_no)
        if known is not None and known.epoch <= epoch:
            self._forget(block_no)

    def _forget(self, block_no: int) -> None:
        self._blocks.pop(block_no, None)
        self._others.pop(block_no, None)
        self._durable.discard(block_no)


class _LogState:
    __slots__ = ("covered", "lost", "pending", "position")

    def __init__(self) -> None:
        self.position = 0
        self.lost = False
        """The log is of an earlier boot of this host: only what a checkpoint covers counts."""
        self.pending: list[tuple[int, int, Receipt]] = []
        """(position in the log, block, receipt) that no checkpoint covers yet."""
        self.covered: list[tuple[int, Receipt]] = []
        """Blocks that a ``C`` covers, and no ``D`` yet."""


def _record(kind: bytes, payload: bytes) -> bytes:
    head = _HEAD.pack(kind, len(payload)) + payload
    return head + _SUM.pack(xxh3_64_intdigest(head))


def _records(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """The whole, intact records at the start of some bytes, each with where it ends."""
    position = 0
    while position + _HEAD.size <= len(data):
        kind, length = _HEAD.unpack_from(data, position)
        body = position + _HEAD.size + length
        if length > _MAX_PAYLOAD or body + _SUM.size > len(data):
            return
        if _SUM.unpack_from(data, body)[0] != xxh3_64_intdigest(data[position:body]):
            return
        yield kind, data[position + _HEAD.size : body], body + _SUM.size
        position = body + _SUM.size


def reason(number: int) -> str:
    """An omission's reason in words."""
    return REASONS[number] if 0 < number < len(REASONS) else "unreadable"
