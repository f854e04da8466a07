"""A transfer's own files, changed by the disk before the commit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tar_like.proxy.commit import run_commit
from tar_like.proxy.seal import SEALED, broken
from tests import trees
from tests.unit.receiver import Job


@pytest.fixture
def job(work: Path) -> Job:
    (work / "src").mkdir()
    (work / "src/a").write_bytes(b"0123456789" * 1500)
    made = Job(work / "src", work / "dst")
    made.send()
    return made


WHOLE = sorted({*SEALED} - {"patch.db"})


@pytest.mark.parametrize("name", WHOLE)
def test_what_the_disk_has_changed_gets_no_names(job: Job, work: Path, name: str) -> None:
    with (job.path / name).open("r+b") as file:
        os.pwrite(file.fileno(), b"\x01", os.fstat(file.fileno()).st_size - 1)
    assert broken(job.transfer.path) == name
    run_commit(job.destination, job.id, "token", 1)
    assert os.listdir(work / "dst") == [".tar_like"]
    assert not job.transfer.alive
    job.offer()
    job.reopen()
    job.transfer.negotiate(4096)
    assert job.complete() == {}
    trees.assert_same(work / "src", work / "dst")
    job.close()


def test_a_transfer_of_before_there_were_seals_is_completed(job: Job) -> None:
    for name in WHOLE:
        (job.path / f"{name}.seal").unlink()
    assert broken(job.transfer.path) == ""
    assert job.complete() == {}
    job.close()
