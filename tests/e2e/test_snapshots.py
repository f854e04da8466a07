"""`tar-like sync --snapshot NAME`: a folder for each run, sharing what is unchanged."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tar_like.proxy.place import Destination
from tar_like.proxy.snapshot import Snapshot
from tests import trees
from tests.e2e.harness import Job, Proxy, assert_tidy, run, sync, wait_for
from tests.e2e.test_delete import target  # noqa: F401 (a fixture)
from tests.trees import Node, build, differences, look, rsync_differences


def assert_same(source: Path, snapshot: Path) -> None:
    """The oracle, but that files may have names in other snapshots, too."""

    def inside(root: Path) -> dict[bytes, Node]:
        return {path: replace(node, outside=0) for path, node in look(root).items()}

    lines = differences(inside(source), inside(snapshot)) + rsync_differences(source, snapshot)
    assert not lines, "\n".join(lines[:40])


def ready(dest: Path, name: str) -> bool:
    return os.path.lexists(dest / name)


def test_each_is_its_tree_and_shares_with_the_one_before(
    work: Path,
    target: Callable[[Path], object],  # noqa: F811
) -> None:
    source, dest = work / "src", work / "dst"
    build(source, 4, deep=False)
    where = target(dest)
    sync(source, where, "--snapshot", "one")
    assert_same(source, dest / "one")
    assert os.readlink(dest / "current") == "one"
    kept = work / "kept"
    subprocess.run(["cp", "-a", source, kept], check=True)
    first = trees.stamps(dest / "one")
    (source / "new").write_text("new")
    (source / "edges").chmod(0o700)
    files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    changed = [path for path in files if path.stat().st_nlink == 1][:3]
    changed[0].unlink()
    changed[1].chmod(0o640)
    os.utime(changed[2], ns=(5, 5))
    summary = sync(source, where, "--snapshot", "two")
    assert summary["bytes_sent"] < 1000
    assert_same(source, dest / "two")
    assert_same(kept, dest / "one")
    for path, (ino, mtime, _, mode) in trees.stamps(dest / "one").items():
        assert (ino, mtime, mode) == (first[path][0], first[path][1], first[path][3]), path
    shared = [
        path
        for path in files
        if path not in changed
        and path.stat().st_size
        and os.path.samefile(
            dest / "one" / path.relative_to(source), dest / "two" / path.relative_to(source)
        )
    ]
    assert len(shared) > len(files) // 2
    assert os.readlink(dest / "current") == "two"
    assert sorted(os.listdir(dest)) == [".tar_like", "current", "one", "two"]


def test_links_that_came_apart_and_names_that_were_joined(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    for name in ("a", "c", "d"):
        (source / name).write_text("the same")
        os.utime(source / name, (9, 9))
    (source / "b").hardlink_to(source / "a")
    sync(source, dest, "--snapshot", "1")
    (source / "b").unlink()
    (source / "b").write_text("the same")
    os.utime(source / "b", (9, 9))
    (source / "d").unlink()
    (source / "d").hardlink_to(source / "c")
    sync(source, dest, "--snapshot", "2")
    assert_same(source, dest / "2")
    assert os.path.samefile(dest / "1/a", dest / "1/b")


def test_a_name_that_is_taken_or_cannot_be_is_refused(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    (dest / "taken").mkdir(parents=True)
    for name in ("a/b", "..", ".", ".tar_like", "current", "x" * 256):
        run("sync", source, dest, "--snapshot", name, codes=(2,)).sentence("snapshot")
    run("sync", source, dest, "--snapshot", "x", "--delete", codes=(2,)).sentence("no other rule")
    run("sync", source, dest, "--snapshot", "taken", codes=(1,)).sentence("another name")
    sync(source, dest, "--snapshot", "free")
    run("sync", source, dest, "--snapshot", "free", codes=(1,)).sentence("another name")
    (dest / "current").unlink()
    (dest / "current").mkdir()
    run("sync", source, dest, "--snapshot", "more", codes=(1,)).sentence("no symlink")


def test_no_other_run_deletes_them(work: Path) -> None:
    source, dest = work / "src", work / "dst"
    source.mkdir()
    (source / "file").write_text("file")
    sync(source, dest, "--snapshot", "one")
    (dest / "extra").write_text("extra")
    assert sync(source, dest, "--delete")["deleted"] == 1
    assert sorted(os.listdir(dest)) == [".tar_like", "current", "file", "one"]
    (source / "other").write_text("other")
    sync(source, dest, "--snapshot", "two")
    assert_same(source, dest / "two")
    assert not os.path.samefile(dest / "file", dest / "two/file"), "that one may be written to"


@pytest.mark.parametrize("proxied", [False, True])
def test_killed_at_any_moment_it_is_not_there_or_whole(
    work: Path, dice: random.Random, proxied: bool
) -> None:
    source, dest = work / "src", work / "dst"
    for number in range(1500):
        path = source / f"{number % 7}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}")
    sync(source, dest, "--snapshot", "one")
    (source / "3/new").write_text("new")
    for attempt in range(3):
        with Job("sync", source, dest, "--snapshot", "two") as job:
            begun = time.monotonic()
            moment = dice.uniform(0.5, 2.0)
            wait_for(
                "its moment",
                lambda: time.monotonic() > begun + moment or ready(dest, "two"),  # noqa: B023
                unless=job.ended,
            )
            job.kill()
        if ready(dest, "two"):
            assert_same(source, dest / "two")
        assert os.readlink(dest / "current") in ("one", "two"), attempt
        assert (dest / "current/0/0").exists()
    if os.readlink(dest / "current") != "two":
        if proxied:
            with Proxy(dest) as proxy:
                sync(source, proxy.url, "--snapshot", "two")
        else:
            sync(source, dest, "--snapshot", "two")
    assert_same(source, dest / "two")
    assert os.readlink(dest / "current") == "two"
    assert_tidy(dest)


def test_killed_right_after_its_name_it_gets_its_mode_by_the_next(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = Destination(str(work / "dst"))
    destination.prepare()
    path = Path(destination.transfer("0" * 64))
    path.mkdir()
    snapshot = Snapshot(destination, str(path), "one")
    snapshot.begin()
    os.chmod(snapshot.tree, 0o555)
    rename = os.rename

    def killed(one: str, other: str) -> None:
        rename(one, other)
        raise InterruptedError

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(InterruptedError):
        snapshot.publish([])
    monkeypatch.undo()
    again = Snapshot(destination, str(path), "one")
    assert again.named
    again.switch()
    assert (work / "dst/one").stat().st_mode & 0o7777 == 0o555
