"""An index that somebody else made: each rule broken alone, and pages that rotted."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tar_like.errors import IndexInvalid
from tar_like.index import Index, validate
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry, place
from tests.unit import indexes
from tests.unit.indexes import (
    Segment,
    Xattr,
    edit,
    file,
    folder,
    hardlink,
    numbered,
    root,
    seal,
    symlink,
    write,
)

TREE = [
    root(),
    folder(b"a"),
    file(b"a/b", 5000),
    file(b"a/c", 10),
    file(b"a.x", 0),
    folder(b"d"),
    symlink(b"e"),
    hardlink(b"f", 2),
    file(b"g", 20000),
    hardlink(b"h", 6),
    file(b"\xff\n", 1),
]
SEGMENTS: list[Segment] = [(2, 0, 4096), (8, 4096, 8192), (8, 12288, 20000), (10, 0, 0)]
XATTRS: list[Xattr] = [(2, b"user.a", b"1"), (2, b"user.b", b""), (5, b"user.a", b"x" * 65536)]
A, B, EMPTY, E, F, G = 1, 2, 4, 6, 7, 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.db"


def refused(path: Path, index_id: str) -> str:
    """The sentence with which an index is refused."""
    with pytest.raises(IndexInvalid) as caught:
        validate(str(path), index_id)
    text = str(caught.value)
    assert text.endswith((".", "'.")), text
    return text


def test_a_valid_index_is_accepted(path: Path) -> None:
    validate(str(path), write(path, TREE, segments=SEGMENTS, xattrs=XATTRS))


@pytest.mark.parametrize("algorithm", ["none", "md5", "xxh3", "sha256"])
def test_an_index_of_another_digest_is_accepted(path: Path, algorithm: str) -> None:
    sizes = {"none": 0, "md5": 16, "xxh3": 16, "sha256": 32}
    tree = [root(), file(b"a", 7, bytes(sizes[algorithm])), file(b"b", 7, b"")]
    validate(str(path), write(path, tree, algorithm=algorithm))
    tree[1] = file(b"a", 7, bytes(sizes[algorithm] + 1))
    refused(path2 := path.with_name("other.db"), write(path2, tree, algorithm=algorithm))


def test_the_id_must_be_the_one_it_is_offered_under(path: Path) -> None:
    right = write(path, TREE)
    assert "id" in refused(path, "0" * 64)
    with edit(path) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'id'", ("0" * 64,))
    refused(path, "0" * 64)
    refused(path, right)  # what it says of itself counts, too: others go by it


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param([], id="nothing"),
        pytest.param([folder(b"a")], id="no root"),
        pytest.param([file(b"", 5)], id="a root that is a file"),
        pytest.param([root(), root()], id="two roots"),
        pytest.param([root(), file(b"..")], id="up"),
        pytest.param([root(), folder(b"..")], id="folder up"),
        pytest.param([root(), hardlink(b"..", 1)], id="hard link up"),
        pytest.param([root(), file(b".")], id="here"),
        pytest.param([root(), file(b"/")], id="slash"),
        pytest.param([root(), file(b"/a")], id="absolute"),
        pytest.param([root(), folder(b"/a")], id="absolute folder"),
        pytest.param([root(), file(b"/a"), file(b"a")], id="absolute and relative"),
        pytest.param([root(), folder(b"/etc"), file(b"/etc/passwd")], id="absolute and deep"),
        pytest.param([root(), file(b"//a")], id="two slashes"),
        pytest.param([root(), folder(b"a"), file(b"a/")], id="slash at the end"),
        pytest.param([root(), folder(b"a"), file(b"a//b")], id="no name between"),
        pytest.param([root(), folder(b"a"), file(b"a/..")], id="up from a folder"),
        pytest.param([root(), folder(b"a"), file(b"a/../b")], id="up and down"),
        pytest.param([root(), folder(b"a"), folder(b"a/.."), file(b"a/../b")], id="up by a folder"),
        pytest.param([root(), folder(b"a"), file(b"a/./b")], id="here within"),
        pytest.param([root(), file(b"a\0b")], id="NUL"),
        pytest.param([root(), file(b"n" * 256)], id="256 bytes"),
        pytest.param([root(), folder(b"n" * 256), file(b"n" * 256 + b"/a")], id="256 deep"),
        pytest.param([root(), file(b".tar_like")], id="ours"),
        pytest.param([root(), folder(b".tar_like"), file(b".tar_like/x")], id="in ours"),
        pytest.param([root(), file(b"!"), file(b".")], id="here after another"),
        pytest.param([root(), file(b"!"), file(b"..")], id="up after another"),
        pytest.param([root(), folder(b"a"), file(b"a/!"), file(b"a/..")], id="up after one below"),
        pytest.param([root(), file(b"!"), file(b"a\0b")], id="NUL after another"),
        pytest.param([root(), file(b"!"), file(b"n" * 256)], id="256 bytes after another"),
        pytest.param([root(), file(b"!"), file(b".tar_like")], id="ours after another"),
        pytest.param([root(), file(b"a/b")], id="no parent"),
        pytest.param([root(), folder(b"a"), file(b"a/b/c")], id="no parent below"),
        pytest.param([root(), file(b"a"), file(b"a/b")], id="a file as parent"),
        pytest.param([root(), symlink(b"a"), file(b"a/b")], id="a symlink as parent"),
        pytest.param([root(), file(b"a"), hardlink(b"b", 1), file(b"b/c")], id="a link as parent"),
        pytest.param([root(), folder(b"a"), folder(b"b"), file(b"a/c")], id="parent passed"),
        pytest.param([root(), file(b"a/b"), folder(b"a")], id="parent later"),
        pytest.param([root(), file(b"b"), file(b"a")], id="out of order"),
        pytest.param([root(), file(b"a"), file(b"a")], id="twice"),
        pytest.param([root(), folder(b"a"), file(b"a")], id="twice of two kinds"),
        pytest.param([root(), folder(b"a"), file(b"a.b"), file(b"a/b")], id="order of bytes"),
        pytest.param([root(), file(b"a")._replace(kind="x")], id="kind"),
        pytest.param([root(), file(b"a")._replace(kind="")], id="no kind"),
        pytest.param([root(), file(b"a")._replace(kind="F")], id="capital kind"),
        pytest.param([root(), file(b"a", -1)], id="negative size"),
        pytest.param([root(), file(b"a", 1 << 62)], id="size"),
        pytest.param([root(), file(b"a", (1 << 63) - 1)], id="greatest size"),
        pytest.param([root(), *(file(b"%d" % i, 1 << 61) for i in range(3))], id="sum"),
        pytest.param([root(), file(b"a", 5)._replace(offset=4096)], id="offset with a gap"),
        pytest.param([root(), file(b"a", 5)._replace(offset=-4096)], id="negative offset"),
        pytest.param([root(), file(b"a", 5)._replace(offset=(1 << 63) - 1)], id="greatest offset"),
        pytest.param([root(), file(b"a", 5), file(b"b", 5)._replace(offset=4)], id="overlap"),
        pytest.param([root(), file(b"a", 5), file(b"b", 5)._replace(offset=0)], id="same place"),
        pytest.param([root(), folder(b"a")._replace(size=1)], id="folder with a size"),
        pytest.param([root(), symlink(b"a")._replace(hash=bytes(32))], id="link with a digest"),
        pytest.param([root(), file(b"a", 1, b"x")], id="short digest"),
        pytest.param([root(), file(b"a", 1, b"x" * 33)], id="long digest"),
        pytest.param([root(), file(b"a")._replace(mode=0o10000)], id="mode"),
        pytest.param([root(), file(b"a")._replace(mode=-1)], id="negative mode"),
        pytest.param([root(), file(b"a")._replace(uid=-1)], id="negative uid"),
        pytest.param([root(), file(b"a")._replace(uid=1 << 32)], id="uid"),
        pytest.param([root(), file(b"a")._replace(gid=1 << 32)], id="gid"),
        pytest.param([root(), symlink(b"a", b"")], id="symlink to nothing"),
        pytest.param([root(), symlink(b"a", b"x" * 4096)], id="long symlink"),
        pytest.param([root(), symlink(b"a", b"x\0y")], id="symlink with NUL"),
        pytest.param([root(), file(b"a")._replace(target=b"x")], id="file with a target"),
        pytest.param([root(), hardlink(b"a", -1)], id="hard link to nothing"),
        pytest.param([root(), hardlink(b"a", 0)], id="hard link to the root"),
        pytest.param([root(), hardlink(b"a", 1)], id="hard link to itself"),
        pytest.param([root(), hardlink(b"a", 2), file(b"b")], id="hard link forward"),
        pytest.param([root(), hardlink(b"a", 2), hardlink(b"b", 1)], id="hard links in a ring"),
        pytest.param([root(), folder(b"a"), hardlink(b"b", 1)], id="hard link to a folder"),
        pytest.param(
            [root(), file(b"a"), hardlink(b"b", 1), hardlink(b"c", 2)], id="hard link to a link"
        ),
        pytest.param([root(), file(b"a"), file(b"b")._replace(link=1)], id="file with a link"),
        pytest.param([root(), hardlink(b"a", 1)._replace(size=5)], id="hard link with a size"),
        pytest.param([root(), file(b"a")._replace(id=2)], id="a number left out"),
        pytest.param([root()._replace(id=1)], id="not numbered from 0"),
        pytest.param([root(), file(b"a")._replace(id=-1 << 63)], id="least number"),
        pytest.param([root(), file(b"a")._replace(id=-(1 << 62) - 1)], id="small number"),
        pytest.param([root(), file(b"..")._replace(id=(1 << 63) - 1)], id="greatest number"),
        pytest.param([root(), hardlink(b"x", 1)._replace(id=1 << 62)], id="great number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("counted", [True, False])
def test_a_tree_that_cannot_be_is_refused(path: Path, tree: list[Entry], counted: bool) -> None:
    index_id = write(path, tree)
    if not counted:  # rows that nobody sees are not counted either
        seen = [row for row in numbered(tree) if row.id == 0] or [root()]
        index_id = write(other := path.with_name("seen.db"), seen)
        with edit(path) as db, Index(str(other)) as index:
            db.execute("UPDATE meta SET value = ? WHERE key = 'entries'", (str(len(seen)),))
            db.execute("UPDATE meta SET value = ? WHERE key = 'id'", (index.id,))
    refused(path, index_id)


SEGMENT_RULES: list[list[Segment]] = [
    [(B, 0, 8192)],
    [(B, 0, 5001)],
    [(B, 1, 4096)],
    [(B, 0, 4095)],
    [(B, -4096, 0)],
    [(B, -4096, 4096)],
    [(B, 4096, 4096)],
    [(B, 4096, 0)],
    [(G, 0, 8192), (G, 4096, 12288)],
    [(G, 0, 4096), (G, 4096, 8192)],
    [(G, 0, 0), (G, 4096, 0)],
    [(G, 0, 20000), (G, 8192, 12288)],
    [(G, 0, (1 << 63) - 1)],
    [(99, 0, 4096)],
    [(-1, 0, 4096)],
    [(A, 0, 4096)],
    [(E, 0, 4096)],
    [(F, 0, 4096)],
    [(EMPTY, 0, 4096)],
]


@pytest.mark.parametrize("segments", SEGMENT_RULES)
def test_segments_that_cannot_be_are_refused(path: Path, segments: list[Segment]) -> None:
    assert "segment" in refused(path, write(path, TREE, segments=segments))


@pytest.mark.parametrize(
    "xattr",
    [
        (-1, b"user.a", b""),
        (len(TREE), b"user.a", b""),
        (1 << 62, b"user.a", b""),
        (B, b"", b""),
        (B, b"nodot", b""),
        (B, b"user.a\0b", b""),
        (B, b"user." + b"n" * 251, b""),
        (B, b"user.a", b"x" * 65537),
    ],
)
def test_attributes_that_cannot_be_are_refused(path: Path, xattr: Xattr) -> None:
    assert "attribute" in refused(path, write(path, TREE, xattrs=[xattr]))


def skip(path: Path, name: str, kind: str, detail: str) -> str:
    """The id of an index after a skipped name was added; the values are SQL's."""
    with edit(path) as db:
        db.execute(f"INSERT INTO skipped (path, kind, detail) VALUES ({name}, {kind}, {detail})")
    return seal(path)


