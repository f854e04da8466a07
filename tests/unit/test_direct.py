"""Taking in blocks from a sender in the same process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tar_like.codec import CHANGED, Body, Omission
from tar_like.errors import BlockInvalid, Conflict, NoSpace, NotFound, ReceiverFailed
from tar_like.proxy import durable, intake
from tar_like.proxy.direct import Direct
from tar_like.proxy.staging import Staging
from tar_like.proxy.transfer import Transfer
from tar_like.source.folder import FolderSource
from tar_like.upload.block import BlockMaker, Compressor, Made
from tests import trees
from tests.e2e.harness import wait_for
from tests.unit.receiver import Job


@pytest.fixture
def job(work: Path) -> Iterator[Job]:
    source = work / "src"
    source.mkdir()
    for number in range(4):
        (source / f"file{number}").write_bytes(random.Random(number).randbytes(30_000))
    made = Job(source, work / "dst")
    made.offer()
    made.open()
    made.transfer.negotiate(16_384)
    yield made
    made.close()


@pytest.fixture
def direct(job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[Direct]:
    """Without a checkpoint of its own accord, however long a test takes."""
    monkeypatch.setattr(intake, "CHECKPOINT_SECONDS", 1e6)
    made = Direct(job.destination)
    yield made
    made.close()


def block(job: Job, number: int) -> Made:
    plan = job.transfer.plan()
    source = FolderSource(str(job.source))
    try:
        return BlockMaker(source, plan.block_size).make(plan.pieces(number), Compressor("none"))
    finally:
        source.close()


def take(direct: Direct, job: Job, number: int) -> bool:
    made = block(job, number)
    body = Body(tuple(made.omissions), made.plain)
    return direct.take(job.id, job.transfer.plan().id, number, body, made.digest)


def test_what_is_taken_is_received_once_and_can_be_committed(job: Job, direct: Direct) -> None:
    blocks = job.missing
    assert len(blocks) > 3
    assert all(take(direct, job, number) for number in blocks)
    assert job.missing == []
    assert not take(direct, job, blocks[0])
    job.commit()
    assert trees.differences(trees.look(job.source), trees.look(job.dest)) == []


def test_other_bytes_for_a_block_are_a_conflict_and_mark_its_files(
    job: Job, direct: Direct
) -> None:
    take(direct, job, 0)
    made = block(job, 0)
    other = bytearray(made.plain)
    other[0] ^= 1
    with pytest.raises(Conflict):
        direct.take(
            job.id, job.transfer.plan().id, 0, Body((), memoryview(other)), b"another".ljust(32)
        )


def test_a_block_of_another_length_is_refused_before_anything_is_written(
    job: Job, direct: Direct
) -> None:
    made = block(job, 0)
    for body in (Body((), made.plain[:-1]), Body((Omission(0, CHANGED),), made.plain)):
        with pytest.raises(BlockInvalid):
            direct.take(job.id, job.transfer.plan().id, 0, body, made.digest)
    assert list((job.path / "stage").iterdir()) == []
    assert 0 in job.missing


def test_a_block_of_another_plan_or_transfer_is_refused(job: Job, direct: Direct) -> None:
    made = block(job, 0)
    for transfer, plan in ((job.id, "another"), ("0" * 64, job.transfer.plan().id)):
        with pytest.raises(NotFound):
            direct.take(transfer, plan, 0, Body((), made.plain), made.digest)


def test_receipts_become_durable_while_blocks_are_taken(
    job: Job, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "CHECKPOINT_SECONDS", 0.0)
    take(direct, job, 0)
    wait_for("a checkpoint", lambda: job.transfer.status().durable == 1)


def test_receipts_are_durable_once_it_is_closed(job: Job, direct: Direct) -> None:
    take(direct, job, 0)
    assert job.transfer.status().durable == 0
    direct.close()
    assert job.transfer.status().durable == 1


def test_what_a_failed_sync_leaves_in_doubt_is_sent_again(
    job: Job, direct: Direct, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "the disk is ill")

    take(direct, job, 0)
    assert 0 not in job.missing
    monkeypatch.setattr(durable, "sync_filesystem", fail)
    direct.close()
    assert 0 in job.missing
    assert "must be sent again" in capfd.readouterr().err


@pytest.mark.parametrize(("code", "kind"), [(28, NoSpace), (5, ReceiverFailed)])
def test_a_disk_in_trouble_is_told_by_the_kind_of_error(
    job: Job, direct: Direct, monkeypatch: pytest.MonkeyPatch, code: int,
    kind: type[Exception],
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(Staging, "write", fail)
    with pytest.raises(kind):
        take(direct, job, 0)
    assert 0 in job.missing


def test_a_transfer_that_is_gone_is_not_written_to(job: Job, direct: Direct) -> None:
    take(direct, job, 0)
    plan = job.transfer.plan().id
    made = block(job, 1)
    job.withdraw()
    with pytest.raises(NotFound):
        direct.take(job.id, plan, 1, Body((), made.plain), made.digest)
    job.offer()
    Transfer(job.destination, job.id).close()
