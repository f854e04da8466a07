"""The ends of files tell most of them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tar_like.index import BuildOptions, Index, build_index
from tar_like.layout import FILE, PAGE
from tar_like.plan.questions import Answers, Question, Questions, write_questions
from tar_like.source.folder import FolderSource
from tar_like.upload.answer import Answering
from tar_like.upload.samples import Samples

SIZE = 64 << 10
MIDDLE = bytes(SIZE - 2)
WITHIN = b"2" + MIDDLE[:-PAGE] + b"!" + MIDDLE[: PAGE - 1] + b"2"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, content in {
        "head": b"1" + MIDDLE + b"0", "tail": b"0" + MIDDLE + b"1", "one": b"2" + MIDDLE + b"2",
        "two": b"2" + MIDDLE + b"2", "within": WITHIN,
        "longer": b"2" + MIDDLE + b"22", "short": b"tiny", "shorter": b"tin",
    }.items():  # fmt: skip
        (tree / name).write_bytes(content)
    return tree


def _index(tree: Path, path: Path) -> Index:
    source = FolderSource(str(tree))
    build_index(source, str(path), BuildOptions(algorithm="none"))
    source.close()
    return Index(str(path))


def test_files_of_one_size_with_the_same_ends_are_told(tree: Path, tmp_path: Path) -> None:
    source = FolderSource(str(tree))
    samples = Samples(source)
    with _index(tree, tmp_path / "index") as index:
        files = list(index.of_kind(FILE))
        (tree / "shorter").unlink()
        for entry in files:
            samples.take(entry)
        assert {entry.path for entry in files if samples.shared(entry)} == {
            b"one", b"two", b"within",
        }  # fmt: skip
    samples.close()
    source.close()


def test_only_possible_twins_are_read(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = FolderSource.read

    def reading(self, pieces, into):  # type: ignore[no-untyped-def]
        read.extend(piece.path for piece in pieces if piece.stop - piece.start == SIZE)
        return real(self, pieces, into)

    monkeypatch.setattr(FolderSource, "read", reading)
    source = FolderSource(str(tree))
    with _index(tree, tmp_path / "index") as index:
        ids = {entry.path: entry.id for entry in index.of_kind(FILE)}
        rows = [Question(one, 0, path != b"head") for path, one in ids.items()]
        asked, said = str(tmp_path / "asked"), str(tmp_path / "said")
        write_questions(asked, index.id, "blake3", sorted(rows))
        questions = Questions(asked, index.id)
        Answering(questions, index, source, jobs=1, stopped=lambda: False).write(said)
        answers = Answers(said)
        answered = {path for path, one in ids.items() if answers.find(one) is not None}
        answers.close()
        questions.close()
    source.close()
    assert answered == {b"head", b"one", b"two", b"within"}
    assert sorted(read) == sorted(answered)
