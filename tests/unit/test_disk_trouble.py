"""A disk that is full, or fails: what is acknowledged is there, and it goes on after."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from tar_like.errors import NoSpace, ReceiverFailed
from tar_like.proxy import durable, room
from tar_like.proxy.commit import Outcome
from tar_like.proxy.outcome import PLANNING, read_outcome
from tar_like.proxy.planning import Planning, run_planning
from tar_like.proxy.receipts import ReceiptLog
from tar_like.proxy.transfer import Transfer
from tar_like.proxy.transfers import Transfers
from tar_like.proxy.verified import Verified
from tests.trees import assert_same
from tests.unit.receiver import Job

SIZE = 9000


@pytest.fixture
def source(work: Path) -> Path:
    folder = work / "src"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}").write_bytes(os.urandom(SIZE))
    return folder


@pytest.fixture
def job(source: Path, work: Path) -> Iterator[Job]:
    one = Job(source, work / "dst")
    yield one
    one.close()


def free(
    monkeypatch: pytest.MonkeyPatch, *, nbytes: int, inodes: int = 1000, of: int = 1000
) -> None:
    """Have the destination's filesystem say that so much is free."""
    numbers = SimpleNamespace(
        f_bfree=nbytes, f_bavail=nbytes, f_frsize=1, f_ffree=inodes, f_favail=inodes, f_files=of
    )
    monkeypatch.setattr(room.os, "statvfs", lambda _: numbers)


def test_what_cannot_fit_is_refused_with_numbers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    records = room.RESERVE + os.path.getsize(job.path / "index.db")
    needed = records + 6 * SIZE
    free(monkeypatch, nbytes=needed - 1)
    with pytest.raises(NoSpace, match=rf"space: {needed - 1} bytes are free, {needed} are needed"):
        job.transfer.negotiate(4096)
    free(monkeypatch, nbytes=needed)
    job.transfer.negotiate(4096)
    free(monkeypatch, nbytes=needed, inodes=5)
    with pytest.raises(NoSpace, match="inodes: 5 are free, 6 are needed"):
        job.transfer.negotiate(4096)
    free(monkeypatch, nbytes=needed, inodes=0, of=0)  # a filesystem that does not count them
    job.transfer.negotiate(4096)


def test_what_is_staged_needs_no_room_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):  # three files of three blocks
        job.put(number)
    records = room.RESERVE + os.path.getsize(job.path / "index.db")
    free(monkeypatch, nbytes=records + 3 * SIZE, inodes=3)
    job.transfer.negotiate(4096)
    free(monkeypatch, nbytes=records + SIZE)
    with pytest.raises(NoSpace):
        job.transfer.negotiate(4096)
    job.send()
    free(monkeypatch, nbytes=records, inodes=0)
    job.transfer.negotiate(4096)


def failing(monkeypatch: pytest.MonkeyPatch, module: object, name: str, code: int) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, fail)


def test_a_log_that_cannot_be_begun_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without its head would be believed after a power cut."""
    failing(monkeypatch, os, "pwrite", errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        ReceiptLog(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_cut_is_removed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.put(0)
    failing(monkeypatch, durable, "sync_filesystem", errno.EIO)
    failing(monkeypatch, os, "ftruncate", errno.EIO)
    with pytest.raises(ReceiverFailed):
        job.transfer.checkpoint()
    monkeypatch.undo()
    assert 0 in job.missing
    assert job.complete() == {}


def test_a_failed_sync_voids_what_others_received(
    source: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that died cannot be told by the kernel that its bytes are lost."""
    dead = Transfer(job.destination, job.id)
    for number in (0, 1):
        digest, body = job.block(number)
        dead.receive(number, memoryview(body), digest)
        if not number:
            dead.checkpoint()
    dead.close()
    job.put(2)
    failing(monkeypatch, durable, "sync_filesystem", errno.EIO)
    with pytest.raises(ReceiverFailed, match="sent again"):
        job.transfer.checkpoint()
    monkeypatch.undo()
    assert (job.transfer.status().received, job.transfer.status().durable) == (1, 1)
    assert {1, 2} <= set(job.missing)
    assert job.complete() == {}
    assert_same(source, job.dest)


