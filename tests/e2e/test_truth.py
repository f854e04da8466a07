"""What could not be read or did not arrive is named, harms nothing else, and shows in the code."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import trees
from tests.e2e.harness import Proxy, check, index, run, sync, upload
from tests.trees import assert_same, build

BIG = 300_000


@pytest.fixture
def src(work: Path) -> Path:
    """A tree with files to trouble: `victim` in a folder, big enough to span several blocks."""
    build(work / "src", 60, deep=False, files=5)
    (work / "src/f").mkdir()
    (work / "src/f/victim").write_bytes(random.Random(1).randbytes(BIG))
    (work / "src/f/neighbour").write_bytes(b"n" * 70_000)
    return work / "src"


def _victim(src: Path) -> Path:
    return src / "f/victim"


def _changed(src: Path) -> None:
    _victim(src).write_bytes(random.Random(2).randbytes(BIG))


def _changed_in_secret(src: Path) -> None:
    stamp = _victim(src).stat().st_mtime_ns
    with open(_victim(src), "r+b") as out:
        os.pwrite(out.fileno(), b"\0\1\2\3", BIG // 2)
    os.utime(_victim(src), ns=(stamp, stamp))


def _shrunk(src: Path) -> None:
    os.truncate(_victim(src), BIG // 3)


def _emptied(src: Path) -> None:
    os.truncate(_victim(src), 0)


def _grown(src: Path) -> None:
    with open(_victim(src), "ab") as out:
        out.write(b"more")


def _vanished(src: Path) -> None:
    _victim(src).unlink()


def _now_a_folder(src: Path) -> None:
    _victim(src).unlink()
    _victim(src).mkdir()


def _now_a_symlink(src: Path) -> None:
    shutil.move(_victim(src), src.parent / "moved-out")
    _victim(src).symlink_to(src.parent / "moved-out")


def _now_a_fifo(src: Path) -> None:
    _victim(src).unlink()
    os.mkfifo(_victim(src))


TROUBLES: list[Callable[[Path], None]] = [
    _changed,
    _changed_in_secret,
    _shrunk,
    _emptied,
    _grown,
    _vanished,
    _now_a_folder,
    _now_a_symlink,
    _now_a_fifo,
]


def others(tree: Path) -> dict[bytes, str]:
    """Every regular file but the victim."""
    return {path: d for path, d in trees.visible_files(tree).items() if path != b"f/victim"}


def names(summary: dict[str, Any]) -> list[str]:
    return [row["path"] for row in summary["failures"]]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda f: f.__name__.strip("_"))
def test_a_source_that_is_not_as_indexed(
    work: Path, src: Path, trouble: Callable[[Path], None]
) -> None:
    db, dst = work / "db", work / "dst"
    index(src, db)
    wanted = others(src)
    trouble(src)
    with Proxy(dst) as proxy:
        summary = upload(src, db, proxy.url, "-s", "64KiB", "-p", 2, codes=(3,))
        assert names(summary) == ["f/victim"]
        assert summary["failures"][0]["reason"]
    assert others(dst) == wanted
    assert not (dst / "f/victim").exists(), "a file that did not arrive whole got its name"
    [found] = check(dst, db, codes=(4,))
    assert (found["path"], found["kind"]) == ("f/victim", "missing")

    if trouble is _now_a_fifo:
        _victim(src).unlink()
    sync(src, dst, "-s", "64KiB")
    assert_same(src, dst)


def test_the_old_version_stays_when_the_new_one_fails(work: Path, src: Path) -> None:
    db, dst = work / "db", work / "dst"
    (dst / "f").mkdir(parents=True)
    (dst / "f/victim").write_bytes(b"the old version")
    index(src, db)
    _shrunk(src)
    with Proxy(dst) as proxy:
        upload(src, db, proxy.url, codes=(3,))
    assert (dst / "f/victim").read_bytes() == b"the old version"


def _replaced(src: Path) -> None:
    """By another file, which has the same size and mtime; the folder's mtime is as it was, too."""
    stamp, folder = _victim(src).stat().st_mtime_ns, (src / "f").stat().st_mtime_ns
    (src.parent / "new").write_bytes(random.Random(3).randbytes(BIG))
    os.utime(src.parent / "new", ns=(stamp, stamp))
    (src.parent / "new").rename(_victim(src))
    os.utime(src / "f", ns=(folder, folder))


def _touched(src: Path) -> None:
    """Another ctime, the same bytes."""
    os.link(_victim(src), src.parent / "second")
    (src.parent / "second").unlink()


