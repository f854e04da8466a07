"""What every source must do (source.contract.Source).

A new source joins by a ``Place`` of its own in ``PLACES``: how to put files where it reads.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tar_like.codec import REASONS
from tar_like.layout import DIRECTORY, FILE, Piece, sort_key
from tar_like.source import Found, Skipped, Source, Wanted, open_source
from tar_like.source.contract import Reading


class Place(Protocol):
    """Where a source reads from, as a test fills it."""

    def put(self, path: bytes, data: bytes) -> None:
        """Make or replace a file, and what it lies in."""

    def remove(self, path: bytes) -> None:
        """Remove a file."""

    def open(self) -> Source:
        """A source that reads what was put, closed by the fixture."""

    def stale(self, piece: Piece) -> Piece:
        """The piece as an index has it that was made when the file was another."""


class FolderPlace:
    """A folder for FolderSource."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._opened: list[Source] = []
        self._clock = 10**18

    def put(self, path: bytes, data: bytes) -> None:
        name = os.path.join(self._root, path)
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "wb") as file:
            file.write(data)
        self._clock += 10**9  # a file that is written again has another time, however fast
        os.utime(name, ns=(self._clock, self._clock))

    def remove(self, path: bytes) -> None:
        os.unlink(os.path.join(self._root, path))

    def open(self) -> Source:
        self._opened.append(open_source(os.fsdecode(self._root)))
        return self._opened[-1]

    def stale(self, piece: Piece) -> Piece:
        return piece._replace(mtime=piece.mtime + 1)

    def close(self) -> None:
        for source in self._opened:
            source.close()


PLACES: dict[str, Callable[[Path], FolderPlace]] = {"folder": FolderPlace}


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = PLACES[request.param](tmp_path)
    yield made
    made.close()


FILES = {
    b"a": b"content of a",
    b"a.b": b"",
    b"dir/file": b"x" * 5000,
    b"dir/sub/deep": bytes(range(256)) * 100,
    b"dir.x": b"after dir",
    b"z": b"last",
}


def fill(place: Place, files: dict[bytes, bytes] = FILES) -> None:
    for path, data in files.items():
        place.put(path, data)


def scan(source: Source, wanted: Wanted | None = None) -> list[Found | Skipped]:
    return list(source.scan(wanted or Wanted()))


def pieces(source: Source) -> dict[bytes, Piece]:
    """Every file as one piece."""
    return {
        found.path: Piece(number, found.path, 0, found.size, found.size, found.mtime, found.token)
        for number, found in enumerate(scan(source))
        if isinstance(found, Found) and found.kind == FILE
    }


def read(source: Source, wanted: list[Piece], slack: int = 0) -> tuple[bytes, Reading]:
    """What a source reads, and that it wrote nowhere else."""
    room = sum(piece.stop - piece.start for piece in wanted)
    buffer = bytearray(b"\xee" * (room + slack))
    reading = source.read(wanted, memoryview(buffer)[:room])
    assert buffer[room:] == b"\xee" * slack
    assert 0 <= reading.length <= room
    numbers = [omission.piece for omission in reading.omissions]
    assert numbers == sorted(set(numbers))
    assert all(0 < omission.reason < len(REASONS) for omission in reading.omissions)
    return bytes(buffer[: reading.length]), reading


def test_a_scan_gives_every_name_in_canonical_order(place: Place) -> None:
    fill(place)
    found = scan(place.open())
    paths = [one.path for one in found]
    assert paths[0] == b""
    assert paths == sorted(paths, key=sort_key)
    assert {one.path: one.size for one in found if isinstance(one, Found) and one.kind == FILE} == {
        path: len(data) for path, data in FILES.items()
    }
    folders = [one.path for one in found if isinstance(one, Found) and one.kind == DIRECTORY]
    assert folders == [b"", b"dir", b"dir/sub"]


def test_a_scan_can_be_made_again(place: Place) -> None:
    fill(place)
    source = place.open()
    assert scan(source) == scan(source) == scan(place.open())


def test_two_scans_at_a_time_do_not_disturb_each_other(place: Place) -> None:
    fill(place)
    source = place.open()
    alone = scan(source)
    both = list(zip(source.scan(Wanted()), source.scan(Wanted()), strict=True))
    assert both == [(one, one) for one in alone]


def test_an_empty_source_has_its_root(place: Place) -> None:
    found = scan(place.open())
    assert [one.path for one in found] == [b""]


