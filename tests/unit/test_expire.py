"""Abandoned transfers are removed, and never a live one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tar_like.errors import NotFound
from tar_like.proxy.expire import LEFTOVER, expire
from tar_like.proxy.place import COMMIT_LOCK, PLAN_LOCK, held
from tests.trees import assert_same
from tests.unit.receiver import Job

HOUR = 3600.0


@pytest.fixture
def source(work: Path) -> Path:
    (work / "src").mkdir()
    (work / "src/file").write_bytes(os.urandom(20000))
    return work / "src"


@pytest.fixture
def job(source: Path, work: Path) -> Iterator[Job]:
    one = Job(source, work / "dst")
    one.put(0)
    yield one
    one.close()


def age(folder: Path, seconds: float) -> None:
    """Make it look as if nothing had happened for so long."""
    then = time.time() - seconds
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


def test_an_abandoned_transfer_goes_and_can_begin_anew(job: Job, source: Path, work: Path) -> None:
    age(job.path, 2 * HOUR)
    assert expire(job.destination, 3 * HOUR) == []
    (removed,) = expire(job.destination, HOUR)
    assert removed.id == job.id
    assert 2 * HOUR <= removed.idle < 3 * HOUR
    assert removed.bytes >= 4096
    assert list((work / "dst/.tar_like/transfers").iterdir()) == []
    assert list((work / "dst/.tar_like/tmp").iterdir()) == []
    with pytest.raises(NotFound, match="offer its index again"):
        job.put(1)
    again = Job(source, work / "dst")
    assert again.complete() == {}
    assert_same(source, work / "dst")
    again.close()


def test_each_sign_of_life_keeps_a_transfer(job: Job) -> None:
    def sends() -> None:
        job.put(1)

    def offers() -> None:
        job.offer()

    def negotiates() -> None:
        job.transfer.negotiate(4096)

    def commits() -> None:
        job.commit()

    for happens in (sends, offers, negotiates, commits):
        age(job.path, 2 * HOUR)
        happens()
        assert expire(job.destination, HOUR) == [], happens
    age(job.path, 2 * HOUR)
    assert expire(job.destination, HOUR) != []


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", [PLAN_LOCK, COMMIT_LOCK])
def test_a_transfer_in_use_stays_whatever_its_age(job: Job, name: str, shared: bool) -> None:
    age(job.path, 2 * HOUR)
    with held(str(job.path / name), shared=shared):
        assert expire(job.destination, HOUR) == []
    assert expire(job.destination, HOUR) != []


def test_looking_keeps_nothing_alive(job: Job) -> None:
    age(job.path, 2 * HOUR)
    job.transfer.status()
    job.transfer.bitmaps()
    assert expire(job.destination, HOUR) != []


def test_leftovers_of_killed_processes_go(job: Job) -> None:
    old, new = Path(job.destination.temporary()), Path(job.destination.temporary())
    busy = Path(job.destination.temporary())
    for folder in (old, busy):
        (folder / "index.db").touch()
        age(folder, LEFTOVER + HOUR)
    (busy / "index.db").write_bytes(b"x")
    expire(job.destination, HOUR)
    assert sorted(old.parent.iterdir()) == sorted([new, busy])


def test_what_is_no_transfer_is_left_alone(job: Job, work: Path) -> None:
    for name in ("notes", "0" * 64):
        (work / "dst/.tar_like/transfers" / name).mkdir()
    age(work / "dst", 2 * HOUR)
    assert [one.id for one in expire(job.destination, HOUR)] == [job.id]
