"""Survey: what a transfer's index asks for, against what the destination holds.

    index and ledger, less what was touched > kept            (ledger.Comparison, look)
                                            > lacking, and what lies at its path now
    files that the ledger does not vouch for > strays, of the sizes that are lacking    (strays)
    lacking files for which there may be local content > questions for the sender

    survey.db = landed (what is kept) + lacking(entry_id, size, mtime, hash, at_size, at_mtime)
              + passed (by the rules) + ledger (the plan that the ledger is of) + stray

It is written once, when a plan is first asked for; the questions are derived from it, and the
plan from it and the answers.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tar_like import chunks
from tar_like.database import attach, connect, scratch
from tar_like.dirfd import Walker
from tar_like.index import Index
from tar_like.layout import PAGE, Entry
from tar_like.plan.questions import Question
from tar_like.proxy.kept import LEDGER, PASSED
from tar_like.proxy.ledger import LANDED, Comparison, Ledger
from tar_like.proxy.look import touched_now
from tar_like.proxy.passing import Passing
from tar_like.proxy.strays import STRAY, Stray, Vouched, note_strays
from tar_like.rules import Rules

TWIN = 64 << 10
"""Bytes from which two new files of one size are worth reading before they are sent, to see
whether they are the same (their ends first). Below it that costs more than it is likely to save."""
LEAST_TWIN = PAGE
"""Bytes from which a file is not sent a second time where its digest is known."""

LACKING = """CREATE TABLE lacking (
  entry_id INTEGER PRIMARY KEY,
  size INTEGER NOT NULL,
  mtime INTEGER NOT NULL,
  hash BLOB NOT NULL,
  at_size INTEGER NOT NULL,
  at_mtime INTEGER NOT NULL
)"""
_LEFT = """
SELECT id,path,kind,size,offset,mode,mtime,uid,gid,target,link,hash,ctime,ino,token
FROM idx.entry e WHERE kind = 'f'
AND NOT EXISTS (SELECT 1 FROM landed l WHERE l.entry_id = e.id)
AND NOT EXISTS (SELECT 1 FROM passed p WHERE p.entry_id = e.id)
ORDER BY id
"""
_NOTHING = (-1, 0)
_LEFT_OF_PATCH = """
INSERT INTO lacking
SELECT e.id, e.size, e.mtime, e.hash, coalesce(o.size, -1), coalesce(o.mtime, 0)
FROM patch.at a CROSS JOIN idx.entry e ON e.id = a.entry_id
LEFT JOIN ledger.entry o ON o.id = a.base_id AND o.kind = 'f'
WHERE e.kind = 'f'
AND NOT EXISTS (SELECT 1 FROM landed l WHERE l.entry_id = e.id)
AND NOT EXISTS (SELECT 1 FROM passed p WHERE p.entry_id = e.id)
"""
"""The look that a patch goes by saw what lies there: just what the ledger says."""
_FEW = 5000
"""Lacking files that are kept in memory."""
_LACKING = """
SELECT id,path,kind,e.size,offset,mode,e.mtime,uid,gid,target,link,e.hash,ctime,ino,token,at_size
FROM lacking l CROSS JOIN idx.entry e ON e.id = l.entry_id ORDER BY l.entry_id
"""
_PATCHED = """
INSERT INTO landed SELECT e.id, l.digest, l.ino, l.ctime
FROM patch.at a CROSS JOIN idx.entry e ON e.id = a.entry_id
CROSS JOIN ledger.entry o ON o.id = a.base_id CROSS JOIN ledger.landed l ON l.entry_id = o.id
WHERE e.kind = 'f' AND e.size = o.size AND e.mtime = o.mtime
"""
"""Nothing was touched where a patch was taken up."""

_CHUNKS = """
SELECT entry_id, size FROM lacking
WHERE size BETWEEN :least AND :most AND at_size BETWEEN :least AND :most
AND NOT (at_size = size AND at_mtime = mtime)
"""
_DIGESTS = """
WITH asked AS (
  SELECT entry_id, size,
    (at_size = size AND (at_mtime = mtime OR size >= :page))
    OR EXISTS (SELECT 1 FROM known k WHERE k.size = l.size AND k.mtime = l.mtime)
    OR (size >= :page AND EXISTS (SELECT 1 FROM known k WHERE k.size = l.size)) AS here
  FROM lacking l WHERE size > 0 AND hash = x'')
SELECT entry_id, NOT here FROM asked
WHERE here OR (size >= :twin AND size IN (SELECT size FROM lacking WHERE size >= :twin
                                          GROUP BY size HAVING count(*) > 1))
"""
"""The same time besides the same size makes it likely enough for a file of any size."""
_OF_SAME_TIME = """
INSERT OR IGNORE INTO known SELECT o.size, o.mtime
FROM lacking l CROSS JOIN ledger.entry o
  ON o.kind = 'f' AND o.size = l.size AND o.mtime = l.mtime