@pytest.mark.parametrize(
    "row",
    [
        ("'x'", "'special'", "'FIFO'"),
        ("x'78'", "'other'", "''"),
        ("x'78'", "x'78'", "''"),
        ("x'78'", "'special'", "x'00'"),
    ],
)
def test_skipped_names_that_cannot_be_are_refused(path: Path, row: tuple[str, str, str]) -> None:
    write(path, TREE)
    refused(path, skip(path, *row))


def test_a_tree_that_was_read_in_part_is_another_tree(path: Path) -> None:
    ids = [write(path, TREE)]
    for kind in ("unreadable", "special"):
        ids.append(skip(path, "x'78'", f"'{kind}'", "'why'"))
        validate(str(path), ids[-1])
    assert len(set(ids)) == 3


COLUMNS = {
    "entry": [name for name in Entry._fields if name != "id"],
    "segment": ["start", "stop"],
    "xattr": ["name", "value"],
}


@pytest.mark.parametrize("value", ["'x'", "x'00'", "1.5", "7"])
@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, names in COLUMNS.items() for column in names]
)
def test_a_value_of_a_wrong_type_is_refused(
    path: Path, table: str, column: str, value: str
) -> None:
    write(path, TREE, segments=SEGMENTS, xattrs=XATTRS)
    with edit(path) as db:
        row = "id = 3" if table == "entry" else "entry_id = 2"
        before = db.execute(f"SELECT typeof({column}) FROM {table} WHERE {row}").fetchone()[0]
        db.execute(f"UPDATE OR REPLACE {table} SET {column} = {value} WHERE {row}")
        after = db.execute(f"SELECT typeof({column}) FROM {table} WHERE {row}").fetchone()[0]
    if before != after:
        refused(path, seal(path))


