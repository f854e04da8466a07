"""The same job in separate steps: index, proxy, upload, check, with the original tools' flags."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import trees
from tests.e2e.harness import Job, Proxy, assert_tidy, check, index, run, upload, wait_for
from tests.trees import assert_same, build, look


def rows(db: Path, query: str = "SELECT * FROM tar") -> list[dict[str, Any]]:
    """The rows of the view, text as bytes: a path need not be UTF-8."""
    with closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
        connection.text_factory = bytes
        cursor = connection.execute(query)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def paths(db: Path) -> set[bytes]:
    return {row["path"].removeprefix(b"./") for row in rows(db)}


def test_the_whole_way_in_steps(work: Path) -> None:
    tree = build(work / "src", 31, specials=True)
    before = trees.stamps(tree.root)
    db, dst = work / "db.sqlite", work / "dst"
    indexed = index(tree.root, db)
    assert indexed["bytes"] >= tree.bytes
    assert indexed["files"] > 0
    assert indexed["skipped"] == tree.specials
    assert re.fullmatch(r"[0-9A-Za-z_.:-]+", indexed["id"])
    with Proxy(dst) as proxy:
        sent = upload(tree.root, db, proxy.url, "-p", 2, "-s", "64KiB", "-dbp", work / "done")
        assert sent["state"] == "complete"
        assert sent["transfer"] == indexed["id"]
        state = proxy.blocks(sent["transfer"])
        if state is not None:  # a proxy may have forgotten a transfer that is complete
            assert state.received == state.total == sent["blocks_total"]
            assert state.block_size == 65536
    assert_same(tree.root, dst)
    assert_tidy(dst)
    assert check(dst, db, "--extra", "--metadata") == []
    assert (work / "done").read_bytes().startswith(b"SQLite format 3\0")
    assert trees.stamps(tree.root) == before
    assert not [p for p in work.iterdir() if p.name not in {"src", "dst", "db.sqlite", "done"}]


def test_the_view_shows_the_original_columns(work: Path) -> None:
    tree = build(work / "src", 32)
    index(tree.root, work / "db")
    found = rows(work / "db")
    assert list(found[0]) == ["id", "path", "size", "offset", "offset_end", "hash"]
    sizes = {row["path"].removeprefix(b"./"): row["size"] for row in found}
    seen = {path: node for path, node in look(tree.root).items() if node.kind == "file"}
    for path, node in seen.items():
        assert any(sizes.get(name) == node.size for name in node.links), path
    held = [r for r in found if r["size"] and r["offset"] is not None]
    for row in held:
        assert row["offset_end"] == row["offset"] + row["size"] - 1, row
        assert row["size"] < 4096 or row["offset"] % 4096 == 0, row
    assert held
    taken = sorted({(row["offset"], row["offset_end"]) for row in held})
    for (_, end), (start, _) in itertools.pairwise(taken):
        assert end < start, "two files overlap in the archive"


@pytest.mark.parametrize("name", ["blake3", "sha256", "md5", "xxh3"])
def test_hashes_are_the_ones_asked_for(work: Path, name: str) -> None:
    (work / "src").mkdir()
    data = b"tar-like" * 12345
    (work / "src/f").write_bytes(data)
    index(work / "src", work / "db", "--hash", name)
    [row] = [row for row in rows(work / "db") if row["size"] == len(data)]
    value = row["hash"]
    shown = value.decode("latin-1").lower()
    wanted = _reference(name, data)
    assert wanted in (value.hex(), shown) or wanted in shown, row
    if name == "blake3":
        index(work / "src", work / "default")
        assert rows(work / "default")[0]["hash"] == value


def _reference(name: str, data: bytes) -> str:
    if name == "blake3":
        return str(pytest.importorskip("blake3").blake3(data).hexdigest())
    if name == "xxh3":
        return str(pytest.importorskip("xxhash").xxh3_64(data).hexdigest())
    return hashlib.new(name, data, usedforsecurity=False).hexdigest()


def test_the_same_tree_has_the_same_id_wherever_it_lies(work: Path) -> None:
    tree = build(work / "src", 33, deep=False)
    other = work / "elsewhere" / "copy"
    other.mkdir(parents=True)
    top = sorted((p.name for p in tree.root.iterdir()), reverse=True)
    command = ["cp", "-a", "--", *(f"{tree.root}/{name}" for name in top), f"{other}/"]
    subprocess.run(command, check=True, timeout=60)
    shutil.copystat(tree.root, other)
    os.chown(other, tree.root.stat().st_uid, tree.root.stat().st_gid)
    assert_same(tree.root, other)
    one = index(tree.root, work / "one.sqlite", "-j", 1)
    two = index(other, work / "two.sqlite", "-j", 3)
    assert one["id"] == two["id"]
    (other / "edges/03-4096").chmod(0o741)
    assert index(other, work / "two.sqlite")["id"] != one["id"]


def test_an_index_is_brought_up_to_date(work: Path) -> None:
    src, db = work / "src", work / "db"
    src.mkdir()
    for number in range(10):
        (src / f"f{number}").write_bytes(b"%d" % number * 5000)
    first = index(src, db)
    assert (first["hashed"], first["reused"], first["files"]) == (10, 0, 10)
    again = index(src, db)
    assert (again["hashed"], again["reused"]) == (0, 10)
    assert again["id"] == first["id"]

    (src / "f0").unlink()
    (src / "f1").write_bytes(b"changed")
    (src / "new").write_bytes(b"new")
    stamp = (src / "f2").stat().st_mtime_ns
    (src / "f2").write_bytes(b"@" * 5000)  # same size and mtime: only the ctime tells
    os.utime(src / "f2", ns=(stamp, stamp))
    updated = index(src, db)
    assert (updated["hashed"], updated["reused"], updated["files"]) == (3, 7, 10)
    assert paths(db) >= {b"new", b"f1"}
    assert b"f0" not in paths(db)

    fresh = index(src, db, "-c")
    assert (fresh["hashed"], fresh["reused"]) == (10, 0)
    assert fresh["id"] == updated["id"]
    assert index(src, work / "another")["id"] == updated["id"]


def test_another_hash_is_not_mixed_into_an_index(work: Path) -> None:
    (work / "src").mkdir()
    (work / "src/f").write_bytes(b"x" * 5000)
    index(work / "src", work / "db", "--hash", "sha256")
    index(work / "src", work / "db", "--hash", "md5")
    index(work / "src", work / "md5", "--hash", "md5")
    assert rows(work / "db") == rows(work / "md5")


@pytest.mark.parametrize("low_first", [True, False])
def test_parts_in_any_order_make_a_whole(work: Path, low_first: bool) -> None:
    tree = build(work / "src", 34, deep=False)
    db, dst = work / "db", work / "dst"
    transfer = index(tree.root, db)["id"]
    with Proxy(dst) as proxy:
        size = ("-s", "16384")
        one = upload(tree.root, db, proxy.url, *size, "-f", 3, "-l", 3)
        total = one["blocks_total"]
        assert total > 20
        assert (one["blocks_sent"], one["state"]) == (1, "incomplete")
        middle = total // 2
        parts = [("-f", 0, "-l", middle), ("-f", middle + 1, "-l", total - 1)]
        if not low_first:
            parts.reverse()
        half = upload(tree.root, db, proxy.url, *size, *parts[0], "-p", 2)
        assert half["state"] == "incomplete"
        assert trees.visible_files(dst) == {}, "a part appeared before the whole was there"
        state = proxy.blocks(transfer)
        assert state
        low, high = int(str(parts[0][1])), int(str(parts[0][3]))
        expected = high - low + 1 + (not low_first)
        assert (state.total, state.received) == (total, expected)
        rest = upload(tree.root, db, proxy.url, *size, *parts[1])
        assert one["blocks_sent"] + half["blocks_sent"] + rest["blocks_sent"] == total
        assert rest["state"] == "complete"
        assert_same(tree.root, dst)
        final = upload(tree.root, db, proxy.url, *size)
        assert (final["blocks_sent"], final["state"]) == (0, "complete")
    assert_same(tree.root, dst)
    assert check(dst, db) == []


def test_one_bound_is_enough_for_a_part(work: Path) -> None:
    tree = build(work / "src", 35, deep=False, files=5)
    index(tree.root, work / "db")
    with Proxy(work / "dst") as proxy:
        total = upload(tree.root, work / "db", proxy.url, "-s", "64KiB", "-l", 0)["blocks_total"]
        upload(tree.root, work / "db", proxy.url, "-s", "64KiB", "-l", total // 2)
        last = upload(tree.root, work / "db", proxy.url, "-s", "64KiB", "-f", total // 2 + 1)
        assert last["state"] == "complete"
    assert_same(tree.root, work / "dst")


def test_two_senders_share_the_work_at_the_same_time(work: Path) -> None:
    tree = build(work / "src", 36, deep=False)
    db = work / "db"
    index(tree.root, db)
    with Proxy(work / "dst", "--processes", 2) as proxy:
        total = upload(tree.root, db, proxy.url, "-s", "8192", "-l", 0)["blocks_total"]
        common = ("upload", "-b", tree.root, "-db", db, "-u", proxy.url, "-s", "8192")
        with Job(*common, "-l", total // 2) as one, Job(*common, "-f", total // 2 + 1) as two:
            one.end().verify(0)
            two.end().verify(0)
        assert upload(tree.root, db, proxy.url, "-s", "8192")["state"] == "complete"
    assert_same(tree.root, work / "dst")


def test_two_whole_senders_do_not_harm_each_other(work: Path) -> None:
    tree = build(work / "src", 37, deep=False)
    index(tree.root, work / "db")
    with Proxy(work / "dst") as proxy:
        common = ("upload", "-b", tree.root, "-db", work / "db", "-u", proxy.url, "-s", "8192")
        with Job(*common) as one, Job(*common) as two:
            one.end().verify(0)
            two.end().verify(0)
    assert_same(tree.root, work / "dst")
    assert_tidy(work / "dst")


def test_the_local_record_and_ignoring_it(work: Path) -> None:
    tree = build(work / "src", 38, deep=False, files=10)
    db, record = work / "db", work / "record"
    index(tree.root, db)
    with Proxy(work / "lost") as proxy:
        upload(tree.root, db, proxy.url, "-s", "64KiB", "-dbp", record, "-l", 3)
    assert record.read_bytes().startswith(b"SQLite format 3\0")
    with Proxy(work / "dst") as proxy:  # another receiver: it has nothing of what is recorded
        done = upload(tree.root, db, proxy.url, "-s", "64KiB", "-dbp", record, "--ignore-done")
        assert done["state"] == "complete"
    assert_same(tree.root, work / "dst")


def test_a_record_of_the_sender_is_no_proof_of_the_receiver(work: Path) -> None:
    tree = build(work / "src", 39, deep=False, files=10)
    db, record = work / "db", work / "record"
    index(tree.root, db)
    with Proxy(work / "lost") as proxy:
        upload(tree.root, db, proxy.url, "-s", "64KiB", "-dbp", record)
    with Proxy(work / "dst") as proxy:
        options = ("-b", tree.root, "-db", db, "-u", proxy.url, "-s", "64KiB", "-dbp", record)
        result = run("upload", *options, "--json", codes=(0, 1, 3))
    if result.code == 0:
        assert_same(tree.root, work / "dst")
    else:
        assert result.summary["state"] == "incomplete"


def test_block_sizes_are_rounded_up_aloud(work: Path) -> None:
    tree = build(work / "src", 40, deep=False, files=5)
    transfer = index(tree.root, work / "db")["id"]
    with Proxy(work / "dst") as proxy:
        options = ("-b", tree.root, "-db", work / "db", "-u", proxy.url, "-s", "100000", "-l", "0")
        assert "102400" in run("upload", *options).message
        state = proxy.blocks(transfer)
        assert state
        assert state.block_size == 102400


@pytest.mark.parametrize("size", ["16MiB", "30M", "64KiB", "1048576"])
def test_sizes_have_units(work: Path, size: str) -> None:
    (work / "src").mkdir()
    (work / "src/f").write_bytes(b"data")
    run("sync", work / "src", work / "dst", "-s", size)
    assert_same(work / "src", work / "dst")


def test_the_doors_of_the_modules(work: Path) -> None:
    tree = build(work / "src", 41, deep=False, files=5)
    db, dst = work / "db", work / "dst"
    run("-b", tree.root, "-db", db, module="tar_like.index")
    with Proxy(dst) as proxy:
        run("-b", tree.root, "-db", db, "-u", proxy.url, module="tar_like.upload")
    assert_same(tree.root, dst)
    run("-b", dst, "-db", db, module="tar_like.check")
    assert run("--help", module="tar_like.proxy").out


def test_a_proxy_started_by_its_door(work: Path) -> None:
    tree = build(work / "src", 42, deep=False, files=5)
    index(tree.root, work / "db")
    with Job("-b", work / "dst", "--host", "127.0.0.1", 0, module="tar_like.proxy") as proxy:
        line = wait_for(
            "the line `listening on`",
            lambda: re.search(rb"listening on (\S+/tar)\b", proxy.stderr()),
            unless=proxy.ended,
        )
        assert line
        upload(tree.root, work / "db", line[1].decode())
        proxy.process.terminate()
        proxy.end().verify(0)
    assert_same(tree.root, work / "dst")


@pytest.fixture
def gitish(work: Path) -> Path:
    """A tree to filter, below a base whose own path has .git and .o in it."""
    base = work / "my.git" / "x.o" / "src"
    for name in (".git/config", ".git/objects/aa/b", ".gitignore", "sub/.git/HEAD", "sub/keep"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(name.encode() * 500)
    for name in ("main.c", "main.o", "keep.o", "build/out.bin", "deep/er/build/x", "deep/er/y.o"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(name.encode() * 500)
    return base


C_FILES = {b"main.c", b"sub/keep"}
OBJECTS = {b"main.o", b"keep.o", b"deep/er/y.o"}
BUILDS = {b"build/out.bin", b"deep/er/build/x"}
GIT = {b".git/config", b".git/objects/aa/b", b".gitignore", b"sub/.git/HEAD"}


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ((), C_FILES | OBJECTS | BUILDS | GIT),
        (("-x", r"\.git"), C_FILES | OBJECTS | BUILDS),
        (("-x", r"\.git", "-x", r"\.o$"), C_FILES | BUILDS),
        (("-x", r"^build/"), C_FILES | OBJECTS | GIT | {b"deep/er/build/x"}),
        (("--exclude", "*.o", "--exclude", ".git*"), C_FILES | BUILDS),
        (("--exclude", "*.o", "--include", "keep.o"), C_FILES | BUILDS | GIT | {b"keep.o"}),
        (("--exclude", "/build/"), C_FILES | OBJECTS | GIT | {b"deep/er/build/x"}),
        (("--exclude", "build/"), C_FILES | OBJECTS | GIT),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_filters(work: Path, gitish: Path, options: tuple[str, ...], left: set[bytes]) -> None:
    index(gitish, work / "db", *options)
    assert {row["path"] for row in rows(work / "db") if row["size"]} == left


def test_a_filtered_sync_brings_what_is_left(work: Path, gitish: Path) -> None:
    run("sync", gitish, work / "dst", "-x", r"\.git", "--exclude", "build/", "--exclude", "*.o")
    assert trees.visible_files(work / "dst").keys() == C_FILES
    assert not (work / "dst/.git").exists()
    assert not (work / "dst/build").exists()


def test_an_excluded_unreadable_file_is_no_trouble(work: Path) -> None:
    (work / "src").mkdir()
    (work / "src/secret").write_bytes(b"x" * 100)
    (work / "src/secret").chmod(0)
    (work / "src/f").write_bytes(b"y" * 100)
    run("sync", work / "src", work / "dst", "-x", "^secret$", powers=False)
    assert trees.visible_files(work / "dst").keys() == {b"f"}


def test_check_of_a_block_range(work: Path) -> None:
    src, db = work / "src", work / "db"
    src.mkdir()
    for name in "abcd":
        (src / name).write_bytes(name.encode() * 65536)
    index(src, db)
    shutil.copytree(src, work / "dst")
    data = bytearray((work / "dst/d").read_bytes())
    data[100] ^= 255
    (work / "dst/d").write_bytes(data)
    order = sorted(rows(db), key=lambda row: row["offset"])
    block = next(n for n, row in enumerate(order) if row["path"] == b"d")
    options = ("-s", 65536, "-f", block, "-l", block)
    [found] = check(work / "dst", db, *options, codes=(4,))
    assert (found["path"], found["kind"]) == ("d", "content")
    other = (block + 1) % 4
    assert check(work / "dst", db, "-s", 65536, "-f", other, "-l", other) == []


@pytest.fixture
def small(work: Path) -> Path:
    """A small, tame tree."""
    return build(work / "src", 77, files=5).root


def test_an_index_of_another_version_is_only_replaced_when_told_so(work: Path, small: Path) -> None:
    db = work / "db"
    run("index", "-b", small, "-db", db)
    with sqlite3.connect(db) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    run("index", "-b", small, "-db", db, codes=(1,)).sentence("version")
    run("index", "-b", small, "-db", db, "-c")


def test_an_index_that_lies_in_its_own_tree_is_no_part_of_it(small: Path) -> None:
    for _ in range(2):
        run("index", cwd=small)
    listed = rows(small / "tar_like.db", "SELECT path FROM entry")
    assert not [row for row in listed if b"tar_like.db" in row["path"]]


def test_sync_brings_a_kept_index_up_to_date_with_its_hashes(work: Path, small: Path) -> None:
    db = work / "db"
    run("index", "-b", small, "-db", db)
    (small / "new").write_bytes(b"new")
    run("sync", small, work / "dst", "-db", db)
    run("check", "-b", work / "dst", "-db", db, "--extra", "--metadata")


def test_links_between_symlinks_stay_links_when_the_index_is_made_again(
    work: Path, small: Path
) -> None:
    (small / "l1").symlink_to("target")
    os.link(small / "l1", small / "l2", follow_symlinks=False)
    first = index(small, work / "db")["id"]
    assert index(small, work / "db")["id"] == first
    (small / "zz").write_bytes(b"behind them, so that the rows before are taken over")
    again = index(small, work / "db")["id"]
    assert again == index(small, work / "afresh")["id"]