def test_a_commit_whose_sync_fails_has_blocks_sent_again(
    source: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.put(0)
    job.transfer.checkpoint()
    count = len(job.send())
    failing(monkeypatch, durable, "sync_filesystem", errno.EIO)
    outcome = job.commit()
    monkeypatch.undo()
    assert isinstance(outcome, Outcome)
    assert "Input/output error" in outcome.error
    assert len(job.missing) == count, "bytes of which nobody knows where they are were trusted"
    assert job.complete() == {}
    assert_same(source, job.dest)


def test_what_cannot_be_read_back_is_sent_again(
    source: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.send()
    failing(monkeypatch, os, "preadv", errno.EIO)
    outcome = job.commit()
    monkeypatch.undo()
    assert isinstance(outcome, Outcome)
    assert outcome.revoked == job.transfer.plan().block_count
    assert job.complete() == {}
    assert_same(source, job.dest)


@pytest.mark.parametrize(("code", "status"), [(errno.ENOSPC, 507), (errno.EIO, 500)])
def test_a_disk_that_fails_during_the_commit_is_no_fault_of_an_entry(
    source: Path, job: Job, monkeypatch: pytest.MonkeyPatch, code: int, status: int
) -> None:
    job.send()
    failing(monkeypatch, os, "rename", code)
    outcome = job.commit()
    monkeypatch.undo()
    assert isinstance(outcome, Outcome)
    assert outcome.http_status == status
    assert job.missing == []
    assert job.complete() == {}
    assert_same(source, job.dest)


def test_the_records_of_a_commit_that_meet_a_full_disk_say_so(
    source: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.send()

    def full(*_: object) -> NoReturn:
        db = sqlite3.connect(":memory:")
        db.execute("PRAGMA max_page_count=1")
        db.execute("CREATE TABLE x (y)")
        raise AssertionError

    monkeypatch.setattr(Verified, "begin", full)
    outcome = job.commit()
    monkeypatch.undo()
    assert isinstance(outcome, Outcome)
    assert outcome.http_status == 507
    assert job.complete() == {}


def test_records_that_no_inode_is_left_for_say_so(
    source: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself only knows that it cannot open the file."""
    job.send()
    opened = os.open

    def full(path: str | bytes, flags: int, *rest: int, **at: int) -> int:
        if flags & os.O_CREAT and "verified.db" in os.fsdecode(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, *rest, **at)

    monkeypatch.setattr(os, "open", full)
    outcome = job.commit()
    monkeypatch.undo()
    assert isinstance(outcome, Outcome)
    assert outcome.http_status == 507
    assert job.complete() == {}


def test_a_commit_needs_no_inode_to_say_that_there_is_none(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.send()
    opened = os.open

    def full(path: str | bytes, flags: int, *rest: int, **at: int) -> int:
        if flags & os.O_CREAT and not os.path.exists(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, *rest, **at)

    monkeypatch.setattr(os, "open", full)
    failing(monkeypatch, os, "mkdir", errno.ENOSPC)
    outcome = job.commit()
    monkeypatch.undo()
    assert isinstance(outcome, Outcome)
    assert outcome.http_status == 507
    assert job.complete() == {}


def test_a_commit_whose_report_cannot_be_synced_is_not_complete(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is there already, under its name; a power cut could take it away again."""
    job.send()
    sync = durable.sync_directory
    reports = os.path.dirname(job.destination.report(job.id))

    def failing_there(path: str) -> None:
        if path == reports:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_directory", failing_there)
        outcome = job.commit()
    assert isinstance(outcome, Outcome) and outcome.error
    assert job.destination.read_report(job.id) is not None
    assert Transfers(job.destination, SimpleNamespace()).status(job.id).state != "complete"  # type: ignore[arg-type]
    assert job.complete() == {}


def test_a_planning_says_that_the_disk_is_full_where_room_was_kept(
    source: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender waits for it: what needs a new file, or a byte more, may never come."""
    job = Job(source, work / "dst", negotiate=False)
    kept = (job.path / "outcome.tmp").stat().st_ino
    failing(monkeypatch, Planning, "run", errno.ENOSPC)
    for token in ("one", "another"):
        run_planning(job.destination, job.id, token, '{"block_size": 4096}', 1)
        found = read_outcome(str(job.path), PLANNING)
        assert found is not None and found.token == token
        assert isinstance(found.as_error(), NoSpace)
        assert (job.path / "planning.json").stat().st_ino == kept
    monkeypatch.undo()
    run_planning(job.destination, job.id, "a third", '{"block_size": 4096}', 1)
    job.reopen()
    assert job.complete() == {}
    job.close()
