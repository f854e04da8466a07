"""Blocks on the wire: what is sent arrives, and nothing else is taken for it."""

from __future__ import annotations

import random
import struct
import tracemalloc
from dataclasses import dataclass

import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tar_like import codec, digest
from tar_like.codec import LZ4, OVERHEAD, PLAIN, Body, Omission, decode, encode, max_body
from tar_like.errors import BlockInvalid

HEAD = struct.Struct("<4sB3xIQ")
OMISSION = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Block:
    """What a sender knows of a block."""

    pieces: tuple[bytes, ...]
    omissions: tuple[Omission, ...]
    compress: bool

    @property
    def lengths(self) -> list[int]:
        return [len(piece) for piece in self.pieces]

    @property
    def raw(self) -> bytes:
        gone = {one.piece for one in self.omissions}
        return b"".join(piece for n, piece in enumerate(self.pieces) if n not in gone)

    @property
    def body(self) -> bytes:
        return b"".join(encode(self.raw, list(self.omissions), compress=self.compress))


@st.composite
def blocks(draw: st.DrawFn, longest: int = 200) -> Block:
    pieces = draw(st.lists(st.binary(min_size=1, max_size=longest), max_size=6))
    reasons = draw(st.lists(st.integers(0, 3), min_size=len(pieces), max_size=len(pieces)))
    omissions = tuple(Omission(n, reason) for n, reason in enumerate(reasons) if reason)
    return Block(tuple(pieces), omissions, draw(st.booleans()))


def digest_of(body: Body, lengths: list[int]) -> bytes:
    """A block's digest as the receiver computes it."""
    reasons = dict(body.omissions)
    found, position = [], 0
    for number, length in enumerate(lengths):
        if number in reasons:
            found.append(digest.of_omission(reasons[number]))
        else:
            found.append(digest.of_piece(body.raw[position : position + length]))
            position += length
    return digest.of_block(found)


@given(blocks(longest=9000))
def test_what_is_encoded_is_decoded(block: Block) -> None:
    body = decode(memoryview(block.body), block.lengths)
    assert body.omissions == block.omissions
    assert bytes(body.raw) == block.raw


@given(blocks())
def test_no_shorter_body_is_a_block(block: Block) -> None:
    body = block.body
    for length in range(len(body)):
        with pytest.raises(BlockInvalid):
            decode(memoryview(body)[:length], block.lengths)


@given(blocks(), st.binary(min_size=1, max_size=50))
def test_no_longer_body_is_a_block(block: Block, more: bytes) -> None:
    with pytest.raises(BlockInvalid):
        decode(memoryview(block.body + more), block.lengths)


@given(blocks(longest=40))
def test_a_flipped_bit_is_refused_or_has_another_digest_or_says_the_same(block: Block) -> None:
    right = digest_of(decode(memoryview(block.body), block.lengths), block.lengths)
    body = bytearray(block.body)
    for bit in range(8 * len(body)):
        body[bit >> 3] ^= 1 << (bit & 7)
        try:
            flipped = decode(memoryview(body), block.lengths)
        except BlockInvalid:
            pass
        else:
            same = flipped.omissions == block.omissions and bytes(flipped.raw) == block.raw
            assert same or digest_of(flipped, block.lengths) != right
        body[bit >> 3] ^= 1 << (bit & 7)


@given(st.binary(max_size=300), st.lists(st.integers(1, 100), max_size=5))
def test_whatever_comes_it_is_a_block_or_refused(body: bytes, lengths: list[int]) -> None:
    for start in (b"", HEAD.pack(b"TLB1", PLAIN, 0, sum(lengths)), b"TLB1\x01\0\0\0\0\0\0\0"):
        try:
            found = decode(memoryview(start + body), lengths)
        except BlockInvalid:
            continue
        gone = {one.piece for one in found.omissions}
        assert len(found.raw) == sum(n for i, n in enumerate(lengths) if i not in gone)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=6))
