"""Patches that no honest sender makes: refused, or a ledger that holds together all the same."""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import random
import shutil
import sqlite3
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tar_like.database import connect
from tar_like.dirfd import Walker
from tar_like.errors import Conflict, IndexInvalid, NotFound, UsageError
from tar_like.index import Recorded
from tar_like.index.identity import NO_HASH, Identity
from tar_like.index.leaf import Leaf
from tar_like.index.reader import PATCH_OF
from tar_like.index.recorded import LEAF_NAME
from tar_like.layout import sort_key
from tar_like.proxy import look, nextledger, patching
from tar_like.proxy import transfers as transfers_module
from tar_like.proxy.commit import run_commit
from tar_like.proxy.ledger import Ledger, version_of
from tar_like.proxy.look import (
    Seen,
    begin,
    read_look,
    run_look,
)
from tar_like.proxy.offer import offer
from tar_like.proxy.patch import Patch
from tar_like.proxy.patching import BODY, take_patch
from tar_like.proxy.place import PLAN_LOCK, Destination, held
from tar_like.proxy.planning import Planning, Wish
from tar_like.proxy.recall import exact_sights
from tar_like.proxy.rows import Rows
from tar_like.proxy.sights import Comparing
from tar_like.proxy.transfer import Transfer
from tar_like.proxy.transfers import Transfers
from tar_like.rules import Rules
from tar_like.source import Wanted
from tar_like.source.folder import FolderSource
from tar_like.source.stretch import TYPES, pack_told
from tar_like.upload.difference import Candidate, compare, given_by, parts, revisions
from tar_like.wire import REVISED, REVISION, SEGMENT, Look, PatchHead
from tests import trees
from tests.e2e.test_edits import EDITS, Edited
from tests.unit import indexes
from tests.unit.receiver import Former, Job, sync

LENGTH = struct.Struct("<I")
REG, DIR, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
Item = tuple[int, int] | bytes
"""Of a patch: leaves of the base, or a leaf as it is given."""


class Target:
    """A destination with a tree, and what patches of it are made of."""

    def __init__(self, dest: Path) -> None:
        self.dest = dest
        self.destination = Destination(str(dest))
        self.destination.prepare()
        ledger = Ledger(self.destination.ledger)
        self.leaves = list(ledger.leaves())
        ledger.close()

    def look(self) -> tuple[Look, Seen]:
        found = begin(self.destination)
        run_look(self.destination, found.token)
        seen = read_look(self.destination, found.token)
        assert seen is not None
        return found, seen

    def number(self, directory: bytes, first: bytes) -> int:
        """The number of a leaf of the base."""
        return [leaf[:2] for leaf in self.leaves].index((directory, first))

    def put(self, tree: str, body: bytes, seen: Seen) -> str:
        folder = self.destination.temporary()
        try:
            Path(folder, BODY).write_bytes(body)
            return take_patch(self.destination, tree, folder, seen)
        finally:
            self.destination.discard(folder)

    def offer(self, *items: Item) -> str:
        """Offer these leaves, under the id that they have; returns that of the transfer."""
        look, seen = self.look()
        order: list[tuple[int, int] | int] = []
        identity = Identity(NO_HASH, lambda _: b"")
        for item in items:
            if isinstance(item, bytes):
                (length,) = LENGTH.unpack_from(item)
                leaf = Leaf.unpack(item[4 : 4 + length]) if length else self.revised(item)
                row = leaf.directory, leaf.names[0], len(leaf.names), leaf.digest()
                identity.add_leaf(*row)
                order.append(1)
            else:
                for row in self.leaves[slice(*item)]:
                    identity.add_leaf(*row)
                order.append(item)
        head = PatchHead(base=look.tree, look=look.token, source="", order=tuple(order)).to_json()
        given = b"".join(item for item in items if isinstance(item, bytes))
        return self.put(identity.id(), LENGTH.pack(len(head)) + head + given, seen)

    def revised(self, item: bytes) -> Leaf:
        """What a leaf is that is given as another one, as far as there is that one."""
        base, _, _ = REVISED.unpack_from(item, 4)
        row = self.leaves[base if base < len(self.leaves) else 0]
        columns = "kind, mode, size, mtime, uid, gid, target"
        query = f"SELECT {columns} FROM entry WHERE path = ?"
        prefix = row.directory + b"/" if row.directory else b""
        with closing(sqlite3.connect(self.destination.ledger)) as db:
            rows = Rows(db, "SELECT e.id, e.path FROM entry e")
            names = [path[len(prefix) :] for _, path in rows.names(*row[:3])]
            found = [list(db.execute(query, (prefix + name,)).fetchone()) for name in names]
        told = [[TYPES[kind] | mode, *rest] for kind, mode, *rest, _ in found]
        targets = {at: one[-1] for at, one in enumerate(found) if one[-1]}
        for position, *now in REVISION.iter_unpack(item[4 + REVISED.size :][: REVISION.size]):
            if position < len(told):
                told[position] = now[:5]
                targets.pop(position, None)
        return Leaf(row.directory, names, pack_told(*zip(*told, strict=True)), targets, {}, {})

    def commit(self, transfer_id: str, *, delete: bool = True) -> None:
        """All that is sent are zeros, by a sender who says that each block is so."""
        transfer = Transfer(self.destination, transfer_id)
        transfer.negotiate(4096, Rules(delete=delete))
        assert transfer.plan().block_count == 0
        transfer.close()
        run_commit(self.destination, transfer_id, "token", 1)
        assert self.destination.read_report(transfer_id) is not None

    def assert_consistent(self) -> None:
        """The leaves of the ledger are those of its rows, each of them once and in order."""
        with closing(sqlite3.connect(self.destination.ledger)) as db:
            paths = [path for (path,) in db.execute("SELECT path FROM entry ORDER BY id")]
            ids = [number for (number,) in db.execute("SELECT id FROM entry ORDER BY id")]
            assert ids == list(range(len(ids)))
            assert all(sort_key(one) < sort_key(two) for one, two in pairwise(paths))
            rows = Rows(db, "SELECT e.id, e.path FROM entry e")
            assert rows.count == len(paths)
            leaves = db.execute("SELECT directory, first, names FROM leaf ORDER BY number")
            known = [path for leaf in leaves for _, path in rows.names(*leaf)]
        assert sorted(known) == sorted(paths)