@pytest.mark.parametrize("column", COLUMNS["entry"])
def test_a_null_is_refused(path: Path, column: str) -> None:
    """SQLite would not take one: the rule is put aside for a moment."""
    write(path, TREE)
    with edit(path) as db:
        (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'entry'").fetchone()
        db.execute("PRAGMA writable_schema=ON")
        change = "UPDATE sqlite_schema SET sql = ? WHERE name = 'entry'"
        db.execute(change, (sql.replace(" NOT NULL", ""),))
    with edit(path) as db:
        db.execute(f"UPDATE entry SET {column} = NULL WHERE id = 3")
        db.execute("PRAGMA writable_schema=ON")
        db.execute(change, (sql,))
    refused(path, seal(path))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON entry BEGIN SELECT 1; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE more (x)",
        "CREATE INDEX i ON entry (path)",
        "ALTER TABLE entry ADD COLUMN more",
        "ALTER TABLE entry RENAME COLUMN token TO etag",
        "DROP VIEW tar",
        "DROP TABLE skipped",
        "DROP TABLE meta",
        "PRAGMA user_version=1",
        "PRAGMA user_version=0",
        "PRAGMA application_id=0",
        "DELETE FROM meta",
        "DELETE FROM meta WHERE key = 'id'",
        "DELETE FROM meta WHERE key = 'hash'",
        "DELETE FROM meta WHERE key = 'entries'",
        "UPDATE meta SET value = 'sha1' WHERE key = 'hash'",
        "UPDATE meta SET value = '' WHERE key = 'hash'",
        "UPDATE meta SET value = x'626c616b6533' WHERE key = 'hash'",
        "UPDATE meta SET value = '0' WHERE key = 'entries'",
        "UPDATE meta SET value = '12' WHERE key = 'entries'",
        "UPDATE meta SET value = 'many' WHERE key = 'entries'",
        "UPDATE meta SET value = x'ff' WHERE key = 'entries'",
        "DELETE FROM entry WHERE id = 10",
        "UPDATE entry SET mtime = mtime + 1 WHERE id = 3",
    ],
)
def test_another_schema_or_other_words_are_refused(path: Path, statement: str) -> None:
    index_id = write(path, TREE, segments=SEGMENTS)
    with edit(path) as db:
        db.execute(statement)
    refused(path, index_id)


