"""Building an index: the same tree, the same id; what is unchanged is not read again."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tar_like import digest
from tar_like.errors import IndexInvalid, SourceUnusable
from tar_like.index import BuildOptions, BuildSummary, Index, build_index, validate
from tar_like.layout import FILE, HARDLINK, Entry, sort_key
from tar_like.source import Found, Skipped, Wanted
from tar_like.source.filters import make_filter
from tar_like.source.folder import FolderSource
from tests import trees

TIME = 1_600_000_000_123_456_789


def build(root: Path, db: Path, **options: object) -> BuildSummary:
    source = FolderSource(str(root))
    try:
        return build_index(source, str(db), BuildOptions(**options))  # type: ignore[arg-type]
    finally:
        source.close()


def entries(db: Path) -> list[Entry]:
    with Index(str(db)) as index:
        return list(index.entries())


def make(root: Path, order: list[str], *, seed: int = 0) -> None:
    """The same small tree, made in any order."""
    root.mkdir()
    for name in order:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(f"{seed} {name}").randbytes(len(name) * 100))
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(TIME, TIME))


NAMES = ["a", "b/c", "b.c", "b/d/e", "z/y", "A", "é"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make(tmp_path / "tree", NAMES)
    return tmp_path / "tree"


def test_only_an_index_that_is_to_last_is_synced(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    assert build(tree, tmp_path / "one.db", lasting=False).files == len(NAMES)
    assert synced == []
    build(tree, tmp_path / "two.db")
    assert len(synced) == 1


def test_the_same_tree_has_the_same_id_whatever_the_order_of_the_disk(tmp_path: Path) -> None:
    ids = set()
    for seed in range(4):
        order = NAMES[:]
        random.Random(seed).shuffle(order)
        make(tmp_path / f"{seed}", order)
        ids.add(build(tmp_path / f"{seed}", tmp_path / f"{seed}.db", jobs=1 + seed % 2).id)
    assert len(ids) == 1


def test_whatever_tells_trees_apart_changes_the_id(tree: Path, tmp_path: Path) -> None:
    def changed() -> Iterator[str]:
        yield "nothing"
        (tree / "a").write_bytes((tree / "a").read_bytes()[::-1])
        os.utime(tree / "a", ns=(TIME, TIME))
        yield "content"
        os.utime(tree / "a", ns=(TIME, TIME + 1))
        yield "mtime by a nanosecond"
        (tree / "a").chmod(0o4755)
        yield "mode"
        (tree / "b/c").rename(tree / "b/cc")
        os.utime(tree / "b", ns=(TIME, TIME))
        yield "name"
        (tree / "l").symlink_to("x")
        yield "symlink"
        (tree / "l").unlink()
        (tree / "l").symlink_to("y")
        yield "its target"
        shutil.copy2(tree / "A", tree / "B")
        yield "a copy"
        (tree / "B").unlink()
        os.link(tree / "A", tree / "B")
        yield "a hard link in its stead"
        os.setxattr(tree / "A", "user.x", b"1")
        yield "attribute"

    ids: dict[str, str] = {}
    for number, what in enumerate(changed()):
        summary = build(tree, tmp_path / f"{number}.db", wanted=Wanted(xattrs=True))
        assert summary.id not in ids, f"{what} is as good as {ids.get(summary.id)}"
        ids[summary.id] = what
        validate(str(tmp_path / f"{number}.db"), summary.id)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_index_of_a_hostile_tree_is_valid_and_true(work: Path, seed: int) -> None:
    tree = trees.build(work / "src", seed, specials=True, xattrs=True)
    db = work / "index.db"
    wanted = Wanted(xattrs=True, acls=True)
    summary = build(tree.root, db, jobs=2, wanted=wanted)
    validate(str(db), summary.id)
    found = entries(db)
    seen = trees.look(tree.root)
    assert [entry.path for entry in found] == sorted(
        (b"" if path == b"." else path for path in seen), key=sort_key
    )
    for entry in found:
        node = seen[entry.path or b"."]
        first = found[entry.link] if entry.kind == HARDLINK else entry
        assert (entry.kind == HARDLINK) == (first.path != entry.path)
        if entry.kind == HARDLINK:
            assert entry.link < entry.id and first.path in node.links
        elif entry.kind == FILE:
            assert entry.size == node.size
        assert first.mtime == node.mtime_ns
    assert summary.special == tree.specials
    assert (summary.entries, summary.unreadable) == (len(found), 0)
    assert build(tree.root, work / "again.db", jobs=1, wanted=wanted).id == summary.id


@pytest.mark.parametrize("algorithm", ["blake3", "sha256", "md5", "xxh3"])
def test_each_file_has_its_digest(work: Path, algorithm: str) -> None:
    make(work / "tree", NAMES)
    (work / "tree/large").write_bytes(random.Random(1).randbytes(9_000_000))
    (work / "tree/empty").touch()
    db = work / "index.db"
    assert build(work / "tree", db, algorithm=algorithm, jobs=2).hashed == len(NAMES) + 2
    for entry in entries(db):
        if entry.kind == FILE:
            data = (work / "tree" / os.fsdecode(entry.path)).read_bytes()
            assert entry.hash == digest.of(algorithm, data), entry.path


def test_hashing_can_be_left_out(tree: Path, tmp_path: Path) -> None:
    summary = build(tree, tmp_path / "index.db", algorithm="none")
    assert summary.hashed == 0
    assert {entry.hash for entry in entries(tmp_path / "index.db")} == {b""}
    validate(str(tmp_path / "index.db"), summary.id)


def test_what_is_unchanged_is_not_read_again(tree: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    first = build(tree, db)
    assert (first.hashed, first.reused, first.files) == (len(NAMES), 0, len(NAMES))
    again = build(tree, db)
    assert (again.hashed, again.reused, again.id) == (0, len(NAMES), first.id)
    assert (again.added, again.changed, again.gone) == (0, 0, 0)
    assert build(tree, db, fresh=True).hashed == len(NAMES)
    assert build(tree, db, algorithm="md5").hashed == len(NAMES)
    assert build(tree, db, algorithm="md5").reused == len(NAMES)


def test_what_is_new_changed_or_gone_is_counted(tree: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    build(tree, db)
    (tree / "a").write_bytes(b"other")
    (tree / "b/new").write_bytes(b"new")
    (tree / "z/y").unlink()
    found = build(tree, db)
    assert (found.hashed, found.reused) == (2, len(NAMES) - 2)
    assert found.added == 1
    assert found.gone == 1
    assert found.changed == 3  # the file, and the two folders it says so of
    fresh = build(tree, tmp_path / "fresh.db")
    assert fresh.id == found.id


def test_a_file_with_its_old_size_and_time_but_other_bytes_is_read(
    tree: Path, tmp_path: Path
) -> None:
    db = tmp_path / "index.db"
    build(tree, db)
    trees.tick(tmp_path)
    before = (tree / "a").stat()
    (tree / "a").write_bytes(b"x" * before.st_size)
    os.utime(tree / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    found = build(tree, db)
    assert found.hashed == 1
    row = next(entry for entry in entries(db) if entry.path == b"a")
    assert row.hash == digest.of("blake3", b"x" * before.st_size)


def test_another_inode_is_read(tree: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    build(tree, db)
    shutil.copy2(tree / "a", tree / "tmp")
    (tree / "tmp").rename(tree / "a")
    os.utime(tree, ns=(TIME, TIME))
    assert build(tree, db).hashed == 1


def test_what_is_left_out_is_left_out(tree: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    summary = build(tree, db, wanted=Wanted(keep=make_filter(["^b$"], ["z"])))
    assert [entry.path for entry in entries(db)] == [b"", b"A", b"a", b"b.c", "é".encode()]
    validate(str(db), summary.id)


def test_the_original_columns_can_be_looked_at(tree: Path, tmp_path: Path) -> None:
    build(tree, tmp_path / "index.db", algorithm="sha256")
    with sqlite3.connect(tmp_path / "index.db") as db:
        cursor = db.execute("SELECT * FROM tar LIMIT 40")
        columns = [column[0] for column in cursor.description]
        rows = cursor.fetchall()
    db.close()
    assert columns == ["id", "path", "size", "offset", "offset_end", "hash"]
    assert [row[1] for row in rows] == sorted(NAMES, key=lambda name: sort_key(os.fsencode(name)))
    for _, path, size, offset, last, hash_ in rows:
        data = (tree / path).read_bytes()
        assert (size, last) == (len(data), offset + size - 1)
        assert hash_ == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("content", [b"not mine", b"SQLite format 3\0" + bytes(9000)])
def test_what_is_no_index_is_left_alone(tree: Path, tmp_path: Path, content: bytes) -> None:
    db = tmp_path / "precious"
    db.write_bytes(content)
    for fresh in (False, True):
        with pytest.raises(IndexInvalid, match="left as it is"):
            build(tree, db, fresh=fresh)
        assert db.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["precious", "tree"]


class Failing:
    """A source that breaks off in the middle."""

    url = "failing"

    def __init__(self, root: Path) -> None:
        self._source = FolderSource(str(root))

    def scan(self, wanted: Wanted) -> Iterator[Found | Skipped]:
        for number, found in enumerate(self._source.scan(wanted)):
            if number == 4:
                raise SourceUnusable("The source is gone.")
            yield found

    read = property(lambda self: self._source.read)

    def close(self) -> None:
        self._source.close()


def test_a_build_that_fails_leaves_the_old_index(tree: Path, tmp_path: Path) -> None:
    db = tmp_path / "index.db"
    build(tree, db)
    before = db.read_bytes()
    with pytest.raises(SourceUnusable):
        build_index(Failing(tree), str(db), BuildOptions())
    assert db.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["index.db", "tree"]


def test_a_file_that_vanishes_while_it_is_hashed_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = FolderSource.scan

    def scan_and_remove(self: FolderSource, wanted: Wanted) -> Iterator[Found | Skipped]:
        for found in scan(self, wanted):
            yield found
            if found.path == b"a":
                (tree / "a").unlink()

    monkeypatch.setattr(FolderSource, "scan", scan_and_remove)
    db = tmp_path / "index.db"
    summary = build(tree, db, jobs=1)
    assert summary.unreadable == 1
    with Index(str(db)) as index:
        assert [(row.path, row.detail) for row in index.skipped()] == [(b"a", "vanished")]
        assert {e.path for e in index.of_kind(FILE) if not e.hash} == {b"a"}
    validate(str(db), summary.id)


def test_entries_by_number_are_those_in_a_row(work: Path, dice: random.Random) -> None:
    tree, db = work / "many", work / "index.db"
    tree.mkdir()
    for number in range(300):
        (tree / f"{number:03}").touch()
    build(tree, db)
    with Index(str(db)) as index:
        every = list(index.entries())
        orders = (range(301), range(0, 301, 4), range(0, 301, 5), reversed(range(301)))
        for order in (*orders, dice.choices(range(301), k=600)):
            for number in order:
                assert index.entry(number) == every[number]
        for number in (-1, 301, 302):
            with pytest.raises(KeyError):
                index.entry(number)