def leaf(directory: bytes, *names: tuple[bytes, int], size: int = 0, **more: Any) -> bytes:
    """A leaf as a patch has it: names and their modes."""
    count = len(names)
    mtimes = [more.get("mtime", 5)] * count
    sizes = more.get("sizes", [size if stat.S_ISREG(mode) else 0 for _, mode in names])
    told = pack_told([mode for _, mode in names], sizes, mtimes, [0] * count, [0] * count)
    targets = {at: b"to" for at, (_, mode) in enumerate(names) if stat.S_ISLNK(mode)}
    packed = Leaf(
        directory, [name for name, _ in names], told, more.get("targets", targets),
        more.get("firsts", {}), more.get("hashes", {}),
    ).pack()  # fmt: skip
    segments = more.get("segments", ())
    columns = struct.pack(f"<{2 * count}q", *([1] * 2 * count))
    data = b"".join(SEGMENT.pack(*one) for one in segments)
    return LENGTH.pack(len(packed)) + packed + columns + LENGTH.pack(len(segments)) + data


def revision(
    base: int, *names: tuple[int, int], size: int = 0, segments: Any = (), count: int | None = None
) -> bytes:
    """A leaf of the base with some names (position, mode) revised, as a patch has it."""
    head = REVISED.pack(base, len(names) if count is None else count, len(segments))
    rows = (
        REVISION.pack(at, mode, size if stat.S_ISREG(mode) else 0, 5, 0, 0, 1, 1)
        for at, mode in names
    )
    return LENGTH.pack(0) + head + b"".join(rows) + b"".join(SEGMENT.pack(*one) for one in segments)


@pytest.fixture
def source(work: Path) -> Path:
    source = work / "src"
    (source / "d/e").mkdir(parents=True)
    (source / "gone").mkdir()
    for name in ("d/a", "d/c", "d/e/f", "d/m", "file", "gone/x", "z"):
        (source / name).write_bytes(b"")
    (source / "link").symlink_to("d")
    return source


@pytest.fixture
def target(work: Path, source: Path) -> Target:
    assert sync(source, work / "dst", algorithm="none") == {}
    return Target(work / "dst")


