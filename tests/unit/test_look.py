"""A look at the destination: what it sees, and what it lets a sender do without."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tar_like.database import connect
from tar_like.errors import NotFound
from tar_like.index import BuildOptions, Recorded, build_index, validate
from tar_like.index.schema import VERSION
from tar_like.proxy.look import Seen, begin, last_index, read_look, run_look
from tar_like.proxy.place import Destination, held
from tar_like.proxy.planning import Planning, Wish
from tar_like.proxy.transfers import Transfers
from tar_like.rules import Rules
from tar_like.source import Wanted
from tar_like.source.folder import FolderSource
from tests import trees
from tests.unit.receiver import Former, Job, sync

TOKEN = "0123456789abcdef"


@pytest.fixture
def source(work: Path) -> Path:
    source = work / "src"
    (source / "d/e").mkdir(parents=True)
    (source / "d/e/file").write_text("file")
    (source / "d/after").write_text("after")
    (source / "d.txt").write_text("text")
    (source / "link").symlink_to("d/e")
    os.link(source / "d.txt", source / "d/name")
    return source


@pytest.fixture
def dest(work: Path, source: Path) -> Path:
    assert sync(source, work / "dst", algorithm="none") == {}
    return work / "dst"


def look(dest: Path) -> Seen:
    destination = Destination(str(dest))
    run_look(destination, TOKEN)
    seen = read_look(destination, TOKEN)
    assert seen is not None
    return seen


def move(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.with_name("other").rename(path)


def redirect(path: Path) -> None:
    st = path.lstat()
    path.unlink()
    path.symlink_to("elsewhere")
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


TOUCHES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "bytes": ("d/e/file", lambda path: path.write_text("FILE")),
    "mode": ("d/e/file", lambda path: path.chmod(0o600)),
    "time": ("d/after", lambda path: os.utime(path, ns=(1, 1))),
    "gone": ("d/after", Path.unlink),
    "folder's mode": ("d/e", lambda path: path.chmod(0o711)),
    "folder's time": ("d", lambda path: os.utime(path, ns=(1, 1))),
    "link's target": ("link", redirect),
    "further name": ("d/name", lambda path: (path.unlink(), path.write_text("text"))),
    "root": ("", lambda path: path.chmod(0o750)),
    "moved": ("d/e/file", move),
}


@pytest.mark.parametrize("touch", sorted(TOUCHES))
def test_what_was_touched_is_seen(source: Path, dest: Path, touch: str) -> None:
    index = last_index(Destination(str(dest)))
    assert look(dest) == Seen(index=index, ledger=look(dest).ledger, same=True, files=True)
    name, change = TOUCHES[touch]
    change(dest / name)
    assert not look(dest).same
    assert sync(source, dest, algorithm="none") == {}
    trees.assert_same(source, dest)
    assert look(dest).same


def test_a_name_more_is_seen(dest: Path) -> None:
    st = (dest / "d/e").stat()
    (dest / "d/e/more").write_text("")
    os.utime(dest / "d/e", ns=(st.st_atime_ns, st.st_mtime_ns))
    assert (look(dest).same, look(dest).extra) == (True, True)


def test_attributes_are_not_looked_at(source: Path, dest: Path) -> None:
    assert sync(source, dest, algorithm="none", xattrs=True) == {}
    assert not look(dest).same


class Looker:
    """Looks at once, in the process that asks."""

    def __init__(self, dest: Path) -> None:
        self.destination = Destination(str(dest))

    def commit(self, transfer_id: str, token: str) -> None:
        raise AssertionError("nothing is to be committed")

    def plan(self, transfer_id: str, token: str, wish: str) -> None:
        raise AssertionError("nothing is to be planned")

    def look(self, token: str) -> None:
        run_look(self.destination, token)


def test_the_last_tree_again(source: Path, dest: Path) -> None:
    transfers = Transfers(Destination(str(dest)), Looker(dest))
    begun = transfers.look()
    status = transfers.again(begun.tree, begun.token, Rules())
    assert (status.state, status.committed, status.bytes) == ("complete", 8, 0)
    with pytest.raises(NotFound):
        transfers.again("0" * 64, begun.token, Rules())
    with pytest.raises(NotFound):
        transfers.again("0" * 64, "no such token", Rules())
    (dest / "d/e/file").write_text("FILE")
    begun = transfers.look()
    status = transfers.again(begun.tree, begun.token, Rules())
    assert status.state == "open"
    assert transfers.look().tree == "", "a transfer is under way"
    assert transfers.get(begun.tree).negotiate(4096).bytes == 4
    transfers.close()


def test_what_was_seen_before_another_commit_is_no_answer(source: Path, dest: Path) -> None:
    transfers = Transfers(Destination(str(dest)), Looker(dest))
    begun = transfers.look()
    (source / "new").write_text("new")
    sync(source, dest, algorithm="none")
    (source / "new").unlink()
    with pytest.raises(NotFound):
        transfers.again(begun.tree, begun.token, Rules())


def changed(source: Path, dest: Path) -> set[str]:
    """Change both; returns the names that are to be sent."""
    (source / "aaa").write_text("new, before all others")
    (source / "d/e/another").write_text("new, in the middle")
    (source / "d.txt").write_text("longer than it was")
    (source / "d/more").write_text("new")
    (source / "link").unlink()
    os.utime(dest / "d/e/file", ns=(1, 1))
    return {"aaa", "d/e/another", "d/name", "d/more", "d/e/file"}  # the first name of d.txt's file


def planned(source: Path, dest: Path, token: str) -> set[str]:
    """The names that a plan sends which is made by a look."""
    job = Job(source, dest, algorithm="none", negotiate=False)
    with Planning(job.destination, job.id) as planning:
        planning.run(Wish(block_size=4096, look=token))
    with closing(job.transfer.plan()) as plan:
        return {piece.path.decode() for n in range(plan.block_count) for piece in plan.pieces(n)}


@pytest.mark.parametrize("token", ["", TOKEN, "../looks/x", "0" * 16])
def test_by_a_look_is_sent_what_would_be_without(source: Path, dest: Path, token: str) -> None:
    names = changed(source, dest)
    look(dest)
    assert planned(source, dest, token) == names
    assert sync(source, dest, algorithm="none") == {}
    (source / "aaa").unlink()
    (source / "d/after").unlink()
    look(dest)
    assert planned(source, dest, token) == set()
    assert sync(source, dest, algorithm="none") == {}
    assert look(dest).files


def test_what_is_touched_after_the_look_is_named(source: Path, dest: Path) -> None:
    (source / "new").write_text("new")
    look(dest)
    (dest / "d/after").write_text("AFTER")
    assert planned(source, dest, TOKEN) == {"new"}
    assert list(sync(source, dest, algorithm="none")) == ["d/after"]
    assert (dest / "d/after").read_text() == "AFTER"
    look(dest)
    assert planned(source, dest, TOKEN) == {"d/after"}


def test_a_look_at_what_another_commit_has_changed_is_not_believed(
    source: Path, dest: Path
) -> None:
    look(dest)
    (source / "new").write_text("new")
    sync(source, dest, algorithm="none")
    (dest / "d/after").write_text("AFTER")
    (source / "newer").write_text("newer")
    assert planned(source, dest, TOKEN) == {"newer", "d/after"}


def test_a_look_that_was_killed_is_none(source: Path, dest: Path) -> None:
    look(dest)
    (dest / f".tar_like/looks/{TOKEN}.json").unlink()
    assert planned(source, dest, TOKEN) == set()
    (source / "new").write_text("new")
    os.utime(dest / "d/after", ns=(1, 1))
    assert planned(source, dest, TOKEN) == {"new", "d/after"}


def test_nobody_waits_for_a_look_that_was_killed(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tar_like.proxy.transfers.WAIT", 0.05)
    monkeypatch.setattr(Looker, "look", lambda _, __: None)
    destination = Destination(str(dest))
    destination.prepare()
    receiver = Transfers(destination, Looker(dest))
    found = receiver.look()
    with held(str(dest / f".tar_like/looks/{found.token}.lock")):
        assert receiver.again(found.tree, found.token, Rules()).state == "looking"
    with pytest.raises(NotFound):
        receiver.again(found.tree, found.token, Rules())


def rows(index: Path) -> dict[str, list[object]]:
    """All that an index says."""
    with closing(connect(str(index), "ro")) as db:
        tables = ("entry", "segment", "skipped", "meta")
        return {
            table: db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables
        }


def leaves_of(folder: Path, spool: Path) -> bytes:
    """The starts of the digests of a folder's leaves."""
    with (
        closing(FolderSource(str(folder))) as source,
        closing(Recorded(source, Wanted())) as recorded,
    ):
        recorded.finish(str(spool), Former())
        leaves = bytes(recorded.leaves)
    return b"".join(leaves[at : at + 8] for at in range(0, len(leaves), 32))


