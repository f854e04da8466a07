"""Questions and answers: what a receiver takes from a sender, and what it refuses."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tar_like import chunks
from tar_like.errors import AnswersInvalid, IndexInvalid
from tar_like.index import Index
from tar_like.plan.questions import (
    Answer,
    Answers,
    Question,
    Questions,
    check_answers,
    write_answers,
    write_questions,
)
from tests.unit.indexes import file, folder, root, write

SIZE = 1 << 20
AVERAGE = chunks.average(SIZE)


@pytest.fixture
def index(work: Path) -> Iterator[Index]:
    entries = [root(), file(b"a", SIZE, b""), file(b"b", 5, b""), file(b"c", 7, b""), folder(b"d")]
    write(work / "index", entries)
    with Index(str(work / "index")) as found:
        yield found


@pytest.fixture
def questions(work: Path, index: Index) -> Iterator[Questions]:
    rows = [Question(1, AVERAGE), Question(2, 0)]
    assert write_questions(str(work / "questions"), index.id, "blake3", rows) == 2
    found = Questions(str(work / "questions"), index.id)
    yield found
    found.close()


@pytest.fixture
def measured() -> chunks.Measured:
    data = memoryview(random.Random(4).randbytes(SIZE))
    return chunks.measure(lambda start, stop: data[start:stop], [(0, SIZE)], SIZE, AVERAGE)


def test_answers_are_found_by_entry(
    work: Path, index: Index, questions: Questions, measured: chunks.Measured
) -> None:
    rows = [Answer(1, *measured), Answer(2, b"", b"")]
    write_answers(str(work / "answers"), index.id, rows)
    check_answers(str(work / "answers"), questions, index)
    answers = Answers(str(work / "answers"))
    assert [answers.find(1), answers.find(2), answers.find(3)] == [*rows, None]
    answers.close()
    assert (work / "answers").stat().st_size <= questions.longest_answer(index)


def test_questions_belong_to_one_index(work: Path, index: Index, questions: Questions) -> None:
    with pytest.raises(IndexInvalid):
        Questions(str(work / "questions"), "0" * 64)
    with pytest.raises(IndexInvalid):
        Questions(str(work / "index"), index.id)
    assert list(questions) == [Question(1, AVERAGE), Question(2, 0)]


def test_chunks_may_refer_to_those_that_were_said(
    work: Path, index: Index, measured: chunks.Measured
) -> None:
    known = chunks.ChunkList([(0, SIZE)], measured.chunks)
    path, answers = str(work / "questions"), str(work / "answers")
    rows = [Question(1, AVERAGE), Question(2, 0)]
    write_questions(
        path,
        index.id,
        "blake3",
        rows,
        lambda question: known.to_bytes() if question.average else b"",
    )
    with contextlib.closing(Questions(path, index.id)) as questions:
        found = questions.known(rows[0])
        assert found is not None
        assert found.to_bytes() == known.to_bytes()
        assert questions.known(rows[1]) is None
        every = b"".join(n.to_bytes(4, "little") for n in (0, 0, len(known), 0))
        write_answers(answers, index.id, [Answer(1, measured.digest, every)])
        check_answers(answers, questions, index)
        (work / "answers").unlink()
        write_answers(answers, index.id, [Answer(1, measured.digest, 2 * every)])
        with pytest.raises(AnswersInvalid):
            check_answers(answers, questions, index)


Damage = Callable[[sqlite3.Connection], object]
DAMAGES: dict[str, Damage] = {
    "nobody asked": lambda db: db.execute("UPDATE answer SET entry_id = 3 WHERE entry_id = 2"),
    "no entry": lambda db: db.execute("UPDATE answer SET entry_id = 99 WHERE entry_id = 2"),
    "short digest": lambda db: db.execute("UPDATE answer SET digest = x'00'"),
    "digest as text": lambda db: db.execute("UPDATE answer SET digest = 'x'"),
    "chunks unasked": lambda db: db.execute(
        "UPDATE answer SET chunks = (SELECT chunks FROM answer WHERE entry_id = 1)"
    ),
    "chunks cut": lambda db: db.execute(
        "UPDATE answer SET chunks = substr(chunks, 17) WHERE entry_id = 1"
    ),
    "chunks without digest": lambda db: db.execute("UPDATE answer SET digest = x''"),
    "other index": lambda db: db.execute("UPDATE meta SET value = 'x'"),
    "further table": lambda db: db.execute("CREATE TABLE more (x)"),
    "trigger": lambda db: db.execute(
        "CREATE TRIGGER t AFTER INSERT ON meta BEGIN SELECT 1; END"
    ),
    "version": lambda db: db.execute("PRAGMA user_version=9"),
    "application": lambda db: db.execute("PRAGMA application_id=9"),
}  # fmt: skip


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_wrong_answers_are_refused(
    work: Path, index: Index, questions: Questions, measured: chunks.Measured, damage: str
) -> None:
    path = work / "answers"
    write_answers(str(path), index.id, [Answer(1, *measured), Answer(2, bytes(32), b"")])
    check_answers(str(path), questions, index)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        DAMAGES[damage](db)
    with pytest.raises(AnswersInvalid):
        check_answers(str(path), questions, index)


@pytest.mark.parametrize("content", [b"", b"no database" * 500], ids=["empty", "text"])
def test_what_is_no_file_of_answers_is_refused(
    work: Path, index: Index, questions: Questions, content: bytes
) -> None:
    (work / "answers").write_bytes(content)
    with pytest.raises(AnswersInvalid):
        check_answers(str(work / "answers"), questions, index)
