"""The index's id and its leaves, against what docs/protocol.md says in its plainest form."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tar_like.index import BuildOptions, Index, Recorded, build_index, validate
from tar_like.index.identity import Identity
from tar_like.index.leaf import Leaf
from tar_like.layout import DIRECTORY, FILE, HARDLINK, SYMLINK, Entry
from tar_like.source import Wanted
from tar_like.source.folder import FolderSource
from tar_like.source.stretch import Stretch, newest_of, pack_told
from tests import trees
from tests.unit.indexes import file, folder, hardlink, numbered, root, symlink
from tests.unit.receiver import Former

TYPES = {FILE: 0o100000, DIRECTORY: 0o040000, SYMLINK: 0o120000, HARDLINK: 0}


class Oracle:
    """The id as the protocol says it, a value at a time."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries
        self._children: dict[bytes, list[Entry]] = {}
        for entry in entries[1:]:
            self._children.setdefault(entry.path.rpartition(b"/")[0], []).append(entry)
        self.leaves = [self._leaf(b"", entries[:1]), *self._below(b"")]

    def _below(self, directory: bytes) -> Iterator[bytes]:
        entries = self._children.get(directory, [])
        for start in range(0, len(entries), 1024):
            stretch = entries[start : start + 1024]
            for entry in stretch:
                if entry.kind == DIRECTORY:
                    yield from self._below(entry.path)
            yield self._leaf(directory, stretch)

    def _leaf(self, directory: bytes, stretch: list[Entry]) -> bytes:
        names = b"\0".join(entry.path.split(b"/")[-1] for entry in stretch)
        data = struct.pack("<III", len(directory), len(names), len(stretch)) + directory + names
        data += b"".join(struct.pack("<I", TYPES[one.kind] + one.mode) for one in stretch)
        data += b"".join(struct.pack("<q", one.size) for one in stretch)
        data += b"".join(struct.pack("<q", one.mtime) for one in stretch)
        data += b"".join(struct.pack("<I", one.uid) for one in stretch)
        data += b"".join(struct.pack("<I", one.gid) for one in stretch)
        data += self._table([one.target if one.kind == SYMLINK else None for one in stretch])
        data += self._table(
            [self._entries[one.link].path if one.kind == HARDLINK else None for one in stretch]
        )
        data += self._table([one.hash or None for one in stretch])
        return blake3(data).digest()

    @staticmethod
    def _table(values: list[bytes | None]) -> bytes:
        few = [(number, value) for number, value in enumerate(values) if value is not None]
        data = struct.pack("<I", len(few))
        data += b"".join(struct.pack("<I", number) for number, _ in few)
        data += b"".join(struct.pack("<I", len(value)) for _, value in few)
        return data + b"".join(value for _, value in few)

    def id(
        self,
        algorithm: str,
        xattrs: list[tuple[bytes, bytes, bytes]],
        skipped: list[tuple[bytes, bytes]],
    ) -> str:
        data = b"tar-like index 3\0" + algorithm.encode() + b"\0"
        data += blake3(b"".join(self.leaves)).digest()
        parts = []
        for path, name, value in xattrs:
            parts.append(struct.pack("<III", len(path), len(name), len(value)))
            parts += [path, name, value]
        data += blake3(b"".join(parts)).digest()
        parts = []
        for path, kind in skipped:
            parts += [struct.pack("<II", len(path), len(kind)), path, kind]
        return blake3(data + blake3(b"".join(parts)).digest()).hexdigest()


def plain(path: Path) -> tuple[str, list[bytes]]:
    """The id of an index's rows, and the leaves."""
    with Index(str(path)) as index:
        entries = list(index.entries())
        oracle = Oracle(entries)
        xattrs = [
            (entries[number].path, name, value) for number, _, name, value in index.all_xattrs()
        ]
        skipped = [(row.path, row.kind.encode()) for row in index.skipped()]
        return oracle.id(index.algorithm, xattrs, skipped), oracle.leaves


def wide(where: Path, seed: int) -> None:
    """Folders of many names, folders among them, with hard links all over."""
    dice = random.Random(seed)
    where.mkdir()
    made = [where]
    files: list[Path] = []
    for count in (0, 1, 5, 1023, 1024, 1025, 2500):
        here = dice.choice(made) / f"wide{count}"
        here.mkdir()
        made.append(here)
        for name in dice.sample(range(10000), count):
            path = here / str(name)
            choice = dice.random()
            if choice < 0.05:
                path.mkdir()
                made.append(path)
            elif choice < 0.1 and files:
                os.link(dice.choice(files), path, follow_symlinks=False)
            elif choice < 0.13:
                path.symlink_to(f"to {name}")
                files.append(path)
            elif choice < 0.14:
                os.mkfifo(path)
            else:
                path.write_bytes(bytes(dice.randrange(3)))
                files.append(path)
    for path in made:  # the last name, of 1024 in one folder, is a folder with something in it
        (path / "z").mkdir()
        (path / "z/in").write_text("z")


@pytest.fixture(scope="module", params=["hostile", "wide", "wider", "empty"])
def tree(request: pytest.FixtureRequest) -> Iterator[Path]:
    where = Path(tempfile.mkdtemp(prefix="tar-like-test-"))
    if request.param == "hostile":
        yield trees.build(where / "tree", 5, deep=False, specials=True, files=60).root
    elif request.param == "empty":
        (where / "tree").mkdir()
        yield where / "tree"
    else:
        wide(where / "tree", len(request.param))
        yield where / "tree"
    shutil.rmtree(where)


