"""Making a block: read its pieces, hash them, encode them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from tar_like import codec, digest
from tar_like.codec import Omission
from tar_like.errors import UsageError
from tar_like.layout import Piece
from tar_like.process import large_buffer
from tar_like.source import ReadsAhead, Source

MODES = ("auto", "lz4", "none")
PROBE_EVERY = 16
"""In ``auto``, every so many blocks the other way is tried."""
AHEAD = 32 << 20
"""Bytes that are begun to be read before they are sent, from a source that has to be waited for."""
MAX_AHEAD = 16
"""Blocks."""


class Made(NamedTuple):
    """A block ready to be sent."""

    digest: bytes
    body: list[Any]
    """The parts of the body, in order."""
    raw: int
    """Bytes read."""
    wire: int
    """Bytes to send."""
    omissions: list[Omission]
    plain: memoryview
    """What was read."""


class BlockMaker:
    """Makes blocks of one source in buffers that are kept: a block lives until the next one."""

    def __init__(self, source: Source, block_size: int) -> None:
        self._source = source
        waits = isinstance(source, ReadsAhead)
        self.ahead = min(MAX_AHEAD, -(-AHEAD // block_size)) if waits else 0
        """How many of the blocks that follow are of use to ``make``."""
        self._buffers = deque(large_buffer(block_size) for _ in range(1 + self.ahead))

    def make(
        self, pieces: Sequence[Piece], compressor: Compressor,
        following: Sequence[Sequence[Piece]] = (),
    ) -> Made:  # fmt: skip
        """The block of these pieces. What the source cannot give is listed in ``omissions``.

        The blocks that follow are begun to be read, where the source can do so.
        """
        if isinstance(self._source, ReadsAhead):
            for block, buffer in zip((pieces, *following), self._buffers, strict=False):
                self._source.ahead(block, buffer)
        buffer = self._buffers[0]
        self._buffers.rotate(-1)
        length, omissions = self._source.read(pieces, buffer)
        raw = buffer[:length]
        block_digest = digest.of_block(_digests(pieces, raw, omissions))
        head, payload = codec.encode(raw, omissions, compress=compressor.wants(raw))
        return Made(block_digest, [head, payload], length, len(head) + len(payload), omissions, raw)


def _digests(pieces: Sequence[Piece], raw: memoryview, omissions: list[Omission]) -> list[bytes]:
    reasons = dict(omissions)
    found = []
    position = 0
    for number, piece in enumerate(pieces):
        if number in reasons:
            found.append(digest.of_omission(reasons[number]))
            continue
        end = position + piece.stop - piece.start
        found.append(digest.of_piece(raw[position:end]))
        position = end
    return found


class Compressor:
    """Decides block by block whether to compress.

    ``auto`` keeps the time that blocks take per byte in either way (making and sending), uses the
    faster one, and tries the other now and then. Data that a sample shows does not shrink is
    sent plain at once.
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise UsageError(f"{mode!r} is no way to compress: use {', '.join(MODES)}.")
        self._mode = mode
        self._cost: dict[bool, float] = {}
        self._blocks = 0
        self._compressed = False
        self._started = 0.0

    def wants(self, raw: memoryview) -> bool:
        """Whether to compress this block; it is then being timed."""
        self._compressed = self._mode == "lz4" or (
            self._mode == "auto" and self._choose() and codec.shrinks(raw)
        )
        self._started = time.monotonic()
        return self._compressed

    def _choose(self) -> bool:
        self._blocks += 1
        if len(self._cost) < 2:
            return True not in self._cost
        faster = self._cost[True] < self._cost[False]
        return faster if self._blocks % PROBE_EVERY else not faster

    def sent(self, raw: int) -> None:
        """The block of ``raw`` bytes that was asked about last has arrived."""
        if self._mode == "auto" and raw:
            cost = (time.monotonic() - self._started) / raw
            known = self._cost.get(self._compressed, cost)
            self._cost[self._compressed] = 0.7 * known + 0.3 * cost
