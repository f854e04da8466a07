"""Questions: what the receiver wants to know of files before it makes the plan.

    receiver: candidates for the content of a file > a question > questions.db
              (with the chunks of the older version, where they are remembered)
    sender:   reads the file > its digest, and its chunks where they are asked for > answers.db

A question concerns a file that the receiver may hold already, under this name or another, whole
or in part. The sender may leave any unanswered: what is not known is sent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tar_like import chunks, digest
from tar_like.chunks import ChunkList
from tar_like.database import Damaged, connect_readonly, damage, scratch
from tar_like.errors import AnswersInvalid, IndexInvalid
from tar_like.index import Index
from tar_like.plan.segments import Segments

QUESTIONS_ID = 0x544C5154  # "TLQT"
ANSWERS_ID = 0x544C414E  # "TLAN"
VERSION = 3
META = """CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID"""
QUESTION = """CREATE TABLE question (
  entry_id INTEGER PRIMARY KEY,
  average INTEGER NOT NULL,
  twin INTEGER NOT NULL,
  known BLOB NOT NULL
)"""
ANSWER = """CREATE TABLE answer (
  entry_id INTEGER PRIMARY KEY,
  digest BLOB NOT NULL,
  chunks BLOB NOT NULL
)"""


class Question(NamedTuple):
    """A file whose digest is wanted; also its chunks, of this average size, if that is not 0."""

    entry_id: int
    average: int
    twin: bool = False
    """Only another file that is asked about can be the same."""


class Answer(NamedTuple):
    """What the sender says of a file."""

    entry_id: int
    digest: bytes
    """By the algorithm of the questions; empty where the file could not be read."""
    chunks: bytes
    """Records of ``tar_like.chunks``, references to the known ones among them; empty where they
    were not asked for."""


def _nothing(_: Question) -> bytes:
    return b""


def write_questions(
    path: str,
    index_id: str,
    algorithm: str,
    rows: Iterable[Question],
    known: Callable[[Question], bytes] = _nothing,
) -> int:
    """Write questions to a new file; returns how many there are.

    ``known`` gives the chunks of what may be an older version of a file, as ``ChunkList.to_bytes``
    does; nothing where they are not known.
    """
    db = _create(path, QUESTIONS_ID, QUESTION)
    try:
        full = ((*row, known(row)) for row in rows)
        db.executemany("INSERT INTO question VALUES (?, ?, ?, ?)", full)
        count = int(db.execute("SELECT count(*) FROM question").fetchone()[0])
        meta = {"index": index_id, "algorithm": algorithm, "count": str(count)}
        db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        db.execute("COMMIT")
    finally:
        db.close()
    return count


def write_answers(path: str, index_id: str, rows: Iterable[Answer]) -> None:
    """Write answers to a new file."""
    db = _create(path, ANSWERS_ID, ANSWER)
    try:
        db.executemany("INSERT INTO answer VALUES (?, ?, ?)", rows)
        db.execute("INSERT INTO meta VALUES ('index', ?)", (index_id,))
        db.execute("COMMIT")
    finally:
        db.close()


def _create(path: str, application_id: int, table: str) -> sqlite3.Connection:
    db = scratch(path)
    db.execute(f"PRAGMA application_id={application_id}")
    db.execute(f"PRAGMA user_version={VERSION}")
    db.execute(META)
    db.execute(table)
    return db


class Questions:
    """Questions about the files of an index, read-only."""

    def __init__(self, path: str, index_id: str) -> None:
        """Raises IndexInvalid for a file that holds none, or of another index."""
        try:
            self._db = _open(path, QUESTIONS_ID, QUESTION)
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
        except (*Damaged, ValueError) as error:
            text = f"The receiver's questions cannot be read ({damage(error)})."
            raise IndexInvalid(text) from None
        if meta.get("index") != index_id:
            raise IndexInvalid("The receiver's questions belong to another index.")
        self.path = path
        self.algorithm = digest.checked(str(meta.get("algorithm")))
        self.count = int(meta.get("count", "0"))

    def __iter__(self) -> Iterator[Question]:
        """The questions, by entry."""
        rows = self._db.execute("SELECT entry_id, average, twin FROM question ORDER BY entry_id")
        return (Question(entry_id, average, bool(twin)) for entry_id, average, twin in rows)

    def find(self, entry_id: int) -> Question | None:
        """The question about one entry."""
        row = self._db.execute(
            "SELECT entry_id, average, twin FROM question WHERE entry_id = ?", (entry_id,)
        ).fetchone()
        return None if row is None else Question(row[0], row[1], bool(row[2]))

    def known(self, question: Question) -> ChunkList | None:
        """The chunks of an older version of its file, if the receiver has said them.

        Raises IndexInvalid for what is no such list.
        """
        query = "SELECT known FROM question WHERE entry_id = ?"
        (value,) = self._db.execute(query, (question.entry_id,)).fetchone()
        if not value:
            return None
        try:
            return ChunkList.from_bytes(value, question.average)
        except (ValueError, TypeError) as error:
            raise IndexInvalid(f"The receiver's questions cannot be read ({error}).") from None

    def tells(self, question: Question) -> bool:
        """Whether there are such chunks, right or not."""
        query = "SELECT length(known) FROM question WHERE entry_id = ?"
        return bool(self._db.execute(query, (question.entry_id,)).fetchone()[0])

    def longest_answer(self, index: Index) -> int:
        """Bytes that a file of answers cannot exceed."""
        room = 1 << 20
        segments = Segments(index)
        for entry_id, average, _ in self:
            room += 256
            if average:
                entry = index.entry(entry_id)
                ranges = len(segments.of(entry))
                room += 2 * chunks.RECORD * chunks.most_records(entry.size, ranges, average)
        return room

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class Answers:
    """Answers, read-only."""

    def __init__(self, path: str) -> None:
        self._db = _open(path, ANSWERS_ID, ANSWER)

    def find(self, entry_id: int) -> Answer | None:
        """What the sender said of one entry."""
        row = self._db.execute(
            "SELECT entry_id, digest, chunks FROM answer WHERE entry_id = ?", (entry_id,)
        ).fetchone()
        return None if row is None else Answer._make(row)

    def digests(self) -> Digests:
        """The digests, for who asks for them in order."""
        return Digests(self._db)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class Digests:
    """Answers' digests, read in step with who asks for them by ascending entries.

    Whoever asks for one before the last begins anew.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._rows: Iterator[tuple[int, bytes]] = iter(())
        self._asked = self._at = 1 << 63
        self._digest = b""

    def of(self, entry_id: int) -> bytes:
        """The digest of an entry; empty where there is none."""
        if entry_id < self._asked:
            query = "SELECT entry_id, digest FROM answer WHERE entry_id >= ? ORDER BY entry_id"
            self._rows, self._at = self._db.execute(query, (entry_id,)), -1
        self._asked = entry_id
        while self._at < entry_id:
            self._at, self._digest = next(self._rows, (1 << 63, b""))
        return self._digest if self._at == entry_id else b""


