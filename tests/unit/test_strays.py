"""Strays: when the destination is walked, what is noted, and how much of it is read."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from pathlib import Path

import pytest

from tar_like.index import BuildOptions, Index, build_index
from tar_like.proxy import strays, survey
from tar_like.proxy.look import run_look, touched_now
from tar_like.proxy.place import Destination
from tar_like.proxy.planning import Planning, Wish
from tar_like.proxy.sources import MOST, Sources
from tar_like.proxy.strays import Stray
from tar_like.rules import Rules
from tar_like.source.folder import FolderSource
from tests.unit.receiver import Job, sync

PAGE = 4096


@pytest.fixture
def src(work: Path) -> Path:
    (work / "src").mkdir()
    return work / "src"


@pytest.fixture
def dst(work: Path) -> Path:
    (work / "dst").mkdir()
    return work / "dst"


def fill(path: Path, size: int, mtime: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(f"{path}").randbytes(size))
    os.utime(path, ns=(mtime, mtime))
    return path


def noted(src: Path, dst: Path, *, known: bool = True) -> list[Stray]:
    """The strays that a survey lists."""
    index, found = src.with_name("index"), src.with_name("survey")
    found.unlink(missing_ok=True)
    build_index(FolderSource(str(src)), str(index), BuildOptions(algorithm="none"))
    ledger = str(dst / ".tar_like/ledger.db")
    what = survey.Known(
        root=str(dst), plan="", ledger=ledger, touched="", alone=False, strays=known
    )
    with Index(str(index)) as opened:
        survey.write_survey(opened, what, str(found), lambda lacking: lacking, Rules())
    read = survey.Survey(str(found))
    with contextlib.closing(read):
        assert read.has_strays == bool(list(read.strays()))
        return list(read.strays())


def names(found: list[Stray]) -> set[str]:
    return {os.fsdecode(one.path) for one in found}


def test_those_of_a_lacking_file_s_size_and_time_or_of_its_size_from_a_page_up(
    src: Path, dst: Path
) -> None:
    for size in (0, 100, PAGE):
        fill(src / f"new{size}", size, 5)
        fill(dst / f"a/of size {size}", size, 6)
        fill(dst / f"a/of size and time {size}", size, 5)
    fill(dst / "of another size", 300, 5)
    assert names(noted(src, dst)) == {
        "a/of size 4096",
        "a/of size and time 4096",
        "a/of size and time 100",
    }
    assert noted(src, dst, known=False) == []


def test_none_where_every_file_may_be_in_its_place(src: Path, dst: Path) -> None:
    for root in (src, dst):
        fill(root / "file", PAGE, 5)
    fill(dst / "other", PAGE, 5)
    assert noted(src, dst) == []
    fill(src / "new", PAGE, 7)
    assert {(one.path, one.entry_id is None) for one in noted(src, dst)} == {
        (b"file", False),
        (b"other", True),
    }


def test_none_that_the_ledger_vouches_for(src: Path, dst: Path) -> None:
    for name in ("one", "two", "three"):
        fill(src / name, PAGE, 5)
    assert sync(src, dst) == {}
    fill(src / "new", PAGE, 7)
    assert noted(src, dst) == []
    (dst / "two").rename(dst / "elsewhere")
    (dst / "three").touch()
    assert names(noted(src, dst)) == {"elsewhere", "three"}


def test_a_look_says_whether_there_can_be_any(src: Path, dst: Path) -> None:
    fill(src / "folder/one", PAGE, 5)
    assert sync(src, dst) == {}

    def alone() -> bool:
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            found = touched_now(str(dst / ".tar_like/ledger.db"), str(dst), db)
            assert db.execute("SELECT count(*) FROM touched").fetchone() == (0,)
            return found

    assert alone()
    fill(dst / "folder/more", 1, 5)
    os.utime(dst / "folder", ns=(0, (src / "folder").stat().st_mtime_ns))
    assert not alone()


def test_so_many_of_a_size_those_of_the_right_time_first(src: Path, dst: Path) -> None:
    for number in range(2):
        fill(src / f"new{number}", PAGE, 1_000_000 + number)
    for number in range(100):
        fill(dst / f"old{number:03}", PAGE, number)
    last = fill(dst / "zz", PAGE, 1_000_001)
    fill(src / "other", 2 * PAGE, 5)
    fill(dst / "other", 2 * PAGE, 6)
    found = names(noted(src, dst))
    assert len(found) == 2 * strays.MOST + 1
    assert {last.name, "old000", "other"} <= found
    assert "old099" not in found


def test_of_several_names_of_one_file_one(src: Path, dst: Path) -> None:
    fill(src / "new", PAGE, 5)
    fill(dst / "old", PAGE, 5)
    for number in range(5):
        os.link(dst / "old", dst / f"name{number}")
    assert len(noted(src, dst)) == 1


def test_sources_are_few_of_each_digest_and_in_order(work: Path) -> None:
    def row(path: bytes, digest: bytes) -> Stray:
        return Stray(path, 1, 2, 3, 4, None)

    first = [row(b"stray", b"a").read_as(b"a")]
    second = [row(b"%d" % number, b"a").read_as(b"a") for number in range(9)]
    sources = Sources(first, iter(second))
    with contextlib.closing(sources):
        assert sources.of(b"a") == (*first, *second[: MOST - 1])
        assert sources.of(b"b") == sources.of(b"") == ()


@pytest.mark.parametrize("seen", [True, False])
def test_where_a_look_saw_nothing_besides_nobody_walks(src: Path, dst: Path, seen: bool) -> None:
    fill(src / "one", PAGE, 5)
    assert sync(src, dst, algorithm="none") == {}
    fill(src / "new", PAGE, 7)
    if not seen:
        fill(dst / "before the look", PAGE, 5)
    run_look(Destination(str(dst)), "0" * 16)
    fill(dst / "later", PAGE, 5)  # which nobody has to notice
    job = Job(src, dst, algorithm="none", negotiate=False)
    with Planning(job.destination, job.id) as planning:
        planning.run(Wish(block_size=PAGE, look="0" * 16, ask=True))
    found = survey.Survey(str(job.path / "survey.db"))
    with contextlib.closing(found), contextlib.closing(job):
        assert names(list(found.strays())) == (set() if seen else {"before the look", "later"})
