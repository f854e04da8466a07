"""A tree that changed during an interruption: what was staged of it before is not sent again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tar_like.errors import NoSpace
from tar_like.plan import Plan
from tar_like.proxy import room
from tar_like.proxy.apply import Applier
from tar_like.proxy.commit import Outcome
from tar_like.proxy.directories import Directories
from tar_like.proxy.server import Receiver, ServerOptions
from tar_like.proxy.staging import Staging
from tar_like.wire import Status
from tests import trees
from tests.unit.receiver import Job

PAGE = 4096
LARGE = 10 * PAGE


@pytest.fixture
def source(work: Path) -> Path:
    root = work / "src"
    (root / "d").mkdir(parents=True)
    for number in range(6):
        data = random.Random(number).randbytes(LARGE)
        (root / f"d/large-{number}").write_bytes(data)
        (root / f"small-{number}").write_bytes(data[:700])
    (root / "empty").touch()
    with open(root / "d/holes", "wb") as file:
        file.truncate(8 * PAGE)
        os.pwrite(file.fileno(), b"data", 3 * PAGE)
    os.link(root / "d/large-0", root / "linked")
    return root


@pytest.fixture
def dest(work: Path) -> Path:
    return work / "dst"


def send(job: Job, *paths: str) -> None:
    """Send the blocks that these files lie in."""
    plan = job.transfer.plan()
    names = {path.encode() for path in paths}
    for number in range(plan.block_count):
        if any(piece.path in names for piece in plan.pieces(number)):
            job.put(number)


def supersede(job: Job, dest: Path) -> None:
    """As a sync does that finds another tree."""
    job.close()
    with Receiver(ServerOptions(destination=str(dest))) as receiver:
        receiver.supersede(str(job.source), Job(job.source, dest, negotiate=False).id)


def to_send(job: Job) -> set[str]:
    """Files that have blocks in the plan."""
    plan: Plan = job.transfer.plan()
    return {
        piece.path.decode() for number in range(plan.block_count) for piece in plan.pieces(number)
    }


LARGE_ONES = [f"d/large-{number}" for number in range(6)]
SMALL_ONES = [f"small-{number}" for number in range(6)]


def change(source: Path) -> None:
    (source / "d/large-1").write_bytes(b"changed" * 5000)
    (source / "d/large-2").chmod(0o600)
    (source / "new").write_bytes(b"new" * 2000)
    (source / "d/large-3").unlink()


def assert_complete(job: Job) -> None:
    assert job.complete() == {}
    assert trees.differences(trees.look(job.source), trees.look(job.dest)) == []
    home = job.dest / ".tar_like"
    job.close()
    assert list((home / "donors").iterdir()) == list((home / "transfers").iterdir()) == []


def test_whole_files_are_adopted_and_the_others_sent(source: Path, dest: Path) -> None:
    old = Job(source, dest)
    send(old, *LARGE_ONES[:5], *SMALL_ONES, "d/holes")
    old.put(next(iter(old.missing)))  # a part of the last large file: of no use
    change(source)
    supersede(old, dest)
    job = Job(source, dest)
    assert to_send(job) == {"d/large-1", "d/large-5", "new"}
    assert_complete(job)
    again = Job(source, dest)
    assert to_send(again) == set(), "the ledger knows what was adopted"
    again.close()


def test_nothing_has_to_be_sent_when_only_names_went(source: Path, dest: Path) -> None:
    old = Job(source, dest)
    old.send()
    shutil.rmtree(source / "d")
    supersede(old, dest)
    job = Job(source, dest)
    assert to_send(job) == {"linked"}, "it was a hard link, staged under its first name"
    assert_complete(job)


def test_what_was_adopted_is_adopted_again(source: Path, dest: Path) -> None:
    first = Job(source, dest)
    send(first, *LARGE_ONES[:3])
    (source / "new").write_bytes(b"new")
    supersede(first, dest)
    second = Job(source, dest)
    send(second, *SMALL_ONES)
    (source / "new").write_bytes(b"newer")
    supersede(second, dest)
    third = Job(source, dest)
    assert to_send(third) == {*LARGE_ONES[3:], "new", "d/holes"}
    assert_complete(third)


def test_a_file_that_the_source_could_not_give_is_not_adopted(source: Path, dest: Path) -> None:
    old = Job(source, dest)
    data, st = (source / "d/large-1").read_bytes(), (source / "d/large-1").stat()
    (source / "d/large-1").unlink()
    send(old, *LARGE_ONES[:2])
    (source / "d/large-1").write_bytes(data)
    os.utime(source / "d/large-1", ns=(st.st_atime_ns, st.st_mtime_ns))
    supersede(old, dest)
    job = Job(source, dest)
    assert "d/large-1" in to_send(job) and "d/large-0" not in to_send(job)
    assert_complete(job)


def test_staged_bytes_that_were_damaged_never_get_a_name(source: Path, dest: Path) -> None:
    old = Job(source, dest)
    old.send()
    entry = next(e.id for e in old.transfer._index.entries() if e.path == b"d/large-4")
    with open(old.path / "stage" / Staging.name(entry), "r+b") as file:
        os.pwrite(file.fileno(), b"rot", 2 * PAGE)
    (source / "new").write_bytes(b"new")
    supersede(old, dest)
    job = Job(source, dest)
    failures = job.complete()
    assert list(failures) == ["d/large-4"] and "damaged" in failures["d/large-4"]
    assert not (dest / "d/large-4").exists()
    job.close()
    again = Job(source, dest)
    assert to_send(again) == {"d/large-4"}
    assert_complete(again)


@pytest.mark.parametrize("step", [Applier._put_in_place, Directories.make, Directories.finish])
def test_a_commit_that_was_cut_short_goes_on(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch, step: Callable[..., object]
) -> None:
    old = Job(source, dest)
    send(old, *LARGE_ONES, *SMALL_ONES)
    change(source)
    supersede(old, dest)
    job = Job(source, dest)
    job.send()
    with monkeypatch.context() as patch:
        owner = Applier if step is Applier._put_in_place else Directories
        calls: list[object] = []

        def die(*args: object) -> object:
            calls.append(args)
            if len(calls) > (3 if owner is Applier else 0):
                raise RuntimeError("cut short")
            return step(*args)

        patch.setattr(owner, step.__name__, die)
        assert isinstance(job.commit(), Outcome)
    assert_complete(job)


def test_without_room_for_both_everything_is_sent(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Job(source, dest)
    old.send()
    change(source)
    supersede(old, dest)
    check = room.check

    def narrow(folder: str, plan: Plan, missing: int, copies: int = 0) -> None:
        if list((dest / ".tar_like/donors").glob("*/*")):
            raise NoSpace("full")
        check(folder, plan, missing, copies)

    monkeypatch.setattr(room, "check", narrow)
    job = Job(source, dest)
    assert set(LARGE_ONES) - {"d/large-3"} < to_send(job)
    assert_complete(job)


def test_a_commit_that_had_begun_is_finished_first(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Job(source, dest)
    old.send()
    with monkeypatch.context() as patch:
        patch.setattr(Directories, "make", lambda _: 1 / 0)
        assert isinstance(old.commit(), Outcome)
    change(source)
    supersede(old, dest)
    assert (dest / "d/large-3").exists(), "it was on its way to its name"
    job = Job(source, dest)
    assert to_send(job) == {"d/large-1", "new"}
    report = job.complete()
    assert report == {}
    job.close()


def test_transfers_of_other_sources_are_left_alone(source: Path, dest: Path) -> None:
    other = Job(source, dest)
    send(other, *LARGE_ONES)
    second = source.with_name("second")
    shutil.copytree(source, second, symlinks=True)
    (second / "new").write_bytes(b"new")
    job = Job(second, dest)
    supersede(job, dest)
    assert other.transfer.alive
    assert isinstance(other.commit(), Outcome)
    other.send()
    assert isinstance(other.commit(), Status)
    other.close()


def test_donors_that_a_killed_commit_left_are_swept(source: Path, dest: Path) -> None:
    old = Job(source, dest)
    send(old, *LARGE_ONES)
    change(source)
    supersede(old, dest)
    job = Job(source, dest)
    donors = job.destination.donors_folder(job.id)
    shutil.copytree(donors, dest.with_name("aside"))
    assert_complete(job)
    shutil.move(dest.with_name("aside"), donors)
    with Receiver(ServerOptions(destination=str(dest))):
        assert not os.path.exists(donors)