def check_answers(path: str, questions: Questions, index: Index) -> None:
    """Check a file of answers that somebody sent. Raises AnswersInvalid."""
    try:
        db = _open(path, ANSWERS_ID, ANSWER)
        try:
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise AnswersInvalid("The answers are damaged.")
            if db.execute("SELECT value FROM meta WHERE key = 'index'").fetchone() != (index.id,):
                raise AnswersInvalid("The answers belong to another index.")
            size = digest.SIZES[questions.algorithm]
            segments = Segments(index)
            rows = db.execute("SELECT entry_id, digest, chunks FROM answer ORDER BY entry_id")
            for row in map(Answer._make, rows):
                _check_answer(row, questions, index, segments, size)
        finally:
            db.close()
    except (*Damaged, ValueError) as error:
        raise AnswersInvalid(f"The answers cannot be read ({damage(error)}).") from None


def _check_answer(
    row: Answer, questions: Questions, index: Index, segments: Segments, size: int
) -> None:
    question = questions.find(row.entry_id)
    if question is None:
        raise AnswersInvalid(f"Nobody asked about entry {row.entry_id}.")
    if type(row.digest) is not bytes or type(row.chunks) is not bytes:
        raise AnswersInvalid("An answer has a value of a wrong type.")
    if len(row.digest) not in (0, size) or (row.chunks and not (question.average and row.digest)):
        raise AnswersInvalid(f"The answer about entry {row.entry_id} is none to the question.")
    ranges = segments.of(index.entry(row.entry_id))
    if row.chunks:
        _check_chunks(row, question, questions.known(question), ranges)


def _check_chunks(
    row: Answer, question: Question, known: ChunkList | None, ranges: list[tuple[int, int]]
) -> None:
    size = sum(stop - start for start, stop in ranges)
    most = chunks.most_records(size, len(ranges), question.average)
    try:
        records, _ = chunks.expand(row.chunks, known, most)
    except ValueError as error:
        raise AnswersInvalid(f"The chunks of entry {row.entry_id}: {error}") from None
    if not ChunkList(ranges, records).fits(question.average):
        raise AnswersInvalid(f"The chunks of entry {row.entry_id} do not cover its file.")


def _open(path: str, application_id: int, table: str) -> sqlite3.Connection:
    """Raises sqlite3.Error, ValueError when it is no such file."""
    db = connect_readonly(path)
    try:
        found = {row[0] for row in db.execute("SELECT sql FROM sqlite_schema")} - {None}
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if (application, version) != (application_id, VERSION) or found != {META, table}:
            raise ValueError("it has other tables than such a file has")
    except BaseException:
        db.close()
        raise
    return db
