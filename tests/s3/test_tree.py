"""From keys to a tree: against a model, and rule by rule."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tar_like.layout import DIRECTORY, FILE, sort_key
from tar_like.source import Found, Skipped, Wanted, keys, spill

NAMES = st.sampled_from(["a", "b", "a.b", "a-", "a/b", ".", "..", "", "ä", "0", "a ", ".tar_like"])
KEYS = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=12, unique=True)


def grown(objects: dict[str, int], wanted: Wanted | None = None) -> list[Found | Skipped]:
    rows = sorted(
        keys.row(key.encode(), size, 5, b"etag", mtime=100 + number)
        for number, (key, size) in enumerate(objects.items())
    )
    first = next(filter(keys.is_fine, rows), None)
    return list(keys.tree(rows, first, wanted or Wanted()))


def fine(key: str, size: int) -> bool:
    names = key.split("/")
    if names[-1] == "":
        if size:
            return False
        names.pop()
    return not {"", ".", ".."} & set(names)


@given(KEYS, st.integers(0, 1))
def test_a_tree_is_as_the_model_says(texts: list[str], size: int) -> None:
    objects = dict.fromkeys(texts, size)
    good = {
        key
        for key in objects
        if fine(key, size) and key.split("/")[0] != ".tar_like" and key not in ("", "/")
    }
    folders = {
        "/".join(key.split("/")[:depth]) for key in good for depth in range(1, key.count("/") + 1)
    }
    files = {key for key in good if not key.endswith("/")} - folders
    found = grown(objects)
    assert found[0].path == b""
    names = [one.path.decode() for one in found[1:] if isinstance(one, Found)]
    assert set(names) == folders | files
    assert [sort_key(name.encode()) for name in names] == sorted(
        sort_key(name.encode()) for name in names
    )
    kinds = {one.path.decode(): one.kind for one in found if isinstance(one, Found)}
    assert {name for name, kind in kinds.items() if kind == DIRECTORY} == folders | {""}
    # Nothing is lost in silence: what is no file of the tree is a marker, or listed.
    skipped = {one.path.decode() for one in found if isinstance(one, Skipped)}
    assert skipped == {
        key
        for key in objects
        if (not fine(key, size) and key) or (key in folders and key in good) or (not key and size)
    }


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("a//b", "empty name"),
        ("/a", "empty name"),
        ("a/./b", ". or .."),
        ("../a", ". or .."),
        ("a/", "slash"),
        ("a\0b", "NUL"),
        ("n" * 256, "255"),
        ("ä" * 128 + "/b", "255"),
    ],
)
def test_a_key_that_can_be_no_path_is_named_with_the_reason(key: str, word: str) -> None:
    found = grown({key: 1, "fine": 1})
    assert [one.path for one in found if isinstance(one, Found)] == [b"", b"fine"]
    (skipped,) = (one for one in found if isinstance(one, Skipped))
    assert (skipped.path, skipped.kind) == (key.encode(), "unreadable")
    assert word in skipped.detail


def test_the_longest_name_is_a_name() -> None:
    assert grown({"n" * 255: 1})[1].path == b"n" * 255


def test_directories_have_the_time_of_their_marker_or_first_file() -> None:
    found = grown({"b/y": 1, "b/x": 1, "c/": 0, "c/x": 1, "d/": 0, "a/deep/f": 1})
    times = {one.path: one.mtime for one in found if isinstance(one, Found)}
    assert times == {
        b"": 105, b"a": 105, b"a/deep": 105, b"a/deep/f": 105, b"b": 101, b"b/x": 101,
        b"b/y": 100, b"c": 102, b"c/x": 103, b"d": 104,
    }  # fmt: skip


def test_a_file_is_told_from_another_version_of_it() -> None:
    def version(token: bytes) -> Found:
        row = keys.row(b"a", 1, 5, token, mtime=5)
        found = [*keys.tree([row], row, Wanted())][1]
        assert isinstance(found, Found)
        assert found.kind == FILE
        return found

    one, other = version(b"etag1"), version(b"etag2")
    assert one.ino != other.ino
    assert -(1 << 63) <= one.ino < 1 << 63
    assert one._replace(ino=0, token=b"") == other._replace(ino=0, token=b"")


def test_what_is_left_out_is_not_asked_about_within() -> None:
    asked = []

    def keep(path: bytes, is_directory: bool) -> bool:
        asked.append(path)
        return path != b"out"

    found = grown({"out/a": 1, "out/b/c": 1, "out//bad": 1, "out.x": 1}, Wanted(keep=keep))
    assert [one.path for one in found] == [b"", b"out.x"]
    assert set(asked) == {b"out", b"out.x"}


@pytest.mark.parametrize("run", [1, 7, 100, 10_000])
def test_rows_come_back_in_order_through_any_number_of_runs(
    run: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(spill, "RUN", run)
    monkeypatch.setattr(spill, "BATCH", 3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dice = random.Random(run)
    rows = [(dice.randbytes(3), number, "text") for number in range(1000)]
    kept = spill.Sorted()
    for start in range(0, 1000, 10):
        kept.add(rows[start : start + 10])
    assert list(kept.merged()) == sorted(rows)
    assert list(kept.merged()) == sorted(rows)
    kept.close()
