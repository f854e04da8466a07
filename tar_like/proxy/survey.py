"""Survey: what a transfer's index asks for, against what the destination holds.

    index and ledger in step > kept                        (ledger.compare)
                             > lacking, and what lies at its path now
    lacking files for which there may be local content > questions for the sender

    survey.db = landed (what is kept) + lacking(entry_id, size, mtime, hash, at_size, at_mtime)
              + passed (by the rules) + ledger (the plan that the ledger is of)

It is written once, when a plan is first asked for; the questions are derived from it, and the
plan from it and the answers.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator

from tar_like import chunks
from tar_like.database import connect, scratch
from tar_like.dirfd import Walker
from tar_like.index import Index
from tar_like.layout import PAGE, Entry
from tar_like.plan.questions import Question
from tar_like.proxy import ledger
from tar_like.proxy.kept import LEDGER, PASSED
from tar_like.proxy.ledger import Ledger, plan_of
from tar_like.proxy.passing import Passing
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
_NOTHING = (-1, 0)

_CHUNKS = """
SELECT entry_id, size FROM lacking
WHERE size BETWEEN :least AND :most AND at_size BETWEEN :least AND :most
AND NOT (at_size = size AND at_mtime = mtime)
"""
_DIGESTS = """
WITH asked AS (
  SELECT entry_id, size,
    (at_size = size AND (at_mtime = mtime OR size >= :page))
    OR EXISTS (SELECT 1 FROM known k WHERE k.size = l.size
               AND (k.mtime = l.mtime OR l.size >= :page)) AS here
  FROM lacking l WHERE size > 0 AND hash = x'')
SELECT entry_id, NOT here FROM asked
WHERE here OR (size >= :twin AND size IN (SELECT size FROM lacking WHERE size >= :twin
                                          GROUP BY size HAVING count(*) > 1))
"""
"""The same time besides the same size makes it likely enough for a file of any size."""


def twins(index: Index) -> Iterator[int]:
    """Entries of new files that may be the same as another, and are worth finding out."""
    return index.twins(TWIN if index.algorithm == "none" else LEAST_TWIN)


def write_survey(
    index: Index,
    ledger_path: str,
    root: str,
    path: str,
    sift: Callable[[Iterator[Entry]], Iterator[Entry]],
    rules: Rules,
) -> None:
    """Compare an index with a destination; ``sift`` takes out what is to be had otherwise.

    Raises OSError, sqlite3.Error.
    """
    db = scratch(path)
    try:
        db.execute(ledger.LANDED)
        db.execute(LACKING)
        db.execute(PASSED)
        db.execute(LEDGER)
        db.execute("INSERT INTO ledger VALUES (?)", (plan_of(ledger_path),))
        with Walker(root) as walker, Walker(root) as other:
            passed = ((entry_id,) for entry_id in Passing(rules, walker).passed(index))
            db.executemany("INSERT INTO passed VALUES (?)", passed)
            lacking = ledger.compare(index, ledger_path, walker, db, size_only=rules.size_only)
            rows = (
                (entry.id, entry.size, entry.mtime, entry.hash, *_at(other, entry))
                for entry in sift(_without(lacking, db))
            )
            db.executemany("INSERT INTO lacking VALUES (?, ?, ?, ?, ?, ?)", rows)
        db.execute("DELETE FROM landed WHERE entry_id IN (SELECT entry_id FROM passed)")
        db.execute("COMMIT")
    finally:
        db.close()


def _without(lacking: Iterator[Entry], db: sqlite3.Connection) -> Iterator[Entry]:
    """Less what is passed over; both are in order."""
    rows = db.execute("SELECT entry_id FROM passed ORDER BY 1")
    passed = next(rows, None)
    for entry in lacking:
        while passed is not None and passed[0] < entry.id:
            passed = next(rows, None)
        if passed is None or passed[0] != entry.id:
            yield entry


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
        known = Ledger(ledger_path)
        sizes = known.sizes() if known.algorithm == algorithm else ()
        db.executemany("INSERT OR IGNORE INTO known VALUES (?, ?)", sizes)
        known.close()
        bounds = {"least": chunks.SMALLEST_FILE, "most": chunks.LARGEST_FILE}
        big = db.execute(_CHUNKS, bounds).fetchall()
        asked = {entry_id for entry_id, _ in big}
        yield from (Question(entry_id, chunks.average(size)) for entry_id, size in big)
        for entry_id, twin in db.execute(_DIGESTS, {"page": PAGE, "twin": TWIN}):
            if entry_id not in asked:
                yield Question(entry_id, 0, bool(twin))
    finally:
        db.close()


class Survey:
    """A survey, read-only."""

    def __init__(self, path: str) -> None:
        self._db = connect(path, "ro")

    def lacking(self) -> Iterable[tuple[int, int]]:
        """(entry id, size of what lies at its path), by entry."""
        return self._db.execute("SELECT entry_id, at_size FROM lacking ORDER BY entry_id")

    def copy_kept(self, into: sqlite3.Connection) -> None:
        """Put what is kept, and what is passed over, into the tables of another file."""
        rows = self._db.execute("SELECT entry_id, digest, ino, ctime FROM landed")
        into.executemany("INSERT INTO landed VALUES (?, ?, ?, ?)", rows)
        passed, plans = "INSERT INTO passed VALUES (?)", "INSERT INTO ledger VALUES (?)"
        into.executemany(passed, self._db.execute("SELECT entry_id FROM passed"))
        into.executemany(plans, self._db.execute("SELECT plan FROM ledger"))

    def close(self) -> None:
        """Close the file."""
        self._db.close()