def test_omissions_are_ascending_known_and_in_the_block(omissions: list[tuple[int, int]]) -> None:
    lengths = [10, 20, 30, 40, 50]
    numbers = [number for number, _ in omissions]
    valid = (
        numbers == sorted(set(numbers))
        and all(number < len(lengths) for number in numbers)
        and all(0 < reason < len(codec.REASONS) for _, reason in omissions)
    )
    raw = bytes(sum(n for i, n in enumerate(lengths) if i not in numbers))
    body = HEAD.pack(b"TLB1", PLAIN, len(omissions), len(raw))
    body += b"".join(OMISSION.pack(*one) for one in omissions) + raw
    if valid:
        assert list(decode(memoryview(body), lengths).omissions) == omissions
    else:
        with pytest.raises(BlockInvalid):
            decode(memoryview(body), lengths)


@pytest.mark.parametrize("count", [1, 5, 6, 1 << 20, (1 << 32) - 1])
def test_a_false_count_of_omissions_is_refused(count: int) -> None:
    body = HEAD.pack(b"TLB1", PLAIN, count, 5) + b"12345"
    with pytest.raises(BlockInvalid):
        decode(memoryview(body), [1] * 5)


@pytest.mark.parametrize(
    "head",
    [
        b"TLB2\x00\0\0\0",
        b"TLB1\x02\0\0\0",
        b"TLB1\xff\0\0\0",
        b"TLB1\x00\1\0\0",
        b"TLB1\x00\0\0\1",
        b"\0\0\0\0\0\0\0\0",
    ],
)
def test_another_header_is_refused(head: bytes) -> None:
    rest = struct.pack("<IQ", 0, 5) + b"12345"
    assert bytes(decode(memoryview(b"TLB1\x00\0\0\0" + rest), [5]).raw) == b"12345"
    with pytest.raises(BlockInvalid):
        decode(memoryview(head + rest), [5])


def lz4_body(frame: bytes, raw: int) -> memoryview:
    return memoryview(HEAD.pack(b"TLB1", LZ4, 0, raw) + frame)


@pytest.mark.parametrize("claimed", [1000, 256 << 20])
def test_a_bomb_is_refused_in_little_memory(claimed: int) -> None:
    body = lz4_body(lz4.frame.compress(bytes(256 << 20), store_size=False), claimed)
    tracemalloc.start()
    try:
        with pytest.raises(BlockInvalid):
            decode(body, [1000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body) < 8 << 20  # some copies of the input, none of the content


def test_a_frame_that_lies_about_its_size_is_refused_in_little_memory() -> None:
    with lz4.frame.LZ4FrameCompressor() as deflater:
        frame = deflater.begin(1 << 40) + bytes(4)  # a header, and at once the end mark
    tracemalloc.start()
    try:
        with pytest.raises(BlockInvalid):
            decode(lz4_body(frame, 100), [100])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_two_frames_are_no_block() -> None:
    half = lz4.frame.compress(bytes(50))
    with pytest.raises(BlockInvalid):
        decode(lz4_body(half + half, 100), [100])


@given(st.integers(0, 60000), st.integers(0, 5), st.booleans())
def test_max_body_has_room_for_what_does_not_shrink(
    length: int, omissions: int, compress: bool
) -> None:
    raw = random.Random(length).randbytes(length)
    head, payload = encode(raw, [Omission(n, 1) for n in range(omissions)], compress=compress)
    assert len(head) + len(payload) <= max_body(length, omissions)
    assert len(head) == OVERHEAD + omissions * OMISSION.size


def test_only_what_shrinks_is_worth_compressing() -> None:
    noise = random.Random(1).randbytes(1 << 20)
    assert codec.shrinks(memoryview(bytes(1 << 20)))
    assert codec.shrinks(memoryview(b"text and more text, " * 5))
    assert not codec.shrinks(memoryview(noise))
    assert not codec.shrinks(memoryview(b""))
    middle = noise[: 500 << 10] + bytes(48 << 10) + noise[: 500 << 10]
    assert codec.shrinks(memoryview(middle))  # the sample is from the middle
