"""Names that are one for the filesystem of the destination."""

from __future__ import annotations

import os
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tar_like.errors import IndexInvalid
from tar_like.index import Index
from tar_like.proxy import folding, offer
from tests.chaos import scene
from tests.unit.indexes import file, folder, root, symlink, write
from tests.unit.receiver import Job

T = TypeVar("T")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
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


# Filesystems that fold for real

KINDS = {
    "exfat": (("mkfs.exfat",), ("mount.exfat-fuse",), True),
    "ntfs": (("mkntfs", "-q", "-F", "-f"), ("lowntfs-3g", "-o", "ignore_case"), False),
}
"""How to make such a filesystem, how to mount it, and whether that needs a block device."""


def on_one_that_folds(kind: str, work: Path, test: Callable[[Path], T]) -> T:
    """Do it in an empty folder of a filesystem that folds case, where one can be mounted here."""
    make, mount, device = KINDS[kind]
    for program in (make[0], mount[0]):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed")
    image, place = work / "image", work / "mnt"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    place.mkdir()

    def mounted() -> T:
        call(*make, image)
        what = call("losetup", "--find", "--show", image).strip() if device else str(image)
        try:
            call(*mount, what, place)
            try:
                (place / "folder").mkdir()
                return test(place / "folder")
            finally:
                call("umount", "--lazy", place)
        finally:
            if device:
                call("losetup", "--detach", what)

    try:
        return scene.apart(mounted)
    except PermissionError as error:
        pytest.skip(f"needs more rights: {error}")


def call(*words: object) -> str:
    """Raises PermissionError where it does not work."""
    done = subprocess.run(
        list(map(str, words)), env={"PATH": PATH}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PermissionError(f"{words[0]}: {done.stderr.strip()}")
    return done.stdout


def letters() -> Iterator[str]:
    """Every letter that has another case, and what it becomes by it."""
    for number in range(0x80, 0x10000):
        letter = chr(number)
        forms = {letter.upper(), letter.lower(), letter.casefold(), letter.title()}
        if forms != {letter} and unicodedata.category(letter) != "Cs":
            yield from sorted(forms | {letter})


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_filesystem_takes_for_one_is_one(kind: str, work: Path) -> None:
    """Tried with every letter: none of them may come to lie upon another one unnoticed."""

    def tried(place: Path) -> tuple[int, list[str]]:
        fold = folding.folding(str(place))
        assert fold is not None
        met, missed = 0, []
        for letter in dict.fromkeys(letters()):
            path = place / f"x{letter}"
            try:
                with path.open("x") as file:
                    file.write(letter)
            except FileExistsError:
                other = path.read_text()
                met += 1
                if fold(letter.encode()) != fold(other.encode()):
                    missed.append(f"{letter!a} is {other!a}")
        return met, missed

    met, missed = on_one_that_folds(kind, work, tried)
    assert met > 500
    assert not missed


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_that_cannot_be_whole_there_is_refused(kind: str, work: Path) -> None:
    source = work / "src"
    (source / "d").mkdir(parents=True)
    (source / "d/Readme").write_text("one")
    (source / "plain").write_text("stays")

    def tried(place: Path) -> None:
        job = Job(source, place / "dst")
        job.send()
        job.commit()
        job.close()
        assert (place / "dst/d/Readme").read_text() == "one"
        (source / "d/README").write_text("other")
        with pytest.raises(IndexInvalid, match="README and Readme are one name"):
            Job(source, place / "dst")
        assert os.listdir(place / "dst/.tar_like/transfers") == []
        assert [name.lower() for name in os.listdir(place / "dst/d")] == ["readme"]
        assert (place / "dst/d/Readme").read_text() == "one"

    on_one_that_folds(kind, work, tried)
