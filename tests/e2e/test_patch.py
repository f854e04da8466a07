"""Only what differs is offered, and the ledger is what a whole offer would have made it."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tar_like.cli import main
from tar_like.index import Index, validate
from tar_like.proxy.ledger import version_of
from tar_like.proxy.sights import Remembered
from tar_like.upload.patch import Patching
from tests.e2e.harness import Job, Proxy, index, run, sync, wait_for
from tests.e2e.test_edits import EDITS, Edited
from tests.trees import assert_same, tick

TREE = "id, path, kind, size, mode, mtime, uid, gid, target, link"
NO_LINKS = sorted(EDITS.keys() - {"link"})


def was_patched(dst: Path) -> bool:
    """Whether the last commit was that of a patch."""
    return bool(ask(dst / ".tar_like/ledger.db", "SELECT 1 FROM meta WHERE key = 'offsets'"))


def ask(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def assert_ledger(src: Path, dst: Path, work: Path) -> None:
    """The ledger is that of this tree, and knows what is in its place."""
    fresh, ledger = work / "fresh.db", dst / ".tar_like/ledger.db"
    fresh.unlink(missing_ok=True)
    index(src, fresh, "--hash", "none")
    rows = f"SELECT {TREE} FROM entry ORDER BY id"
    assert ask(ledger, rows) == ask(fresh, rows)
    segments = "SELECT entry_id, start, stop FROM segment ORDER BY 1, 2"
    assert ask(ledger, segments) == ask(fresh, segments)
    meta = "SELECT key, value FROM meta WHERE key IN ('id', 'entries', 'files', 'bytes') ORDER BY 1"
    assert ask(ledger, meta) == ask(fresh, meta)
    leaves: list[tuple[Any, ...]] = []
    with Index(str(fresh)) as one:
        validate(str(fresh), one.id, lambda *leaf: leaves.append(leaf))
    known = "SELECT directory, first, names, digest FROM leaf ORDER BY number"
    assert ask(ledger, known) == leaves
    landed = ask(
        ledger, "SELECT path, digest, l.ino, l.ctime FROM entry JOIN landed l ON id = entry_id"
    )
    assert {path for path, *_ in landed} == {
        path for path, kind in ask(ledger, "SELECT path, kind FROM entry") if kind == "f"
    }
    for path, digest, ino, ctime in landed:
        file = dst / os.fsdecode(path)
        st = file.stat()
        assert (ino, ctime) == (st.st_ino, st.st_ctime_ns)
        assert digest == blake3(file.read_bytes()).digest()


@pytest.fixture
def tree(work: Path, dice: random.Random) -> Edited:
    (work / "src").mkdir()
    return Edited(work / "src", dice)


def test_after_any_edits_the_ledger_is_that_of_a_whole_offer(
    work: Path, tree: Edited, dice: random.Random
) -> None:
    dst = work / "dst"
    with Proxy(dst) as proxy:
        sync(tree.root, proxy.url)
        for _ in range(6):
            for _ in range(dice.randrange(1, 6)):
                EDITS[dice.choice(NO_LINKS)](tree)
            sync(tree.root, proxy.url, "--delete")
            assert was_patched(dst)
            assert_same(tree.root, dst, xattrs=True)
            assert_ledger(tree.root, dst, work)


def test_hard_links_are_offered_whole(work: Path, tree: Edited) -> None:
    dst = work / "dst"
    sync(tree.root, dst)
    tree.link()
    sync(tree.root, dst)
    assert not was_patched(dst)
    tree.create()
    sync(tree.root, dst)
    assert not was_patched(dst)
    assert_same(tree.root, dst)


def test_what_a_patch_takes_on_the_wire_is_in_proportion_to_what_changed(
    work: Path, dice: random.Random
) -> None:
    src, dst = work / "src", work / "dst"
    for folder in range(100):
        (src / f"{folder:03}").mkdir(parents=True)
        for number in range(20):
            (src / f"{folder:03}/file {number}").write_bytes(dice.randbytes(10))
    sync(src, dst)
    (src / "007/file 7").write_bytes(b"changed")
    (src / "050/new").write_bytes(b"new")
    (src / "099/file 9").unlink()
    summary = sync(src, dst, "--delete")
    assert was_patched(dst)
    assert summary["wire_bytes"] < 15_000  # 2,100 entries; the index has 150,000
    assert (summary["entries"], summary["deleted"]) == (2101, 1)
    assert_same(src, dst)
    assert_ledger(src, dst, work)
    assert sync(src, dst, "--delete")["blocks_sent"] == 0


def test_leaves_that_were_taken_for_what_they_are_not_are_given_whole(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was changed, of times that it had not later than others."""
    src, dst = work / "src", work / "dst"
    src.mkdir()
    for number in range(8):
        (src / f"{number}").write_bytes(b"before")
    with Proxy(dst) as proxy:
        sync(src, proxy.url)
        (src / "3").write_bytes(b"changed")
        os.utime(src / "3", ns=(5, 5))
        tick(work)
        (src / "5").write_bytes(b"changed later")
        os.utime(src / "5", ns=(5, 5))
        with closing(sqlite3.connect(dst / ".tar_like/ledger.db")) as db, db:
            later = (src / "5").stat().st_ctime_ns
            db.execute("UPDATE meta SET value = ? WHERE key = 'changed'", (later,))
        offered = list[set[int]]()
        offer = Patching._offer

        def noted(patching: Patching, *rest: Any) -> Any:
            offered.append(rest[-1])
            return offer(patching, *rest)

        monkeypatch.setattr(Patching, "_offer", noted)
        assert main(["sync", "-q", str(src), proxy.url, "--delete"]) == 0
    assert offered == [{0}, set()]
    assert was_patched(dst)
    assert_same(src, dst)
    assert_ledger(src, dst, work)


