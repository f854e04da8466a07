"""A patch is offered: what a tree has other than the one that was committed last.

    head + leaves > which rows differ from the ledger's > an index of those, validated > patch.db

The sender says which leaves of the ledger its tree has, and gives those that the ledger lacks, so
the tree's id can be computed here. Nothing else of what it says is believed; what cannot be put
together so is refused, and is to be offered whole.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import chain, pairwise
from typing import BinaryIO

from blake3 import blake3

from tar_like.errors import Conflict, IndexInvalid
from tar_like.index import Index, schema
from tar_like.index.build import describe
from tar_like.index.identity import NO_HASH, Identity
from tar_like.index.numbering import Numbering
from tar_like.index.reader import PATCH_OF
from tar_like.index.validation import check_made, check_segments
from tar_like.layout import DIRECTORY, sort_key
from tar_like.proxy import patch
from tar_like.proxy.base import CTIME, INO, VALUES, WHOLE, Base
from tar_like.proxy.folding import folding
from tar_like.proxy.former import Former, leaf_of
from tar_like.proxy.given import Given, GivenLeaf, Revision, read_leaf
from tar_like.proxy.ledger import LeafRow
from tar_like.proxy.look import Seen, is_current
from tar_like.proxy.offer import open_transfer
from tar_like.proxy.place import Destination
from tar_like.proxy.recall import exact_sights
from tar_like.proxy.rows import ID, PATH, Row
from tar_like.proxy.seal import broken
from tar_like.proxy.sights import Sight
from tar_like.source import Skipped, Wanted
from tar_like.wire import MOST_PATCHED, PatchHead

_LENGTH = struct.Struct("<I")
BODY = "body"
"""The name of the file that a patch arrives in."""
_MAX_HEAD = 8 << 20
_NO_LEAVES = "The patch takes leaves that there are not."


def _with_parents(directories: set[bytes]) -> set[bytes]:
    found = set[bytes]()
    for path in directories:
        while path not in found:
            found.add(path)
            path = path.rpartition(b"/")[0]
    return found


def _no_skipped(_: Skipped) -> None:
    raise AssertionError("Nothing is skipped by a patch.")


def patch_id(base: str, tree: str) -> str:
    """The id of the transfer that makes one tree out of another."""
    return blake3(f"tar-like patch 1\0{base}\0{tree}".encode()).hexdigest()


def read_head(folder: str) -> PatchHead:
    """The head of a patch that was written to ``folder``. Raises IndexInvalid, OSError."""
    with open(os.path.join(folder, BODY), "rb") as file:
        return _head(file)


def take_patch(destination: Destination, tree: str, folder: str, seen: Seen) -> str:
    """Take up a patch that was written to ``folder``; returns the id of its transfer.

    ``seen`` is what the look that it names saw. Where there is that transfer, it goes on.

    Raises Conflict where the whole index is to be offered, IndexInvalid for what cannot be, and
    OSError.
    """
    body = os.path.join(folder, BODY)
    with open(body, "rb") as file:
        head = _head(file)
        transfer_id = patch_id(head.base, tree)
        final = destination.transfer(transfer_id)
        if (
            seen.index != head.base
            or not seen.same
            or seen.extra
            or not is_current(destination, seen, but=final)
            or folding(folder) is not None
        ):
            raise Conflict(f"There is nothing that this could be a difference to: {WHOLE}.")
        try:
            base = Base(destination.ledger, head.base)
        except sqlite3.Error:
            raise Conflict(f"The ledger cannot be read: {WHOLE}.") from None
        try:
            recall = partial(exact_sights, destination, seen.ledger)
            _Patching(base, head, tree, folder, recall).write(file)
        finally:
            base.close()
    os.unlink(body)
    if broken(final) or patch.is_outdated(final):
        destination.discard(final)
    with contextlib.suppress(FileNotFoundError):  # of when these two trees followed each other last
        os.unlink(destination.report(transfer_id))
    open_transfer(destination, transfer_id, folder)
    return transfer_id


def _head(file: BinaryIO) -> PatchHead:
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))
    if length > _MAX_HEAD:
        raise IndexInvalid("The patch has a head that is too large.")
    try:
        return PatchHead.from_json(file.read(length))
    except (ValueError, TypeError):
        raise IndexInvalid("The patch has no head.") from None


_WAITING = 1000
_Waiting = tuple[bytes, int, Given | None]
"""A name whose row is to be read: its path, the number that the row is likely to have, and what is
given of it."""


class _Patching:
    """One patch on its way into a transfer's folder."""

    def __init__(
        self, base: Base, head: PatchHead, tree: str, folder: str,
        recall: Callable[[Collection[bytes]], dict[bytes, Sight]],
    ) -> None:  # fmt: skip
        """``recall`` gives what is remembered of the base's directories, where it is exact."""
        self._recall = recall
        self._sights: dict[bytes, Sight] = {}
        self._folders: dict[bytes, Row | None] = {}
        """The rows of the directories that there are sights of."""
        self._base = base
        self._head = head
        self._tree = tree
        self._folder = folder
        self._room = MOST_PATCHED
        self._wanted: dict[bytes, Given] = {}
        """What is new or changed, and the directories that lead there, by path."""
        self._gone: dict[bytes, tuple[int, str]] = {}
        """Ledger's id and kind of what the tree has no more, by path."""
        self._lost: set[bytes] = set()
        """What is no directory any more."""
        self._given: dict[int, GivenLeaf] = {}
        """Leaves that the ledger lacks, by their numbers in the tree."""
        self._revised: set[int] = set()
        """Those of them that were made of the ledger's."""
        self._waiting: list[_Waiting] = []
        self._runs: list[tuple[int, int, int]] = []
        """The others: a number in the tree, that in the ledger, and how many follow each other."""

    def write(self, file: BinaryIO) -> None:
        """Raises Conflict, IndexInvalid, OSError."""
        gaps, revisions = self._read(file)
        dropped = self._dropped(gaps)
        leaves = dropped.values()  # those that are not revised, once that is done
        known = _with_parents({leaf.directory for leaf in leaves})  # not of what is only given
        known.update(one.row.directory for one in self._given.values())
        self._sights = self._recall(known)
        self._revise(revisions, dropped)
        if self._identity() != self._tree:
            raise Conflict(f"The patch does not lead to the tree: {WHOLE}.")
        seen = [(path, sight.row) for path, sight in self._sights.items()]
        self._folders = dict(zip(self._sights, self._base.rows.near(seen), strict=True))
        self._lead_to(b"/")
        self._check_order()
        self._compare(leaves)
        if b"" in self._gone:
            raise IndexInvalid("The patch has no root.")
        self._check_leaves()
        for path in list(self._wanted):
            self._lead_to(path)
        for path in self._gone:
            self._lead_to(path, gone=True)
        self._write()

    def _read(self, file: BinaryIO) -> tuple[list[tuple[int, int]], dict[int, Revision]]:
        """The leaves of the ledger, by ranges, that the tree lacks, and leaves made of them.

        The other ones that are given, and the ledger's that stay, are kept.
        """
        gaps, revisions = list[tuple[int, int]](), dict[int, Revision]()
        last = number = 0
        for item in [*self._head.order, (1 << 62, 1 << 62)]:
            if isinstance(item, int):
                for _ in range(item):
                    one = read_leaf(file)
                    if isinstance(one, Revision):
                        revisions[number] = one
                        self._spend(len(one.positions))
                    else:
                        self._given[number] = one
                        self._spend(one.row.names)
                    self._spend(sum(map(len, one.segments.values())))
                    number += 1
                continue
            first, stop = item
            if last < first:
                gaps.append((last, first))
            if first < stop:
                if first < last:
                    raise IndexInvalid(_NO_LEAVES)
                self._runs.append((number, first, stop - first))
                number, last = number + stop - first, stop
        return gaps, revisions

    def _spend(self, names: int) -> None:
        """Raises Conflict where a patch has more names than there is room for."""
        self._room -= names
        if self._room < 0:
            raise Conflict(f"So much has changed: {WHOLE}.")

    def _dropped(self, gaps: list[tuple[int, int]]) -> dict[int, LeafRow]:
        """The leaves of the ledger that the tree lacks, by their numbers."""
        numbers = chain.from_iterable(range(*gap) for gap in gaps)
        dropped = {}
        for number, leaf in zip(numbers, self._base.leaves_between(gaps), strict=False):
            self._spend(leaf.names)
            dropped[number] = leaf
        return dropped

    def _revise(self, revisions: dict[int, Revision], dropped: dict[int, LeafRow]) -> None:
        """Take up the leaves that are made of others: those are done with then."""
        for number, revision in revisions.items():
            row = dropped.pop(revision.base, None)
            if row is None:
                raise IndexInvalid(_NO_LEAVES)
            was, numbers = leaf_of(row, self._base.rows, self._sights.get(row.directory))
            leaf = revision.of(was)
            self._given[number] = GivenLeaf(leaf, row._replace(digest=leaf.digest()), b"", {})
            self._revised.add(number)
            prefix = leaf.directory + b"/" if leaf.directory else b""
            self._waiting += [
                (prefix + leaf.names[position], numbers[position], given)
                for position, given in revision.given()
            ]

    def _identity(self) -> str:
        """The id of the tree."""
        identity, number = Identity(NO_HASH), 0
        for item in self._head.order:
            if isinstance(item, int):
                for one in range(number, number + item):
                    identity.add_leaf(*self._given[one].row)
                number += item
            else:
                self._take_run(*item, identity)
                number += item[1] - item[0]
        return identity.id()

    def _take_run(self, first: int, stop: int, identity: Identity) -> None:
        """Leaves that the ledger and the tree have. Raises IndexInvalid."""
        while first < stop:
            digests = self._base.digests(first, stop)
            if not digests:
                raise IndexInvalid(_NO_LEAVES)
            identity.add_digests(digests)
            first += len(digests)

    def _kept_of(self, folders: Collection[bytes]) -> Iterator[tuple[int, LeafRow]]:
        """Leaves of these directories that the tree has from the ledger, by their numbers there."""
        starts = [first for _, first, _ in self._runs]
        for base, leaf in self._base.leaves_of(folders):
            at = bisect_right(starts, base) - 1
            if at >= 0:
                number, first, count = self._runs[at]
                if base < first + count:
                    yield number + base - first, leaf

    def _check_order(self) -> None:
        """Leaves of one directory follow each other, so that they say where a row belongs."""
        sequences: dict[bytes, list[tuple[int, LeafRow]]] = {}
        for number, one in self._given.items():
            sequences.setdefault(one.row.directory, []).append((number, one.row))
            if not one.row.first and (one.row.directory or one.row.names > 1):
                raise IndexInvalid("The patch has an empty name.")
        for number, leaf in self._kept_of(sequences):
            sequences[leaf.directory].append((number, leaf))
        for leaves in sequences.values():
            leaves.sort()
            for (number, leaf), (behind, other) in pairwise(leaves):
                some_given = number in self._given or behind in self._given
                if leaf.first and some_given and self._last_name(number, leaf) >= other.first:
                    raise IndexInvalid("The patch has leaves that are not in order.")

    def _last_name(self, number: int, leaf: LeafRow) -> bytes:
        """The last name of a leaf of the tree."""
        given = self._given.get(number)
        if given is not None:
            return given.leaf.names[-1]
        *_, row = self._base.rows.names(leaf.directory, leaf.first, leaf.names)
        name: bytes = row[PATH].rpartition(b"/")[2]
        return name

    def _compare(self, dropped: Iterable[LeafRow]) -> None:
        """The names of leaves that differ, against each other. The hot path."""
        old, new = dict[bytes, list[LeafRow]](), dict[bytes, list[GivenLeaf]]()
        for leaf in dropped:
            old.setdefault(leaf.directory, []).append(leaf)
        for one in self._whole():
            new.setdefault(one.row.directory, []).append(one)
        rows, waiting = self._base.rows, self._waiting
        for directory in [*new, *(old.keys() - new.keys())]:
            sight = self._sights.get(directory)
            before = Former(rows, directory, old.get(directory, ()), sight)
            prefix = directory + b"/" if directory else b""
            for one in new.get(directory, ()):
                names = one.leaf.names
                for position, was in before.differing(one.leaf):
                    given = one.at(position)
                    if isinstance(was, int):
                        waiting.append((prefix + names[position], was, given))
                    else:
                        self._take(prefix + names[position], given, was)
            for path, was in before.left():
                if isinstance(was, int):
                    waiting.append((path, was, None))
                else:
                    self._lose(was)
            if len(waiting) >= _WAITING:
                self._look_up(waiting)
        self._look_up(waiting)

    def _whole(self) -> Iterator[GivenLeaf]:
        """The leaves that are given as a whole."""
        return (one for number, one in self._given.items() if number not in self._revised)

    def _look_up(self, waiting: list[_Waiting]) -> None:
        """Take up names whose rows are still to be read."""
        found = self._base.rows.near((path, number) for path, number, _ in waiting)
        for (path, _, given), row in zip(waiting, found, strict=True):
            if given is not None:
                self._take(path, given, row)
            elif row is not None:
                self._lose(row)
        waiting.clear()

    def _lose(self, row: Row) -> None:
        """Take up a name that the tree has no more."""
        self._gone[row[PATH]] = row[ID], row[2]

    def _take(self, path: bytes, given: Given, row: Row | None) -> None:
        """Take up a name that may be other than the ledger's row says."""
        if path in self._wanted and not self._wanted[path].same:
            raise IndexInvalid("The patch has a name twice.")
        if row is None:
            self._wanted[path] = given._replace(after=self._after(path))
        elif row[VALUES] != given.values:
            self._wanted[path] = given._replace(base_id=row[ID])
            if row[2] == DIRECTORY and given.values[0] != DIRECTORY:
                self._lost.add(path)

    def _after(self, path: bytes) -> int:
        number = self._base.rows.locate(path)
        if self._base.rows.path(number) == path:
            raise IndexInvalid("The patch has a name twice.")
        return number - 1

    def _check_leaves(self) -> None:
        """Every leaf is of a directory of the tree."""
        lost = self._lost.union(path for path, (_, kind) in self._gone.items() if kind == DIRECTORY)
        given = {one.row.directory for one in self._given.values()}
        if lost and (not lost.isdisjoint(given) or next(self._kept_of(lost), None) is not None):
            raise IndexInvalid("The patch has names in a directory that there is not.")
        for directory in given:
            self._lead_to(directory + b"/")

    def _lead_to(self, path: bytes, *, gone: bool = False) -> None:
        """Take up the directories above a name, as they are in the tree; the root, too."""
        while path:
            path = path.rpartition(b"/")[0]
            if path in self._wanted:
                if self._wanted[path].values[0] == DIRECTORY:
                    return
                if gone:
                    continue  # it is no directory any more
                raise IndexInvalid("The patch has names in what is no directory.")
            if gone and path in self._gone:
                continue
            row = self._folders.get(path) or self._base.rows.entry(path)
            if row is None or row[2] != DIRECTORY:
                raise IndexInvalid("The patch has names in what is no directory.")
            self._wanted[path] = Given(row[VALUES], row[CTIME], row[INO], row[ID], same=True)

    def _write(self) -> None:
        """The index and the patch."""
        path = os.path.join(self._folder, "index.db")
        names = sorted(self._wanted, key=sort_key)
        segments: list[tuple[int, int, int]] = []

        def more(number: int, data: Iterable[tuple[int, int]], _: object) -> None:
            segments.extend((number, start, stop) for start, stop in data)

        with contextlib.closing(Numbering()) as numbering:
            found = (self._wanted[name].found(name) for name in names)
            rows = list(numbering.rows(found, _no_skipped, more))
        check_made(rows, NO_HASH)
        summary = numbering.summary
        summary.id = patch_id(self._head.base, self._tree)
        db = schema.create(path)
        try:
            db.executemany(schema.INSERT_ENTRY, rows)
            db.executemany("INSERT INTO segment VALUES (?, ?, ?)", segments)
            describe(db, summary, numbering.length, NO_HASH, self._head.source, Wanted())
            db.execute("INSERT INTO meta VALUES (?, ?)", (PATCH_OF, self._tree))
            db.execute("COMMIT")
        except (OverflowError, ValueError, sqlite3.IntegrityError):
            raise IndexInvalid("The patch has a number or a text that cannot be.") from None
        finally:
            db.close()
        with Index(path, "What was offered") as index:
            check_segments(index)
        new = sum(one.base_id is None for one in self._wanted.values())
        meta = {
            "version": patch.VERSION,
            "tree": self._tree,
            "plan": self._base.plan,
            "entries": str(self._base.rows.count + new - len(self._gone)),
        }
        db = patch.create(os.path.join(self._folder, patch.NAME))
        try:
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            wanted = enumerate(self._wanted[name] for name in names)
            places = ((number, one.base_id, one.after, one.same) for number, one in wanted)
            db.executemany("INSERT INTO at VALUES (?, ?, ?, ?)", places)
            gone = ((number, name, kind) for name, (number, kind) in self._gone.items())
            db.executemany("INSERT INTO gone VALUES (?, ?, ?)", gone)
            leaves = ((number, *one.row) for number, one in self._given.items())
            db.executemany("INSERT INTO leaf VALUES (?, ?, ?, ?, ?)", leaves)
            db.executemany("INSERT INTO run VALUES (?, ?, ?)", self._runs)
            db.execute("COMMIT")
        finally:
            db.close()
