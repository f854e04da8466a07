"""What a sender tells unasked: read while the receiver is busy, of use only as far as it goes."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from tar_like.index import Index
from tar_like.proxy.planning import Wish
from tar_like.rules import Rules
from tar_like.source import Wanted
from tar_like.source.folder import FolderSource
from tar_like.source.stretch import Stretch
from tar_like.upload import told
from tar_like.upload.told import Telling
from tar_like.wire import OPEN, RECEIVING, Status
from tests import trees
from tests.unit.receiver import Job, sync


def stretches(root: Path) -> list[Stretch]:
    source = FolderSource(str(root))
    try:
        return list(source._stretches(Wanted()))
    finally:
        source.close()


def tell(root: Path, newest: int = 0) -> dict[bytes, bytes]:
    with Telling(str(root), stretches(root), newest) as telling:
        telling.begin()
        telling.begin()  # as when the patch is sent again
    assert {path: bytes(one.content) for path, one in telling.files.items()} == {
        path: (root / os.fsdecode(path)).read_bytes() for path in telling.files
    }
    return digests(telling)


def digests(telling: Telling) -> dict[bytes, bytes]:
    return {path: one.digest for path, one in telling.files.items()}


@pytest.fixture
def source(work: Path) -> Path:
    source = work / "src"
    (source / "d").mkdir(parents=True)
    for name in ("a", "d/b"):
        (source / name).write_bytes(name.encode() * 3000)
    (source / "empty").touch()
    (source / "link").symlink_to("a")
    (source / "old").write_bytes(b"old")
    os.utime(source / "old", ns=(5, 5))
    return source


def test_new_files_are_told(source: Path) -> None:
    wanted = {name: blake3(name * 3000).digest() for name in (b"a", b"d/b")}
    assert tell(source, newest=5) == wanted
    assert tell(source, newest=1 << 62) == {}


def test_many_or_large_files_are_not_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told, "MOST_TOLD", 2)
    assert tell(source) == {}
    assert len(tell(source, newest=5)) == 2
    monkeypatch.setattr(told, "_MOST_BYTES", 3000 * 4 - 1)
    assert tell(source, newest=5) == {}


def test_what_cannot_be_read_is_left_out(source: Path) -> None:
    found = stretches(source)
    (source / "a").write_bytes(b"another size")
    (source / "d/b").unlink()
    with Telling(str(source), found, 0) as telling:
        telling.begin()
    assert digests(telling) == {b"old": blake3(b"old").digest()}
    with Telling(str(source.with_name("none")), found, 0) as telling:
        telling.begin()
    assert digests(telling) == {}


def test_without_a_thread_nothing_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Telling(str(source), stretches(source), 0) as telling:  # nor where nothing was sent
        pass
    assert digests(telling) == {}
    monkeypatch.setattr(threading.Thread, "start", none)
    assert tell(source) == {}


@pytest.fixture
def job(work: Path, dice: random.Random) -> Job:
    """Two new files that may be what lies under other names, since they have the sizes; one is."""
    source, dest = work / "src", work / "dst"
    source.mkdir()
    for number in range(3):
        (source / f"old {number}").write_bytes(dice.randbytes(9000 + number))
    assert sync(source, dest) == {}
    (source / "same").write_bytes((source / "old 1").read_bytes())
    (source / "other").write_bytes(dice.randbytes(9002))
    return Job(source, dest, algorithm="none", negotiate=False)


def negotiate(job: Job, *names: str, wrong: bool = False) -> Status:
    """Tell the digests of these files."""
    with Index(job.transfer.index_path) as opened:
        entries = {os.fsdecode(one.path): one.id for one in opened.of_kind("f")}
    digests = {
        entries[name]: blake3(b"wrong" * wrong + (job.source / name).read_bytes()).digest()
        for name in names
    }
    digests[1 << 40] = digests[-1] = bytes(32)  # and what nobody has
    wish = Wish(block_size=4096, ask=True, told=digests)
    return job.transfer.negotiate_as(wish, Rules())


def test_what_is_told_answers_all_questions(job: Job) -> None:
    status = negotiate(job, "same", "other", "old 0")
    assert (status.state, status.questions, status.files) == (RECEIVING, 0, 1)
    assert job.complete() == {}
    trees.assert_same(job.source, job.dest)
    job.close()


def opened() -> list[str]:
    """What this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


def test_planning_leaves_nothing_open(job: Job) -> None:
    """Not even until garbage is looked for: a serving process plans for years."""
    gc.collect()
    gc.disable()
    try:
        before = opened()
        assert negotiate(job, "same", "other").state == RECEIVING
        job.close()
        assert [path for path in opened() if path not in before] == []
    finally:
        gc.enable()


def test_what_is_told_in_part_is_asked_in_full(job: Job) -> None:
    status = negotiate(job, "same")
    assert (status.state, status.questions) == (OPEN, 2)
    job.transfer.negotiate(4096)
    assert job.complete() == {}
    trees.assert_same(job.source, job.dest)
    job.close()


def test_what_is_told_wrong_costs_bytes(job: Job) -> None:
    status = negotiate(job, "same", "other", wrong=True)
    assert (status.state, status.files) == (RECEIVING, 2)
    assert job.complete() == {}
    trees.assert_same(job.source, job.dest)
    job.close()


def test_of_large_files_more_is_asked(job: Job, dice: random.Random) -> None:
    job.withdraw()
    source = job.source
    (source / "large").write_bytes(dice.randbytes(3 << 20))
    assert sync(source, job.dest, algorithm="none") == {}
    with (source / "large").open("r+b") as file:
        file.write(b"changed")
    job = Job(source, job.dest, algorithm="none", negotiate=False)
    status = negotiate(job, "large")
    assert (status.state, status.questions) == (OPEN, 1)
    job.transfer.negotiate(4096)
    assert job.complete() == {}
    trees.assert_same(source, job.dest)
    job.close()