def hostile(target: Target) -> Iterator[tuple[str, tuple[Item, ...]]]:
    """What is to be refused: the items of patches."""
    end = len(target.leaves)
    d = target.number(b"d", b"a")
    root = target.number(b"", b"")
    top = target.number(b"", b"d")
    whole = (0, end)

    def with_leaf(*given: bytes) -> tuple[Item, ...]:
        return (0, d + 1), *given, *([(d + 1, end)] if d + 1 < end else [])

    yield "between the names of a leaf that stays", with_leaf(leaf(b"d", (b"b", REG)))
    yield "before those of a leaf that stays", with_leaf(leaf(b"d", (b"0", REG)))
    yield "a name that is there", with_leaf(leaf(b"d", (b"m", REG)))
    yield "names out of order", with_leaf(leaf(b"d", (b"y", REG), (b"x", REG)))
    yield "a name twice", with_leaf(leaf(b"d", (b"y", REG), (b"y", REG)))
    yield "a leaf twice", with_leaf(*[leaf(b"d", (b"y", REG))] * 2)
    yield "leaves out of order", with_leaf(leaf(b"d", (b"y", REG)), leaf(b"d", (b"x", REG)))
    for name in (b"", b".", b"..", b"e/g", b"/", b"/etc", b"y" * 256):
        yield f"the name {name[:9]!r}", with_leaf(leaf(b"d", (name, REG)))
    yield "the empty name with others", with_leaf(leaf(b"", (b"", DIR), (b"zz", REG)))
    yield "our own folder", with_leaf(leaf(b"", (b".tar_like", DIR)))
    yield "in our own folder", with_leaf(leaf(b".tar_like", (b"lock", REG)))
    for folder in (b"none", b"file", b"link", b"/", b"/etc", b"d/", b"d//e", b"..", b"d/../d"):
        yield f"in {folder!r}", with_leaf(leaf(folder, (b"y", REG)))
    yield (
        "no root",
        (*([(0, root)] if root else []), *([(root + 1, end)] if root + 1 < end else [])),
    )
    yield "a root that is a file", ((0, root), leaf(b"", (b"", REG)), (root + 1, end))
    rest = [(0, top)] if top else []
    tail = [(top + 1, end)] if top + 1 < end else []
    yield "no names in the root", (*rest, *tail)
    only = leaf(b"", (b"d", REG), (b"file", REG), (b"gone", DIR), (b"link", LINK), (b"z", REG))
    yield "a leaf of what is a file now", (*rest, only, *tail)
    only = leaf(b"", (b"d", LINK), (b"file", REG), (b"gone", DIR), (b"link", LINK), (b"z", REG))
    yield "a leaf of what is a symlink now", (*rest, only, *tail)
    for kind in (0, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, 0o170000, 1 << 20 | stat.S_IFREG):
        yield f"the type {kind:o}", with_leaf(leaf(b"d", (b"y", kind | 0o644)))
    for size in (-1, -(1 << 63), (1 << 63) - 1, 1 << 62):
        yield f"the size {size}", with_leaf(leaf(b"d", (b"y", REG), size=size))
    yield "a file with a target", with_leaf(leaf(b"d", (b"y", REG), targets={0: b"x"}))
    for text in (b"", b"\0", b"x" * 4096):
        yield f"the target {text[:9]!r}", with_leaf(leaf(b"d", (b"y", LINK), targets={0: text}))
    yield "a hard link", with_leaf(leaf(b"d", (b"y", REG), firsts={0: b"d/a"}))
    yield "a digest", with_leaf(leaf(b"d", (b"y", REG), hashes={0: bytes(32)}))
    for segments in (
        ((0, 0, 4096), (0, 0, 8192)), ((0, -4096, 4096),), ((0, 4096, 1 << 62),), ((0, 1, 5),),
        ((0, 8192, 4096),), ((0, 0, 8192), (0, 4096, 9000)),
    ):  # fmt: skip
        one = leaf(b"d", (b"y", REG), size=9000, segments=segments)
        yield f"the segments {segments}", with_leaf(one)
    for order in ((1, 0), (0, 0), (-1, end), (0, end + 1), (end, end + 1), (0, 1 << 70)):
        yield f"the leaves {order}", (order,)
    yield "leaves twice", (whole, whole)
    yield "leaves in another order", ((1, end), (0, 1))


def hostile_revisions(target: Target) -> Iterator[tuple[str, tuple[Item, ...]]]:
    """The same of leaves that are given as others: d has a, c, e (a folder), m."""
    end = len(target.leaves)
    d = target.number(b"d", b"a")
    top = target.number(b"", b"d")

    def instead(*given: bytes, of: int = d) -> tuple[Item, ...]:
        before, behind = [(0, of)] if of else [], [(of + 1, end)] if of + 1 < end else []
        return *before, *given, *behind

    one = revision(d, (0, REG))
    yield "of a leaf that stays", ((0, end), one)
    yield "beside the leaf that stays", ((0, d + 1), one, *([(d + 1, end)] if d + 1 < end else []))
    for number in (end, end + 5, (1 << 32) - 1):
        yield f"of the leaf {number}", instead(revision(number, (0, REG)))
    yield "twice", instead(one, one)
    yield "beside the same as a whole", instead(one, leaf(b"d", (b"a", REG), (b"b", REG)))
    yield "in another place", ((0, d), (d + 1, end), leaf(b"d", (b"a", REG)), one)
    for positions in ((4,), (1024,), (65535,), (0, 4), (1, 1), (2, 1), (0, 2, 1)):
        yield f"the positions {positions}", instead(revision(d, *((at, REG) for at in positions)))
    yield "none", instead(revision(d))
    yield "more than there are", instead(revision(d, (0, REG), count=2))
    yield "more than a leaf has", instead(revision(d, *((at, REG) for at in range(1025))))
    for kind in (0, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, 0o170000, 1 << 20 | stat.S_IFREG):
        yield f"the type {kind:o}", instead(revision(d, (0, kind | 0o644)))
    yield "a symlink to nothing", instead(revision(d, (0, LINK)))
    yield "a folder that has names as a file", instead(revision(d, (2, REG)))
    for size in (-1, -(1 << 63), (1 << 63) - 1, 1 << 62):
        yield f"the size {size}", instead(revision(d, (0, REG), size=size))
    for segments in (
        ((0, 0, 4096), (0, 0, 8192)), ((0, -4096, 4096),), ((0, 4096, 1 << 62),), ((0, 1, 5),),
        ((0, 8192, 4096),), ((0, 0, 8192), (0, 4096, 9000)),
    ):  # fmt: skip
        yield (
            f"the segments {segments}",
            instead(revision(d, (0, REG), size=9000, segments=segments)),
        )
    # In the root: d, file, gone, link, z.
    yield "a symlink that had names", instead(revision(top, (0, LINK)), of=top)