def test_what_is_not_wanted_is_left_out_with_all_below(place: Place) -> None:
    fill(place)
    asked: list[tuple[bytes, bool]] = []

    def keep(path: bytes, is_directory: bool) -> bool:
        asked.append((path, is_directory))
        return path not in (b"dir", b"z")

    found = scan(place.open(), Wanted(keep=keep))
    assert [one.path for one in found] == [b"", b"a", b"a.b", b"dir.x"]
    assert asked == [
        (b"a", False),
        (b"a.b", False),
        (b"dir", True),
        (b"dir.x", False),
        (b"z", False),
    ]


def test_the_receivers_own_folder_is_no_part_of_a_tree(place: Place) -> None:
    fill(place, {b".tar_like/ledger.db": b"ours", b"dir/.tar_like": b"theirs", b".tar_like2": b""})
    paths = [one.path for one in scan(place.open())]
    assert paths == [b"", b".tar_like2", b"dir", b"dir/.tar_like"]


def test_whole_files_are_read_end_to_end_in_any_order(place: Place) -> None:
    fill(place)
    source = place.open()
    wanted = list(pieces(source).values())
    for seed in range(5):
        random.Random(seed).shuffle(wanted)
        data, reading = read(source, wanted, slack=7)
        assert data == b"".join(FILES[piece.path] for piece in wanted)
        assert not reading.omissions


def test_parts_of_files_are_read(place: Place) -> None:
    fill(place)
    source = place.open()
    dice = random.Random(1)
    for _ in range(20):
        wanted = []
        for piece in pieces(source).values():
            start = dice.randint(0, piece.size)
            wanted.append(piece._replace(start=start, stop=dice.randint(start, piece.size)))
        data, reading = read(source, wanted)
        assert data == b"".join(FILES[p.path][p.start : p.stop] for p in wanted)
        assert not reading.omissions


def test_nothing_is_read_as_nothing(place: Place) -> None:
    fill(place)
    assert read(place.open(), []) == (b"", Reading(0, []))


def test_reading_again_gives_the_same(place: Place) -> None:
    fill(place)
    source = place.open()
    wanted = list(pieces(source).values())
    assert read(source, wanted) == read(source, wanted) == read(place.open(), wanted)


@pytest.mark.parametrize(
    "data", [b"CONTENT OF A", b"content of a, and more", b"short", b""], ids=len
)
def test_a_file_that_changed_is_omitted_and_harms_no_other(place: Place, data: bytes) -> None:
    fill(place)
    source = place.open()
    before = pieces(source)
    wanted = [before[b"z"], before[b"a"], before[b"dir/file"]]
    place.put(b"a", data)
    found, reading = read(source, wanted)
    assert found == FILES[b"z"] + FILES[b"dir/file"]
    assert [(one.piece, REASONS[one.reason]) for one in reading.omissions] == [(1, "changed")]


def test_a_part_that_is_there_of_a_file_that_changed_is_omitted_too(place: Place) -> None:
    fill(place)
    source = place.open()
    piece = pieces(source)[b"a"]._replace(start=0, stop=3)
    place.put(b"a", FILES[b"a"] + b"more")
    assert read(source, [piece])[0] == b""


def test_a_piece_of_a_file_of_another_size_is_omitted(place: Place) -> None:
    fill(place)
    source = place.open()
    piece = pieces(source)[b"a"]._replace(start=0, stop=3)
    assert read(source, [piece])[0] == FILES[b"a"][:3]
    for size in (piece.size - 1, piece.size + 1, 3):
        assert read(source, [piece._replace(size=size)])[0] == b""


def test_a_file_that_vanished_is_omitted_and_harms_no_other(place: Place) -> None:
    fill(place)
    source = place.open()
    before = pieces(source)
    wanted = [before[b"dir/sub/deep"], before[b"a"], before[b"z"]]
    place.remove(b"dir/sub/deep")
    found, reading = read(source, wanted)
    assert found == FILES[b"a"] + FILES[b"z"]
    assert [(one.piece, REASONS[one.reason]) for one in reading.omissions] == [(0, "vanished")]


def test_nothing_but_omissions(place: Place) -> None:
    fill(place)
    source = place.open()
    wanted = [place.stale(piece) for piece in pieces(source).values()]
    data, reading = read(source, wanted)
    assert data == b""
    assert [one.piece for one in reading.omissions] == list(range(len(wanted)))


def test_a_source_is_opened_again_by_its_url(place: Place) -> None:
    fill(place)
    source = place.open()
    again = open_source(source.url)
    try:
        assert scan(again) == scan(source)
        assert again.url == source.url
    finally:
        again.close()
