"""The tests' own tools, tried with rsync and cp standing in for tar-like."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import trees
from tests.e2e.harness import ContractBroken, Result, wait_for
from tests.trees import assert_same, build, differences, look

needs_rsync = pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")


def copy(src: Path, dst: Path) -> None:
    dst.mkdir()
    subprocess.run(["cp", "-a", f"{src}/.", str(dst)], check=True, timeout=60)


def test_the_same_seed_gives_the_same_tree(work: Path) -> None:
    one = build(work / "one", 5, xattrs=True, specials=True)
    two = build(work / "two", 5, xattrs=True, specials=True)
    assert differences(look(one.root, xattrs=True), look(two.root, xattrs=True)) == []
    assert (one.entries, one.files, one.bytes) == (two.entries, two.files, two.bytes)


def test_another_seed_gives_another_tree(work: Path) -> None:
    one, two = build(work / "one", 5), build(work / "two", 6)
    assert differences(look(one.root), look(two.root))


def test_a_tree_is_as_hostile_as_it_says(work: Path) -> None:
    tree = build(work / "src", 1, specials=True)
    seen = look(tree.root)
    assert max(len(path) for path in seen) > 4096
    assert {n.kind for n in seen.values()} == {"file", "folder", "symlink"}
    assert any(n.mtime_ns < 0 for n in seen.values())
    assert any(n.mode & 0o4000 for n in seen.values())
    assert any(len(n.links) > 2 for n in seen.values())
    assert any(n.kind == "symlink" and len(n.links) == 2 for n in seen.values())
    assert tree.specials >= 3
    assert len(list((tree.root / "specials").iterdir())) == tree.specials - 1 + 2
    holes = look(tree.root / "sparse").values()
    assert trees.allocated(tree.root / "sparse") < sum(n.size for n in holes) / 4


@pytest.mark.parametrize("xattrs", [False, True])
def test_a_true_copy_passes_the_oracle(work: Path, xattrs: bool) -> None:
    tree = build(work / "src", 2, xattrs=xattrs, deep=False)
    copy(tree.root, work / "dst")
    assert_same(tree.root, work / "dst", xattrs=xattrs)


def test_a_tree_made_twice_passes_the_oracle_beyond_path_max(work: Path) -> None:
    one = build(work / "one", 2)  # cp and rsync end at PATH_MAX
    two = build(work / "two", 2)
    assert_same(one.root, two.root)


@needs_rsync
def test_rsync_passes_its_own_oracle_with_specials(work: Path) -> None:
    tree = build(work / "src", 3, deep=False, specials=True)
    subprocess.run(
        ["rsync", "-aH", "--no-specials", "--no-devices", f"{tree.root}/", f"{work}/dst/"],
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    (work / "dst/.tar_like").mkdir()
    shutil.copystat(tree.root, work / "dst")
    assert_same(tree.root, work / "dst")


def _flip(dst: Path) -> None:
    path = dst / "edges/03-4096"
    stamp = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[4095] ^= 1
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(0, stamp))


def _unlink_hard(dst: Path) -> None:
    path = dst / "zz-hard"
    shutil.copy2(path, dst / "copy")
    owner = path.stat()
    os.replace(dst / "copy", path)
    os.chown(path, owner.st_uid, owner.st_gid)
    path.chmod(owner.st_mode)


def _retarget(dst: Path) -> None:
    (dst / "top-link").unlink()
    (dst / "top-link").symlink_to("edgeS")


def _to_copy_of_target(dst: Path) -> None:
    (dst / "symlinks/to-file").unlink()
    shutil.copy2(dst / "edges/03-4096", dst / "symlinks/to-file")


def _one_ns(dst: Path) -> None:
    path = dst / "edges/03-4096"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def _link_one_ns(dst: Path) -> None:
    path = dst / "top-link"
    os.utime(path, ns=(0, path.lstat().st_mtime_ns + 1), follow_symlinks=False)


def _folder_mtime(dst: Path) -> None:
    os.utime(dst / "hard/near", ns=(0, 12345))


def _outside_link(dst: Path) -> None:
    os.link(dst / "edges/03-4096", dst.parent / "staged-leftover")


MUTATIONS: list[Callable[[Path], None]] = [
    _flip,
    _unlink_hard,
    _retarget,
    _to_copy_of_target,
    _one_ns,
    _link_one_ns,
    _folder_mtime,
    _outside_link,
    lambda dst: (dst / "edges/03-4096").unlink(),
    lambda dst: (dst / "edges/extra").touch(),
    lambda dst: (dst / "edges/nothing-in-it/nor-in-this").rmdir(),
    lambda dst: (dst / "edges/03-4096").chmod(0o4751),
    lambda dst: (dst / "hard").chmod(0o1711),
    lambda dst: dst.chmod(0o711),
    lambda dst: os.utime(dst, ns=(0, 77)),
]


def test_the_oracle_sees_every_kind_of_damage(work: Path) -> None:
    tree = build(work / "src", 4, deep=False, files=3)
    for number, damage in enumerate(MUTATIONS):
        dst = work / f"dst-{number}"
        copy(tree.root, dst)
        damage(dst)
        with pytest.raises(AssertionError, match="is not"):
            assert_same(tree.root, dst)


def test_the_oracle_sees_a_lost_xattr(work: Path) -> None:
    if not trees.xattr_support(work):
        pytest.skip("this filesystem has no xattrs or ACLs")
    tree = build(work / "src", 4, deep=False, files=3)
    trees.set_xattr(os.fsencode(tree.root / "edges/03-4096"), "user.a", b"1")
    copy(tree.root, work / "dst")
    assert_same(tree.root, work / "dst", xattrs=True)
    os.removexattr(work / "dst/edges/03-4096", "user.a")
    with pytest.raises(AssertionError, match="xattrs"):
        assert_same(tree.root, work / "dst", xattrs=True)


def test_the_oracle_sees_damage_beyond_path_max(work: Path) -> None:
    tree = build(work / "src", 4, files=3)
    build(work / "dst", 4, files=3)
    before = look(work / "dst")
    for _, _, names, fd in os.fwalk(work / "dst/deep", follow_symlinks=False):
        if "also-big" in names:
            os.unlink("also-big", dir_fd=fd)
    assert differences(before, look(work / "dst"))
    with pytest.raises(AssertionError, match="only in the first"):
        assert_same(tree.root, work / "dst")


def test_stamps_see_a_touch(work: Path) -> None:
    build(work / "src", 1, deep=False, files=3)
    before = trees.stamps(work / "src")
    assert trees.stamps(work / "src") == before
    (work / "src/edges/03-4096").chmod(0o600)
    assert trees.stamps(work / "src") != before


def test_a_failing_wait_says_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match="the moon to rise"):
        wait_for("the moon to rise", lambda: False, seconds=0.05)
    assert wait_for("a value", lambda: 7) == 7


def test_the_runner_refuses_a_traceback() -> None:
    with pytest.raises(ContractBroken, match="Traceback"):
        Result(["x"], 1, b"", b"Traceback (most recent call last):\n").verify(1)
    with pytest.raises(ContractBroken, match="exit code 1"):
        Result(["x"], 1, b"", b"").verify(0)
    with pytest.raises(ContractBroken, match="JSON"):
        _ = Result(["x"], 0, b"{} {}", b"").summary
    assert Result(["x"], 4, b'{"a": 1}', b"").verify(0, 4).summary == {"a": 1}