def odd(path: bytes, is_directory: bool) -> bool:
    return is_directory or not path.endswith(b"7")


@pytest.mark.parametrize("algorithm", ["none", "blake3", "xxh3"])
@pytest.mark.parametrize("keep", [None, odd])
def test_an_index_has_the_id_that_the_protocol_says(
    tree: Path, work: Path, algorithm: str, keep: Callable[[bytes, bool], bool] | None
) -> None:
    wanted = Wanted(keep=keep, xattrs=True)
    with closing(FolderSource(str(tree))) as source:
        options = BuildOptions(algorithm=algorithm, fresh=True, wanted=wanted)
        summary = build_index(source, str(work / "db"), options)
    assert summary.id == plain(work / "db")[0]
    validate(str(work / "db"), summary.id)


@pytest.mark.parametrize("newest", [None, 0])
@pytest.mark.parametrize("keep", [None, odd])
def test_a_scan_has_the_leaves_that_the_protocol_says(
    tree: Path, work: Path, newest: int | None, keep: Callable[[bytes, bool], bool] | None
) -> None:
    path = str(work / "db")
    with (
        closing(FolderSource(str(tree))) as source,
        closing(Recorded(source, Wanted(keep=keep))) as recorded,
    ):
        recorded.finish(path, Former(newest))
        recorded.write()
        expected, leaves = plain(work / "db")
        assert recorded.summary.id == expected
        assert bytes(recorded.leaves) == b"".join(leaves)
        for number in random.Random(1).sample(range(len(leaves)), min(len(leaves), 50)):
            stretch, firsts = recorded.stretch(number)
            targets = {at: one for at, one in stretch.targets.items() if at not in firsts}
            told, _, _ = stretch.without(firsts)
            again = Leaf(stretch.directory, stretch.names, told, targets, firsts, {}).digest()
            assert again == leaves[number]


def test_one_by_one_or_at_once_a_scan_finds_the_same(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(FolderSource(str(tree))) as source:
        at_once = list(source.scan(Wanted()))
        monkeypatch.setattr("tar_like.source.batch.Batch.add", lambda *_: None)
        assert list(source.scan(Wanted())) == at_once


TIMES = st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from(
    [-(1 << 63), -1, 0, 1, 1 << 62, (1 << 63) - 2, (1 << 63) - 1]
)


@given(st.lists(st.lists(TIMES, max_size=5), max_size=3), TIMES)
def test_the_newest_name_is_known(times: list[list[int]], so_far: int) -> None:
    stretches = []
    for some in times:
        zeros = [0] * len(some)
        names = [b"%d" % number for number in range(len(some))]
        told = pack_told(zeros, zeros, some, zeros, zeros)
        stretches.append(Stretch(b"", names, told, b"", 0, 0, [], {}, {}, {}, []))
    assert newest_of(stretches, so_far) == max([so_far, *itertools.chain(*times)])


NAMES = st.binary(min_size=1, max_size=3).filter(
    lambda name: not set(name) & set(b"\0/") and name not in (b".", b"..")
)


@st.composite
def rows(draw: st.DrawFn) -> list[Entry]:
    """A tree: folders, files, symlinks, and hard links to what came before."""
    paths = {b""}
    for _ in range(draw(st.integers(0, 30))):
        paths.add(b"/".join((*draw(st.lists(NAMES, max_size=3)), draw(NAMES))))
    for path in list(paths):
        names = path.split(b"/")
        paths.update(b"/".join(names[:depth]) for depth in range(1, len(names)))
    parents = {path.rpartition(b"/")[0] for path in paths}
    found: list[Entry] = [root()]
    for path in sorted(paths - {b""}, key=lambda path: path.replace(b"/", b"\0")):
        firsts = [number for number, one in enumerate(found) if one.kind in (FILE, SYMLINK)]
        kind = draw(st.sampled_from("dflh" if firsts else "dfl"))
        if path in parents or kind == "d":
            found.append(folder(path))
        elif kind == "f":
            found.append(file(path, draw(st.integers(0, 9)), draw(st.sampled_from([b"", b"h"]))))
        elif kind == "l":
            found.append(symlink(path))
        else:
            found.append(hardlink(path, draw(st.sampled_from(firsts))))
    return numbered(found)


@given(rows(), st.integers(1, 9))
def test_rows_give_the_same_leaves_in_whatever_portions(entries: list[Entry], step: int) -> None:
    given: list[bytes] = []
    identity = Identity(
        "none", lambda number: entries[number].path, lambda *leaf: given.append(leaf[3])
    )
    for start in range(0, len(entries), step):
        identity.add(entries[start : start + step])
    oracle = Oracle(entries)
    assert identity.id() == oracle.id("none", [], [])
    assert given == oracle.leaves


@pytest.mark.parametrize("count", [1023, 1024, 1025, 2048, 2049])
def test_a_folder_may_end_a_stretch(count: int) -> None:
    entries = [root(), folder(b"a"), folder(b"a/0")]
    for number in range(1, count):
        path = b"a/%d" % (10000 + number)
        entries += [folder(path), file(path + b"/in")]
    entries = numbered([*entries, file(b"b")])
    identity = Identity("none", lambda number: entries[number].path)
    identity.add(entries)
    assert identity.id() == Oracle(entries).id("none", [], [])
