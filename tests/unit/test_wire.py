"""What sender and receiver say to each other."""

from __future__ import annotations

import base64
import io
import json
from itertools import pairwise
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tar_like.errors import BlockInvalid, IndexInvalid, TooLarge
from tar_like.wire import (
    STATES,
    Failure,
    Inflater,
    Look,
    Status,
    Told,
    bitmap,
    bits_missing,
    deflate_file,
    digest_header,
    parse_digest,
)


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_survives_its_header(digest: bytes) -> None:
    assert parse_digest(digest_header(digest)) == digest


GOOD = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "=",
        "blake3-pieces",
        "blake3-pieces=",
        "blake3-pieces=:",
        "blake3-pieces=::",
        f"blake3-pieces={GOOD}",
        f"blake3-pieces=:{GOOD}",
        f"blake3-pieces={GOOD}:",
        f"blake3-pieces=:{GOOD[:-4]}:",
        f"blake3-pieces=:{GOOD}{GOOD}:",
        f"blake3-pieces=:{GOOD[:-2]}!=:",
        f"blake3-pieces=:{GOOD[:-1]}é:",
        f"blake3-pieces=: {GOOD}:",
        f"sha-256=:{GOOD}:",
        f"BLAKE3-PIECES=:{GOOD}:",
        f"sha-256=:{GOOD}:, blake3-pieces=:{GOOD}:",
        f"blake3-pieces=:{GOOD}:;q=1",
    ],
)
def test_any_other_header_is_refused(text: str) -> None:
    with pytest.raises(BlockInvalid, match="repr-digest"):
        parse_digest(text)


@given(st.text())
def test_no_header_raises_anything_else(text: str) -> None:
    for whole in (text, f"blake3-pieces={text}", f"blake3-pieces=:{text}:"):
        try:
            assert len(parse_digest(whole)) == 32
        except BlockInvalid:
            continue


@given(st.integers(0, 70), st.data())
@example(0, None)
def test_a_bitmap_says_which_are_missing(count: int, data: st.DataObject | None) -> None:
    numbers = data.draw(st.sets(st.integers(0, count - 1))) if data and count else set()
    bits = bitmap(iter(numbers), count)
    assert len(bits) == (count + 7) // 8
    assert list(bits_missing(bits, count)) == [n for n in range(count) if n not in numbers]


def test_a_bitmap_has_its_first_number_in_the_lowest_bit() -> None:
    assert bitmap(iter([0, 9]), 10) == b"\x01\x02"


STATUSES = st.builds(
    Status,
    id=st.text(),
    state=st.sampled_from(STATES),
    blocks=st.integers(0, 1 << 62),
    received=st.integers(0, 1 << 62),
    rules=st.dictionaries(st.text(), st.booleans()),
    failures=st.lists(
        st.builds(Failure, path=st.text(), reason=st.text(), source=st.booleans()), max_size=3
    ).map(tuple),
)


@given(STATUSES)
def test_a_status_survives_json(status: Status) -> None:
    assert Status.from_json(status.to_json()) == status


def test_a_status_of_a_later_version_is_understood() -> None:
    values = {"id": "x", "state": "open", "failures": [], "blocks": 7, "colour": "blue"}
    assert Status.from_json(json.dumps(values)) == Status(id="x", state="open", blocks=7)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"{}",
        b"[]",
        b"[1]",
        b'"ok"',
        b"7",
        b"null",
        b'{"id": "x"}',
        b'{"id": "x", "state": "open", "failures": 7}',
        b'{"id": "x", "state": "open", "failures": [7]}',
        b'{"id": "x", "state": "open", "failures": [{}]}',
        b'{"id": "x", "state": "open", "failures": [{"path": "p", "why": "?"}]}',
        b'{"id": "x", "state": "open", "failures": [{"path": 5, "reason": "", "source": true}]}',
        b'{"id": "x", "state": "open", "failures": [{"path": "", "reason": "", "source": 1}]}',
        b'{"id": "x", "state": "open", "failures": null}',
        b'{"id": 5, "state": "open"}',
        b'{"id": "x", "state": []}',
        b'{"id": "x", "state": "open", "blocks": "7"}',
        b'{"id": "x", "state": "open", "blocks": 7.5}',
        b'{"id": "x", "state": "open", "blocks": 1e400}',
        b'{"id": "x", "state": "open", "blocks": true}',
        b'{"id": "x", "state": "open", "rules": 5}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_status_is_refused(text: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Status.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"token": "t"}',
        b'{"token": 5, "index": "x"}',
        b'{"token": "t", "index": null}',
        b'{"token": "t", "index": "x", "newest": 1e400}',
        b'{"token": "t", "index": "x", "newest": {}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_look_is_refused(text: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Look.from_json(text)
    assert Look.from_json(b'{"token": "t", "index": "x"}') == Look(token="t", tree="x")


