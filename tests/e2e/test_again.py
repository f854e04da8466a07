"""Syncing again: only what is missing crosses the wire."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
from blake3 import blake3

from tests.e2e.harness import (
    Job,
    Proxy,
    index,
    request,
    run,
    sync,
    transfer_summary,
    upload,
    wait_for,
)
from tests.trees import assert_same, stamps, visible_files

MIB = 1 << 20
CHUNK = 64 << 10
"""The longest chunk of a file of a few MiB."""


def plant(src: Path, dice: random.Random, small: int) -> Path:
    """Three large files, and so many small ones, of sizes of their own."""
    (src / "folder/deep").mkdir(parents=True)
    for name in ("folder/one", "folder/deep/two", "large"):
        (src / name).write_bytes(dice.randbytes(3 * MIB))
    for number in range(small):
        (src / f"folder/small{number}").write_bytes(dice.randbytes(1 + 300 * number))
    return src


@pytest.fixture
def src(work: Path, dice: random.Random) -> Path:
    return plant(work / "src", dice, 20)


def again(src: Path, dst: Path, *options: object) -> int:
    """Sync to a folder that has an older state; the bytes that were sent."""
    summary = sync(src, dst, *options)
    assert summary["state"] == "complete"
    return int(summary["bytes_sent"])


def test_the_wire_s_bytes_are_those_of_index_questions_and_answers_too(
    work: Path, src: Path
) -> None:
    dst = work / "dst"
    first = sync(src, dst, "--limit", "1G")
    assert first["bytes_sent"] < first["wire_bytes"] < first["bytes_sent"] + 100_000
    assert sync(src, dst)["wire_bytes"] == 0
    (src / "folder").rename(src / "renamed")
    assert 0 < sync(src, dst)["wire_bytes"] < 100_000


def test_blocks_that_go_past_the_wire_are_not_counted_as_if_they_went_over_it(
    work: Path, src: Path
) -> None:
    summary = sync(src, work / "dst")
    assert 0 < summary["wire_bytes"] < 100_000 < summary["bytes_sent"]


def test_what_was_moved_or_copied_costs_no_bytes(work: Path, src: Path) -> None:
    dst = work / "dst"
    sync(src, dst)
    (src / "folder").rename(src / "renamed")
    (src / "copy").write_bytes((src / "large").read_bytes())
    (src / "large").rename(src / "renamed/large")
    before = stamps(dst / "folder")
    assert again(src, dst) == 0
    assert stamps(dst / "folder") == before  # nothing is deleted, and nothing written to
    drop(dst, "folder", "large")
    assert_same(src, dst)


def drop(dst: Path, *names: str) -> None:
    """Remove what the source has no more, the folder's own times kept."""
    st = dst.stat()
    for name in names:
        if (dst / name).is_dir():
            shutil.rmtree(dst / name)
        else:
            (dst / name).unlink()
    os.utime(dst, ns=(st.st_atime_ns, st.st_mtime_ns))


def test_a_tree_in_its_place_costs_a_look(work: Path, src: Path) -> None:
    dst = work / "dst"
    with Proxy(dst) as proxy:
        for target in (dst.with_name("dst2"), proxy.url):
            assert "committing" in run("sync", src, target).message
            assert "committing" not in run("sync", src, target).message
        (dst / "large").chmod(0o600)
        assert "committing" in run("sync", src, proxy.url).message
        assert_same(src, dst)
        assert "committing" not in run("sync", src, proxy.url, "--delete").message
        (dst / "folder/extra").write_text("extra")
        os.utime(dst / "folder", ns=(0, (src / "folder").stat().st_mtime_ns))
        assert "committing" in run("sync", src, proxy.url, "--delete").message
    assert_same(src, dst)


