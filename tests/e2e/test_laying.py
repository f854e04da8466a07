"""An older version is still being copied while the blocks of the newer one arrive."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tar_like.errors import NoSpace
from tar_like.plan import Plan
from tar_like.proxy import room
from tar_like.proxy.expire import expire
from tar_like.proxy.laying import bytes_left
from tar_like.proxy.place import Destination
from tar_like.proxy.receipts import Receipts
from tar_like.proxy.transfer import Transfer
from tests.e2e.harness import Job, Result, run, sync, wait_for
from tests.e2e.test_patch import assert_ledger, was_patched
from tests.trees import assert_same

MIB = 1 << 20
SIZE = 40 * MIB
"""Copied in five steps."""
SLOWLY = (
    *("strace", "--follow-forks", "--seccomp-bpf", "--output=/dev/null"),
    "--inject=copy_file_range:delay_enter=400000",
)
ONCE_MORE = b"were not what the receiver remembered"
WRONG = b"they are sent again"


@pytest.fixture
def src(work: Path, dice: random.Random) -> Path:
    """A tree with a large file that was committed, and has changed here and there since."""
    src = work / "src"
    src.mkdir()
    (src / "large").write_bytes(dice.randbytes(SIZE))
    (src / "small").write_bytes(b"small")
    sync(src, work / "dst")
    with (src / "large").open("r+b") as file:
        for _ in range(20):
            file.seek(dice.randrange(SIZE // 4096) * 4096)
            file.write(dice.randbytes(4096))
    (src / "small").write_bytes(b"changed")
    return src


@contextmanager
def copying(src: Path, dst: Path) -> Iterator[tuple[Job, Path]]:
    """A sync whose first blocks have come while the older version is being copied.

    Gives the folder of its transfer, too.
    """
    with Job("sync", src, dst, "--delete", "-s", "64K", prefix=SLOWLY) as job:
        transfers = dst / ".tar_like/transfers"
        plan, *_ = wait_for("a plan", lambda: [*transfers.glob("*/plan.db")], unless=job.ended)
        receipts = plan.parent / "receipts"
        wait_for(
            "receipts",
            lambda: any(one.stat().st_size for one in receipts.iterdir()),
            unless=job.ended,
        )
        assert copier(job), "it was copied before"
        assert not (plan.parent / "laid").exists()
        yield job, plan.parent


def copier(job: Job) -> list[int]:
    """The processes of a job that hold the lock of who copies."""
    found = []
    for pid in job.members():
        with suppress(OSError):
            names = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            if any(name.endswith("/laying.lock") for name in names):
                found.append(pid)
    return found


def assert_made_once(result: Result, work: Path) -> None:
    """A run has made the tree by a patch, and nothing of it twice."""
    src, dst = work / "src", work / "dst"
    assert ONCE_MORE not in result.err
    assert WRONG not in result.err
    assert was_patched(dst)
    assert_same(src, dst)
    assert_ledger(src, dst, work)


def test_blocks_arrive_meanwhile_and_the_commit_waits(
    work: Path, src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = work / "dst"
    with copying(src, dst) as (job, transfer):
        job.freeze()
        plan = Plan(str(transfer / "plan.db"), str(transfer / "index.db"))
        left = bytes_left(str(transfer), plan)
        plan.close()
        assert 0 < left < SIZE
        destination = Destination(str(dst))
        destination.prepare()
        assert expire(destination, 0.0) == []
        one = Transfer(destination, transfer.name)
        one.check_room()
        monkeypatch.setattr(room, "_free", lambda _: room.Room(left + room.RESERVE, 1 << 20))
        with pytest.raises(NoSpace):
            one.check_room()
        one.close()
        job.thaw()
        result = job.end().verify(0)
    assert_made_once(result, work)


def test_what_was_shifted_is_not_taken_as_it_lies(work: Path, src: Path) -> None:
    dst = work / "dst"
    (src / "large").write_bytes(b"put in" * 1000 + (dst / "large").read_bytes())
    with Job("sync", src, dst, "--delete", "-s", "64K", prefix=SLOWLY) as job:
        result = job.end().verify(0)
    assert_made_once(result, work)


def test_what_the_copying_process_leaves_the_commit_copies(work: Path, src: Path) -> None:
    dst = work / "dst"
    with copying(src, dst) as (job, transfer):
        for pid in copier(job):
            os.kill(pid, signal.SIGKILL)
        assert not (transfer / "laid").exists()
        result = job.end().verify(0)
    assert_made_once(result, work)


def test_a_run_that_was_killed_meanwhile_goes_on(work: Path, src: Path) -> None:
    dst = work / "dst"
    with copying(src, dst) as (job, transfer):
        job.kill()
        assert not (transfer / "laid").exists()
    with Job("sync", src, dst, "--delete") as job:
        result = job.end().verify(0)
    assert_made_once(result, work)


def test_what_others_take_over_has_no_gaps(work: Path, src: Path) -> None:
    """A run is killed when all blocks have come; the tree has changed when the next one comes."""
    dst = work / "dst"
    with copying(src, dst) as (job, transfer):
        receipts = transfer / "receipts"
        wait_for("all blocks", lambda: not missing(transfer), unless=job.ended)
        job.kill()
        assert receipts.exists()
        assert not (transfer / "laid").exists(), "the test was too late"
    (src / "small").write_bytes(b"changed once more")
    result = run("sync", src, dst, "--delete")
    result.verify(0)
    assert_same(src, dst)


def test_what_was_believed_in_vain_is_no_fault_of_the_source(work: Path, src: Path) -> None:
    """The next run takes over a file with gaps that the run before says are none."""
    dst = work / "dst"
    with copying(src, dst) as (job, transfer):
        wait_for("all blocks", lambda: not missing(transfer), unless=job.ended)
        job.kill()
        (transfer / "laid").write_text(plan_of(transfer).id)
    (src / "small").write_bytes(b"changed once more")
    run("sync", src, dst, "--delete", codes=(1,)).sentence("large: .* is damaged")
    run("sync", src, dst, "--delete").verify(0)
    assert_same(src, dst)


def plan_of(transfer: Path) -> Plan:
    """Its plan, closed; the figures stay."""
    plan = Plan(str(transfer / "plan.db"), str(transfer / "index.db"))
    plan.close()
    return plan


def missing(transfer: Path) -> int:
    """How many blocks a transfer lacks."""
    receipts = Receipts(str(transfer / "receipts"))
    receipts.refresh()
    return plan_of(transfer).block_count - receipts.received


@pytest.mark.parametrize("killed", [False, True])
def test_an_older_version_that_changes_meanwhile_is_found_out(
    work: Path, src: Path, *, killed: bool
) -> None:
    dst = work / "dst"
    with copying(src, dst) as (job, _):
        if killed:
            for pid in copier(job):
                os.kill(pid, signal.SIGKILL)
        (dst / "large").write_bytes(bytes(SIZE))
        result = job.end().verify(0)
    assert ONCE_MORE in result.err
    assert_same(src, dst)
