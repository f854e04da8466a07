"""Content in DEST that no commit put there is found wherever it lies, and is not sent."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import Proxy, index, run, sync, transfer_summary, upload, wait_for
from tests.e2e.test_again import ask, frame, plant
from tests.trees import assert_same, stamps

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def src(work: Path, dice: random.Random) -> Path:
    src = plant(work / "src", dice, 40)
    (src / "folder/deep/link").symlink_to("two")
    return src


@pytest.fixture
def dst(work: Path, src: Path) -> Path:
    """What rsync copied there before anybody knew of tar-like."""
    subprocess.run(["rsync", "-aHAX", f"{src}/", f"{work}/dst/"], check=True)
    return work / "dst"


def move_about(src: Path) -> None:
    """Renamed, moved and copied; not a byte is new."""
    (src / "folder").rename(src / "renamed")
    (src / "large").rename(src / "renamed/deep/large")
    shutil.copy(src / "renamed/one", src / "copy of one")
    shutil.copy2(src / "renamed/small3", src / "copy of small3")
    (src / "renamed/small7").rename(src / "renamed/deep/small-7")


@pytest.mark.parametrize("flags", [(), ("--checksum",), ("--compress", "lz4"), ("-s", "4096")])
def test_a_destination_that_rsync_filled_is_used_wherever_its_files_lie(
    src: Path, dst: Path, flags: tuple[str, ...]
) -> None:
    move_about(src)
    before = stamps(dst / "folder")
    assert sync(src, dst, *flags)["bytes_sent"] == 0
    assert stamps(dst / "folder") == before
    assert sync(src, dst, "--delete", *flags)["bytes_sent"] == 0
    assert_same(src, dst)


def test_at_a_proxy_what_is_deleted_is_used_first(src: Path, dst: Path) -> None:
    move_about(src)
    with Proxy(dst) as proxy:
        summary = sync(src, proxy.url, "--delete")
        assert (summary["bytes_sent"], summary["blocks_sent"]) == (0, 0)
        assert 0 < summary["wire_bytes"] < 100_000
    assert_same(src, dst)


@pytest.mark.parametrize("hashed", ["blake3", "sha256"])
def test_with_hashes_in_the_index_nothing_is_asked(
    work: Path, src: Path, dst: Path, hashed: str
) -> None:
    move_about(src)
    index(src, work / "db", "--hash", hashed)
    with Proxy(dst) as proxy:
        result = run("upload", "-b", src, "-db", work / "db", "-u", proxy.url, "--json")
        assert transfer_summary(result)["bytes_sent"] == 0
        assert "Looking at" not in result.message
    assert sync(src, dst, "--delete")["bytes_sent"] == 0
    assert_same(src, dst)


def test_a_sender_that_answers_nothing_sends_everything(work: Path, src: Path, dst: Path) -> None:
    move_about(src)
    transfer = index(src, work / "db", "--hash", "none")["id"]
    with Proxy(dst) as proxy:
        ask(proxy, "PUT", f"{transfer}/db", frame(work / "db"))
        status = ask(proxy, "POST", f"{transfer}/plan", b'{"block_size": 4096}')
        total = sum(path.stat().st_size for path in src.rglob("*") if path.is_file())
        assert status["bytes"] > total - 4 * MIB  # but the link's
        assert upload(src, work / "db", proxy.url)["bytes_sent"] == status["bytes"]


@pytest.mark.parametrize("flags", [("--delete",), ("--delete", "-X"), ("--delete", "--checksum")])
def test_what_was_moved_by_hand_since_the_last_commit_is_found(
    work: Path, src: Path, flags: tuple[str, ...]
) -> None:
    """With a look taken beside the scan (it saw what was moved), and where none is taken."""
    dst = work / "dst"
    for where in ("folder", "proxy"):
        shutil.rmtree(dst, ignore_errors=True)
        sync(src, dst, *flags)
        (dst / "folder").rename(dst / "elsewhere")
        (dst / "elsewhere/one").rename(dst / "elsewhere/deep/uno")
        (dst / "large").rename(dst / "elsewhere/large")
        if where == "folder":
            assert sync(src, dst, *flags)["bytes_sent"] == 0
        else:
            with Proxy(dst) as proxy:
                assert sync(src, proxy.url, *flags)["bytes_sent"] == 0
        assert_same(src, dst)


def test_files_that_changed_places_are_found(work: Path, src: Path) -> None:
    dst = work / "dst"
    sync(src, dst)
    for a, b in (("large", "folder/one"), ("folder/small20", "folder/small20")):
        (dst / a).rename(dst / "between")
        (dst / b).rename(dst / a) if a != b else None
        (dst / "between").rename(dst / b)
    assert sync(src, dst, "--delete")["bytes_sent"] == 0
    assert_same(src, dst)


def test_what_a_backup_holds_is_found(work: Path, src: Path) -> None:
    dst = work / "dst"
    sync(src, dst)
    shutil.move(src / "folder", work / "aside")
    sync(src, dst, "--delete", "--backup-dir", "old")
    shutil.move(work / "aside", src / "folder")
    summary = sync(src, dst, "--delete", "--backup-dir", "old")
    assert summary["bytes_sent"] == 0
    assert_same(src / "folder", dst / "folder")


def test_of_a_snapshot_too(work: Path, src: Path) -> None:
    dst = work / "dst"
    sync(src, dst, "--snapshot", "one")
    (dst / "one/folder").rename(dst / "one/elsewhere")
    (src / "more").write_text("more")
    assert sync(src, dst, "--snapshot", "two")["bytes_sent"] == 4
    assert_same(src / "folder", dst / "two/folder")


def test_a_dry_run_knows(src: Path, dst: Path) -> None:
    move_about(src)
    (src / "new").write_bytes(b"new")
    before = stamps(dst)
    said = run("sync", src, dst, "--delete", "--dry-run", "--json").summary
    assert (said["bytes_to_send"], [one["path"] for one in said["send"]]) == (3, ["new"])
    assert {"renamed/one", "renamed/small5", "copy of one", "renamed/deep/large"} <= {
        *said["local"]
    }
    assert stamps(dst) == before
    assert sync(src, dst, "--delete")["bytes_sent"] == 3
    assert_same(src, dst)


def test_what_changes_while_it_is_planned_is_sent(
    work: Path, src: Path, dst: Path, dice: random.Random
) -> None:
    """Strays that were read already are written to, replaced and removed before they are copied."""
    move_about(src)
    transfer = index(src, work / "db", "--hash", "none")["id"]
    with Proxy(dst) as proxy:
        ask(proxy, "PUT", f"{transfer}/db", frame(work / "db"))
        status = ask(proxy, "POST", f"{transfer}/plan", b'{"block_size": 4096, "ask": true}')
        assert status["questions"] > 0
        read = dst / ".tar_like/transfers" / transfer / "strays.db"
        wait_for("strays to be read", read.exists)
        st = (dst / "large").stat()
        (dst / "large").write_bytes(dice.randbytes(3 * MIB))
        os.utime(dst / "large", ns=(st.st_atime_ns, st.st_mtime_ns))
        (dst / "folder/deep/two").unlink()
        (dst / "folder/deep/two").symlink_to(src / "renamed/deep/two")
        (dst / "folder/small39").unlink()
        summary = upload(src, work / "db", proxy.url)
        assert summary["bytes_sent"] == 2 * 3 * MIB + 1 + 300 * 39
    assert (dst / "renamed/deep/large").read_bytes() == (src / "renamed/deep/large").read_bytes()
    sync(src, dst, "--delete")
    assert_same(src, dst)


def test_what_lies_outside_is_not_used(work: Path, dice: random.Random) -> None:
    """Symlinks lead out to the very content; FIFOs and unreadable names have its name."""
    src, dst, outside = work / "src", work / "dst", work / "outside"
    for folder in (src, dst, outside / "folder"):
        folder.mkdir(parents=True)
    for name in ("one", "two", "three"):
        (src / name).write_bytes(dice.randbytes(50_000))
        shutil.copy2(src / name, outside / "folder" / name)
    (dst / "a folder").symlink_to(outside / "folder")
    (dst / "a file").symlink_to(outside / "folder/one")
    os.mkfifo(dst / "two")
    (dst / ".tar_like").mkdir(mode=0o700)
    shutil.copy2(src / "three", dst / ".tar_like/three")
    (dst / "a loop").symlink_to(".")
    (dst / "closed").mkdir()
    (dst / "closed/one").write_bytes(dice.randbytes(50_000))
    (dst / "closed").chmod(0)
    try:
        assert sync(src, dst)["bytes_sent"] == 150_000
    finally:
        (dst / "closed").chmod(0o700)
    assert (dst / "two").read_bytes() == (src / "two").read_bytes()
    assert (outside / "folder/one").read_bytes() == (src / "one").read_bytes()


def test_only_what_looks_the_same_is_read_and_what_differs_is_sent(
    work: Path, dice: random.Random
) -> None:
    src, dst = work / "src", work / "dst"
    src.mkdir()
    dst.mkdir()
    for number in range(30):
        (src / f"new{number}").write_bytes(dice.randbytes(10_000))
        (dst / f"old{number}").write_bytes(dice.randbytes(10_000))
    shutil.copy(src / "new7", dst / "old7")
    assert sync(src, dst, "--delete")["bytes_sent"] == 29 * 10_000
    assert_same(src, dst)


def test_names_of_one_file_and_files_with_holes_are_found(work: Path, dice: random.Random) -> None:
    src, dst = work / "src", work / "dst"
    (src / "folder").mkdir(parents=True)
    with (src / "folder/image").open("wb") as file:
        file.truncate(20 * MIB)
        file.seek(7 * MIB)
        file.write(dice.randbytes(MIB))
    os.link(src / "folder/image", src / "folder/name")
    subprocess.run(["rsync", "-aHS", f"{src}/", f"{dst}/"], check=True)
    (src / "folder").rename(src / "renamed")
    assert sync(src, dst, "--delete")["bytes_sent"] == 0
    assert_same(src, dst)
    assert (dst / "renamed/image").stat().st_blocks * 512 < 3 * MIB