def test_with_hashes_in_the_index_nothing_is_asked(work: Path, src: Path) -> None:
    dst, db = work / "dst", work / "db"
    with Proxy(dst) as proxy:
        index(src, db)
        upload(src, db, proxy.url)
        (src / "folder").rename(src / "renamed")
        os.utime(src / "large", ns=(1, 1))
        index(src, db)
        result = run("upload", "-b", src, "-db", db, "-u", proxy.url, "--json")
        assert transfer_summary(result)["bytes_sent"] == 0
        assert "Looking at" not in result.message


def test_two_new_files_that_are_the_same_cross_once(work: Path, src: Path) -> None:
    dst = work / "dst"
    for name in ("twin1", "folder/twin2"):
        (src / name).write_bytes((src / "large").read_bytes())
    os.utime(src / "twin1", ns=(5, 5))
    summary = sync(src, dst)
    total = sum(path.stat().st_size for path in src.rglob("*") if path.is_file())
    assert summary["bytes_sent"] == total - 6 * MIB
    assert_same(src, dst)


@pytest.mark.parametrize("size", ["1MiB", "64KiB"])
def test_a_twin_that_fills_blocks_leaves_none_without_a_receipt(
    work: Path, src: Path, size: str
) -> None:
    """In the smaller ones there would be too many blocks without bytes: they are not made."""
    (src / "twin").write_bytes((src / "large").read_bytes())
    (src / "z").write_bytes(b"the last")
    summary = sync(src, work / "dst", "-s", size, "--compress", "lz4")
    assert summary["blocks_sent"] == summary["blocks_total"]
    assert_same(src, work / "dst")


def _overwrite(data: bytearray, dice: random.Random) -> int:
    start = dice.randrange(len(data) - 4096)
    data[start : start + 4096] = dice.randbytes(4096)
    return 4096


def _insert(data: bytearray, dice: random.Random) -> int:
    start = dice.randrange(len(data))
    data[start:start] = dice.randbytes(1000)
    return 1000


def _prepend(data: bytearray, dice: random.Random) -> int:
    data[:0] = dice.randbytes(100_001)
    return 100_001


def _append(data: bytearray, dice: random.Random) -> int:
    data += dice.randbytes(50_000)
    return 50_000