@pytest.mark.parametrize("form", [hostile, hostile_revisions])
def test_what_cannot_be_is_refused(
    target: Target, form: Callable[[Target], Iterator[tuple[str, tuple[Item, ...]]]]
) -> None:
    before = trees.look(target.dest, records=False)
    for name, items in form(target):
        with pytest.raises((IndexInvalid, Conflict)):
            pytest.fail(f"{name}: {target.offer(*items)}")
        assert not target.destination.transfers(), name
    assert trees.look(target.dest, records=False) == before


@pytest.mark.parametrize("delete", [False, True])
def test_what_is_accepted_leaves_a_ledger_that_holds_together(
    work: Path, source: Path, target: Target, delete: bool
) -> None:
    end = len(target.leaves)
    d, gone = target.number(b"d", b"a"), target.number(b"gone", b"x")
    assert d < gone
    top = leaf(b"", (b"d", DIR), (b"file", DIR), (b"gone", LINK), (b"new", DIR), (b"z", REG))
    at = target.number(b"", b"d")
    others = [(one, one + 1) for one in range(end) if one not in (at, gone)]
    target.commit(
        target.offer(
            *others, leaf(b"d", (b"n", DIR), (b"o", REG)), leaf(b"file", (b"f", REG)), top,
            leaf(b"d/n", (b"x", LINK)),
        ),
        delete=delete,
    )  # fmt: skip
    target.assert_consistent()
    job = Job(source, target.dest, algorithm="none", negotiate=False)
    job.transfer.negotiate(4096, Rules(delete=True))
    assert job.complete() == {}
    job.close()
    assert trees.look(source) == trees.look(target.dest)


def honest(
    source: Path, target: Target, spool: Path, *, revising: bool = True,
    plan: dict[str, Any] | None = None,
) -> tuple[str, bytes, Seen]:  # fmt: skip
    """The patch of a tree: its id, the body, and the look."""
    look, seen = target.look()
    reader = FolderSource(str(source))
    rows = Recorded(reader, Wanted())
    try:
        tree = rows.finish(str(spool), Former()).id
        base = b"".join(leaf.digest[:LEAF_NAME] for leaf in target.leaves)
        order = compare(base, bytes(rows.leaves))
        head = PatchHead(
            base=look.tree, look=look.token, source="", order=tuple(order), plan=plan or {}
        ).to_json()
        given = [
            (Candidate.of(rows.stretch(number)[0], look), former)
            for number, former in given_by(order, len(target.leaves))
        ]
        body = parts(given, revisions(given) if revising else set())
        return tree, b"".join((LENGTH.pack(len(head)), head, *body)), seen
    finally:
        rows.close()
        reader.close()


class Asked:
    """Who would start processes, asked for plans."""

    def __init__(self) -> None:
        self.plans: list[tuple[str, str, dict[str, Any]]] = []

    def plan(self, transfer_id: str, token: str, wish: str) -> None:
        self.plans.append((transfer_id, token, json.loads(wish)))


PLAN = {"block_size": 8192, "ask": True, "look": "", "rules": Rules(delete=True).to_json()}


def offered(target: Target, tree: str, body: bytes, asked: Asked) -> tuple[Transfers, str]:
    """A patch that is offered as it comes over the wire; the id of its transfer."""
    transfers = Transfers(target.destination, asked)  # type: ignore[arg-type]
    folder = target.destination.temporary()
    Path(folder, BODY).write_bytes(body)
    return transfers, transfers.patch(tree, folder).id


def test_the_plan_of_a_large_file_is_begun_before_it_is_negotiated(
    work: Path, source: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers_module, "WAIT", 0.0)
    (source / "large").write_bytes(bytes(1 << 20))
    tree, body, _ = honest(source, target, work / "spool", plan=PLAN)
    asked = Asked()
    transfers, transfer = offered(target, tree, body, asked)
    ((known, token, wish),) = asked.plans
    assert (known, wish["block_size"], wish["ask"]) == (transfer, 8192, True)
    assert transfers.get(transfer).rules == Rules(delete=True)
    for count in (1, 2):  # by who negotiates first it is waited for, by the next begun once more
        status = transfers.negotiate(transfer, Wish(block_size=8192, ask=True), Rules(delete=True))
        assert status.state == "open"
        assert len(asked.plans) == count
    assert asked.plans[1][1] != token


def test_a_plan_that_somebody_makes_is_not_begun_once_more(
    work: Path, source: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers_module, "WAIT", 0.0)
    (source / "large").write_bytes(bytes(1 << 20))
    tree, body, _ = honest(source, target, work / "spool")
    asked = Asked()
    transfers, transfer = offered(target, tree, body, asked)
    wish = Wish(block_size=8192, ask=True)
    with held(os.path.join(target.destination.transfer(transfer), PLAN_LOCK)):
        monkeypatch.setattr(transfers.get(transfer), "state", lambda _: None)
        assert transfers.negotiate(transfer, wish, Rules()).state == "open"
    assert asked.plans == []
    assert transfers.negotiate(transfer, wish, Rules()).state == "open"
    assert len(asked.plans) == 1


