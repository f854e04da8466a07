"""The receiver's own files, when something else lies where they should be."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from tar_like.database import connect, connect_readonly
from tar_like.errors import TarLikeError, UsageError
from tar_like.proxy.place import Destination
from tests import trees
from tests.unit.receiver import Job, in_child

OWN = (
    "ledger.db", "commit.lock", "completed/ID.json", "transfers/ID/index.db",
    "transfers/ID/planning.json",
    "transfers/ID/plan.db", "transfers/ID/kept.db", "transfers/ID/verified.db",
    "transfers/ID/verified.db.tmp", "transfers/ID/landed.db", "transfers/ID/outcome.json",
    "transfers/ID/outcome.tmp", "transfers/ID/progress", "transfers/ID/commit.lock",
    "transfers/ID/plan.lock", "transfers/ID/receipts/x-1-y.log", "transfers/ID/stage/0/1",
    "transfers/ID/stage/0/2",
)  # fmt: skip


@pytest.fixture
def job(work: Path) -> Job:
    (work / "src").mkdir()
    (work / "src/a").write_bytes(b"0123456789" * 1500)
    (work / "src/b").write_bytes(b"b")
    (work / "outside").mkdir()
    (work / "outside/target").write_bytes(b"is nobody's business")
    return Job(work / "src", work / "dst")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in OWN for kind in ("fifo", "symlink")]
    + [(name, kind) for name in OWN[::3] for kind in ("dangling", "folder")],
)
def test_what_is_planted_hangs_nobody_and_leads_nowhere(
    job: Job, work: Path, name: str, kind: str
) -> None:
    home = work / "dst/.tar_like"
    (home / f"transfers/{job.id}/stage/0").mkdir()
    path = home / name.replace("ID", job.id)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(work / "outside" / ("target" if kind == "symlink" else "new"))
    before = trees.stamps(work / "outside")

    def receive() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(100)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)  # a commit that fails says so
        for work in (job.reopen, lambda: job.transfer.negotiate(4096), job.send, job.commit):
            with contextlib.suppress(TarLikeError, OSError, sqlite3.Error, AssertionError):
                work()

    assert in_child(receive) != -signal.SIGALRM
    assert trees.stamps(work / "outside") == before
    job.close()


def test_the_folder_is_held_and_not_its_name(work: Path) -> None:
    destination = Destination(str(work / "dst"))
    destination.prepare()
    (work / "dst/.tar_like").rename(work / "dst/aside")
    (work / "elsewhere/tmp").mkdir(parents=True)
    (work / "dst/.tar_like").symlink_to(work / "elsewhere")
    folder = destination.temporary()
    assert os.listdir(work / "dst/aside/tmp") == [os.path.basename(folder)]
    assert os.listdir(work / "elsewhere/tmp") == []
    with pytest.raises(UsageError, match=r"dst/\.tar_like is not a folder"):
        Destination(str(work / "dst")).prepare()


@pytest.mark.parametrize("mode", ["ro", "rw", "rwc"])
def test_sqlite_does_not_wait_for_a_fifo(work: Path, mode: str) -> None:
    os.mkfifo(work / "fifo")
    with pytest.raises(sqlite3.OperationalError, match="no regular file"):
        connect(str(work / "fifo"), mode)


def test_sqlite_is_not_led_to_another_file(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is read twice: by us, and by SQLite, which goes by what names stand for."""
    (work / "mine").mkdir()
    connect(str(work / "mine/x.db")).close()
    shutil.copytree(work / "mine", work / "theirs")
    holder = os.open(work / "mine", os.O_PATH)
    real = sqlite3.connect

    def swapped(*args: object, **options: object) -> sqlite3.Connection:
        (work / "mine").rename(work / "aside")
        (work / "mine").symlink_to(work / "theirs")
        os.readlink(f"/proc/self/fd/{holder}")
        (work / "aside").rename(work / "hidden")
        return real(f"file:{work}/mine/x.db?mode=ro", uri=True)

    monkeypatch.setattr(sqlite3, "connect", swapped)
    with pytest.raises(sqlite3.OperationalError, match="another file"):
        connect_readonly(f"/proc/self/fd/{holder}/x.db")
    os.close(holder)
