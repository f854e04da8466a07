"""Block <-> body: a small header, the list of omitted pieces, then the payload.

    body    = header omission* payload
    header  = "TLB1" codec:u8 0:u8[3] omissions:u32 raw:u64        (20 bytes, little-endian)
    omission= piece:u32 reason:u32                                 (ascending piece)
    payload = the present pieces end to end, plain or as one LZ4 frame

Decoding is bounded: ``raw`` is checked against what the plan says before anything is inflated,
output stops at ``raw`` bytes, and the whole input must be used. What the digest does not cover
(the header's zero bytes, say) must have its one valid value.

Sources: LZ4 frame format 1.6.3 (lz4/doc/lz4_Frame_format.md).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tar_like.errors import BlockInvalid

Buffer = bytes | bytearray | memoryview

_HEADER = struct.Struct("<4sB3xIQ")
_OMISSION = struct.Struct("<II")
_MAGIC = b"TLB1"
PLAIN = 0
LZ4 = 1
OVERHEAD = _HEADER.size
SAMPLE = 64 << 10
WORTH = 0.95
"""A sample that shrinks to no less than this is sent plain."""

REASONS = ("", "changed", "vanished", "unreadable")
CHANGED, VANISHED, UNREADABLE = 1, 2, 3


class Omission(NamedTuple):
    """A piece that the source could not give: its number in the block, and why."""

    piece: int
    reason: int


class Body(NamedTuple):
    """A decoded block body; ``raw`` holds the present pieces end to end."""

    omissions: tuple[Omission, ...]
    raw: memoryview


def encode(raw: Buffer, omissions: list[Omission], *, compress: bool) -> tuple[bytes, Buffer]:
    """The two parts of a body, to be sent one after the other without joining them."""
    payload, codec = raw, PLAIN
    if compress:
        import lz4.frame  # which a scan need not wait for

        payload, codec = lz4.frame.compress(raw, store_size=True), LZ4
    head = _HEADER.pack(_MAGIC, codec, len(omissions), len(raw))
    return head + b"".join(_OMISSION.pack(*omission) for omission in omissions), payload


def shrinks(raw: memoryview) -> bool:
    """Whether compressing is worth a try: judged by a sample from the middle."""
    if not raw:
        return False
    import lz4.frame

    middle = max(0, len(raw) // 2 - SAMPLE // 2)
    sample = raw[middle : middle + SAMPLE]
    return len(lz4.frame.compress(sample)) < WORTH * len(sample)


def max_body(raw: int, pieces: int) -> int:
    """Bytes that a valid body for a block of ``raw`` bytes in ``pieces`` pieces may have."""
    return OVERHEAD + pieces * _OMISSION.size + raw + raw // 255 + 64


def decode(body: memoryview, lengths: list[int]) -> Body:
    """The block in ``body``, which must fit pieces of the given lengths (bytes).

    Raises BlockInvalid for anything that is not exactly a block of this shape.
    """
    if len(body) < OVERHEAD:
        raise BlockInvalid("The body is shorter than a block's header.")
    magic, codec, count, raw_length = _HEADER.unpack_from(body)
    if magic != _MAGIC or codec not in (PLAIN, LZ4) or bytes(body[5:8]) != b"\0\0\0":
        raise BlockInvalid("The body does not start with a block's header.")
    omissions = _omissions(body, count, len(lengths))
    check_length(raw_length, omissions, lengths)
    payload = body[OVERHEAD + count * _OMISSION.size :]
    return Body(
        omissions, _plain(payload, raw_length) if codec == PLAIN else _inflate(payload, raw_length)
    )


def check_length(raw: int, omissions: tuple[Omission, ...], lengths: list[int]) -> None:
    """Raises BlockInvalid unless the pieces that are there have so many bytes."""
    expected = sum(lengths) - sum(lengths[omission.piece] for omission in omissions)
    if raw != expected:
        raise BlockInvalid(f"The block claims {raw} bytes; the plan says {expected}.")


def _omissions(body: memoryview, count: int, pieces: int) -> tuple[Omission, ...]:
    if count > pieces or len(body) < OVERHEAD + count * _OMISSION.size:
        raise BlockInvalid("The block omits more pieces than it has.")
    found = tuple(
        Omission(*_OMISSION.unpack_from(body, OVERHEAD + i * _OMISSION.size)) for i in range(count)
    )
    last = -1
    for piece, reason in found:
        if not last < piece < pieces or not 0 < reason < len(REASONS):
            raise BlockInvalid("The block's list of omitted pieces is out of order.")
        last = piece
    return found


def _plain(payload: memoryview, raw_length: int) -> memoryview:
    if len(payload) != raw_length:
        raise BlockInvalid(f"The payload has {len(payload)} bytes instead of {raw_length}.")
    return payload


def _inflate(payload: memoryview, raw_length: int) -> memoryview:
    import lz4.frame

    inflater = lz4.frame.LZ4FrameDecompressor()
    try:
        # One byte more than allowed: a frame that holds more is caught without inflating it.
        raw = inflater.decompress(payload, max_length=raw_length + 1)
    except (RuntimeError, EOFError, ValueError) as error:
        raise BlockInvalid(f"The payload is no valid LZ4 frame ({error}).") from None
    if not inflater.eof or inflater.unused_data or len(raw) != raw_length:
        raise BlockInvalid(f"The LZ4 frame does not hold exactly {raw_length} bytes.")
    return memoryview(raw)
