"""Finding a ledger's files: by path, size and digest, with SQL indexes and without."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from tar_like.proxy import ledger, nextledger
from tar_like.proxy.ledger import INDEXES, Ledger
from tests.trees import assert_same
from tests.unit.receiver import Job, sync


@pytest.fixture
def source(work: Path, dice: random.Random) -> Path:
    source = work / "src"
    for folder in ("a", "b/c", "b-c", "empty"):
        (source / folder).mkdir(parents=True)
    for number in range(30):
        folder = dice.choice(("a", "b/c", "b-c"))
        (source / f"{folder}/{number}").write_bytes(dice.randbytes(dice.randrange(4090, 4100)))
    (source / "a/twin").write_bytes(b"x" * 5000)
    (source / "b/c/twin").write_bytes(b"x" * 5000)
    (source / "a/nothing").touch()
    return source


def no_room(_: str) -> None:
    raise sqlite3.OperationalError("database or disk is full")


@pytest.fixture(params=["indexed", "not indexed"])
def dest(
    request: pytest.FixtureRequest, work: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A destination; the disk was too full to sort what indexes are made of, maybe."""
    if request.param == "not indexed":
        monkeypatch.setattr(nextledger, "add_indexes", no_room)
    assert sync(source, work / "dst") == {}
    assert names_of_indexes(work / "dst") == (set(INDEXES) if request.param == "indexed" else set())
    return work / "dst"


def path_of(dest: Path) -> Path:
    return dest / ".tar_like/ledger.db"


def names_of_indexes(dest: Path) -> set[str]:
    with closing(sqlite3.connect(path_of(dest))) as db:
        query = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        return {name for (name,) in db.execute(query)}


@pytest.fixture
def opened(dest: Path) -> Iterator[Ledger]:
    found = Ledger(str(path_of(dest)))
    yield found
    found.close()


def test_files_are_found_by_path(source: Path, opened: Ledger) -> None:
    paths = [str(one.relative_to(source)).encode() for one in sorted(source.rglob("*"))]
    wanted = [*paths, b"", b"zzz", b"a/nothing else", b"b", b"empty"]
    full = {one for one in paths if (source / one.decode()).is_file() and one != b"a/nothing"}
    found = {row.path: row for row in opened.with_paths(wanted)}
    assert found.keys() == full
    for path, row in found.items():
        content = (source / path.decode()).read_bytes()
        assert (row.size, row.digest) == (len(content), blake3(content).digest())


def test_files_are_found_by_digest(source: Path, opened: Ledger) -> None:
    twin = blake3(b"x" * 5000).digest()
    assert {row.path for row in opened.with_digests([twin, twin])} == {b"a/twin", b"b/c/twin"}
    one = next(iter((source / "a").glob("[0-9]*")))
    digest = blake3(one.read_bytes()).digest()
    assert [row.path for row in opened.with_digests([digest])] == [f"a/{one.name}".encode()]
    almost = digest[:8] + bytes(24)
    assert not list(opened.with_digests([almost, b"", blake3(b"").digest()]))
    assert not list(opened.with_digests([]))


def test_content_is_found_under_another_name(source: Path, dest: Path) -> None:
    """With the same time, and, from a page on, with another one too."""
    for number, path in enumerate(sorted((source / "a").glob("[0-9]*"))):
        path.rename(source / f"empty/moved {path.name}")
        if number % 2:
            (source / f"empty/moved {path.name}").touch()
    job = Job(source, dest)
    try:
        assert job.transfer.plan().block_count == 0
        assert job.complete() == {}
    finally:
        job.close()
    assert (source / "b/c/twin").exists()
    assert (dest / "empty").is_dir()
    assert {one.name for one in (dest / "empty").iterdir()} == {
        one.name for one in (source / "empty").iterdir()
    }


def test_a_sender_is_asked_about_what_the_sizes_and_times_of_files_say(
    source: Path, dest: Path
) -> None:
    asked = 0
    for number, path in enumerate(sorted((source / "a").glob("[0-9]*"))):
        size = path.stat().st_size
        path.rename(source / f"empty/moved {path.name}")
        if number % 2:
            (source / f"empty/moved {path.name}").touch()
        asked += not number % 2 or size >= 4096
    (source / "b/of no size that there is").write_bytes(b"x" * 9000)
    (source / "b/nothing").touch()
    job = Job(source, dest, algorithm="none", negotiate=False)
    try:
        job.transfer.negotiate(4096, ask=True)
        assert job.transfer.open_questions == asked > 3
    finally:
        job.close()


def test_a_tree_is_opened_again_without_what_is_the_ledgers_own(source: Path, dest: Path) -> None:
    from tar_like.proxy.offer import reopen

    job = Job(source, dest)
    job.withdraw()
    reopen(job.destination, job.id)
    job.open()
    job.transfer.negotiate(4096)
    assert job.complete() == {}
    job.close()
    assert_same(source, dest)


def test_a_damaged_ledger_finds_nothing(dest: Path) -> None:
    data = bytearray(path_of(dest).read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path_of(dest).write_bytes(data)
    found = ledger.Ledger(str(path_of(dest)))
    assert not list(found.with_paths([b"a/twin"]))
    assert not list(found.with_digests([blake3(b"x" * 5000).digest()]))
    found.close()