def test_a_table_under_a_false_flag_is_refused(path: Path) -> None:
    """The view's text is right, but it hides a table."""
    index_id = write(path, TREE)
    with edit(path) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql = NULL WHERE name = 'skipped'")
    refused(path, index_id)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"no database at all" * 100, b"SQLite format 3\0" + bytes(5000)]
)
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "0" * 64)


def test_no_file_is_refused(path: Path) -> None:
    refused(path, "0" * 64)
    path.mkdir()
    refused(path, "0" * 64)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """An index with pages of every table, as bytes, and its id."""
    path = tmp_path_factory.mktemp("large") / "index.db"
    tree = [root(), *(file(b"%04d" % number, 5000) for number in range(400))]
    segments = [(number, 0, 4096) for number in range(1, 300)]
    xattrs = [(number, b"user.x", b"y" * 20) for number in range(1, 100)]
    index_id = write(path, tree, segments=segments, xattrs=xattrs)
    return path.read_bytes(), index_id


def use(path: Path) -> None:
    """Read an accepted index as the receiver does."""
    with Index(str(path)) as index:
        for kind in (FILE, DIRECTORY, SYMLINK, HARDLINK):
            assert list(index.of_kind(kind)) == list(index.backwards(kind))[::-1]
        assert len(list(index.entries())) == index.entry_count
        list(index.segments())
        list(index.all_xattrs())
        list(index.linked())