def test_files_without_data_are_looked_at_again(work: Path, src: Path) -> None:
    db, dst = work / "db", work / "dst"
    for name in ("empty", "grown", "gone", "now-a-folder"):
        (src / name).touch()
    with open(src / "hole", "wb") as out:
        out.truncate(70_000)
    index(src, db)
    (src / "grown").write_bytes(b"more")
    (src / "gone").unlink()
    (src / "now-a-folder").unlink()
    (src / "now-a-folder").mkdir()
    (src / "hole").write_bytes(b"x" * 70_000)
    with Proxy(dst) as proxy:
        summary = upload(src, db, proxy.url, codes=(3,))
    assert sorted(names(summary)) == ["gone", "grown", "hole", "now-a-folder"]
    assert (dst / "grown").read_bytes() == b"", "it arrives as it was"


def _part_of_victim(db: Path) -> tuple[object, ...]:
    """Options that send one block, of 64 KiB, that has nothing but bytes of the victim."""
    with contextlib.closing(sqlite3.connect(db)) as connection:
        query = "SELECT offset FROM tar WHERE path = 'f/victim'"
        block = connection.execute(query).fetchone()[0] // 65536 + 1
    return ("-f", block, "-l", block)


@pytest.mark.parametrize("again", ["index kept", "index made again"])
def test_two_versions_of_a_file_are_never_mixed(work: Path, src: Path, again: str) -> None:
    db, dst = work / "db", work / "dst"
    index(src, db, "--hash", "none")
    wanted = others(src)
    options = ("-s", "64KiB")
    with Proxy(dst) as proxy:
        upload(src, db, proxy.url, *options, *_part_of_victim(db))
        _replaced(src)
        if again == "index made again":
            assert index(src, db, "--hash", "none")["id"]
        summary = upload(src, db, proxy.url, *options, codes=(3,))
        assert [row["path"] for row in summary["failures"]] == ["f/victim"]
        assert others(dst) == wanted
        assert not (dst / "f/victim").exists()


def test_a_file_that_was_only_touched_arrives(work: Path, src: Path) -> None:
    db, dst = work / "db", work / "dst"
    index(src, db, "--hash", "none")
    with Proxy(dst) as proxy:
        options = ("-s", "64KiB")
        upload(src, db, proxy.url, *options, *_part_of_victim(db))
        _touched(src)
        index(src, db, "--hash", "none")
        upload(src, db, proxy.url, *options)
    assert_same(src, dst)


def test_a_small_file_among_many_in_one_block(work: Path) -> None:
    src, db, dst = work / "src", work / "db", work / "dst"
    src.mkdir()
    for number in range(100):
        (src / f"s{number:02}").write_bytes(b"%d" % number * 10)
    index(src, db)
    (src / "s50").write_bytes(b"?" * 20)
    (src / "s70").unlink()
    with Proxy(dst) as proxy:
        summary = upload(src, db, proxy.url, codes=(3,))
    assert sorted(names(summary)) == ["s50", "s70"]
    whole = trees.visible_files(src)
    del whole[b"s50"]
    assert trees.visible_files(dst) == whole


def test_every_name_of_a_hard_link_fails_with_it(work: Path) -> None:
    src, db, dst = work / "src", work / "db", work / "dst"
    src.mkdir()
    (src / "a").write_bytes(b"1" * 9000)
    os.link(src / "a", src / "b")
    (src / "c").write_bytes(b"2" * 9000)
    index(src, db)
    (src / "a").write_bytes(b"3" * 9000)
    with Proxy(dst) as proxy:
        upload(src, db, proxy.url, codes=(3,))
    assert trees.visible_files(dst) == {b"c": trees.visible_files(src)[b"c"]}


def test_a_vanished_folder(work: Path, src: Path) -> None:
    db, dst = work / "db", work / "dst"
    index(src, db)
    wanted = {p: d for p, d in trees.visible_files(src).items() if not p.startswith(b"f/")}
    shutil.rmtree(src / "f")
    with Proxy(dst) as proxy:
        summary = upload(src, db, proxy.url, codes=(3,))
    assert {"f/victim", "f/neighbour"} <= set(names(summary))
    assert trees.visible_files(dst) == wanted


def test_the_whole_source_is_gone(work: Path, src: Path) -> None:
    index(src, work / "db")
    shutil.move(src, work / "elsewhere")
    with Proxy(work / "dst") as proxy:
        options = ("-b", src, "-db", work / "db", "-u", proxy.url)
        run("upload", *options, codes=(1, 2)).sentence("src")
    assert trees.visible_files(work / "dst") == {}


