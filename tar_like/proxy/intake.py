"""Taking blocks in: a body verified, staged, recorded; records made durable at checkpoints.

body > decode > digest as claimed? > staged files > receipt > (data synced > checkpoint)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from tar_like import codec, digest
from tar_like.codec import CHANGED
from tar_like.errors import BlockInvalid, Conflict, ReceiverFailed, cause
from tar_like.layout import Extent
from tar_like.proxy.doubt import distrust
from tar_like.proxy.place import Destination
from tar_like.proxy.receipts import NO_PIECE, Omitted, ReceiptLog, Receipts
from tar_like.proxy.staging import Staging, mapped

CHECKPOINT_SECONDS = 5.0
CHECKPOINT_BYTES = 1 << 30
CHECKPOINT_POLL = 0.5
"""Seconds between two looks whether one is due."""

Pieces = list[tuple[Extent, memoryview | None]]
"""Each piece of a block with its bytes; None for one that is omitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block whose bytes have the digest that it claims."""

    number: int
    digest: bytes
    size: int
    """Its raw bytes."""
    pieces: Pieces
    omissions: tuple[codec.Omission, ...]

    @classmethod
    def decode(cls, number: int, extents: list[Extent], body: memoryview, claimed: bytes) -> Self:
        """Raises BlockInvalid."""
        decoded = codec.decode(body, [extent.stop - extent.start for extent in extents])
        block = cls.of(number, extents, decoded, claimed)
        if digest.of_block(block.digests()) != claimed:
            raise BlockInvalid("The block's bytes do not have the digest it claims.")
        return block

    @classmethod
    def of(cls, number: int, extents: list[Extent], body: codec.Body, known: bytes) -> Self:
        """A block whose digest is known, since it was made of these very bytes.

        Raises BlockInvalid for bytes that are more or less than the pieces have.
        """
        lengths = [extent.stop - extent.start for extent in extents]
        codec.check_length(len(body.raw), body.omissions, lengths)
        return cls(
            number=number,
            digest=known,
            size=len(body.raw),
            pieces=list(_pieces(extents, body)),
            omissions=body.omissions,
        )

    def digests(self) -> list[bytes]:
        """Those of the pieces, made anew."""
        return _digests(self.pieces, self.omissions)

    def omitted(self, epoch: int) -> list[Omitted]:
        """What its receipt says is not in it."""
        return [
            Omitted(self.number, epoch, extent.entry_id, extent.start, reason)
            for piece, reason in self.omissions
            for extent, _ in (self.pieces[piece],)
        ]


class Intake:
    """What one process takes in of one transfer. Thread-safe."""

    def __init__(
        self, destination: Destination, path: str, staging: Staging, receipts: Receipts
    ) -> None:
        """``path`` is the transfer's folder."""
        self._destination = destination
        self._path = path
        self._staging = staging
        self._receipts = receipts
        self._lock = threading.Lock()
        self._log: ReceiptLog | None = None
        self._last_checkpoint = time.monotonic()
        self._unsynced = 0

    def take(self, block: Block) -> bool:
        """Stage and record a block; False when it was there already. Idempotent.

        Raises Conflict when other bytes arrived as this block before; NoSpace, OSError (nothing
        is acknowledged then).
        """
        self._receipts.refresh()
        known = self._receipts.digests(block.number)
        if block.digest in known:
            return False
        if known:
            self._conflict(block)
        for extent, data in block.pieces:
            if data is not None:
                self._staging.write(extent.entry_id, data, extent.start)
        epoch = self._receipts.epoch(block.number)
        self._own_log().add_block(block.number, epoch, block.digest, block.omitted(epoch))
        self._unsynced += block.size
        return True

    def _conflict(self, block: Block) -> None:
        """Mark the files whose bytes differ from those that arrived first."""
        changed = [
            extent.entry_id
            for (extent, _), piece_digest in zip(block.pieces, block.digests(), strict=True)
            if self._staged_digest(extent) != piece_digest
        ]
        if changed:
            epoch = self._receipts.epoch(block.number)
            self._own_log().omit(
                [Omitted(block.number, epoch, one, NO_PIECE, CHANGED) for one in changed]
            )
        raise Conflict(
            f"Block {block.number} arrived before with other bytes: "
            f"{len(changed)} source files have changed since."
        )

    def _staged_digest(self, extent: Extent) -> bytes:
        try:
            fd = self._staging.open(extent.entry_id)
        except FileNotFoundError:
            return b""
        try:
            return digest.of_piece(os.pread(fd, extent.stop - extent.start, extent.start))
        finally:
            os.close(fd)

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough time or bytes passed since the last checkpoint."""
        lasts = self._destination.durability.lasts
        if self._log is None or not lasts or not self._log.dirty:
            return False
        waited = time.monotonic() - self._last_checkpoint
        return waited >= CHECKPOINT_SECONDS or self._unsynced >= CHECKPOINT_BYTES

    def checkpoint(self) -> None:
        """Make this process's receipts durable: data first, then the record.

        Raises ReceiverFailed when a sync fails: what it would have covered is forgotten then;
        NoSpace when there is no room for the record.
        """
        log = self._log
        if log is None or not self._destination.durability.lasts:
            return
        self._last_checkpoint = time.monotonic()
        self._unsynced = 0
        mark = log.mark()
        try:
            self._destination.durability.filesystem(self._staging.fd)
        except OSError as error:
            self._distrust(log)
            raise ReceiverFailed(
                f"The destination cannot be synced ({cause(error)}): blocks must be sent again."
            ) from None
        try:
            log.checkpoint(mark)
        except OSError as error:
            raise map_write_error(error) from None

    def _distrust(self, log: ReceiptLog) -> None:
        try:
            log.distrust()
            distrust(self._destination)
        except OSError as error:
            raise ReceiverFailed(
                f"The destination cannot be synced, and no record of that be made "
                f"({cause(error)}): restart the receiver when its disk is well."
            ) from None

    def _own_log(self) -> ReceiptLog:
        with self._lock:
            if self._log is None:
                self._log = ReceiptLog(os.path.join(self._path, "receipts"))
            return self._log

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()


def _pieces(
    extents: list[Extent], decoded: codec.Body
) -> Iterator[tuple[Extent, memoryview | None]]:
    omitted = {omission.piece for omission in decoded.omissions}
    position = 0
    for number, extent in enumerate(extents):
        if number in omitted:
            yield extent, None
            continue
        end = position + extent.stop - extent.start
        yield extent, decoded.raw[position:end]
        position = end


def _digests(pieces: Pieces, omissions: tuple[codec.Omission, ...]) -> list[bytes]:
    reasons = dict(omissions)
    return [
        digest.of_omission(reasons[number]) if data is None else digest.of_piece(data)
        for number, (_, data) in enumerate(pieces)
    ]


def map_write_error(error: OSError) -> Exception:
    """An error while writing as one that the sender understands."""
    known = mapped(error)
    if known is not error:
        return known
    return ReceiverFailed(f"The destination cannot be written: {cause(error)}.")
