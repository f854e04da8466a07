"""Commit: killed anywhere, in a destination that is full of traps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tar_like.errors import IndexInvalid, NotFound, UsageError
from tar_like.proxy import durable
from tar_like.proxy.apply import Applied, Applier
from tar_like.proxy.directories import Directories
from tar_like.proxy.ledger import Ledger
from tar_like.proxy.outcome import Outcome, attempt
from tar_like.proxy.place import Destination
from tar_like.wire import Status
from tests import trees
from tests.unit.receiver import Job, in_child, sync

PAGE = 4096
KILLED = 9
STEPS = (
    *("rename", "replace", "mkdir", "link", "symlink", "unlink", "rmdir", "fsync"),
    *("utime", "chmod", "fchmod", "fchown", "ftruncate"),
)


def assert_same(source: Path, dest: Path) -> None:
    assert trees.differences(trees.look(source), trees.look(dest)) == []


@pytest.fixture
def source(work: Path) -> Path:
    root = work / "src"
    (root / "d/e").mkdir(parents=True)
    (root / "d/e/large").write_bytes(bytes(range(256)) * 64)
    (root / "d/small").write_text("small")
    (root / "empty").touch()
    (root / "link").symlink_to("d/small")
    os.link(root / "d/small", root / "z")
    os.link(root / "link", root / "zlink", follow_symlinks=False)
    with open(root / "hole", "wb") as file:
        file.truncate(3 * PAGE)
    (root / "d/small").chmod(0o4750)
    if trees.ROOT:  # others could not remove, in the destination, what lies in it
        (root / "d/e").chmod(0o555)
    os.utime(root / "d", ns=(1, 1_500_000_000_000_000_001))
    return root


@pytest.fixture
def dest(work: Path) -> Path:
    return work / "dst"


class Death:
    """Ends the process before (or after) its n-th step that changes the disk."""

    def __init__(self, after: int) -> None:
        self._left = after

    def arm(self) -> None:
        for name in STEPS:
            setattr(os, name, self._counted(getattr(os, name)))
        durable.sync_filesystem = self._counted(lambda fd: None)

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self._left == 0:
                os._exit(KILLED)
            self._left -= 1
            return call(*args, **options)

        return counted


def old_names(dest: Path) -> None:
    """What was in the destination before: other kinds under the same names."""
    dest.mkdir()
    (dest / "d").symlink_to("/")
    (dest / "empty").mkdir()
    (dest / "link").mkdir()
    (dest / "z").write_text("old")
    (dest / "hole").symlink_to("/dev/null")
    (dest / "other").write_text("is left alone")


@pytest.mark.parametrize("old", [False, True])
def test_a_commit_that_is_killed_at_any_step_can_be_run_again(
    source: Path, dest: Path, work: Path, old: bool
) -> None:
    if old:
        old_names(dest)
    job = Job(source, dest)
    job.send()
    kept = work / "kept"
    shutil.copytree(dest, kept, symlinks=True)
    for step in range(0, 1000, 1 if old else 4):
        shutil.rmtree(dest)
        shutil.copytree(kept, dest, symlinks=True)
        job.reopen()

        def die(after: int = step) -> None:
            Death(after).arm()
            job.commit()

        code = in_child(die)
        assert code in (0, KILLED), step
        allowed = {path: trees.visible_files(tree) for path, tree in ((0, source), (1, kept))}
        for path, content in trees.visible_files(dest).items():
            assert content in [files.get(path) for files in allowed.values()], (step, path)
        assert in_child(job.commit) == 0
        assert not job.transfer.alive, step
        report = job.destination.read_report(job.id)
        assert report is not None and not report.failures, step
        if old:
            (dest / "other").unlink()
            os.utime(dest, ns=(0, source.stat().st_mtime_ns))
        assert_same(source, dest)
        if code == 0:
            break
    assert step > 20
    job.close()


def test_a_commit_over_what_is_kept_can_be_killed_at_any_step(source: Path, dest: Path) -> None:
    """The same transfer is killed again and again, each time a bit later."""
    sync(source, dest)
    (source / "d/small").chmod(0o640)
    (source / "d/e").chmod(0o755)
    (source / "d/e/large").write_bytes(b"now small")
    os.utime(source / "empty", ns=(5, 5))
    (source / "new").write_text("new")
    for step in range(0, 1000, 3):
        job = Job(source, dest)
        job.send()

        def die(after: int = step, job: Job = job) -> None:
            Death(after).arm()
            job.commit()

        code = in_child(die)
        job.close()
        if code == 0:
            break
        assert code == KILLED
    report = job.destination.read_report(job.id)
    assert report is not None and not report.failures
    assert_same(source, dest)
    assert step > 10


@pytest.fixture
def outside(work: Path) -> Iterator[Path]:
    """A folder beside the destination that must stay as it is."""
    root = work / "outside"
    (root / "sub").mkdir(parents=True)
    for name in ("file", "sub/file", "small", "e"):
        (root / name).write_text("precious")
    before = trees.stamps(root)
    yield root
    assert trees.stamps(root) == before


@pytest.mark.parametrize("when", ["before the plan", "before the commit"])
@pytest.mark.parametrize(
    "where", ["d", "d/e", "d/e/large", "d/small", "link", "empty", "z", "hole"]
)
def test_a_symlink_in_the_way_is_replaced_never_followed(
    source: Path, dest: Path, outside: Path, where: str, when: str
) -> None:
    def plant() -> None:
        (dest / where).parent.mkdir(parents=True, exist_ok=True)
        folder = where in ("d", "d/e")
        (dest / where).symlink_to(outside if folder else outside / "file")

    dest.mkdir()
    if when == "before the plan":
        plant()
    job = Job(source, dest)
    job.send()
    if when == "before the commit":
        plant()
    assert job.complete() == {}
    assert_same(source, dest)
    job.close()


def test_a_kept_file_whose_folder_became_a_symlink_is_not_followed(
    source: Path, dest: Path, outside: Path
) -> None:
    sync(source, dest)
    (source / "d/small").chmod(0o600)
    job = Job(source, dest)
    (dest / "d").rename(dest / "moved")
    (dest / "d").symlink_to("moved")
    assert "d/small" in job.complete()
    assert (dest / "moved/small").stat().st_mode & 0o7777 == 0o4750
    job.close()
    sync(source, dest)
    shutil.rmtree(dest / "moved")
    os.utime(dest, ns=(0, source.stat().st_mtime_ns))
    assert_same(source, dest)


def test_a_folder_that_becomes_a_symlink_during_the_commit_is_not_followed(
    source: Path, dest: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_range = Applier.apply_range

    def plant(self: Applier, first: int, stop: int) -> Applied:
        (dest / "d").rename(dest / "moved")
        (dest / "d").symlink_to(outside)
        return apply_range(self, first, stop)

    monkeypatch.setattr(Applier, "apply_range", plant)
    job = Job(source, dest)
    failures = job.complete()
    assert set(failures) == {"d", "d/e", "d/e/large", "d/small", "z"}
    assert "Not a directory" in failures["d/small"]
    assert (dest / "empty").exists()
    job.close()


def test_what_lies_behind_a_symlink_is_not_kept(source: Path, dest: Path, work: Path) -> None:
    sync(source, dest)
    (dest / "d").rename(work / "moved")
    (dest / "d").symlink_to(work / "moved")
    assert resend(source, dest) == 256 * 64  # "small" has another name in DEST
    os.utime(dest, ns=(0, source.stat().st_mtime_ns))
    assert_same(source, dest)


def test_the_root_of_the_destination_may_be_a_symlink(source: Path, work: Path) -> None:
    (work / "real").mkdir()
    (work / "dst").symlink_to("real")
    assert sync(source, work / "dst") == {}
    assert (work / "dst").is_symlink()
    assert_same(source, work / "real")


KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("a file"),
    "empty": Path.touch,
    "folder": Path.mkdir,
    "symlink": lambda path: path.symlink_to("target"),
    "folder link": lambda path: path.symlink_to("/"),
    "fifo": lambda path: os.mkfifo(path),
    "other link": lambda path: os.link(path.parent / "first", path),
}


@pytest.mark.parametrize("new", ["file", "empty", "folder", "symlink", "other link"])
@pytest.mark.parametrize("old", sorted(KINDS))
def test_any_kind_takes_the_place_of_any_other(work: Path, old: str, new: str) -> None:
    for root, kind in ((work / "src", new), (work / "dst", old)):
        root.mkdir()
        (root / "first").write_text("first")
        KINDS[kind](root / "name")
    assert sync(work / "src", work / "dst") == {}
    assert_same(work / "src", work / "dst")


@pytest.mark.parametrize("new", ["file", "empty", "symlink", "other link"])
def test_a_full_folder_in_the_way_is_named_and_harms_no_other(work: Path, new: str) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    (source / "first").write_text("first")
    KINDS[new](source / "name")
    (source / "other").write_text("other")
    (dest / "name/below").mkdir(parents=True)
    failures = sync(source, dest)
    assert list(failures) == ["name"]
    assert "directory that is not empty" in failures["name"]
    assert (dest / "name/below").is_dir()
    assert (dest / "other").read_text() == "other"
    shutil.rmtree(dest / "name")
    assert sync(source, dest) == {}
    assert_same(source, dest)


def test_a_special_file_where_a_folder_should_be_goes(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    (source / "d").mkdir(parents=True)
    (source / "d/x").write_text("x")
    dest.mkdir()
    os.mkfifo(dest / "d")
    assert sync(source, dest) == {}
    assert_same(source, dest)


def resend(source: Path, dest: Path, **options: Any) -> int:
    """Sync again; returns how many bytes were to be sent."""
    job = Job(source, dest, **options)
    try:
        needed = job.transfer.plan().bytes
        assert job.complete() == {}
        return needed
    finally:
        job.close()


@pytest.mark.parametrize("algorithm", ["blake3", "none"])
def test_what_is_there_is_not_sent_again(source: Path, dest: Path, algorithm: str) -> None:
    (source / "d/e").chmod(0o755)  # one that is closed is opened and closed again
    sync(source, dest, algorithm=algorithm)
    before = trees.stamps(dest / "d")
    assert resend(source, dest, algorithm=algorithm) == 0
    assert trees.stamps(dest / "d") == before
    (source / "d/e/new").write_text("four")
    assert resend(source, dest, algorithm=algorithm) == 4
    assert_same(source, dest)


def test_by_another_digest_what_is_there_is_read_and_not_sent(source: Path, dest: Path) -> None:
    sync(source, dest, algorithm="md5")
    inode = (dest / "d/e/large").stat().st_ino
    assert resend(source, dest, algorithm="sha256") == 0
    assert (dest / "d/e/large").stat().st_ino == inode
    (dest / "d/e/large").write_bytes(b"?" * (source / "d/e/large").stat().st_size)
    size = (source / "d/e/large").stat().st_size
    assert resend(source, dest, algorithm="md5") == size
    assert_same(source, dest)


def test_new_metadata_alone_sends_nothing(source: Path, dest: Path) -> None:
    sync(source, dest)
    (source / "d/small").chmod(0o640)
    os.utime(source / "d/e/large", ns=(1, 1))
    os.utime(source / "link", ns=(2, 2), follow_symlinks=False)
    os.utime(source / "empty", ns=(3, 3))
    (source / "d").chmod(0o711)
    if trees.ROOT:
        os.chown(source / "hole", 12, 34)
    assert resend(source, dest) == 0
    assert_same(source, dest)


def replace(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"x")


TOUCHES: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: path.write_bytes(b"!" * path.stat().st_size),
    "size": lambda path: path.write_bytes(b"!"),
    "mode": lambda path: path.chmod(0o777),
    "gone": Path.unlink,
    "replaced": replace,
}


@pytest.mark.parametrize("touch", sorted(TOUCHES))
def test_what_was_touched_in_the_destination_is_read_or_sent_again(
    source: Path, dest: Path, touch: str
) -> None:
    sync(source, dest)
    TOUCHES[touch](dest / "d/e/large")
    # Where it has its size it is read, and still has its bytes if only its mode was touched.
    size = (source / "d/e/large").stat().st_size
    assert resend(source, dest) == (0 if touch == "mode" else size)
    assert_same(source, dest)


@pytest.mark.parametrize("touch", sorted(TOUCHES))
def test_what_is_touched_meanwhile_is_named_and_harms_no_other(
    source: Path, dest: Path, touch: str
) -> None:
    sync(source, dest)
    (source / "d/small").chmod(0o600)
    (source / "new").write_text("new")
    job = Job(source, dest)
    job.send()
    TOUCHES[touch](dest / "d/e/large")
    failures = job.complete()
    job.close()
    if touch != "mode":  # which the commit may put right by itself
        assert list(failures) == ["d/e/large"]
    assert (dest / "new").read_text() == "new"
    assert (dest / "d/small").stat().st_mode & 0o7777 == 0o600
    assert sync(source, dest) == {}
    assert_same(source, dest)


@pytest.mark.parametrize("damage", ["rot", "cut", "text", "empty"])
def test_a_ledger_that_rotted_costs_time_only(source: Path, dest: Path, damage: str) -> None:
    for number in range(300):
        (source / f"many{number}").write_text("x")
    sync(source, dest)
    ledger = dest / ".tar_like/ledger.db"
    data = bytearray(ledger.read_bytes())
    if damage == "rot":
        for page in range(PAGE, len(data), PAGE):
            data[page : page + 100] = b"\xff" * 100
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[:] = b"no database" * 900 if damage == "text" else b""
    ledger.write_bytes(data)
    assert sync(source, dest) == {}
    assert_same(source, dest)
    assert resend(source, dest) == 0


def test_a_ledger_with_any_one_rotten_page_costs_time_only(source: Path, dest: Path) -> None:
    for number in range(300):
        (source / f"many{number}").write_text("x")
    sync(source, dest)
    ledger = dest / ".tar_like/ledger.db"
    data = ledger.read_bytes()
    count = sum(len(names) for _, _, names in os.walk(source))
    (source / "d/small").chmod(0o600)
    for page in range(0, len(data), PAGE):
        ledger.write_bytes(data[:page] + b"\xff" * 100 + data[page + 100 :])
        job = Job(source, dest)
        assert job.transfer.plan().files <= count
        job.close()
        job.destination.discard(str(job.path))
    ledger.write_bytes(data)
    assert resend(source, dest) == 0


def test_two_jobs_of_one_destination_take_turns(source: Path, work: Path, dest: Path) -> None:
    other = work / "other"
    other.mkdir()
    (other / "more").write_text("more")
    one, two = Job(source, dest), Job(other, dest)
    for job in (one, two):
        job.send()
    for job in (two, one):
        report = job.commit()
        assert isinstance(report, Status) and not report.failures
        job.close()
    assert (dest / "more").read_text() == "more"
    assert (dest / "d/small").read_text() == "small"


def test_receipts_lost_after_verification_are_no_loss(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in mid-commit: what no checkpoint covers is gone, the staged files are not."""
    job = Job(source, dest)
    job.send()
    with monkeypatch.context() as patched:
        patched.setattr(Directories, "finish", lambda _: (_ for _ in ()).throw(OSError(5)))
        assert not isinstance(job.commit(), Status)
    assert (job.path / "verified.db").exists()
    for log in (job.path / "receipts").iterdir():
        log.unlink()
    before = job.staged()
    again = Job(source, dest)
    assert again.missing == []
    assert not again.put(0), "a block was taken in after verification"
    assert again.staged() == before
    assert again.complete() == {}
    assert_same(source, dest)
    again.close()
    job.close()