def test_what_is_told_unasked_is_not_asked_and_not_sent(work: Path, dice: random.Random) -> None:
    """New names for what the receiver has: of their size, but of no time that it knows."""
    src, dst = work / "src", work / "dst"
    src.mkdir()
    for number in range(30):
        (src / f"old {number}").write_bytes(dice.randbytes(5000 + number))
    with Proxy(dst) as proxy:
        sync(src, proxy.url)
        for number in range(10):
            (src / f"copy {number}").write_bytes((src / f"old {number}").read_bytes())
        (src / "other").write_bytes(dice.randbytes(5003))
        (src / "empty").touch()
        argv = "sync", src, proxy.url, "--delete", "--json"
        done = run(*argv)
        assert b"Looking at what" not in done.err
        assert was_patched(dst)
        assert_same(src, dst)
        assert_ledger(src, dst, work)
        assert done.summary["bytes_sent"] == 5003
        # What is as old as the rest is asked about, as before.
        (src / "moved").write_bytes((src / "old 1").read_bytes())
        os.utime(src / "moved", ns=(5, 5))
        done = run(*argv)
        assert b"Looking at what" in done.err
        assert done.summary["bytes_sent"] == 0
        assert_same(src, dst)


def test_more_than_a_patch_may_have_is_offered_whole(work: Path, dice: random.Random) -> None:
    src, dst = work / "src", work / "dst"
    for folder in range(24):
        (src / f"{folder}").mkdir(parents=True)
        for number in range(50):
            (src / f"{folder}/{number}").write_bytes(b"old")
    sync(src, dst)
    for folder in range(21):
        (src / f"{folder}/7").write_bytes(b"new one")
    sync(src, dst)
    assert not was_patched(dst)
    assert_same(src, dst)


@pytest.mark.parametrize("spoil", ["touched", "extra", "gone"])
def test_nothing_is_a_difference_to_what_others_have_changed(
    work: Path, tree: Edited, spoil: str
) -> None:
    dst = work / "dst"
    sync(tree.root, dst)
    if spoil == "touched":
        (dst / "a/new").write_bytes(b"")
        sync(tree.root, dst, "--delete")
        victim = next(one for one in sorted(dst.rglob("file*")) if one.stat().st_size)
        victim.write_bytes(b"others")
    elif spoil == "extra":
        (dst / "a/extra").write_bytes(b"")
    else:
        next(iter(sorted(dst.rglob("file*")))).unlink()
    tree.create()
    sync(tree.root, dst, "--delete")
    assert not was_patched(dst)
    assert_same(tree.root, dst)


def test_the_tree_of_a_patch_can_be_offered_again(work: Path, tree: Edited) -> None:
    """From the ledger, whose offsets were not kept: where others have touched what it left."""
    dst = work / "dst"
    sync(tree.root, dst)
    tree.create()
    tree.append()
    sync(tree.root, dst)
    assert was_patched(dst)
    victim = next(one for one in sorted(dst.rglob("file*")) if one.stat().st_size)
    victim.write_bytes(b"others")
    sync(tree.root, dst)
    assert_same(tree.root, dst)
    assert not was_patched(dst)
    assert_ledger(tree.root, dst, work)


def test_names_stay_where_nothing_is_deleted(work: Path, tree: Edited) -> None:
    dst = work / "dst"
    sync(tree.root, dst)
    gone = next(iter(tree.files())).relative_to(tree.root)
    (tree.root / gone).unlink()
    sync(tree.root, dst)
    assert was_patched(dst)
    assert (dst / gone).exists()
    (dst / gone).unlink()
    os.utime((dst / gone).parent, ns=(1, (tree.root / gone).parent.stat().st_mtime_ns))
    assert_same(tree.root, dst)


@contextmanager
def held_up(tree: Edited, proxy: Proxy, dst: Path) -> Iterator[Path]:
    """A sync that stands still once its patch is planned; then it goes on and must end well.

    Gives the folder of the patch's transfer.
    """
    with Job("sync", tree.root, proxy.url, "--delete", "--limit", "6M") as job:
        plans = dst / ".tar_like/transfers"
        plan, *_ = wait_for("the plan of the patch", lambda: [*plans.glob("*/plan.db")])
        job.freeze()
        yield plan.parent
        job.thaw()
        job.end().verify(0)


