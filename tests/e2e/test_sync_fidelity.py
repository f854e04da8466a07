"""`tar-like sync`: the destination is the source, to the last nanosecond."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import trees
from tests.e2e.harness import (
    AS_NOBODY,
    NOBODY,
    Proxy,
    Watcher,
    assert_tidy,
    payload,
    run,
    sync,
)
from tests.trees import assert_same, build, look, stamps


@dataclass(frozen=True, slots=True)
class Case:
    seed: int
    block_size: str
    processes: int
    compress: str
    proxy: int  # processes of a proxy given by URL; 0 is a folder target

    def __str__(self) -> str:
        target = f"proxy{self.proxy}" if self.proxy else "folder"
        return f"{self.seed}-{self.block_size}-p{self.processes}-{self.compress}-{target}"

    @property
    def options(self) -> list[str]:
        return ["-s", self.block_size, "-p", str(self.processes), "--compress", self.compress]


CASES = (
    Case(1, "4096", 1, "none", 0),
    Case(2, "4KiB", 4, "lz4", 1),
    Case(3, "65536", 2, "auto", 0),
    Case(4, "100000", 4, "none", 1),
    Case(5, "1MiB", 2, "auto", 2),
    Case(6, "16M", 1, "lz4", 0),
    Case(7, "256KiB", 4, "auto", 0),
)


def untouched(source: Path) -> dict[bytes, tuple[int, int, int, int]]:
    """What nobody may change at a source (atime is not in it)."""
    return stamps(source)


def file_stamps(root: Path) -> dict[bytes, tuple[int, int, int, int]]:
    files = trees.visible_files(root)
    return {path: stamp for path, stamp in stamps(root).items() if path in files}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_copy_is_the_tree(work: Path, case: Case) -> None:
    tree = build(work / "src", case.seed)
    before = untouched(tree.root)
    dst = work / "dst"
    with ExitStack() as stack:
        target: object = dst
        if case.proxy:
            target = stack.enter_context(Proxy(dst, "--processes", case.proxy)).url
        first = sync(tree.root, target, *case.options)
        assert first["state"] == "complete"
        assert first["failures"] == []
        assert first["blocks_sent"] == first["blocks_total"] > 0
        assert 0 < first["bytes_sent"] <= tree.bytes
        assert_same(tree.root, dst)
        assert_tidy(dst)
        landed, files = look(dst), file_stamps(dst)
        again = sync(tree.root, target, *case.options)
        assert (again["blocks_sent"], again["bytes_sent"]) == (0, 0)
        assert again["state"] == "complete"
        assert look(dst) == landed
        assert file_stamps(dst) == files, "the second run touched files"
    assert_same(tree.root, dst)
    assert_tidy(dst)
    assert untouched(tree.root) == before, "the source was changed"


def test_xattrs_and_acls_come_with_their_flags(work: Path) -> None:
    if not trees.xattr_support(work):
        pytest.skip("this filesystem has no xattrs or ACLs")
    tree = build(work / "src", 11, xattrs=True, deep=False)
    sync(tree.root, work / "with", "-X", "-A")
    assert_same(tree.root, work / "with", xattrs=True)
    again = sync(tree.root, work / "with", "-X", "-A")
    assert again["blocks_sent"] == 0
    assert_same(tree.root, work / "with", xattrs=True)


def test_without_the_flags_no_user_xattr_comes(work: Path) -> None:
    if not trees.xattr_support(work):
        pytest.skip("this filesystem has no xattrs or ACLs")
    (work / "src").mkdir()
    (work / "src/f").write_bytes(b"x" * 5000)
    trees.set_xattr(os.fsencode(work / "src/f"), "user.note", b"mine")
    sync(work / "src", work / "dst")
    assert "user.note" not in os.listxattr(work / "dst/f")


def test_specials_are_counted_and_skipped(work: Path) -> None:
    tree = build(work / "src", 12, specials=True, deep=False, files=5)
    sync(tree.root, work / "dst")
    assert_same(tree.root, work / "dst")
    names = {p.name for p in (work / "dst/specials").iterdir()}
    assert names == {"only-a-fifo", "a-file-among-them"}
    assert list((work / "dst/specials/only-a-fifo").iterdir()) == []


def test_a_listening_socket_is_skipped(work: Path) -> None:
    (work / "src").mkdir()
    (work / "src/f").write_bytes(b"data")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(work / "src/s"))
        sync(work / "src", work / "dst")
    assert sorted(p.name for p in (work / "dst").iterdir() if p.name != ".tar_like") == ["f"]


def test_holes_stay_holes(work: Path) -> None:
    src = work / "src"
    src.mkdir()
    with open(src / "sparse", "xb") as out:
        os.pwrite(out.fileno(), b"island", 20 << 20)
        out.truncate((48 << 20) + 13)
    with open(src / "all-hole", "xb") as out:
        out.truncate(16 << 20)
    sync(src, work / "dst", "-s", "1MiB")
    assert_same(src, work / "dst")
    for name in ("sparse", "all-hole"):
        used = (work / "dst" / name).stat().st_blocks * 512
        assert used <= (src / name).stat().st_blocks * 512 + (64 << 10), f"{name} lost its holes"


@pytest.mark.parametrize("shape", ["nothing", "one-empty-file", "only-folders", "only-symlink"])
def test_small_trees(work: Path, shape: str) -> None:
    src = work / "src"
    src.mkdir()
    if shape == "one-empty-file":
        (src / "empty").touch()
    elif shape == "only-folders":
        (src / "a/b/c").mkdir(parents=True)
    elif shape == "only-symlink":
        (src / "link").symlink_to("nowhere")
    src.chmod(0o711)
    os.utime(src, ns=(0, -5_000_000_001))
    summary = sync(src, work / "dst")
    assert summary["state"] == "complete"
    assert summary["bytes_sent"] == 0
    assert_same(src, work / "dst")


def test_the_target_may_be_deep_and_new_and_the_paths_relative(work: Path) -> None:
    tree = build(work / "src", 13, deep=False, files=2)
    run("sync", "src/", "new/folder/here", cwd=work)
    assert_same(tree.root, work / "new/folder/here")


def test_source_and_target_may_be_symlinks_to_folders(work: Path) -> None:
    tree = build(work / "src", 14, deep=False, files=2)
    (work / "dst").mkdir()
    (work / "to-src").symlink_to("src")
    (work / "to-dst").symlink_to("dst")
    sync(work / "to-src", work / "to-dst")
    assert_same(tree.root, work / "dst")
    assert (work / "to-dst").is_symlink()


def test_names_of_the_folders_themselves_may_be_hostile(work: Path) -> None:
    src = Path(os.fsdecode(os.fsencode(work) + b"/s \xff\nrc"))
    dst = Path(os.fsdecode(os.fsencode(work) + b"/%41-d\\st\xfe?#&"))
    build(src, 15, deep=False, files=2)
    sync(src, dst)
    assert_same(src, dst)


def test_what_changed_is_brought_up_to_date(work: Path) -> None:
    src, dst = work / "src", work / "dst"
    tree = build(src, 16, deep=False, files=10)
    sync(src, dst, "-s", "65536")
    (src / "new").write_bytes(b"new" * 3000)
    (src / "edges/03-4096").chmod(0o640)
    os.utime(src / "edges/01-4096", ns=(0, 1))
    (src / "hard/same-content-1").write_bytes(b"other content")
    (src / "top-link").unlink()
    (src / "top-link").symlink_to("somewhere/else")
    (src / "symlinks/dot").unlink()
    (src / "symlinks/dot").write_bytes(b"a file now")
    (src / "edges/09-0").unlink()
    (src / "edges/09-0").symlink_to("a-symlink-now")
    (src / "edges/nothing-in-it/nor-in-this").rmdir()
    (src / "edges/nothing-in-it/nor-in-this").write_bytes(b"a file now")
    (src / "symlinks/loop").unlink()
    (src / "symlinks/loop").mkdir()
    (src / "symlinks/loop/in-it").touch()
    os.link(src / "new", src / "hard/new-too")
    summary = sync(src, dst, "-s", "65536")
    assert_same(src, dst)
    assert summary["bytes_sent"] < tree.bytes / 4, "unchanged files were sent again"
    assert_tidy(dst)


def test_what_only_the_destination_has_is_left_alone(work: Path) -> None:
    tree = build(work / "src", 17, deep=False, files=2)
    (work / "dst/edges").mkdir(parents=True)
    (work / "dst/mine").write_bytes(b"precious")
    (work / "dst/edges/mine").write_bytes(b"precious too")
    sync(tree.root, work / "dst")
    assert (work / "dst/mine").read_bytes() == b"precious"
    assert (work / "dst/edges/mine").read_bytes() == b"precious too"
    lines = trees.differences(look(tree.root), look(work / "dst"))
    assert sorted(lines) == ["b'edges/mine': only in the second", "b'mine': only in the second"]


def test_a_file_damaged_at_the_destination_is_replaced(work: Path) -> None:
    tree = build(work / "src", 18, deep=False, files=2)
    sync(tree.root, work / "dst")
    (work / "dst/hard/same-content-1").write_bytes(b"damaged")
    (work / "dst/edges/17-65535").unlink()
    os.truncate(work / "dst/edges/12-4097", 4096)
    sync(tree.root, work / "dst")
    assert_same(tree.root, work / "dst")


def test_a_destination_is_a_good_source(work: Path) -> None:
    tree = build(work / "src", 19, deep=False, files=5)
    sync(tree.root, work / "one")
    sync(work / "one", work / "two")
    assert_same(tree.root, work / "two")


def test_no_symlink_at_the_destination_leads_out_of_it(work: Path) -> None:
    src, outside = work / "src", work / "outside"
    (src / "folder/sub").mkdir(parents=True)
    (src / "folder/sub/file").write_bytes(b"x" * 5000)
    (src / "plain").write_bytes(b"y" * 5000)
    outside.mkdir()
    (outside / "plain").write_bytes(b"not yours")
    (work / "dst").mkdir()
    (work / "dst/folder").symlink_to(outside)
    (work / "dst/plain").symlink_to(outside / "plain")
    before = look(outside)
    result = run("sync", src, work / "dst", "--json", codes=(0, 1, 3))
    assert look(outside) == before, "it wrote outside the destination"
    if result.code == 0:
        assert_same(src, work / "dst")


def test_an_old_partner_of_a_hard_link_is_not_written_through(work: Path) -> None:
    src, dst = work / "src", work / "dst"
    src.mkdir()
    dst.mkdir()
    (src / "f").write_bytes(b"new" * 2000)
    (dst / "f").write_bytes(b"old" * 1000)
    os.link(dst / "f", work / "snapshot-of-f")  # as backup rotations make them
    sync(src, dst)
    assert (dst / "f").read_bytes() == b"new" * 2000
    assert (work / "snapshot-of-f").read_bytes() == b"old" * 1000


def test_every_visible_file_is_whole_at_any_time(work: Path) -> None:
    src, old, dst = work / "src", work / "old", work / "dst"
    payload(src, files=12, seed=1)
    payload(old, files=12, seed=2)
    shutil.copytree(old, dst)
    with Watcher(dst, src, old):
        sync(src, dst, "-s", "8192", "-p", "2")
    assert_same(src, dst)


def test_two_proxies_serve_one_destination_after_each_other(work: Path) -> None:
    tree = build(work / "src", 20, deep=False, files=5)
    with Proxy(work / "dst") as one, Proxy(work / "dst") as two:
        sync(tree.root, one.url)
        assert_same(tree.root, work / "dst")
        assert sync(tree.root, two.url)["blocks_sent"] == 0
    assert_same(tree.root, work / "dst")


def test_quiet_is_quiet_and_stdout_is_for_the_summary(work: Path) -> None:
    build(work / "src", 21, deep=False, files=2)
    quiet = run("sync", work / "src", work / "dst", "-q")
    assert (quiet.out, quiet.err) == (b"", b"")
    assert run("sync", work / "src", work / "dst2", "--json").summary["command"] == "sync"


def test_any_user_can_sync_what_they_own(work: Path) -> None:
    if not trees.ROOT:
        pytest.skip("the whole suite runs as such a user")
    room = work / "room"
    room.mkdir()
    (room / "src").mkdir()
    for name in ("a", "b"):
        (room / "src" / name).write_bytes(name.encode() * 9000)
    (room / "src/readonly").mkdir()
    (room / "src/readonly/f").write_bytes(b"f" * 5000)
    (room / "src/readonly").chmod(0o555)
    for folder, dirs, names in os.walk(room):
        for name in (".", *dirs, *names):
            os.chown(os.path.join(folder, name), NOBODY, NOBODY)
    run("sync", room / "src", room / "dst", prefix=AS_NOBODY)
    assert_same(room / "src", room / "dst")