def test_a_status_at_the_moment_of_completion_is_not_open(source: Path, dest: Path) -> None:
    job = Job(source, dest)
    job.complete()
    with pytest.raises(NotFound):
        job.transfer.status()
    job.close()


@pytest.mark.parametrize("name", ["", "tmp", "transfers", "completed"])
def test_a_planted_symlink_in_the_receivers_own_folder_is_refused(
    source: Path, dest: Path, work: Path, name: str
) -> None:
    """What lies there is removed without asking: it must not lead elsewhere."""
    (work / "victim/precious").mkdir(parents=True)
    planted = dest / ".tar_like" / name
    planted.parent.mkdir(parents=True)
    planted.symlink_to(work / "victim")
    with pytest.raises(UsageError):
        Destination(str(dest)).prepare()
    assert (work / "victim/precious").is_dir()


def test_a_kept_file_that_was_changed_behind_our_back_is_not_called_verified(
    source: Path, dest: Path
) -> None:
    assert sync(source, dest) == {}
    (source / "new").write_text("new")
    job = Job(source, dest)
    job.send()
    kept = dest / "d/e/large"
    before = kept.stat()
    kept.write_bytes(bytes(before.st_size))
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    report = job.commit()
    assert isinstance(report, Status)
    assert [failure.path for failure in report.failures] == ["d/e/large"]
    job.close()
    ledger = Ledger(job.destination.ledger)
    assert {row.path for row in ledger.with_paths([b"d/e/large", b"d/small"])} == {b"d/small"}
    ledger.close()
    assert sync(source, dest) == {}
    assert_same(source, dest)


