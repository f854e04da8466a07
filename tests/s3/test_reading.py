"""Reading objects while the store, or the way to it, does what it does on bad days."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Sequence

import pytest

from tar_like.codec import REASONS
from tar_like.errors import SourceUnusable
from tar_like.layout import FILE, Piece
from tar_like.source import Found, Source, Wanted, bucket
from tar_like.source.fetch import PART, STRETCH
from tar_like.source.retry import SERVER, THROTTLED, Kind
from tar_like.upload.block import BlockMaker, Compressor
from tests.e2e.harness import wait_for
from tests.s3.conftest import Store
from tests.s3.faults import Rule

LARGE = random.Random(4).randbytes(2 * PART + 12345)
FILES = {b"a": b"content of a", b"b": b"B" * 9000, b"large": LARGE, b"z": b"the last one"}


def fill(s3: Store, files: dict[bytes, bytes] = FILES) -> None:
    for path, data in files.items():
        s3.put(path, data)


def whole(source: Source) -> dict[bytes, Piece]:
    """Every file as one piece."""
    return {
        found.path: Piece(number, found.path, 0, found.size, found.size, found.mtime, found.token)
        for number, found in enumerate(source.scan(Wanted()))
        if isinstance(found, Found) and found.kind == FILE
    }


def read(source: Source, wanted: Sequence[Piece]) -> tuple[bytes, dict[bytes, str]]:
    """The bytes, and what was omitted with its reason."""
    return read_into(source, wanted, room(wanted))


def room(wanted: Sequence[Piece]) -> memoryview:
    return memoryview(bytearray(sum(piece.stop - piece.start for piece in wanted)))


def read_into(
    source: Source, wanted: Sequence[Piece], buffer: memoryview
) -> tuple[bytes, dict[bytes, str]]:
    reading = source.read(wanted, buffer)
    return bytes(buffer[: reading.length]), {
        wanted[number].path: REASONS[reason] for number, reason in reading.omissions
    }


EVERYTHING = b"".join(FILES.values())


@pytest.mark.parametrize("after", [0, 1, 100_000, PART - 1])
@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_an_answer_that_breaks_off_is_gone_on_with(s3: Store, kind: str, after: int) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    s3.proxy.rules.append(rule := Rule(kind, key="/tree/large", after=after, times=3))
    assert read(source, wanted) == (EVERYTHING, {})
    assert rule.hits == 3
    source.close()


def test_only_the_rest_is_asked_for_again(s3: Store) -> None:
    fill(s3, {b"b": FILES[b"b"]})
    source = s3.source()
    wanted = [*whole(source).values()]
    s3.proxy.rules.append(Rule("truncate", key="/tree/b", after=5000, times=1))
    assert read(source, wanted) == (FILES[b"b"], {})
    asked = [one.headers for one in s3.proxy.seen if "range" in one.headers]
    assert [one["range"] for one in asked] == ["bytes=0-8999", "bytes=5000-8999"]
    etag = f'"{wanted[0].token.decode()}"'
    assert [one["if-match"] for one in asked] == [etag, etag]
    source.close()


def test_what_came_before_a_silence_is_not_asked_for_again(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3, {b"large": LARGE})
    source = s3.source()
    wanted = [*whole(source).values()]
    monkeypatch.setattr(bucket, "TIMEOUT", 5.0)
    source.close()  # connections are made with the timeout that holds then
    after = 5 * STRETCH + 1000
    s3.proxy.rules.append(rule := Rule("stall", key="/tree/large", after=after, times=1))
    assert read(source, wanted) == (LARGE, {})
    assert rule.hits == 1
    asked = [one.headers["range"] for one in s3.proxy.seen if "range" in one.headers]
    starts = {int(one.removeprefix("bytes=").partition("-")[0]) for one in asked}
    (again,) = starts - {0, PART, 2 * PART}
    assert after - STRETCH <= again % PART <= after
    source.close()


@pytest.mark.parametrize("kind", ["longer", "shorter", "slow_down", "broken"])
def test_what_passes_is_waited_for(s3: Store, kind: str) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    s3.proxy.rules.append(rule := Rule(kind, key="/tree/b", times=2))
    assert read(source, wanted) == (EVERYTHING, {})
    assert rule.hits == 2
    source.close()


def test_a_store_that_asks_to_slow_down_is_given_more_time_than_one_that_fails(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    monkeypatch.setattr(bucket, "THROTTLED", Kind("hasty", THROTTLED.attempts, 0.001))
    s3.proxy.rules.append(Rule("slow_down", key="/tree/b", times=THROTTLED.attempts - 1))
    assert read(source, wanted) == (EVERYTHING, {})
    assert THROTTLED.attempts > SERVER.attempts
    source.close()


@pytest.mark.parametrize("kind", ["reset", "truncate", "longer", "shorter", "broken"])
def test_what_does_not_pass_is_named_and_harms_no_other(s3: Store, kind: str) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    s3.proxy.rules.append(rule := Rule(kind, key="/tree/b", after=7))
    data, omitted = read(source, wanted)
    assert omitted == {b"b": "unreadable"}
    assert data == FILES[b"a"] + LARGE + FILES[b"z"]
    assert 1 < rule.hits < 20
    source.close()


def test_what_is_denied_is_named_and_not_asked_for_again(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    s3.proxy.rules.append(rule := Rule("denied", key="/tree/a"))
    assert read(source, wanted) == (EVERYTHING[len(FILES[b"a"]) :], {b"a": "unreadable"})
    assert rule.hits == 1
    source.close()


@pytest.mark.parametrize("kind", ["pass", "deaf"])
def test_an_object_that_changes_while_it_is_read_is_omitted(s3: Store, kind: str) -> None:
    """Also when the store does not know If-Match."""
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    other = bytes(reversed(LARGE))

    def change() -> None:
        s3.put(b"large", other)

    # All parts but the first hear of the new version.
    last = f"bytes={2 * PART}-{len(LARGE) - 1}"
    s3.proxy.rules += [Rule(kind, key="/tree/large", call=change, times=1)]
    s3.proxy.rules += [Rule(kind, key="/tree/large")]
    data, omitted = read(source, wanted)
    assert last in [one.headers.get("range") for one in s3.proxy.seen]
    assert omitted == {b"large": "changed"}
    assert data == FILES[b"a"] + FILES[b"b"] + FILES[b"z"]
    source.close()


def test_without_an_etag_in_the_index_all_parts_are_still_of_one_version(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    piece = whole(source)[b"large"]._replace(token=b"", mtime=12345)
    first, second = piece._replace(stop=PART), piece._replace(start=PART, stop=2 * PART)
    assert read(source, [piece]) == (LARGE, {})
    assert read(source, [first]) == (LARGE[:PART], {})
    s3.put(b"large", bytes(reversed(LARGE)))
    assert read(source, [second]) == (b"", {b"large": "changed"})
    source.close()


def test_without_an_etag_in_the_index_the_size_must_be_right(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    piece = whole(source)[b"a"]._replace(token=b"", mtime=12345)
    assert read(source, [piece]) == (FILES[b"a"], {})
    for size in (piece.size - 1, piece.size + 1):
        stop = min(size, piece.stop)
        assert read(source, [piece._replace(size=size, stop=stop)]) == (b"", {b"a": "changed"})
    source.close()


def test_a_store_without_ranges_gives_whole_objects_only(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    pieces = whole(source)
    s3.proxy.rules.append(Rule("whole", key="/tree/"))
    assert read(source, [pieces[b"a"], pieces[b"b"]]) == (FILES[b"a"] + FILES[b"b"], {})
    assert read(source, [pieces[b"a"]._replace(start=3)]) == (b"", {b"a": "unreadable"})
    source.close()


def test_small_objects_are_asked_for_together(s3: Store) -> None:
    files = {b"%03d" % number: b"x%d" % number for number in range(64)}
    fill(s3, files)
    source = s3.source(connections=16)
    wanted = [*whole(source).values()]
    s3.proxy.most_at_a_time = 0
    s3.proxy.rules.append(Rule("pass", key="/tree/", seconds=0.3))
    assert read(source, wanted) == (b"".join(files.values()), {})
    assert 8 <= s3.proxy.most_at_a_time <= 16
    assert s3.proxy.count("GET", "/tree/") == 64
    source.close()


def test_a_large_object_has_several_ranges_in_flight(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    wanted = [whole(source)[b"large"]]
    s3.proxy.most_at_a_time = 0
    s3.proxy.rules.append(Rule("pass", key="/tree/large", seconds=2.0))
    assert read(source, wanted) == (LARGE, {})
    assert s3.proxy.most_at_a_time == 3
    source.close()


def test_a_path_that_can_be_no_key_has_vanished(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    piece = whole(source)[b"a"]
    assert read(source, [piece._replace(path=b"\xff")]) == (b"", {b"\xff": "vanished"})
    source.close()


def test_a_store_that_is_gone_ends_the_reading(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    source.close()
    gone = s3.source(endpoint="http://127.0.0.1:1")
    with pytest.raises(SourceUnusable, match=r"127\.0\.0\.1:1 cannot be reached"):
        read(gone, wanted)
    gone.close()


def test_a_bucket_that_is_gone_ends_the_reading(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    source.close()
    other = s3.source("s3://no-such-bucket/tree")
    with pytest.raises(SourceUnusable, match="There is no bucket no-such-bucket"):
        read(other, wanted)
    with pytest.raises(SourceUnusable, match="There is no bucket no-such-bucket"):
        [*other.scan(Wanted())]
    other.close()


def test_a_source_that_was_used_goes_through_a_fork(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    assert read(source, wanted)[0] == EVERYTHING
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        theirs.send(read(source, wanted))
        source.close()

    process = context.Process(target=child)
    process.start()
    assert ours.poll(100)
    assert ours.recv() == (EVERYTHING, {})
    process.join(100)
    assert process.exitcode == 0
    assert read(source, wanted)[0] == EVERYTHING
    source.close()


def test_a_version_is_read_whatever_is_written_meanwhile(s3: Store) -> None:
    s3.client.put_bucket_versioning(Bucket=s3.name, VersioningConfiguration={"Status": "Enabled"})
    s3.put(b"a", b"older")
    fill(s3)
    s3.put(b"gone", b"")
    s3.remove(b"gone")
    source = s3.source(versions=True)
    wanted = whole(source)
    assert sorted(wanted) == sorted(FILES)
    fill(s3, dict.fromkeys(FILES, b"newer"))
    s3.remove(b"z")
    assert read(source, [*wanted.values()]) == (EVERYTHING, {})
    source.close()


@pytest.mark.parametrize("guess", ["right", "wrong", "part", "again"])
def test_reading_ahead_changes_nothing_but_the_time(s3: Store, guess: str) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    s3.remove(b"b")
    guesses = {"right": wanted, "wrong": wanted[::-1], "part": wanted[1:], "again": wanted}
    into, other = room(wanted), room(wanted)
    source.ahead(guesses[guess], into)
    source.ahead(wanted, other)
    if guess == "again":
        source.ahead(wanted, into)
    rest = FILES[b"a"] + LARGE + FILES[b"z"]
    for buffer in (into, other, into):
        assert read_into(source, wanted, buffer) == (rest, {b"b": "vanished"})
    source.ahead(wanted, into)
    source.close()


def test_what_was_read_ahead_is_not_read_again(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    into = room(wanted)
    source.ahead(wanted, into)
    source.ahead(wanted, into)
    assert read_into(source, wanted, into) == (EVERYTHING, {})
    assert s3.proxy.count("GET", "/tree/") == 6
    source.close()


def test_the_blocks_that_follow_are_begun_while_one_is_made(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    a, b, large, z = whole(source).values()
    maker = BlockMaker(source, 16 << 20)
    assert maker.ahead == 2
    plain = Compressor("none")
    rest = [[b, z], [large]]
    made = maker.make([a], plain, rest)
    wait_for("all of it to be asked for", lambda: s3.proxy.count("GET", "/tree/") == 6)
    assert bytes(made.body[1]) == FILES[b"a"]
    assert bytes(maker.make(rest[0], plain, rest[1:]).body[1]) == FILES[b"b"] + FILES[b"z"]
    assert bytes(maker.make(rest[1], plain).body[1]) == LARGE
    assert s3.proxy.count("GET", "/tree/") == 6
    source.close()


def test_a_store_that_is_gone_is_told_by_the_read_that_follows(s3: Store) -> None:
    fill(s3)
    source = s3.source()
    wanted = [*whole(source).values()]
    source.close()
    gone = s3.source(endpoint="http://127.0.0.1:1")
    into = room(wanted)
    gone.ahead(wanted, into)
    with pytest.raises(SourceUnusable, match="cannot be reached"):
        read_into(gone, wanted, into)
    gone.close()