@pytest.mark.parametrize("why", ["small", "not said", "rules"])
def test_else_the_plan_waits_for_who_negotiates(
    work: Path, source: Path, target: Target, why: str
) -> None:
    (source / "large").write_bytes(bytes(1 << (10 if why == "small" else 20)))
    rules = Rules(delete=True, existing=why == "rules").to_json()
    plan = None if why == "not said" else {**PLAN, "rules": rules}
    tree, body, _ = honest(source, target, work / "spool", plan=plan)
    asked = Asked()
    offered(target, tree, body, asked)
    assert asked.plans == []


@pytest.mark.parametrize(
    "plan", [{"block_size": "1"}, {"ask": 1, "block_size": 4096}, {"block_size": 5}, {"x": 1}]
)
def test_a_plan_that_cannot_be_is_refused(
    work: Path, source: Path, target: Target, plan: dict[str, Any]
) -> None:
    (source / "large").write_bytes(bytes(1 << 20))
    tree, body, _ = honest(source, target, work / "spool", plan=plan)
    with pytest.raises(UsageError):
        offered(target, tree, body, Asked())


def test_a_damaged_body_is_refused(
    work: Path, source: Path, target: Target, dice: random.Random
) -> None:
    (source / "d/new").write_bytes(b"")
    (source / "d/sparse").touch()
    os.truncate(source / "d/sparse", 1 << 20)
    (source / "gone/x").unlink()
    (source / "gone/y").symlink_to("x")
    tree, body, seen = honest(source, target, work / "spool")
    damaged = [body[:at] for at in dice.sample(range(len(body)), 60)]
    for _ in range(150):
        spoilt = bytearray(body)
        spoilt[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        damaged.append(bytes(spoilt))
    for at in range(0, len(body) - 4, 7):
        damaged.append(body[:at] + dice.choice((b"\xff" * 4, bytes(4))) + body[at + 4 :])
    for one in damaged:
        with contextlib.suppress(IndexInvalid, Conflict):
            # What is in no leaf may be anything: ctimes, inodes, the source, data of files.
            target.destination.discard(target.destination.transfer(target.put(tree, one, seen)))
        assert not target.destination.transfers()
    target.commit(target.put(tree, body, seen))
    target.assert_consistent()
    trees.assert_same(source, target.dest)


@pytest.mark.parametrize(
    "head",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"order": 5}', b"\xff", b'{"base": 1}']
    + [
        b'{"base": "", "look": "", "source": "", "order": %s}' % order
        for order in (b"[0]", b"[-1]", b"[4294967296]", b"[[1]]", b"[[1,2,3]]", b"[[1.0,2]]",
                      b"[true]", b'["x"]', b"[[[[]]]]", b"[null]", b"{}", b"[" + b"9" * 5000 + b"]")
    ],
)  # fmt: skip
def test_a_head_that_is_none_is_refused(target: Target, head: bytes) -> None:
    with pytest.raises(IndexInvalid):
        target.put("0" * 64, LENGTH.pack(len(head)) + head, target.look()[1])


def test_the_report_of_an_earlier_time_is_not_that_of_a_patch(
    work: Path, source: Path, target: Target
) -> None:
    """The same two trees follow each other again, and then another is committed first."""
    before = source.stat().st_mtime_ns
    for again in (False, True):
        (source / "new").write_bytes(b"")
        for path in (source / "new", source):
            os.utime(path, ns=(1, 1))
        tree, body, seen = honest(source, target, work / "spool")
        patch = target.put(tree, body, seen)
        assert target.destination.read_report(patch) is None
        if again:
            break
        first = patch
        target.commit(patch)
        assert target.destination.read_report(patch) is not None
        (source / "new").unlink()
        os.utime(source, ns=(1, before))
        job = Job(source, target.dest, algorithm="none", negotiate=False)
        job.transfer.negotiate(4096, Rules(delete=True))
        assert job.complete() == {}
        job.close()
    assert patch == first
    (source / "other").write_bytes(b"")
    assert sync(source, target.dest, algorithm="none") == {}
    assert target.destination.read_report(patch) is None
    with pytest.raises(NotFound):
        Transfer(target.destination, patch)


def test_a_whole_index_is_no_part_of_one(work: Path, target: Target) -> None:
    folder = target.destination.temporary()
    path = Path(folder, "index.db")
    index_id = indexes.write(path, [indexes.root()])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO meta VALUES (?, ?)", (PATCH_OF, "0" * 64))
    with pytest.raises(IndexInvalid):
        offer(target.destination, index_id, folder)