@pytest.mark.parametrize(
    "other",
    ["none", "no times", "older", "no leaves", "its own", "another", "all but a few", "no patch"],
)
def test_a_recorded_scan_gives_the_index_that_is_built(
    work: Path, source: Path, other: str
) -> None:
    tree = trees.build(work / "hostile", 3, deep=False, files=20)
    with (source / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
    for folder in (source, tree.root):
        built, written = work / "built", work / f"written.{folder.name}"
        leaves = leaves_of(folder, work / "spool")
        known = {
            "none": None, "no times": Former(None, bytes(8)), "older": Former(1 << 62, bytes(8)),
            "no leaves": Former(0), "its own": Former(0, leaves), "another": Former(0, bytes(8)),
            "all but a few": Former(0, leaves[16:], 2), "no patch": Former(0, leaves, None),
        }[other]  # fmt: skip
        with closing(FolderSource(str(folder))) as plain:
            summary = build_index(plain, str(built), BuildOptions(algorithm="none", fresh=True))
            with closing(Recorded(plain, Wanted())) as recorded:
                recorded.finish(str(written), known)
                assert written.exists() == (other in ("none", "no leaves", "another", "no patch"))
                assert recorded.write() == summary == recorded.summary
        assert rows(written) == rows(built)
        validate(str(written), summary.id)


def test_the_receiver_knows_the_last_time_of_its_tree(source: Path, dest: Path) -> None:
    assert begin(Destination(str(dest))).newest == max(
        path.lstat().st_mtime_ns for path in [source, *source.rglob("*")]
    )
    os.utime(source / "d/after", ns=(5 * 10**18, 5 * 10**18))
    assert sync(source, dest, algorithm="none") == {}
    assert begin(Destination(str(dest))).newest == 5 * 10**18


def test_a_ledger_of_an_earlier_version_still_knows_its_content(source: Path, dest: Path) -> None:
    """Its id is none that a tree has now; nothing is sent or refused for that."""
    destination = Destination(str(dest))
    ledger = dest / ".tar_like/ledger.db"
    with closing(connect(str(ledger), "rw")) as db:
        db.execute("PRAGMA user_version=2")
        db.execute("UPDATE meta SET value = ? WHERE key = 'id'", ("0" * 64,))
    assert begin(destination).tree == "0" * 64
    look(dest)
    (source / "new").write_text("new")
    assert planned(source, dest, TOKEN) == {"new"}
    assert sync(source, dest, algorithm="none") == {}
    trees.assert_same(source, dest)
    with closing(connect(str(ledger), "ro")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