def tried(path: Path, index_id: str) -> bool:
    """Whether a damaged index is accepted; then all of it can be read."""
    try:
        validate(str(path), index_id)
    except IndexInvalid:
        return False
    use(path)
    return True


@pytest.mark.parametrize("seed", range(4))
def test_a_rotten_page_is_refused_or_does_no_harm(
    path: Path, large: tuple[bytes, str], seed: int
) -> None:
    dice = random.Random(seed)
    data, index_id = large
    accepted = 0
    for _ in range(60):
        rotten = bytearray(data)
        for _ in range(dice.choice([1, 1, 1, 8, 64])):
            # most of the time in the head of a page, where SQLite's own structure is
            page = dice.randrange(len(data) // 4096) * 4096
            rotten[page + dice.choice([dice.randrange(64), dice.randrange(4096)])] ^= dice.choice(
                [1, 0x80, 0xFF, dice.randrange(1, 256)]
            )
        path.write_bytes(rotten)
        accepted += tried(path, index_id)
    assert accepted < 30


def test_a_file_cut_short_is_refused(path: Path, large: tuple[bytes, str]) -> None:
    data, index_id = large
    for length in [*range(0, len(data), 4096), 100, len(data) - 1]:
        path.write_bytes(data[:length])
        assert not tried(path, index_id)
    path.write_bytes(data)
    assert tried(path, index_id)


def possible(entries: list[Entry]) -> bool:
    """The rules again, for a tree as a whole and without regard to speed."""
    paths = [entry.path for entry in entries]
    kinds = {entry.path: entry.kind for entry in entries}
    names = [path.split(b"/") if path else [] for path in paths]
    cursor = 0
    for entry, split in zip(entries, names, strict=True):
        if entry.size and entry.kind == FILE:
            if entry.offset != place(cursor, entry.size):
                return False
            cursor = entry.offset + entry.size
        rules = (
            all(0 < len(name) < 256 and name not in (b".", b"..") for name in split),
            b"\0" not in entry.path,
            not split or split[0] != b".tar_like",
            not split or kinds.get(b"/".join(split[:-1])) == DIRECTORY,
            0 <= entry.size < 1 << 62,
            entry.kind == FILE or not entry.size,
            len(entry.hash) in ((0, 32) if entry.kind == FILE else (0,)),
            (0 < len(entry.target) < 4096) if entry.kind == SYMLINK else entry.target == b"",
            entry.link == -1
            if entry.kind != HARDLINK
            else 0 < entry.link < entry.id and entries[entry.link].kind in (FILE, SYMLINK),
            entry.kind in (FILE, DIRECTORY, SYMLINK, HARDLINK),
            0 <= entry.mode < 1 << 12,
        )
        if not all(rules):
            return False
    return names == sorted(names) and len(set(paths)) == len(paths) and kinds.get(b"") == DIRECTORY


CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "path": st.one_of(
        st.sampled_from([entry.path for entry in TREE]),
        st.lists(st.sampled_from([b"a", b"b", b"", b".", b"..", b"d", b"\0", b".tar_like"])).map(
            b"/".join
        ),
    ),
    "kind": st.sampled_from([FILE, DIRECTORY, SYMLINK, HARDLINK, "?"]),
    "size": st.sampled_from([-1, 0, 1, 4095, 4096, 1 << 61, 1 << 62]),
    "offset": st.sampled_from([-2, 0, 5000, 8192, 1 << 61]),
    "mode": st.sampled_from([-1, 0, 0o7777, 0o10000]),
    "target": st.sampled_from([b"", b"x", b"y" * 4095, b"y" * 4096]),
    "link": st.integers(-2, len(TREE)),
    "hash": st.sampled_from([b"", bytes(31), bytes(32)]),
}