def test_a_files_version_is_that_of_its_new_content(
    work: Path, source: Path, target: Target
) -> None:
    """The base came from a source with versions, the patch from one without."""
    with closing(sqlite3.connect(target.destination.ledger)) as db, db:
        db.execute("UPDATE entry SET token = x'01' WHERE path IN (x'66696c65', x'7a')")
    os.utime(source / "file", ns=(1, 1))
    tree, body, seen = honest(source, target, work / "spool")
    target.commit(target.put(tree, body, seen))
    with closing(sqlite3.connect(target.destination.ledger)) as db:
        known = db.execute("SELECT path, token FROM entry WHERE path IN (x'66696c65', x'7a')")
        assert known.fetchall() == [(b"file", b""), (b"z", b"\x01")]


def contents(folder: Path) -> dict[str, list[Any]]:
    """All rows of a transfer's index and patch."""
    found = {}
    for name in ("index.db", "patch.db"):
        with closing(sqlite3.connect(folder / name)) as db:
            for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'"):
                rows = db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                found[f"{name} {table}"] = rows
    return found


def folders(root: Path) -> set[bytes]:
    return {os.fsencode(one.relative_to(root)) for one in root.rglob("*") if one.is_dir()}


EDITABLE = sorted(EDITS.keys() - {"link"})


def test_a_patch_is_the_same_by_what_is_remembered_as_by_rows(
    work: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = work / "edited"
    source.mkdir()
    tree = Edited(source, dice)
    assert sync(source, work / "dst", algorithm="none") == {}
    revised = 0
    for _ in range(6):
        target = Target(work / "dst")
        for _ in range(dice.randrange(1, 6)):
            EDITS[dice.choice(EDITABLE)](tree)
        tree_id, body, seen = honest(source, target, work / "spool")
        whole = honest(source, target, work / "spool", revising=False)[1]
        revised += body != whole
        remembered = exact_sights(target.destination, seen.ledger, {b"", *folders(target.dest)})
        assert len(remembered) > 3
        found = []
        for sights, form in itertools.product((remembered, {}), (body, whole)):
            monkeypatch.setattr(patching, "exact_sights", lambda *_, known=sights: known)
            transfer = target.destination.transfer(target.put(tree_id, form, seen))
            found.append(contents(Path(transfer)))
            target.destination.discard(transfer)
        assert found[1:] == found[:-1]
        job = Job(source, target.dest, algorithm="none", negotiate=False)
        job.transfer.negotiate(4096, Rules(delete=True))
        assert job.complete() == {}
        job.close()
    assert revised > 0


def test_what_is_remembered_after_a_patch_is_what_lies_there(
    work: Path, source: Path, target: Target
) -> None:
    """A look by it sees what one sees that goes through the rows, and need not go through them."""

    def by_rows() -> Seen:
        with monkey.context() as patched:
            patched.setattr(look, "SIGHTS", "none")
            return target.look()[1]

    monkey = pytest.MonkeyPatch()
    assert target.look()[1].same
    (source / "d/new").write_bytes(b"")
    (source / "d/c").chmod(0o600)
    (source / "gone/x").unlink()
    (source / "file").unlink()
    (source / "file").mkdir()
    os.utime(source / "z", ns=(1, 1))
    tree, body, seen = honest(source, target, work / "spool")
    target.commit(target.put(tree, body, seen))
    trees.assert_same(source, target.dest)
    version = version_of(target.destination.ledger)
    carried = exact_sights(target.destination, version, {b"", *folders(source)})
    assert carried.keys() >= {b"d", b"d/e", b"gone"}
    with closing(Walker(target.dest)) as walker:
        comparing = Comparing()
        for path, sight in carried.items():
            comparing.see(sight, walker.dirfd(path), listed=False)
        comparing.end()
        assert not comparing.changed
    assert target.look()[1] == by_rows()
    assert target.look()[1].same
    (target.dest / "d/e/f").write_bytes(b"others")
    assert not target.look()[1].same
    assert target.look()[1] == by_rows()


def beside() -> bool:
    return threading.current_thread() is not threading.main_thread()


@pytest.mark.parametrize("structural", [False, True])
@pytest.mark.parametrize("trouble", ["full", "memory", "thread", "room", "none"])
def test_a_ledger_that_cannot_be_begun_beside_is_written_afterwards(
    work: Path,
    source: Path,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    structural: bool,
    trouble: str,
) -> None:
    draft, threads, describe = Patch.draft, list[bool](), Patch._describe

    def noted(patch: Patch, ledger: str, path: str) -> None:
        threads.append(beside())
        draft(patch, ledger, path)

    def failing(patch: Patch, db: sqlite3.Connection) -> None:
        """It is half written then."""
        if beside() and trouble == "full":
            raise sqlite3.OperationalError("database or disk is full")
        if beside() and trouble == "memory":
            raise MemoryError
        describe(patch, db)

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Patch, "draft", noted)
    monkeypatch.setattr(Patch, "_describe", failing)
    if trouble == "thread":
        monkeypatch.setattr(threading.Thread, "start", none)
    if trouble == "room":
        monkeypatch.setattr(nextledger, "_ROOMY", 1 << 40)
    (source / "d/c").chmod(0o600)
    if structural:
        (source / "d/new").write_bytes(b"")
        (source / "z").unlink()
    tree, body, seen = honest(source, target, work / "spool")
    target.commit(target.put(tree, body, seen))
    assert threads == {"none": [True], "thread": [False], "room": [False]}.get(
        trouble, [True, False]
    )
    monkeypatch.undo()
    trees.assert_same(source, target.dest)
    target.assert_consistent()
    seen = target.look()[1]
    assert seen.same and seen.index == tree
    assert not os.listdir(os.path.join(target.destination.home, "tmp"))