WHERE l.size > 0 AND EXISTS (SELECT 1 FROM ledger.landed d WHERE d.entry_id = o.id)
"""
_OF_SAME_SIZE = """
INSERT OR IGNORE INTO known SELECT size, one FROM (
  SELECT size, (
    SELECT o.mtime FROM ledger.entry o WHERE o.kind = 'f' AND o.size = l.size
    AND EXISTS (SELECT 1 FROM ledger.landed d WHERE d.entry_id = o.id) LIMIT 1) AS one
  FROM (SELECT DISTINCT size FROM lacking WHERE size >= :page) l)
WHERE one IS NOT NULL
"""
"""Of each size one is enough."""
_OF_SIZES = """
INSERT OR IGNORE INTO known SELECT o.size, o.mtime
FROM ledger.landed l CROSS JOIN ledger.entry o ON o.id = l.entry_id
WHERE o.size > 0 AND o.size IN (SELECT size FROM lacking)
"""
"""Where there is no index: all of a ledger is gone through once."""


def twins(index: Index) -> Iterator[int]:
    """Entries of new files that may be the same as another, and are worth finding out."""
    return index.twins(TWIN if index.algorithm == "none" else LEAST_TWIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the destination before it is looked at."""

    root: str
    plan: str
    """By which the ledger was made."""
    ledger: str
    """Its path; empty where nothing is to be taken from it."""
    touched: str
    """A file with the ledger's files that a look saw changed; empty where none has looked."""
    alone: bool
    """That look saw nothing besides the ledger's files."""
    strays: bool
    """Files that the ledger does not vouch for are of use."""
    patch: str = ""
    """The patch that says which of the ledger's entries an index speaks of; empty for all."""


def write_survey(
    index: Index,
    known: Known,
    path: str,
    sift: Callable[[Iterator[Entry]], Iterator[Entry]] | None,
    rules: Rules,
) -> None:
    """Compare an index with a destination; ``sift`` takes out what is to be had otherwise, if any.

    Raises OSError, sqlite3.Error.
    """
    db = _begin(path, index, known)
    try:
        try:
            vouched = _take_kept(db, index, known)
        except sqlite3.DatabaseError:  # the ledger is damaged: it costs time only
            db.close()
            os.unlink(path)
            db, vouched = _begin(path, index, known), None
        with Walker(known.root) as walker:
            passed = ((entry_id,) for entry_id in Passing(rules, walker).passed(index))
            db.executemany("INSERT INTO passed VALUES (?)", passed)
            db.execute("DELETE FROM landed WHERE entry_id IN (SELECT entry_id FROM passed)")
            if vouched is not None and known.patch and sift is None and not rules.size_only:
                db.execute(_LEFT_OF_PATCH)
            else:
                _note_lacking(db, walker, sift, rules)
        if known.strays and not (vouched is not None and vouched.alone):
            note_strays(db, known.root, vouched)
        db.execute("COMMIT")
    finally:
        db.close()


def _note_lacking(
    db: sqlite3.Connection,
    walker: Walker,
    sift: Callable[[Iterator[Entry]], Iterator[Entry]] | None,
    rules: Rules,
) -> None:
    """Fill the table ``lacking``, by a look at what lies at each path."""
    lacking: Iterator[Entry] = map(Entry._make, db.execute(_LEFT))
    if rules.size_only:
        lacking = _but_of_size(lacking, walker, db)
    rows = (
        (entry.id, entry.size, entry.mtime, entry.hash, *_at(walker, entry))
        for entry in (sift(lacking) if sift is not None else lacking)
    )
    db.executemany("INSERT INTO lacking VALUES (?, ?, ?, ?, ?, ?)", rows)


def _begin(path: str, index: Index, known: Known) -> sqlite3.Connection:
    db = scratch(path)
    db.execute("PRAGMA trusted_schema=OFF")
    db.execute("PRAGMA cell_size_check=ON")
    attach(db, index.path, "idx")
    for table in (LANDED, LACKING, PASSED, LEDGER, STRAY):
        db.execute(table)
    db.execute("INSERT INTO ledger VALUES (?)", (known.plan,))
    return db


def _take_kept(db: sqlite3.Connection, index: Index, known: Known) -> Vouched | None:
    """Fill the table ``landed`` with what is kept; returns what need not be read to be known.

    Raises OSError, sqlite3.Error.
    """
    ledger = Ledger(known.ledger)
    ledger.close()
    if not ledger.algorithm:
        return None
    attach(db, known.ledger, "ledger")
    if known.touched:
        attach(db, known.touched, "look")
        touched, alone = "look.touched", known.alone
    else:
        touched, alone = "temp.touched", touched_now(known.ledger, known.root, db)
    if known.patch:
        attach(db, known.patch, "patch")
        db.execute(_PATCHED)
    else:
        Comparison(db, index, ledger).take_equal(touched)
    if ledger.algorithm != index.digest:
        return None
    return Vouched(touched=touched, alone=alone)