def test_hard_links_between_symlinks_are_split_as_at_the_source(source: Path, dest: Path) -> None:
    assert sync(source, dest) == {}
    assert (dest / "link").lstat().st_ino == (dest / "zlink").lstat().st_ino
    (source / "zlink").unlink()
    (source / "zlink").symlink_to("d/small")
    stamp = (source / "link").lstat().st_mtime_ns
    os.utime(source / "zlink", ns=(stamp, stamp), follow_symlinks=False)
    assert sync(source, dest) == {}
    assert_same(source, dest)
    assert (dest / "link").lstat().st_nlink == (dest / "zlink").lstat().st_nlink == 1


def test_a_time_that_the_filesystem_cannot_hold_is_named_of_every_kind(
    work: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = work / "src"
    (root / "folder").mkdir(parents=True)
    (root / "file").write_text("file")
    (root / "link").symlink_to("file")
    kept = root / "kept"
    kept.write_text("kept")
    for path in (root, *root.iterdir()):
        os.utime(path, (5, 5), follow_symlinks=False)
    assert sync(root, dest) == {}
    (root / "file").write_text("other")
    for path in (root, *root.iterdir()):
        os.utime(path, ns=(7, 1_500_000_000_000_000_001), follow_symlinks=False)
    utime = os.utime

    def coarse(path: Any, **options: Any) -> None:
        if "ns" in options:
            options["ns"] = options["ns"][0], options["ns"][1] // 10**9 * 10**9
        utime(path, **options)

    monkeypatch.setattr(os, "utime", coarse)
    found = sync(root, dest)
    assert sorted(found) == ["", "file", "folder", "kept", "link"]
    assert all("modification time" in reason for reason in found.values())
    monkeypatch.undo()
    assert sync(root, dest) == {}
    assert_same(root, dest)


def test_damage_is_told_without_paths_of_the_machine() -> None:
    def work() -> Outcome:
        raise IndexInvalid("The plan /proc/self/fd/4/transfers/0/plan.db is damaged: no table.")

    outcome = attempt(work)
    assert outcome is not None
    assert "plan.db is damaged" in outcome.error
    assert "/" not in outcome.error
