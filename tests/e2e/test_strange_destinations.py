"""Syncing again to a destination that others have changed in ways nobody expects."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import Job, sync, wait_for
from tests.trees import assert_same, xattr_support


@pytest.fixture
def src(work: Path) -> Path:
    (work / "src").mkdir()
    return work / "src"


def rewrite(path: Path, data: bytes) -> None:
    """Other bytes in a file, with the times that it had."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_large_files_that_were_edited_come_back_at_once(
    work: Path, src: Path, dice: random.Random
) -> None:
    dst = work / "dst"
    for number in range(3):
        (src / str(number)).write_bytes(dice.randbytes(3 << 20))
    sync(src, dst)
    for number in range(3):
        with (dst / str(number)).open("r+b") as file:
            file.seek(100)
            file.write(b"edited")
    sync(src, dst)
    assert_same(src, dst)


def test_a_directory_as_large_as_the_file_whose_place_it_takes(work: Path, src: Path) -> None:
    dst = work / "dst"
    (work / "empty").mkdir()
    (src / "file").write_bytes(os.urandom((work / "empty").stat().st_size))
    sync(src, dst)
    (dst / "file").unlink()
    (dst / "file").mkdir()
    assert (dst / "file").stat().st_size == (src / "file").stat().st_size
    sync(src, dst, "--delete")
    assert_same(src, dst)


@pytest.mark.parametrize("change", ["mode", "content"])
def test_what_others_do_to_a_file_before_its_commit_goes_on(
    work: Path, src: Path, change: str
) -> None:
    """The commit is killed; what it has put in place is no longer as it left it."""
    dst = work / "dst"
    for number in range(3000):
        (src / f"{number:05}").write_bytes(b"%d" % number * 60)
    with Job("sync", src, dst, "-p", "1") as job:
        wait_for("a first name", lambda: (dst / "00000").exists(), unless=job.ended)
        job.kill()
    if change == "mode":
        (dst / "00000").chmod(0o777)
        sync(src, dst)
    else:
        rewrite(dst / "00000", b"X" * 60)
        summary = sync(src, dst, codes=(0, 1))
        if summary["exit_code"]:
            sync(src, dst)
    assert_same(src, dst)
    assert (dst / "00000").read_bytes() == b"0" * 60


def test_names_of_one_file_that_are_two_at_the_source(work: Path, src: Path) -> None:
    dst = work / "dst"
    (src / "a").write_bytes(b"content" * 1000)
    os.link(src / "a", src / "b")
    sync(src, dst)
    shutil.copy2(src / "b", work / "b")
    (work / "b").replace(src / "b")
    (src / "b").chmod(0o600)
    sync(src, dst)
    assert_same(src, dst)


@pytest.mark.parametrize("by", ["the source", "somebody else"])
def test_names_of_one_file_that_are_two_though_nothing_tells_them_apart(
    work: Path, src: Path, by: str
) -> None:
    dst = work / "dst"
    for name in ("a", "d"):
        (src / name).write_bytes(b"content" * 1000)
        os.utime(src / name, (1, 1))
    if by == "the source":
        os.link(src / "a", src / "b")
        os.link(src / "a", src / "c")
    sync(src, dst)
    if by == "the source":
        for name in ("b", "c"):
            shutil.copy2(src / name, work / name)
            (work / name).replace(src / name)
    (dst / "d").unlink()
    os.link(dst / "a", dst / "d")
    sync(src, dst)
    assert_same(src, dst)
    sync(src, dst)
    assert_same(src, dst)


@pytest.mark.parametrize("marked", ["a", "b", "ab"])
def test_attributes_of_names_that_are_one_file_and_should_be_two(
    work: Path, src: Path, marked: str
) -> None:
    if not xattr_support(work):
        pytest.skip("needs extended attributes and ACLs")
    dst = work / "dst"
    for name in ("a", "b"):
        (src / name).write_bytes(b"content" * 1000)
        os.utime(src / name, (1, 1))
    sync(src, dst, "-X", "-A")
    for name in marked:
        os.setxattr(src / name, "user.of", name.encode())
    (dst / "b").unlink()
    os.link(dst / "a", dst / "b")
    sync(src, dst, "-X", "-A")
    assert_same(src, dst, xattrs=True)
    sync(src, dst, "-X", "-A")
    assert_same(src, dst, xattrs=True)


@pytest.mark.parametrize("names", [("open", "secret"), ("secret", "their")])
def test_a_destination_where_equal_files_were_made_one(
    work: Path, src: Path, names: tuple[str, str]
) -> None:
    dst = work / "dst"
    for name in names:
        (src / name).write_bytes(b"content" * 1000)
        (src / name).chmod(0o600 if name == "secret" else 0o644)
        os.utime(src / name, (1, 1))
    sync(src, dst)
    (dst / names[1]).unlink()
    os.link(dst / names[0], dst / names[1])
    sync(src, dst)
    assert_same(src, dst)
    sync(src, dst)
    assert_same(src, dst)


def test_by_size_alone_nothing_is_known_of_what_was_one_file_either(work: Path, src: Path) -> None:
    dst = work / "dst"
    dst.mkdir()
    for name in ("a", "b"):
        (src / name).write_text(name)
        os.utime(src / name, (1, 1))
    (dst / "a").write_text("x")
    os.utime(dst / "a", (1, 1))
    os.link(dst / "a", dst / "b")
    sync(src, dst, "--size-only")
    assert [(dst / name).read_text() for name in ("a", "b")] == ["x", "x"]
    assert not os.path.samefile(dst / "a", dst / "b")
    sync(src, dst)
    assert_same(src, dst)


def test_by_size_alone_nothing_is_known_of_the_content(work: Path, src: Path) -> None:
    dst = work / "dst"
    (src / "file").write_text("one")
    os.utime(src / "file", (1, 1))
    sync(src, dst)
    (src / "file").write_text("two")
    sync(src, dst, "--size-only")
    assert (dst / "file").read_text() == "one"
    sync(src, dst)
    assert_same(src, dst)