@settings(max_examples=300)
@given(st.data())
def test_what_is_accepted_is_what_is_possible(data: st.DataObject) -> None:
    tree = numbered(TREE)
    for _ in range(data.draw(st.integers(0, 2))):
        row = data.draw(st.integers(0, len(tree) - 1))
        column = data.draw(st.sampled_from(sorted(CHANGES)))
        tree[row] = tree[row]._replace(**{column: data.draw(CHANGES[column])})
    folder_ = tempfile.mkdtemp(prefix="tar-like-index-")
    try:
        path = Path(folder_) / "index.db"
        index_id = write(path, tree)
        assert tried(path, index_id) == possible(tree)
    finally:
        shutil.rmtree(folder_)


def test_a_tree_of_many_levels_is_no_trouble(path: Path) -> None:
    names = [b"/".join([b"d"] * depth) for depth in range(1, 1500)]
    validate(str(path), write(path, [root(), *map(folder, names)]))


def test_a_corrupt_page_is_told_of_in_one_sentence(work: Path) -> None:
    path = work / "index.db"
    found = indexes.write(path, [indexes.root(), *(indexes.file(b"%05d" % n) for n in range(500))])
    raw = bytearray(path.read_bytes())
    raw[4096 * 5 : 4096 * 6] = b"\x99" * 4096
    path.write_bytes(raw)
    with pytest.raises(IndexInvalid) as caught:
        validate(str(path), found)
    text = str(caught.value)
    assert text.startswith("The index is damaged (") and len(text) < 150
    assert "\n" not in text and "***" not in text and str(work) not in text


@pytest.mark.parametrize("key", ["id", "entries", "length", "bytes", "hash", "more"])
@pytest.mark.parametrize("value", [b"blob", b"\xff", "-1", "1e3", "\u0661", ""])
def test_what_an_index_says_of_itself_must_make_sense(work: Path, key: str, value: object) -> None:
    path = work / "index.db"
    found = indexes.write(path, [indexes.root()])
    if (key, type(value)) == ("more", str):
        return  # further texts are ignored
    with indexes.edit(path) as db:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    with pytest.raises(IndexInvalid):
        validate(str(path), found)
    if isinstance(value, bytes) and key != "id":
        with pytest.raises(IndexInvalid):
            Index(str(path))