def put_changed(work: Path, source: Path, target: Target) -> tuple[str, str, Callable[[], str]]:
    """The transfer of a patch that has just come, its folder, and what puts it once more."""
    (source / "d/c").chmod(0o600)
    tree, body, seen = honest(source, target, work / "spool")
    transfer = target.put(tree, body, seen)
    return transfer, target.destination.transfer(transfer), lambda: target.put(tree, body, seen)


@pytest.mark.parametrize("structural", [False, True])
@pytest.mark.parametrize(
    "other", ["nothing", "boot", "ledger", "torn", "offered anew", "fifo", "symlink"]
)
def test_a_draft_that_was_made_before_is_used_as_long_as_it_holds(
    work: Path,
    source: Path,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    structural: bool,
    other: str,
) -> None:
    if structural:
        (source / "d/new").write_bytes(b"")
    transfer, path, put_again = put_changed(work, source, target)
    destination = target.destination
    if other == "torn":  # by a process that was killed
        Path(path, "draft.0123456789abcdef").write_bytes(b"half of it")
    drafting = nextledger.begin_draft(destination, path, wait=60.0)
    assert drafting is not None
    drafting.join()
    (made,) = glob.glob(f"{path}/draft-*.db")
    if other == "boot":
        monkeypatch.setattr(nextledger, "machine", lambda: b"host\0another boot")
        Path(made).write_bytes(b"lost with the power")
    elif other == "ledger":
        shutil.copy(destination.ledger, f"{path}/copy")
        os.rename(f"{path}/copy", destination.ledger)
    elif other == "offered anew":
        destination.discard(path)
        assert put_again() == transfer
    shutil.copy(destination.ledger, work / "outside")
    outside = (work / "outside").read_bytes()
    if other in ("fifo", "symlink"):
        os.unlink(made)
        os.mkfifo(made) if other == "fifo" else os.symlink(work / "outside", made)
    drafts = list[str]()
    draft = Patch.draft

    def noted(patch: Patch, ledger: str, path: str) -> None:
        drafts.append(path)
        draft(patch, ledger, path)

    monkeypatch.setattr(Patch, "draft", noted)
    target.commit(transfer)
    assert bool(drafts) == (other not in ("nothing", "torn"))
    assert (work / "outside").read_bytes() == outside
    monkeypatch.undo()
    trees.assert_same(source, target.dest)
    target.assert_consistent()
    assert target.look()[1].same
    with closing(connect(destination.ledger, "ro")) as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    assert "mine" not in names