def test_what_is_told_comes_back() -> None:
    told = Told(digests={1: bytes(32), 70_000: b"\xff" * 32})
    assert Told.from_json(json.loads(json.dumps(told.to_json()))) == told
    assert Told.from_json({"entries": [], "digests": ""}) == Told(digests={})


@pytest.mark.parametrize(
    "values",
    [
        None, [], {}, "x", {"entries": [1]}, {"digests": "00" * 32},
        {"entries": [1], "digests": ""}, {"entries": [], "digests": "00" * 32},
        {"entries": [1], "digests": "00" * 31}, {"entries": [1], "digests": "x" * 64},
        {"entries": ["1"], "digests": "00" * 32}, {"entries": [True], "digests": "00" * 32},
        {"entries": [1.0], "digests": "00" * 32}, {"entries": {"1": 1}, "digests": "00" * 32},
        {"entries": [1] * 2001, "digests": "00" * 32 * 2001},
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(values: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Told.from_json(values)


def inflate(chunks: list[bytes], limit: int = 1 << 30) -> bytes:
    file = io.BytesIO()
    inflater = Inflater(file, limit)
    for chunk in chunks:
        inflater.feed(chunk)
    inflater.finish()
    return file.getvalue()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


DATA = st.one_of(st.binary(max_size=2000), st.integers(0, 3 << 20).map(bytes))


@given(DATA, st.lists(st.integers(0, 1 << 20), max_size=8), st.booleans())
def test_a_frame_is_inflated_however_it_is_cut(data: bytes, places: list[int], sized: bool) -> None:
    frame = lz4.frame.compress(data, store_size=sized, content_checksum=True)
    assert inflate(cut(frame, places)) == data
    assert inflate(cut(frame, places), limit=len(data)) == data


@given(st.binary(max_size=200), st.data())
def test_a_frame_that_is_cut_short_is_refused(data: bytes, draw: st.DataObject) -> None:
    frame = lz4.frame.compress(data)
    length = draw.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(IndexInvalid):
        inflate([frame[:length]])


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=30), st.booleans())
def test_bytes_after_a_frame_are_refused(data: bytes, more: bytes, apart: bool) -> None:
    frame = lz4.frame.compress(data)
    with pytest.raises(IndexInvalid):
        inflate([frame, more] if apart else [frame + more])
    with pytest.raises(IndexInvalid):
        inflate([frame, frame] if apart else [frame + frame])


@given(st.lists(st.binary(max_size=50), max_size=4))
def test_no_body_raises_anything_else(chunks: list[bytes]) -> None:
    for start in (b"", lz4.frame.compress(bytes(99))[:15]):
        try:
            inflate([start, *chunks], limit=1000)
        except (IndexInvalid, TooLarge):
            continue


def test_a_flipped_byte_is_refused() -> None:
    frame = bytearray(lz4.frame.compress(b"what is in an index " * 9, content_checksum=True))
    for place in range(len(frame)):
        frame[place] ^= 0x10
        with pytest.raises(IndexInvalid):
            inflate([bytes(frame)])
        frame[place] ^= 0x10


class Counting(io.BytesIO):
    """A file that knows how much was written to it, and the most at once."""

    most = 0

    def write(self, data: object, /) -> int:
        written = super().write(data)  # type: ignore[arg-type]
        self.most = max(self.most, written)
        return written


@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_a_bomb_ends_at_the_limit(chunk: int) -> None:
    bomb = lz4.frame.compress(bytes(100 << 20))
    file = Counting()
    inflater = Inflater(file, 5 << 20)
    with pytest.raises(TooLarge):
        for start in range(0, len(bomb), chunk):
            inflater.feed(bomb[start : start + chunk])
    assert len(file.getvalue()) <= 5 << 20
    assert file.most <= 1 << 20


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (5 << 20) + 3])
def test_a_file_is_one_frame_piece_by_piece(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789abcdef" * (size // 16) + b"x" * (size % 16))
    pieces = list(deflate_file(str(path)))
    assert inflate(pieces) == path.read_bytes()
    assert max(map(len, pieces)) < 100_000  # so much waits for a client that does not read
