"""What --durability promises, and what it does not."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import NoReturn

import pytest

from tar_like.errors import NotFound
from tar_like.proxy import durable, ledger, nextledger, receipts, verified
from tar_like.proxy.commit import _Commit
from tar_like.proxy.durable import PROCESS
from tar_like.proxy.transfers import Transfers
from tar_like.wire import Status
from tests import trees
from tests.unit.receiver import Job


@pytest.fixture
def source(work: Path) -> Path:
    folder = work / "src"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}").write_bytes(os.urandom(3000 + 1000 * number))
    return folder


def start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, this machine has been started again."""
    host = durable.machine().partition(b"\0")[0]
    for module in (durable, receipts, ledger, verified, nextledger):
        monkeypatch.setattr(module, "machine", lambda: host + b"\0the next boot")


def test_without_syncs_nothing_is_called_durable(
    source: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> NoReturn:
        raise AssertionError("it synced")

    for name in ("sync_filesystem", "sync_file", "sync_directory"):
        monkeypatch.setattr(durable, name, fail)
    job = Job(source, work / "dst", durability=PROCESS)
    count = len(job.send())
    assert not job.transfer.checkpoint_due
    job.transfer.checkpoint()
    assert (job.transfer.status().received, job.transfer.status().durable) == (count, 0)
    report = job.commit()
    assert isinstance(report, Status)
    assert (report.state, report.received, report.durable) == ("complete", count, 0)
    bits = Transfers(job.destination, lambda *_: None).bitmaps(job.id)
    size = (count + 7) // 8
    assert bits[size:] == bytes(size)
    assert any(bits[:size])
    trees.assert_same(source, job.dest)
    job.close()


def test_what_was_not_synced_ends_with_the_boot(
    source: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(source, work / "dst", durability=PROCESS)
    job.send()
    start_again(monkeypatch)
    again = Job(source, work / "dst", durability=PROCESS)
    count = again.transfer.plan().block_count
    assert len(again.missing) == count
    assert again.complete() == {}
    with pytest.raises(NotFound):
        again.transfer.status()
    trees.assert_same(source, again.dest)
    later = Job(source, work / "dst")
    assert later.transfer.plan().block_count == 0, "in the same boot, the ledger holds"
    monkeypatch.undo()  # and here is another one
    shutil.rmtree(later.path)
    last = Job(source, work / "dst")
    with contextlib.closing(sqlite3.connect(last.path / "survey.db")) as survey:
        (doubted,) = survey.execute("SELECT count(*) FROM lacking").fetchone()
    files = sum(path.is_file() for path in source.rglob("*"))
    assert doubted == files, "a ledger that was not synced was believed"
    assert last.complete() == {}
    assert Job(source, work / "dst").transfer.plan().block_count == 0
    for one in (job, again, later, last):
        one.close()


@pytest.mark.parametrize("damage", [False, True])
def test_a_verification_that_was_not_synced_ends_with_the_boot(
    source: Path, work: Path, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    job = Job(source, work / "dst", durability=PROCESS)
    count = len(job.send())

    def die(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Commit, "_apply", die)
    with pytest.raises(KeyboardInterrupt):
        job.commit()
    monkeypatch.undo()
    assert job.transfer.verified
    assert (job.transfer.status().received, job.transfer.status().durable) == (count, 0)
    start_again(monkeypatch)
    if damage:
        (job.path / "verified.db").write_bytes(b"")
    again = Job(source, work / "dst", durability=PROCESS)
    assert not again.transfer.verified
    assert len(again.missing) == count
    assert again.complete() == {}
    trees.assert_same(source, again.dest)
    job.close()
    again.close()


def test_a_verification_whose_name_is_not_synced_makes_nothing_durable(
    source: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is seen by others before it is on the disk."""
    job = Job(source, work / "dst")
    count = len(job.send())
    seen = []
    sync = durable.sync_directory

    def look(path: str) -> None:
        if path == job.transfer.path and job.transfer.verified:
            bits = job.transfer.bitmaps()
            seen.append((job.transfer.status().durable, any(bits[len(bits) // 2 :])))
        sync(path)

    def die(*_: object) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "sync_directory", look)
    monkeypatch.setattr(_Commit, "_apply", die)
    job.commit()
    assert seen == [(0, False)]
    assert job.transfer.status().durable == count
    job.close()


@pytest.mark.parametrize("name", ["index.db", "rules.json", "plan.db"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_transfer_that_a_power_cut_tore_is_taken_up_anew(
    source: Path, work: Path, name: str, left: int
) -> None:
    job = Job(source, work / "dst", durability=PROCESS)
    job.put(0)
    job.close()
    torn = job.path / name
    torn.write_bytes(torn.read_bytes()[: min(left, torn.stat().st_size // 2)])
    with pytest.raises(NotFound):
        job.open()
    again = Job(source, work / "dst", durability=PROCESS)
    assert again.complete() == {}
    trees.assert_same(source, work / "dst")
    again.close()


def test_what_is_offered_is_synced_before_it_is_taken_up(
    source: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    sync = durable.sync_file

    def note(path: str) -> None:
        synced.append(os.path.basename(path))
        sync(path)

    monkeypatch.setattr(durable, "sync_file", note)
    job = Job(source, work / "dst", negotiate=False)
    records = {path.name for path in job.path.iterdir() if path.is_file()}
    assert records - set(synced) == {"outcome.tmp", "plan.lock", "commit.lock", "laying.lock"}
    job.close()
