"""Names that are one for the filesystem of the destination."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tar_like.errors import IndexInvalid
from tar_like.index import Index
from tar_like.proxy import folding, offer
from tests.unit.indexes import file, folder, root, symlink, write
from tests.unit.receiver import Job

COMPOSED, APART = "\u00e9".encode(), "e\u0301".encode()


def folds(monkeypatch: pytest.MonkeyPatch, *, case: bool, form: bool) -> folding.Fold:
    """What a name becomes on a filesystem that folds so."""
    answers = iter((case, form))
    with monkeypatch.context() as patch:
        patch.setattr(folding, "_one", lambda *_: next(answers))
        found = folding.folding("")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("names", "case", "form"),
    [
        ((b"A", b"a"), True, False),
        ((b"README", b"Readme"), True, True),
        ((b"STRASSE", "straße".encode()), True, True),
        ((APART, COMPOSED), False, True),
        ((b"x" + APART, b"x" + COMPOSED), True, True),
        ((b".TAR_LIKE",), True, False),
        ((b".Tar_Like",), True, True),
    ],
)
@pytest.mark.parametrize("below", [b"", b"d/", b"d/e/"])
def test_names_that_become_one_are_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[bytes, ...], case: bool, form: bool,
    below: bytes,
) -> None:  # fmt: skip
    fold = folds(monkeypatch, case=case, form=form)
    entries = [root(), folder(b"d"), folder(b"d/e"), file(b"d/e/first"), file(b"d/f"), file(b"z")]
    entries += [file(below + name) for name in names]
    entries.sort(key=lambda entry: entry.path.replace(b"/", b"\0"))
    write(work / "index.db", entries)
    with Index(str(work / "index.db")) as index:
        if len(names) == 1 and below:
            folding.check_names(index, fold)  # only at the root it is the receiver's
            return
        with pytest.raises(IndexInvalid, match="are one name"):
            folding.check_names(index, fold)


def test_names_that_stay_apart_are_taken(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = folds(monkeypatch, case=True, form=True)
    entries = [
        root(), folder(b"D"), file(b"D/a"), folder(b"a"), file(b"a/A"), file(b"a/b"), folder(b"b"),
        file(b"b/a"), symlink(b"c"), file(b"\xff"), file(b"\xff\xfe"), file("straßen".encode()),
    ]  # fmt: skip
    entries.sort(key=lambda entry: entry.path.replace(b"/", b"\0"))
    write(work / "index.db", entries)
    with Index(str(work / "index.db")) as index:
        folding.check_names(index, fold)


def test_such_a_tree_is_refused_whole(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "src").mkdir()
    for name in ("a", "A"):
        (work / "src" / name).write_text(name)
    fold = folds(monkeypatch, case=True, form=False)
    with monkeypatch.context() as patch:
        patch.setattr(offer, "folding", lambda _: fold)
        with pytest.raises(IndexInvalid, match="A and a are one name"):
            Job(work / "src", work / "dst")
    assert os.listdir(work / "dst") == [".tar_like"]
    assert os.listdir(work / "dst/.tar_like/transfers") == []


def test_here_names_are_bytes(work: Path) -> None:
    """As far as the machine of the tests goes; the probe leaves nothing behind."""
    found = folding.folding(str(work))
    assert found is None or found(b"Fold") == found(b"fOLD") or found(COMPOSED) == found(APART)
    assert os.listdir(work) == []