def _truncate(data: bytearray, dice: random.Random) -> int:
    del data[2 * MIB + dice.randrange(MIB // 2) :]
    return 0


def _rotate(data: bytearray, _: random.Random) -> int:
    data[:] = data[MIB:] + data[:MIB]
    return 0


EDITS: dict[str, Callable[[bytearray, random.Random], int]] = {
    "overwrite": _overwrite,
    "insert": _insert,
    "prepend": _prepend,
    "append": _append,
    "truncate": _truncate,
    "rotate": _rotate,
}


def test_of_a_large_file_only_what_changed_is_sent(
    work: Path, src: Path, dice: random.Random
) -> None:
    """Also when the chunks of the last version are remembered, not found by reading it."""
    dst = work / "dst"
    sync(src, dst)
    for edit in dice.sample(sorted(EDITS), len(EDITS)):
        data = bytearray((src / "large").read_bytes())
        fresh = EDITS[edit](data, dice)
        (src / "large").write_bytes(data)
        inode = (dst / "large").stat().st_ino
        with (dst / "large").open("rb") as old:  # is not written to
            before = old.read()
            assert again(src, dst) <= fresh + 4 * (CHUNK + 2 * 4096), edit
            old.seek(0)
            assert old.read() == before
        assert (dst / "large").stat().st_ino != inode
        assert_same(src, dst)


def test_a_sparse_file_that_changed_keeps_its_holes(work: Path, dice: random.Random) -> None:
    src, dst = work / "src", work / "dst"
    src.mkdir()
    with (src / "image").open("wb") as file:
        file.truncate(64 * MIB)
        for start in (0, 10, 40):
            file.seek(start * MIB)
            file.write(dice.randbytes(MIB))
    sync(src, dst)
    with (src / "image").open("r+b") as file:
        file.seek(10 * MIB + 5000)
        file.write(b"changed")
        file.seek(20 * MIB)
        file.write(b"new")
    assert again(src, dst) <= 3 * CHUNK
    assert_same(src, dst)
    assert (dst / "image").stat().st_blocks * 512 < 8 * MIB


def test_a_destination_that_others_filled_is_used(work: Path, src: Path) -> None:
    dst = work / "dst"
    shutil.copytree(src, dst, symlinks=True)  # contents, modes and times, as 'rsync -a'
    inode = (dst / "large").stat().st_ino
    assert again(src, dst) == 0
    assert (dst / "large").stat().st_ino == inode
    assert_same(src, dst)


def test_what_only_looks_the_same_is_sent(work: Path, src: Path, dice: random.Random) -> None:
    dst = work / "dst"
    shutil.copytree(src, dst, symlinks=True)  # contents, modes and times, as 'rsync -a'
    st = (src / "large").stat()
    (dst / "large").write_bytes(dice.randbytes(3 * MIB))
    os.utime(dst / "large", ns=(st.st_atime_ns, st.st_mtime_ns))
    assert again(src, dst) == 3 * MIB
    assert_same(src, dst)


def test_checksum_finds_what_times_and_sizes_hide(work: Path, src: Path) -> None:
    dst = work / "dst"
    sync(src, dst)
    large, st = src / "large", (src / "large").stat()
    data = bytearray(large.read_bytes())
    data[MIB] ^= 1
    large.write_bytes(data)
    os.utime(large, ns=(st.st_atime_ns, st.st_mtime_ns))
    (src / "new").write_text("new")
    assert again(src, dst) == 3
    assert again(src, dst, "--checksum") == 3 * MIB
    assert_same(src, dst)


def test_a_known_file_that_rotted_is_not_trusted_as_a_source(work: Path, src: Path) -> None:
    """Its fingerprint says that it is as it was; its bytes say otherwise when they are used."""
    dst = work / "dst"
    sync(src, dst)
    flip_unnoticed(dst, "large")
    (src / "large").rename(src / "elsewhere")
    assert again(src, dst) == 3 * MIB
    drop(dst, "large")
    assert_same(src, dst)


@pytest.mark.parametrize("options", [(), ("--delete",), ("--checksum",)])
def test_an_older_version_that_rotted_is_believed_once(
    work: Path, src: Path, options: tuple[str, ...]
) -> None:
    """The new version would be wrong: the commit sees it, and the same run makes it good."""
    dst = work / "dst"
    sync(src, dst)
    for number in range(2):  # the chunks are remembered from here on
        flip_unnoticed(dst, "large", first=number > 0)
        overwrite(src / "large", MIB, b"number %d" % number)
        (src / f"new{number}").write_bytes(b"new")
        (src / f"folder/small{number}").unlink()
        result = run("sync", src, dst, *options, "--json")
        summary = transfer_summary(result)
        assert summary["state"] == "complete"
        assert ("remembered" in result.message) == (number > 0 and options != ("--checksum",))
        if options != ("--delete",):
            drop(dst, f"folder/small{number}")
            os.utime(dst / "folder", ns=stamp(src / "folder"))
        assert_same(src, dst)
        assert again(src, dst) == 0


def test_chunks_of_an_older_version_that_was_just_read_are_believed_once(
    work: Path, src: Path
) -> None:
    """The copy of it is not what it was copied from: the commit sees that, and all is mended."""
    dst, db = work / "dst", work / "db"
    with Proxy(dst) as proxy:
        sync(src, proxy.url)
        overwrite(src / "large", MIB, b"new")
        transfer = index(src, db, "--hash", "none")["id"]
        ask(proxy, "PUT", f"{transfer}/db", frame(db))
        status = ask(proxy, "POST", f"{transfer}/plan", b'{"block_size": 4096, "ask": true}')
        assert (status["state"], status["questions"]) == ("open", 1)
        overwrite(laid_aside(dst / ".tar_like/transfers" / transfer / "stage"), 2 * MIB, b"rotten")
        result = run("upload", "-b", src, "-db", db, "-u", proxy.url, "--json")
        assert "remembered" in result.message
        assert transfer_summary(result)["bytes_sent"] < 8 * CHUNK
        assert_same(src, dst)
        assert again(src, proxy.url) == 0


def test_a_proxy_remembers_the_chunks_of_what_it_has_just_got(work: Path, src: Path) -> None:
    dst = work / "dst"

    def lists() -> set[str]:
        return {one.name.partition(".")[0] for one in dst.glob(".tar_like/chunks/*[0-9]")}

    def large() -> set[str]:
        files = (one for one in src.rglob("*") if one.is_file() and one.stat().st_size >= MIB)
        return {blake3(one.read_bytes()).hexdigest() for one in files}

    with Proxy(dst) as proxy:
        sync(src, proxy.url)
        before = large()
        wait_for("the lists", lambda: lists() == before)
        overwrite(src / "large", MIB, b"changed")
        assert sync(src, proxy.url, "--delete")["bytes_sent"] < 4 * CHUNK
        assert_same(src, dst)
        assert lists() == large() != before


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def stamp(path: Path) -> tuple[int, int]:
    st = path.stat()
    return st.st_atime_ns, st.st_mtime_ns


def test_a_copy_of_an_older_version_that_was_not_finished_is_not_used(
    work: Path, src: Path
) -> None:
    """Planning was killed while it copied, or the older version has changed since it was copied."""
    dst, db = work / "dst", work / "db"
    with Proxy(dst) as proxy:
        sync(src, proxy.url)
        for number in range(3):
            overwrite(src / "large", MIB, b"number %d" % number)
            transfer = index(src, db, "--hash", "none")["id"]
            ask(proxy, "PUT", f"{transfer}/db", frame(db))
            status = ask(proxy, "POST", f"{transfer}/plan", b'{"block_size": 4096, "ask": true}')
            assert (status["state"], status["questions"]) == ("open", 1)
            stage = dst / ".tar_like/transfers" / transfer / "stage"
            copy = laid_aside(stage)
            match number:
                case 0:  # of another version
                    copy.rename(copy.with_name(copy.name[:-1] + "?"))
                    copy.with_name(copy.name[:-1] + "?").write_bytes(bytes(3 * MIB))
                case 1:  # not finished
                    copy.rename(copy.with_name(copy.name.partition(".")[0])).write_bytes(b"")
                case 2:
                    pass
            assert upload(src, db, proxy.url)["bytes_sent"] < 4 * CHUNK
            assert_same(src, dst)


def test_a_known_file_that_was_touched_is_still_a_source(work: Path, src: Path) -> None:
    dst = work / "dst"
    sync(src, dst)
    os.link(dst / "large", dst / "another name")  # changes its ctime
    (src / "large").rename(src / "elsewhere")
    assert again(src, dst, "--delete") == 0
    assert_same(src, dst)


def laid_aside(stage: Path) -> Path:
    (copy,) = wait_for("a copy that is laid aside", lambda: list(stage.glob("*/*.at-*")))
    return copy


def flip_unnoticed(dst: Path, name: str, *, first: bool = False) -> None:
    """Change a byte of a file, and have the ledger believe that this is how it was."""
    path = dst / name
    st = path.stat()
    data = bytearray(path.read_bytes())
    data[0 if first else -1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
    with sqlite3.connect(dst / ".tar_like/ledger.db") as db:
        query = "UPDATE landed SET ctime = ? WHERE entry_id = (SELECT id FROM entry WHERE path = ?)"
        db.execute(query, (path.stat().st_ctime_ns, os.fsencode(name)))
    db.close()


def edit(src: Path, dice: random.Random) -> None:
    """A percent of a large tree: written anew, gone, new, renamed, and with other modes."""
    files = sorted(path for path in src.rglob("*") if path.is_file())
    for path in dice.sample(files, len(files) // 50):
        what = dice.randrange(5)
        if what == 0:
            path.unlink()
        elif what == 1:
            path.with_name(f"new-{dice.randrange(1 << 30):x}").write_bytes(dice.randbytes(50))
        elif what == 2:
            path.rename(path.with_name(f"other-{dice.randrange(1 << 30):x}"))
        elif what == 3:
            path.chmod(dice.choice((0o600, 0o640, 0o644)))
        else:
            path.write_bytes(dice.randbytes(dice.randrange(1, 3000)))


def assert_true_ledger(dst: Path) -> None:
    """What the ledger says of a file is so: its content, and all of its fingerprint."""
    with sqlite3.connect(dst / ".tar_like/ledger.db") as db:
        query = "SELECT path, digest, l.ino, l.ctime, size, mtime FROM entry JOIN landed l"
        rows = db.execute(f"{query} ON id = entry_id").fetchall()
    db.close()
    assert len(rows) == len(visible_files(dst))
    for path, digest, *known in rows:
        file = dst / os.fsdecode(path)
        st = file.lstat()
        assert known == [st.st_ino, st.st_ctime_ns, st.st_size, st.st_mtime_ns], path
        assert digest == blake3(file.read_bytes()).digest(), path


def test_a_large_tree_whose_commit_is_killed_again_and_again(
    work: Path, dice: random.Random
) -> None:
    src, dst = work / "src", work / "dst"
    folder = dst / ".tar_like/transfers"
    for number in range(100):
        (src / f"{number // 10}/{number}").mkdir(parents=True)
        for name in range(30):
            data = dice.randbytes(dice.choice((0, 10, 1000)))
            (src / f"{number // 10}/{number}/file{name}").write_bytes(data)
    sync(src, dst)
    for _ in range(4):
        edit(src, dice)
        touched = dice.choice([path for path in dst.rglob("file*") if path.is_file()])
        touched.write_bytes(b"by somebody else")
        with Proxy(dst) as proxy, Job("sync", src, proxy.url, "--delete") as job:
            wait_for("a commit", lambda: list(folder.glob("*/verified.db")) or job.ended())
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(dice.uniform(0, 0.3))
            proxy.kill()
            job.kill()
        sync(src, dst, "--delete")
        assert_same(src, dst)
        assert_true_ledger(dst)


def test_a_sender_that_dies_while_it_answers_is_followed_by_another(work: Path, src: Path) -> None:
    """The questions stay; whoever comes next answers them, or has everything sent."""
    dst = work / "dst"
    db = work / "db"
    with Proxy(dst) as proxy:
        sync(src, proxy.url)
        (src / "folder").rename(src / "renamed")
        transfer = index(src, db, "--hash", "none")["id"]
        ask(proxy, "PUT", f"{transfer}/db", frame(db))
        status = ask(proxy, "POST", f"{transfer}/plan", b'{"block_size": 4096, "ask": true}')
        assert (status["state"], status["questions"]) == ("open", 22)
        assert ask(proxy, "GET", transfer)["questions"] == 22
        assert upload(src, db, proxy.url)["bytes_sent"] == 0
        (src / "renamed").rename(src / "again")
        transfer = index(src, db, "--hash", "none")["id"]
        ask(proxy, "PUT", f"{transfer}/db", frame(db))
        ask(proxy, "POST", f"{transfer}/plan", b'{"block_size": 4096, "ask": true}')
        status = ask(proxy, "POST", f"{transfer}/plan", b'{"block_size": 4096}')
        assert status["state"] == "receiving"
        assert status["bytes"] > 6 * MIB
        assert upload(src, db, proxy.url)["bytes_sent"] == status["bytes"]


def frame(path: Path) -> bytes:
    return bytes(lz4.frame.compress(path.read_bytes()))


def ask(proxy: Proxy, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    code, _, answer = request(method, f"{proxy.url}/{path}", body)
    assert code < 300, answer
    found: dict[str, Any] = json.loads(answer)
    return found