def test_hostile_names_are_escaped_in_reports(work: Path) -> None:
    src, db = work / "src", work / "db"
    src.mkdir()
    name = os.fsencode(src) + b"/bad\xff\nname"
    for path in (name, os.fsencode(src) + b"/good"):
        with open(path, "wb") as out:
            out.write(path)  # other content each, or one would be made of the other
    index(src, db)
    os.unlink(name)
    with Proxy(work / "dst") as proxy:
        options = ("upload", "-b", src, "-db", db, "-u", proxy.url)
        assert names(upload(*_places(options), codes=(3,))) == [r"bad\xff\nname"]
        for_people = run(*options, codes=(3,))
        assert rb"bad\xff\nname" in for_people.err
    [found] = check(work / "dst", db, codes=(4,))
    assert found["path"] == r"bad\xff\nname"


def _places(options: tuple[object, ...]) -> tuple[Path, Path, str]:
    _, _, base, _, db, _, url = options
    return Path(str(base)), Path(str(db)), str(url)


@pytest.mark.parametrize("target", ["folder", "proxy"])
def test_unreadable_files_and_folders_in_a_sync(work: Path, target: str) -> None:
    src, dst = work / "src", work / "dst"
    for name in ("f/victim", "f/neighbour", "closed/inside", "read-only/g", "h"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_bytes(name.encode() * 9000)
    wanted = trees.visible_files(src)
    del wanted[b"f/victim"], wanted[b"closed/inside"]
    (src / "f/victim").chmod(0)
    (src / "closed").chmod(0)
    (src / "read-only").chmod(0o555)
    if target == "folder":
        summary = sync(src, dst, codes=(3,), powers=False)
    else:
        with Proxy(dst) as proxy:
            summary = sync(src, proxy.url, codes=(3,), powers=False)
    assert {"f/victim", "closed"} <= set(names(summary))
    assert len(names(summary)) == len(set(names(summary))) <= 3
    (src / "closed").chmod(0o755)
    assert trees.visible_files(dst) == wanted
    assert not (dst / "f/victim").exists()
    (src / "f/victim").chmod(0o644)
    sync(src, dst, powers=False)
    assert_same(src, dst)


def test_an_unreadable_file_in_an_index(work: Path) -> None:
    src = work / "src"
    src.mkdir()
    (src / "closed").write_bytes(b"x")
    (src / "closed").chmod(0)
    (src / "open").write_bytes(b"y")
    result = run("index", "-b", src, "-db", work / "db", "--json", codes=(3,), powers=False)
    assert result.summary["exit_code"] == 3
    assert b"closed" in result.err


@pytest.fixture
def landed(work: Path, src: Path) -> tuple[Path, Path]:
    """A true copy and its index: (destination, index)."""
    sync(src, work / "dst", "-db", work / "db")
    index(src, work / "db")
    assert check(work / "dst", work / "db", "--extra", "--metadata") == []
    return work / "dst", work / "db"


def _flip(dst: Path) -> None:
    path = dst / "f/victim"
    stamp = path.stat().st_mtime_ns
    with open(path, "r+b") as out:
        byte = os.pread(out.fileno(), 1, BIG - 1)[0]
        os.pwrite(out.fileno(), bytes((byte ^ 1,)), BIG - 1)
    os.utime(path, ns=(stamp, stamp))


def _to_symlink(dst: Path) -> None:
    shutil.move(dst / "f/victim", dst.parent / "moved")
    (dst / "f/victim").symlink_to(dst.parent / "moved")


def _to_folder(dst: Path) -> None:
    (dst / "f/victim").unlink()
    (dst / "f/victim").mkdir()


def _retarget(dst: Path) -> None:
    (dst / "top-link").unlink()
    (dst / "top-link").symlink_to("elsewhere")


Row = tuple[Callable[[Path], object], str, set[str]]

DAMAGES: dict[str, Row] = {
    "flipped": (_flip, "f/victim", {"content"}),
    "missing": (lambda dst: (dst / "f/victim").unlink(), "f/victim", {"missing"}),
    "size": (lambda dst: os.truncate(dst / "f/victim", 7), "f/victim", {"size"}),
    "now-a-symlink": (_to_symlink, "f/victim", {"type"}),
    "now-a-folder": (_to_folder, "f/victim", {"type"}),
    "other-target": (_retarget, "top-link", {"content", "metadata"}),
    "no-symlink": (lambda dst: (dst / "top-link").unlink(), "top-link", {"missing"}),
    "no-folder": (
        lambda dst: (dst / "edges/nothing-in-it/nor-in-this").rmdir(),
        "edges/nothing-in-it/nor-in-this",
        {"missing"},
    ),
}


def test_check_names_what_differs(landed: tuple[Path, Path], work: Path) -> None:
    dst, db = landed
    for title, (damage, path, kinds) in DAMAGES.items():
        copy = work / f"copy-{title}"
        subprocess.run(["cp", "-a", f"{dst}/.", str(copy)], check=True, timeout=60)
        damage(copy)
        found = check(copy, db, codes=(4,))
        assert [(row["path"], row["kind"] in kinds) for row in found] == [(path, True)], title


def test_check_sees_extra_names_when_asked(landed: tuple[Path, Path]) -> None:
    dst, db = landed
    (dst / "f/extra").touch()
    (dst / "extra-folder").mkdir()
    (dst / "extra-link").symlink_to("x")
    stamp = dst.stat().st_mtime_ns
    os.utime(dst, ns=(stamp, stamp))
    assert check(dst, db) == []
    found = check(dst, db, "--extra", codes=(4,))
    assert {(row["path"], row["kind"]) for row in found} == {
        ("f/extra", "extra"),
        ("extra-folder", "extra"),
        ("extra-link", "extra"),
    }


def test_check_sees_metadata_when_asked(landed: tuple[Path, Path]) -> None:
    dst, db = landed
    (dst / "edges/03-4096").chmod(0o4751)
    os.utime(dst / "f/victim", ns=(0, (dst / "f/victim").stat().st_mtime_ns + 1))
    os.utime(dst / "hard/near", ns=(0, 99))
    assert check(dst, db) == []
    found = check(dst, db, "--metadata", codes=(4,))
    assert {(row["path"], row["kind"]) for row in found} == {
        ("edges/03-4096", "metadata"),
        ("f/victim", "metadata"),
        ("hard/near", "metadata"),
    }


def test_check_sees_hard_links_that_were_merged_or_split(landed: tuple[Path, Path]) -> None:
    dst, db = landed
    stamps = {path: path.stat().st_mtime_ns for path in (dst, dst / "f", dst / "hard")}
    for name in ("f/merged-1", "f/merged-2", "f/linked-1"):
        (dst / name).write_bytes(b"the same")
        os.utime(dst / name, ns=(0, 1))
    os.link(dst / "f/linked-1", dst / "f/linked-2")
    os.link(dst / "f/linked-1", dst.parent / "a name outside")
    index(dst, db)
    assert check(dst, db, "--metadata") == []
    for one, other in (("f/merged-1", "f/merged-2"), ("f/linked-1", "f/linked-2")):
        (dst / other).unlink()
        if one == "f/merged-1":
            os.link(dst / one, dst / other)
        else:
            shutil.copy2(dst / one, dst / other)
    for path in stamps:
        os.utime(path, ns=(0, stamps[path]))
    index_of = {row["path"]: row for row in check(dst, db, "--metadata", codes=(4,))}
    assert "not a hard link" in index_of["f/linked-2"]["detail"]
    assert "a hard link to f/merged-1" in index_of["f/merged-2"]["detail"]
    assert check(dst, db) == []


def test_check_sees_attributes_that_the_index_speaks_of(landed: tuple[Path, Path]) -> None:
    dst, db = landed
    names = ("lost", "other", "extra", "right")
    for name in names:
        (dst / "f" / name).touch()
    try:
        for name in ("lost", "other", "right"):
            os.setxattr(dst / "f" / name, "user.note", b"as it was")
    except OSError:
        pytest.skip("this filesystem has no attributes")
    os.link(dst / "f/lost", dst / "f/lost-too")
    index(dst, db, "-X")
    os.removexattr(dst / "f/lost", "user.note")
    os.setxattr(dst / "f/other", "user.note", b"not as it was")
    os.setxattr(dst / "f/extra", "user.more", b"")
    found = check(dst, db, "--metadata", codes=(4,))
    assert {(row["path"], row["detail"]) for row in found} == {
        ("f/lost", "attribute user.note"),
        ("f/lost-too", "attribute user.note"),
        ("f/other", "attribute user.note"),
        ("f/extra", "attribute user.more"),
    }
    index(dst, db, "-c")
    assert check(dst, db, "--metadata") == [], "this index does not speak of attributes"


def test_check_for_people_names_the_file(landed: tuple[Path, Path]) -> None:
    dst, db = landed
    _flip(dst)
    result = run("check", "-b", dst, "-db", db, "-j", 2, codes=(4,))
    assert b"f/victim" in result.out + result.err


def test_check_of_unreadable_files_is_no_success(work: Path) -> None:
    src = work / "src"
    src.mkdir()
    (src / "f").write_bytes(b"data" * 100)
    index(src, work / "db")
    shutil.copytree(src, work / "dst")
    (work / "dst/f").chmod(0)
    result = run("check", "-b", work / "dst", "-db", work / "db", codes=(1, 3, 4), powers=False)
    assert b"f" in result.out + result.err
