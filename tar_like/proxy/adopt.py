"""Adopting what an earlier transfer has staged, whose tree has changed since.

    sync of a changed tree:  transfers/OLD > donors/NEW/OLD        (Destination.give)
    plan:    a lacking file that a donor has whole: the same path, size and mtime (or hash), every
             block with a receipt > adopted.db, instead of the plan
    commit:  donors are read back as any transfer is, blocks against receipts > verified.db
             > metadata > renamed into the transfer's own staging

Only a receiver for one run gives donors: nobody else may still be sending what becomes one.
Not adopted: parts of files. What turns out damaged is named, and sent by the next run.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from tar_like.database import connect_readonly, scratch
from tar_like.errors import IndexInvalid
from tar_like.index import Index
from tar_like.layout import Entry, sort_key
from tar_like.plan import Plan
from tar_like.proxy.kept import Kept
from tar_like.proxy.laying import is_laid
from tar_like.proxy.metadata import Metadata
from tar_like.proxy.receipts import Receipts
from tar_like.proxy.staging import Staging
from tar_like.proxy.verified import Verified

NAME = "adopted.db"
_TABLE = """CREATE TABLE adopted (
  donor TEXT NOT NULL,
  donor_entry INTEGER NOT NULL,
  entry_id INTEGER NOT NULL,
  PRIMARY KEY (donor, donor_entry)
) WITHOUT ROWID"""


class Donor:
    """A superseded transfer, with what it has received."""

    def __init__(self, path: str) -> None:
        """Raises IndexInvalid, OSError or sqlite3.Error when it is not whole."""
        self.path = path
        self.index = Index(os.path.join(path, "index.db"))
        self.plan = Plan(os.path.join(path, "plan.db"), self.index.path)
        self.receipts = Receipts(os.path.join(path, "receipts"))
        self.receipts.refresh()
        self._kept = Kept(os.path.join(path, "kept.db"))

    def files(self) -> Iterator[Entry]:
        """Files that arrived whole, in canonical order."""
        omitted = self.receipts.omitted_entries().keys() | self._laying()
        for entry, extents in self.plan.files_between(0, self.plan.length):
            blocks = (number for one in extents for number in self.plan.blocks_of(one))
            if entry.id not in omitted and all(self.receipts.find(number) for number in blocks):
                yield entry

    def _laying(self) -> set[int]:
        """Files whose older versions were being copied when it was given up: they have gaps."""
        if is_laid(self.path, self.plan.id):
            return set()
        return {entry_id for entry_id, _ in self._kept.laying()}

    def believes(self, entry_id: int) -> bool:
        """Whether a file of it was assembled without a look at its content."""
        return self._kept.believed(entry_id)

    def damaged(self, bad_blocks: Iterable[int]) -> set[int]:
        """Entries that have bytes in these blocks, as far as the blocks had arrived."""
        return {
            extent.entry_id
            for number in bad_blocks
            if self.receipts.find(number)
            for extent in self.plan.extents(number)
        }

    def close(self) -> None:
        """Close its files."""
        self._kept.close()
        self.plan.close()
        self.index.close()


def donors(paths: Iterable[str]) -> Iterator[Donor]:
    """Those that are whole; the others are of no use."""
    for path in paths:
        try:
            yield Donor(path)
        except (IndexInvalid, OSError, sqlite3.Error):
            continue


def adopt(
    index: Index, lacking: Iterable[Entry], folders: Iterable[str], path: str
) -> Iterator[Entry]:
    """The files that have to be sent all the same; the others are listed in ``path``.

    Both in canonical order. The list is complete once the iterator is exhausted.
    """
    db = scratch(path)
    db.execute(_TABLE)
    for donor in donors(folders):
        if donor.index.algorithm == index.algorithm:
            lacking = _without(lacking, donor, db)
    yield from lacking
    db.execute("COMMIT")
    db.close()


def _without(lacking: Iterable[Entry], donor: Donor, db: sqlite3.Connection) -> Iterator[Entry]:
    theirs = donor.files()
    other = next(theirs, None)
    for entry in lacking:
        key = sort_key(entry.path)
        while other is not None and sort_key(other.path) < key:
            other = next(theirs, None)
        if other is not None and _same(entry, other):
            row = (os.path.basename(donor.path), other.id, entry.id)
            db.execute("INSERT INTO adopted VALUES (?, ?, ?)", row)
        else:
            yield entry
    donor.close()


def _same(entry: Entry, other: Entry) -> bool:
    """Whether the file that was sent is the one that is wanted, judged as the ledger judges."""
    if (entry.path, entry.size, entry.token) != (other.path, other.size, other.token):
        return False
    return entry.hash == other.hash and (entry.hash != b"" or entry.mtime == other.mtime)


class Adoption:
    """What one transfer adopts, for its commit."""

    def __init__(self, path: str, folder: str) -> None:
        """``path`` is the transfer's folder, ``folder`` holds its donors."""
        self._path = path
        self._folder = folder
        self._list = os.path.join(path, NAME)

    def donors(self) -> Iterator[Donor]:
        """Those that something is adopted from."""
        names = self._rows("SELECT DISTINCT donor FROM adopted")
        yield from donors(os.path.join(self._folder, name) for (name,) in names)

    def files(self, donor: Donor) -> Iterator[tuple[int, int]]:
        """(entry of the donor, entry of the transfer) of each file, by the donor's."""
        query = "SELECT donor_entry, entry_id FROM adopted WHERE donor = ? ORDER BY 1"
        return self._rows(query, os.path.basename(donor.path))

    def _rows(self, query: str, *values: object) -> Iterator[Any]:
        if not os.path.exists(self._list):
            return
        db = connect_readonly(self._list)
        try:
            yield from db.execute(query, values)
        finally:
            db.close()

    def stage(self, index: Index, verified: Verified) -> set[int]:
        """Move verified files to the transfer's own staging, as its index wants them. Idempotent.

        To be called once ``verified`` is published: from then on nothing is read back again.
        Returns the entries that were not verified.
        """
        own = Staging(os.path.join(self._path, "stage"))
        metadata = Metadata(index.xattr_names)
        lost = {entry_id for (entry_id,) in self._rows("SELECT entry_id FROM adopted")}
        with verified.known() as is_verified:
            for donor in self.donors():
                theirs = Staging(os.path.join(donor.path, "stage"))
                for donor_entry, entry_id in self.files(donor):
                    if is_verified(entry_id):
                        lost.discard(entry_id)
                        _move(theirs, donor_entry, own, index.entry(entry_id), metadata, index)
                theirs.close()
                donor.close()
        own.close()
        return lost


def _move(
    theirs: Staging, number: int, own: Staging, entry: Entry, metadata: Metadata, index: Index
) -> None:
    try:
        fd = theirs.reopen(number)
    except FileNotFoundError:
        return  # moved before a crash
    try:
        metadata.apply(fd, entry, os.fstat(fd), index.xattrs(entry.id))
    finally:
        os.close(fd)
    names = (theirs.name(number), own.name(entry.id))
    try:
        os.rename(*names, src_dir_fd=theirs.fd, dst_dir_fd=own.fd)
    except FileNotFoundError:
        own.make_shard(entry.id)
        os.rename(*names, src_dir_fd=theirs.fd, dst_dir_fd=own.fd)