def test_a_patch_that_comes_late_is_offered_whole(
    work: Path, tree: Edited, dice: random.Random
) -> None:
    """Another tree is committed between a patch and its commit."""
    other, dst = Edited(made(work / "other"), dice), work / "dst"
    with Proxy(dst) as proxy:
        sync(tree.root, proxy.url)
        (tree.root / "large").write_bytes(dice.randbytes(6 << 20))
        with held_up(tree, proxy, dst):
            sync(other.root, proxy.url, "--delete")
        assert_same(tree.root, dst)
        assert_ledger(tree.root, dst, work)


def test_a_patch_whose_sender_was_killed_goes_on(
    work: Path, tree: Edited, dice: random.Random
) -> None:
    dst = work / "dst"
    with Proxy(dst) as proxy:
        sync(tree.root, proxy.url)
        (tree.root / "large").write_bytes(dice.randbytes(8 << 20))
        with Job("sync", tree.root, proxy.url, "--delete", "--limit", "4M", "-s", "1M") as job:
            stage = dst / ".tar_like/transfers"
            wait_for(
                "a third of it",
                lambda: sum(one.stat().st_blocks for one in stage.glob("*/stage/**/*")) > 6 << 10,
            )
            job.kill()
        assert sync(tree.root, proxy.url, "--delete")["bytes_sent"] < 7 << 20
        assert was_patched(dst)
        assert_same(tree.root, dst)
        assert_ledger(tree.root, dst, work)


def test_a_patch_that_the_disk_changed_is_given_up(
    work: Path, tree: Edited, dice: random.Random
) -> None:
    dst = work / "dst"
    with Proxy(dst) as proxy:
        sync(tree.root, proxy.url)
        (tree.root / "large").write_bytes(dice.randbytes(6 << 20))
        with held_up(tree, proxy, dst) as transfer, (transfer / "patch.db").open("r+b") as file:
            os.pwrite(file.fileno(), b"\x01", os.fstat(file.fileno()).st_size - 1)
        assert not was_patched(dst)
        assert_same(tree.root, dst)
        assert_ledger(tree.root, dst, work)


def made(path: Path) -> Path:
    path.mkdir()
    return path


def test_json_is_of_the_whole_tree(work: Path, tree: Edited) -> None:
    dst = work / "dst"
    sync(tree.root, dst)
    tree.touch()
    summary = sync(tree.root, dst)
    assert was_patched(dst)
    assert (
        summary["transfer"]
        == ask(dst / ".tar_like/ledger.db", "SELECT value FROM meta WHERE key = 'id'")[0][0]
    )
    assert run("sync", tree.root, dst).message.startswith("tar-like: ")


def sights(dst: Path) -> bool:
    """Whether anything is remembered of the last commit's tree."""
    ledger, path = dst / ".tar_like/ledger.db", dst / ".tar_like/looks/sights"
    remembered = Remembered(str(path), version_of(str(ledger)))
    remembered.close()
    return remembered.usable


@pytest.mark.parametrize("lasting", [True, False])
def test_what_was_seen_is_remembered_for_the_next_run(
    work: Path, tree: Edited, lasting: bool
) -> None:
    """Of a receiver that lasts also after its first commit, when nobody waits for that."""
    dst = work / "dst"
    with Proxy(dst) if lasting else nullcontext() as proxy:
        target = proxy.url if proxy is not None else dst
        sync(tree.root, target)
        if lasting:
            wait_for("what is learned", lambda: sights(dst))
        assert sights(dst) == lasting
        sync(tree.root, target)
        assert sights(dst)
        tree.create()
        sync(tree.root, target, "--delete")
        assert was_patched(dst)
        wait_for("what is carried over", lambda: sights(dst))
    assert_same(tree.root, dst, xattrs=True)


@pytest.mark.parametrize("becomes", ["file", "symlink", "nothing"])
def test_what_lies_elsewhere_by_the_same_names_stays(work: Path, becomes: str) -> None:
    """A directory is gone before its names are: they are looked for nowhere else."""
    src, dst = work / "src", work / "dst"
    for path in ("a/c/x", "a/c/y", "a/e/k", "a/e/z", "c/x", "c/y", "e/z"):
        (src / path).parent.mkdir(parents=True, exist_ok=True)
        (src / path).write_bytes(path.encode())
    with Proxy(dst) as proxy:
        sync(src, proxy.url)
        for path in ("a/c/x", "a/c/y", "a/e/z"):
            (src / path).unlink()
        (src / "a/c").rmdir()
        if becomes == "file":
            (src / "a/c").write_bytes(b"now a file")
        elif becomes == "symlink":
            (src / "a/c").symlink_to("e")
        summary = sync(src, proxy.url, "--delete")
    assert was_patched(dst)
    assert_same(src, dst)
    assert summary["deleted"] == (4 if becomes == "nothing" else 3)