def _but_of_size(
    lacking: Iterator[Entry], walker: Walker, db: sqlite3.Connection
) -> Iterator[Entry]:
    """Less those that have a file of their size at their path; nobody knows what is in it."""
    for entry in lacking:
        try:
            parent, name = walker.split(entry.path)
            st = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError:
            yield entry
            continue
        if not stat.S_ISREG(st.st_mode) or st.st_size != entry.size:
            yield entry
            continue
        landed = (entry.id, b"", st.st_ino, st.st_ctime_ns)
        db.execute("INSERT INTO landed VALUES (?, ?, ?, ?)", landed)


def _at(walker: Walker, entry: Entry) -> tuple[int, int]:
    """Size and mtime of the file that lies at an entry's path now; a size of -1 for none."""
    try:
        parent, name = walker.split(entry.path)
        st = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return _NOTHING
    return (st.st_size, st.st_mtime_ns) if stat.S_ISREG(st.st_mode) else _NOTHING


def questions(survey_path: str, ledger_path: str, algorithm: str) -> Iterator[Question]:
    """What to ask the sender, each file once; digests are those of ``algorithm``."""
    db = connect(survey_path, "rw")
    try:
        db.execute("PRAGMA temp_store=MEMORY")
        db.execute(
            "CREATE TEMP TABLE known (size INTEGER, mtime INTEGER, PRIMARY KEY (size, mtime)) "
            "WITHOUT ROWID"
        )
        _note_known(db, ledger_path, algorithm)
        db.execute("INSERT OR IGNORE INTO known SELECT size, mtime FROM stray")
        bounds = {"least": chunks.SMALLEST_FILE, "most": chunks.LARGEST_FILE}
        big = db.execute(_CHUNKS, bounds).fetchall()
        asked = {entry_id for entry_id, _ in big}
        yield from (Question(entry_id, chunks.average(size)) for entry_id, size in big)
        for entry_id, twin in db.execute(_DIGESTS, {"page": PAGE, "twin": TWIN}):
            if entry_id not in asked:
                yield Question(entry_id, 0, bool(twin))
    finally:
        db.close()


def _note_known(db: sqlite3.Connection, ledger_path: str, algorithm: str) -> None:
    """Fill the table ``known`` from the ledger, as far as it can be read."""
    ledger = Ledger(ledger_path)
    ledger.close()
    if ledger.algorithm != algorithm:
        return
    with contextlib.suppress(sqlite3.DatabaseError):
        attach(db, ledger_path, "ledger")
        query = "SELECT 1 FROM ledger.sqlite_schema WHERE name = 'file_by_size'"
        if db.execute(query).fetchone() is None:
            db.execute(_OF_SIZES)
            return
        db.execute(_OF_SAME_TIME)
        db.execute(_OF_SAME_SIZE, {"page": PAGE})


class Survey:
    """A survey, read-only."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._few: list[tuple[Entry, int]] | None = None
        """All that is lacking, where that is little; once it was gone through."""
        self._db = connect(path, "ro")
        self.has_strays = self._db.execute("SELECT 1 FROM stray LIMIT 1").fetchone() is not None

    def lacking(self, index: Index) -> Iterator[tuple[Entry, int]]:
        """Entries of the index that it is the survey of, and the sizes of what lies there."""
        return self._lacking(index) if self._few is None else iter(self._few)

    def _lacking(self, index: Index) -> Iterator[tuple[Entry, int]]:
        few, new = list[tuple[Entry, int]](), tuple.__new__
        db = connect(self._path, "ro")
        try:
            attach(db, index.path, "idx")
            for row in db.execute(_LACKING):
                found = new(Entry, row[:-1]), row[-1]
                if len(few) <= _FEW:
                    few.append(found)
                yield found
        finally:
            db.close()
        if len(few) <= _FEW:
            self._few = few

    def strays(self) -> Iterator[Stray]:
        """Files that may be what is lacking, by path."""
        rows = self._db.execute(
            "SELECT path, size, mtime, ino, ctime, entry_id FROM stray ORDER BY path"
        )
        return map(Stray._make, rows)

    def copy_kept(self, into: sqlite3.Connection) -> None:
        """Put what is kept, and what is passed over, into the tables of another file."""
        attach(into, self._path, "survey")
        into.execute("INSERT INTO main.landed SELECT * FROM survey.landed")
        into.execute("INSERT INTO main.passed SELECT * FROM survey.passed")
        into.execute("INSERT INTO main.ledger SELECT * FROM survey.ledger")

    def close(self) -> None:
        """Close the file."""
        self._db.close()
