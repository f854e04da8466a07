"""Digests by name."""

from __future__ import annotations

import hashlib

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tar_like import digest
from tar_like.errors import UsageError

KNOWN = {
    "blake3": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "md5": "900150983cd24fb0d6963f7d28e17f72",
    "xxh3": "06b05ab6733a618578af5f94892f3950",
}


@pytest.mark.parametrize("name", digest.NAMES)
def test_a_name_stands_for_the_published_algorithm(name: str) -> None:
    found = digest.of(name, b"abc")
    assert found.hex() == KNOWN[name]
    assert len(found) == digest.SIZES[name]


@given(st.sampled_from(digest.NAMES), st.lists(st.binary(max_size=100), max_size=6))
def test_parts_have_the_digest_of_the_whole(name: str, parts: list[bytes]) -> None:
    hasher = digest.hasher(name)
    for part in parts:
        hasher.update(memoryview(part))
    assert hasher.digest() == digest.of(name, b"".join(parts))


@pytest.mark.parametrize("name", digest.NAMES)
@pytest.mark.parametrize("count", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_001])
def test_a_hole_has_the_digest_of_its_zeros(name: str, count: int) -> None:
    assert digest.of_zeros(name, count) == digest.of(name, bytes(count))


def test_a_hole_within_a_file() -> None:
    hasher = digest.hasher("sha256")
    hasher.update(b"a")
    digest.add_zeros(hasher, 1_500_000)
    hasher.update(b"b")
    assert hasher.digest() == hashlib.sha256(b"a" + bytes(1_500_000) + b"b").digest()


@pytest.mark.parametrize("name", ["", "sha1", "BLAKE3", "none"])
def test_another_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="blake3, sha256, md5, xxh3"):
        digest.hasher(name)


def test_a_block_digest_tells_pieces_omissions_and_their_order_apart() -> None:
    a, b = digest.of_piece(b"a"), digest.of_piece(b"b")
    blocks = [
        [],
        [a],
        [a, b],
        [b, a],
        [digest.of_piece(b"ab")],
        [digest.of_omission(1), b],
        [digest.of_omission(2), b],
        [digest.of_piece(b""), b],
    ]
    assert len({digest.of_block(pieces) for pieces in blocks}) == len(blocks)
    assert digest.of_block([a, b]) == blake3(blake3(b"a").digest() + blake3(b"b").digest()).digest()