def test_what_is_left_of_drafts_takes_no_room(
    work: Path, source: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is too little for another one they go first; in a commit none is begun."""
    transfer, path, _ = put_changed(work, source, target)
    for name in ("draft.0123456789abcdef", "draft-0123456789abcdef.db"):
        Path(path, name).write_bytes(b"left over")
    monkeypatch.setattr(nextledger, "_ROOMY", 1 << 40)
    nextledger._make_draft(target.destination, path, wait=60.0)
    assert not [
        name for name in os.listdir(path) if name.startswith("draft") and "lock" not in name
    ]
    target.commit(transfer)
    trees.assert_same(source, target.dest)


def test_a_commit_does_not_wait_for_a_draft_for_ever(
    work: Path, source: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer, path, _ = put_changed(work, source, target)
    monkeypatch.setattr(nextledger, "_PATIENCE", 0.05)
    with held(os.path.join(path, "draft.lock")):
        target.commit(transfer)
    trees.assert_same(source, target.dest)
    target.assert_consistent()


def test_a_draft_of_a_transfer_that_was_offered_anew_meanwhile_is_dropped(
    work: Path, source: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer, path, put_again = put_changed(work, source, target)
    describe = Patch._describe

    def meanwhile(patch: Patch, db: sqlite3.Connection) -> None:
        describe(patch, db)
        target.destination.discard(path)
        assert put_again() == transfer
        Path(path, "draft.0123456789abcdef").write_bytes(b"of the other one")

    monkeypatch.setattr(Patch, "_describe", meanwhile)
    nextledger._make_draft(target.destination, path, wait=60.0)
    monkeypatch.undo()
    assert not glob.glob(f"{path}/draft-*.db")
    target.commit(transfer)
    trees.assert_same(source, target.dest)
    target.assert_consistent()


def test_leaves_that_are_cut_otherwise_are_kept_so(target: Target) -> None:
    """No name has come or gone, and yet all leaves behind them have other numbers."""
    at, end = target.number(b"d", b"a"), len(target.leaves)
    halves = leaf(b"d", (b"a", REG), (b"c", REG)), leaf(b"d", (b"e", DIR), (b"m", REG))
    before, behind = [(0, at)] if at else [], [(at + 1, end)] if at + 1 < end else []
    target.commit(target.offer(*before, *halves, *behind))
    target.assert_consistent()
    again = Target(target.dest)
    assert len(again.leaves) == end + 1
    assert [one[:3] for one in again.leaves if one[0] == b"d"] == [(b"d", b"a", 2), (b"d", b"e", 2)]
    again.commit(again.offer((0, end + 1)))  # the same tree: nothing differs


def test_small_patches_are_planned_at_once(work: Path, source: Path, target: Target) -> None:
    for size, easy in ((100, True), (1 << 20, False)):
        (source / "new").write_bytes(bytes(size))
        tree, body, seen = honest(source, target, work / "spool")
        transfer = target.put(tree, body, seen)
        with Planning(target.destination, transfer) as planning:
            assert planning.is_easy(target.look()[0].token) == easy
            assert not planning.is_easy("0123456789abcdef"), "all of DEST would be looked at"
        target.destination.discard(target.destination.transfer(transfer))


def test_there_is_no_plan_of_a_difference_to_what_is_no_more(
    work: Path, source: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "new").write_bytes(b"new")
    tree, body, seen = honest(source, target, work / "spool")
    transfer = Transfer(target.destination, target.put(tree, body, seen))
    monkeypatch.setattr(Patch, "fits", lambda *_: False)
    with pytest.raises(NotFound):
        transfer.negotiate(4096, Rules())
    assert not target.destination.transfers()


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("content", [True, False])
def test_what_became_a_directory_is_looked_at(
    work: Path, source: Path, kind: str, content: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "_SETTLING", -3600.0)
    assert sync(source, work / "dst", algorithm="none") == {}
    target = Target(work / "dst")
    assert target.look()[1].same
    (source / kind).unlink()
    (source / kind).mkdir()
    if content:
        (source / kind / "new").touch()
    tree, body, seen = honest(source, target, work / "spool")
    target.commit(target.put(tree, body, seen))
    assert target.look()[1].same
    new = target.dest / kind / "new"
    times = new.parent.stat()
    if content:
        new.chmod(0o600)
    else:
        new.touch()
        os.utime(new.parent, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen = target.look()[1]
    assert not seen.same or seen.extra


def test_what_is_no_directory_any_more_is_forgotten(
    work: Path, source: Path, target: Target
) -> None:
    assert target.look()[1].same
    for name in ("d/e", "gone"):
        shutil.rmtree(source / name)
    (source / "d/e").touch()
    (source / "gone").symlink_to("d")
    tree, body, seen = honest(source, target, work / "spool")
    target.commit(target.put(tree, body, seen))
    version = version_of(target.destination.ledger)
    paths = {b"", b"d", b"d/e", b"gone"}
    assert exact_sights(target.destination, version, paths).keys().isdisjoint({b"d/e", b"gone"})
    trees.assert_same(source, target.dest)


def test_a_symlink_without_a_target_is_none(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its length is what the old one's was, and so are all its other numbers."""
    monkeypatch.setattr(look, "_SETTLING", -3600.0)
    (target.dest / "d/l").symlink_to("old")
    os.utime(target.dest / "d/l", ns=(5, 5), follow_symlinks=False)
    for name in ("a", "c", "e", "m"):
        os.utime(target.dest / f"d/{name}", ns=(5, 5))
    assert sync(target.dest, target.dest.with_name("other"), algorithm="none") == {}
    other = Target(target.dest.with_name("other"))
    assert other.look()[1].same
    names = (b"a", REG), (b"c", REG), (b"e", DIR), (b"l", LINK), (b"m", REG)
    at, end = other.number(b"d", b"a"), len(other.leaves)
    told = leaf(b"d", *names, targets={}, sizes=[0, 0, 0, len("old"), 0])
    with pytest.raises((IndexInvalid, Conflict)):
        other.offer(*([(0, at)] if at else []), told, (at + 1, end))


def test_a_patch_of_another_version_is_given_up(work: Path, source: Path, target: Target) -> None:
    (source / "new").write_bytes(b"")
    tree, body, seen = honest(source, target, work / "spool")

    def outdated() -> str:
        found = target.put(tree, body, seen)
        path = Path(target.destination.transfer(found))
        with closing(sqlite3.connect(path / "patch.db")) as db:
            db.execute("DELETE FROM meta WHERE key = 'version'")
            db.execute("DROP TABLE run")
            db.commit()
        (path / "patch.db.seal").unlink()
        return found

    transfer = Transfer(target.destination, outdated())
    with pytest.raises(NotFound):
        transfer.negotiate(4096, Rules(delete=True))
    outdated()
    assert target.put(tree, body, seen), "it is made anew"
    found = outdated()
    target.destination.discard(target.destination.transfer(found))
    target.commit(target.put(tree, body, seen))
    trees.assert_same(source, target.dest)
