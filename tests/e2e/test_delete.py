"""`tar-like sync --delete`: the destination becomes the source, and nothing else is touched."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests import trees
from tests.e2e.harness import Job, Proxy, assert_tidy, run, sync, wait_for
from tests.trees import assert_same, build, look

DELETE = "--delete"


def full(path: Path) -> None:
    (path / "below/deeper").mkdir(parents=True)
    (path / "below/file").write_text("below")
    (path / "link").symlink_to("below")


def linked(path: Path) -> None:
    first = path.with_name(f"a first name of {path.name}")
    first.write_text(f"first of {path.name}")
    path.hardlink_to(first)


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "file": lambda path: path.write_text(f"file {path.name}"),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: path.mkdir(),
    "full": full,
    "symlink": lambda path: path.symlink_to("nowhere"),
    "link-to-folder": lambda path: path.symlink_to("."),
    "hardlink": linked,
}
DEST_ONLY: dict[str, Callable[[Path], object]] = {"fifo": lambda path: os.mkfifo(path)}
PAIRS = [(old, new) for old in KINDS | DEST_ONLY for new in KINDS]


def change_of_types(work: Path) -> tuple[Path, Path]:
    """A source and a destination with every kind in the place of every other."""
    source, dest = work / "src", work / "dst"
    source.mkdir()
    dest.mkdir()
    for old, new in PAIRS:
        (KINDS | DEST_ONLY)[old](dest / f"{old} to {new}")
        KINDS[new](source / f"{old} to {new}")
    return source, dest


@pytest.fixture(params=["folder", "proxy"])
def target(request: pytest.FixtureRequest, work: Path) -> Iterator[Callable[[Path], object]]:
    """What to name as the target for a destination folder."""
    with ExitStack() as stack:
        if request.param == "folder":
            yield lambda dest: dest
        else:
            yield lambda dest: stack.enter_context(Proxy(dest)).url


def test_every_kind_gives_way_to_every_other(work: Path, target: Callable[[Path], object]) -> None:
    source, dest = change_of_types(work)
    where = target(dest)
    sync(source, where, DELETE)
    assert_same(source, dest)
    assert sync(source, where, DELETE)["deleted"] == 0


def test_without_delete_only_full_folders_stay_and_all_are_named(work: Path) -> None:
    source, dest = change_of_types(work)
    summary = sync(source, dest, codes=(1,))
    stuck = {row["path"] for row in summary["failures"]}
    others = ("missing", "folder", "full")
    assert stuck == {f"full to {new}" for new in KINDS if new not in others}
    assert summary["deleted"] == 0
    for old, new in PAIRS:
        if new == "missing" and old != "missing":
            assert os.path.lexists(dest / f"{old} to {new}"), "nothing may be deleted"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_tree_takes_the_place_of_the_first(
    work: Path, seed: int, target: Callable[[Path], object]
) -> None:
    first, second, dest = work / "first", work / "second", work / "dst"
    build(first, seed, specials=False)
    build(second, seed + 100, deep=False)
    for folder, _, names in os.walk(second):  # so that no file is taken for one of the first tree
        for name in names:
            os.utime(
                os.path.join(folder, name),
                (seed + 123456789, seed + 123456789),
                follow_symlinks=False,
            )
    where = target(dest)
    sync(first, where, DELETE)
    summary = sync(second, where, DELETE)
    assert summary["deleted"] > 0
    assert_same(second, dest)


def test_an_empty_source_empties_the_destination_but_for_its_records(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    build(source, 7, specials=True)
    sync(source, dest, DELETE)
    os.mkfifo(dest / "fifo")
    before = len(look(dest))
    empty = work / "empty"
    empty.mkdir()
    assert sync(empty, dest, DELETE)["deleted"] == before  # less the root, and with the FIFO
    assert os.listdir(dest) == [".tar_like"]
    assert_tidy(dest)


def test_nothing_is_deleted_through_a_symlink(work: Path) -> None:
    source, dest, outside = work / "src", work / "dst", work / "outside"
    for folder in (source, dest, outside):
        folder.mkdir()
    (outside / "precious").write_text("precious")
    (source / "folder").mkdir()
    (dest / "folder").symlink_to(outside)
    (dest / "extra").symlink_to(outside)
    before = trees.stamps(outside)
    sync(source, dest, DELETE)
    assert trees.stamps(outside) == before
    assert_same(source, dest)


@pytest.mark.parametrize("flag", ["-x", "--exclude"])
def test_what_is_left_out_stays_as_with_rsync(work: Path, flag: str) -> None:
    source, dest, oracle = work / "src", work / "dst", work / "oracle"
    for root in (source, dest):
        for name in ("keep.log", "sub/keep.log", "gone.log/file", "sub/other"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{root.name} {name}")
    for name in ("extra", "lost/deep/kept.log", "lost/deep/gone", "gone/all/of/it", "old.log/x"):
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        (dest / name).write_text("extra")
    shutil.copytree(dest, oracle, symlinks=True)
    pattern = r"\.log$" if flag == "-x" else "*.log"
    sync(source, dest, DELETE, flag, pattern)
    rsync(source, oracle, "--delete", "--exclude=*.log")
    assert contents(dest) == contents(oracle)
    assert (dest / "lost/deep/kept.log").read_text() == "extra"
    assert not (dest / "lost/deep/gone").exists()


def test_a_folder_that_holds_what_was_left_out_gives_way_to_nothing(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    (dest / "name/below").mkdir(parents=True)
    (dest / "name/below/kept.log").write_text("kept")
    (dest / "name/other").write_text("other")
    (dest / "extra").write_text("extra")
    source.mkdir()
    (source / "name").write_text("a file")
    before = contents(dest)
    summary = sync(source, dest, DELETE, "--exclude", "*.log", codes=(1,))
    (failure,) = summary["failures"]
    assert failure["path"] == "name"
    assert "may not be deleted" in failure["reason"]
    assert summary["held"], "an entry is not in place: nothing else may be deleted"
    assert contents(dest) == before


def contents(root: Path) -> dict[bytes, tuple[str, bytes, str]]:
    """A tree less its times."""
    return {path: (node.kind, node.target, node.digest) for path, node in look(root).items()}


def blind(work: Path) -> tuple[Path, Path]:
    """A source with a folder that cannot be read, and a destination that has more in it."""
    source, dest = work / "src", work / "dst"
    for root in (source, dest):
        (root / "closed/below").mkdir(parents=True)
        (root / "open").mkdir()
        (root / "closed/below/file").write_text("file")
    (dest / "closed/extra").write_text("below what cannot be read")
    (dest / "open/extra").write_text("below what can be read")
    (source / "closed").chmod(0)
    return source, dest


def test_nothing_is_deleted_when_the_source_could_not_be_read(work: Path) -> None:
    source, dest = blind(work)
    result = run("sync", source, dest, DELETE, codes=(3,), powers=False)
    assert "Nothing was deleted" in result.message
    assert (dest / "closed/extra").exists()
    assert (dest / "open/extra").exists()


def test_told_so_it_deletes_but_never_below_what_could_not_be_read(work: Path) -> None:
    source, dest = blind(work)
    flags = (DELETE, "--ignore-errors")
    summary = sync(source, dest, *flags, codes=(3,), powers=False)
    assert summary["deleted"] == 1
    assert not (dest / "open/extra").exists()
    assert (dest / "closed/extra").exists()
    assert (dest / "closed/below/file").exists()
    (source / "closed").chmod(0o755)
    sync(source, dest, DELETE)
    assert_same(source, dest)


def test_what_cannot_be_deleted_is_named(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    (dest / "folder").mkdir(parents=True)
    for name in ("folder/fixed", "folder/loose", "other"):
        (dest / name).write_text(name)
    fixed = dest / "folder/fixed"
    if (
        not shutil.which("chattr")
        or subprocess.run(["chattr", "+i", fixed], check=False).returncode
    ):
        pytest.skip("needs root and a filesystem with immutable files")
    try:
        summary = sync(source, dest, DELETE, codes=(1,))
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)
    assert [row["path"] for row in summary["failures"]] == ["folder/fixed"]
    assert "cannot be deleted" in summary["failures"][0]["reason"]
    assert sorted(look(dest)) == [b".", b"folder", b"folder/fixed"]
    sync(source, dest, DELETE)
    assert_same(source, dest)


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_what_is_mounted_below_is_not_deleted(work: Path, kind: str) -> None:
    source, dest, other = work / "src", work / "dst", work / "other"
    for folder in (source, other, dest / "folder/mounted"):
        folder.mkdir(parents=True)
    (dest / "extra").write_text("extra")
    what = ["-t", "tmpfs", "tmpfs"] if kind == "tmpfs" else ["--bind", other]
    if subprocess.run(["mount", *what, dest / "folder/mounted"], check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        (dest / "folder/mounted/precious").write_text("precious")
        summary = sync(source, dest, DELETE, codes=(1,))
        assert (dest / "folder/mounted/precious").read_text() == "precious"
    finally:
        subprocess.run(["umount", dest / "folder/mounted"], check=True)
    assert [row["path"] for row in summary["failures"]] == ["folder/mounted"]
    assert not (dest / "extra").exists()


@pytest.mark.parametrize("mode", [0, 0o400, 0o600, 0o300])
@pytest.mark.parametrize("gone", [True, False])
def test_a_closed_folder_of_ours_is_deleted(work: Path, mode: int, gone: bool) -> None:
    """Also one that may be listed, but not be gone through; and one that a file replaces."""
    source, dest = work / "src", work / "dst"
    source.mkdir()
    full(dest / "closed")
    for folder, closed in (
        ("closed/below/deeper", mode),
        ("closed/below", 0o500),
        ("closed", mode),
    ):
        (dest / folder).chmod(closed)
    if not gone:
        (source / "closed").write_text("a file now")
    sync(source, dest, DELETE, powers=False)
    assert_same(source, dest)


def test_killed_while_deleting_the_next_run_ends_it(work: Path, dice: random.Random) -> None:
    source, dest = work / "src", work / "dst"
    build(source, 11, deep=False)
    sync(source, dest)
    for folder in range(30):
        (dest / f"extra {folder}").mkdir()
        for name in range(150):
            (dest / f"extra {folder}/{name}").write_bytes(b"x")
    last = 30 - 1 - dice.randrange(5)  # it goes last first
    slowly = ("strace", "--follow-forks", "--seccomp-bpf", "--output=/dev/null",
              "--inject=unlinkat:delay_enter=2000")  # fmt: skip
    with Job("sync", source, dest, DELETE, prefix=slowly) as job:
        gone = dest / f"extra {sorted(map(str, range(30)))[last]}"
        wait_for("the deletion", lambda: not gone.exists(), unless=job.ended)
        job.kill()
    assert (dest / "extra 0").exists(), "the test was too late"
    sync(source, dest, DELETE)
    assert_same(source, dest)
    assert_tidy(dest)


def test_a_rerun_with_other_options_goes_by_those(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(64 << 10))
    (dest / "extra").mkdir(parents=True)
    with Proxy(dest) as proxy:
        db = work / "tree.db"
        run("index", "-b", source, "-db", db)
        run("upload", "-b", source, "-db", db, "-u", proxy.url, "-s", "4096", "-l", "3")
        assert sync(source, proxy.url, "-db", db, DELETE)["deleted"] == 1
    assert_same(source, dest)


def test_an_index_that_would_be_deleted_is_refused(work: Path) -> None:
    (work / "src").mkdir()
    (work / "src/file").write_text("x")
    (work / "link").symlink_to("dst")
    for db in ("dst/index.db", "link/index.db"):
        result = run("sync", work / "src", work / "dst", "--delete", "-db", work / db, codes=(2,))
        result.sentence("--delete would delete the index")
    run("sync", work / "src", work / "dst", "--delete", "-db", work / "index.db")
    assert_same(work / "src", work / "dst")


def test_flags_that_do_not_go_together_are_refused(work: Path) -> None:
    (work / "src").mkdir()
    result = run("sync", work / "src", work / "dst", "--ignore-errors", codes=(2,))
    result.sentence("goes with --delete")


def rsync(source: Path, dest: Path, *flags: str) -> None:
    """What rsync makes of a destination."""
    command = ["rsync", "-aHc", "--exclude=/.tar_like", *flags, f"{source}/", f"{dest}/"]
    subprocess.run(command, check=True, timeout=60)


def test_a_name_that_goes_leaves_the_file_known(
    work: Path, target: Callable[[Path], object]
) -> None:
    """Deleting or replacing a name of a file changes the ctime that it has under the others."""
    source, dest = work / "src", work / "dst"
    source.mkdir()
    where = target(dest)
    for name in ("bare", "full"):
        (source / f"{name}-1").write_bytes(b"" if name == "bare" else b"content")
        for other in (2, 3):
            os.link(source / f"{name}-1", source / f"{name}-{other}")
    sync(source, where)
    for name in ("bare", "full"):
        (source / f"{name}-2").unlink()
        (source / f"{name}-3").unlink()
        (source / f"{name}-3").write_text("other")
    sync(source, where, "--delete")
    assert_same(source, dest)
    query = "SELECT path, l.ino, l.ctime FROM landed l JOIN entry ON id = entry_id"
    with closing(sqlite3.connect(dest / ".tar_like/ledger.db")) as db:
        known = {path: found for path, *found in db.execute(query)}
    assert known == {
        os.fsencode(path.name): [path.stat().st_ino, path.stat().st_ctime_ns]
        for path in dest.iterdir()
        if path.is_file()
    }
