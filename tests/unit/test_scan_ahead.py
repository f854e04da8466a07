"""Scanning in a process of its own: the same names, and no silence when it dies."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tar_like.errors import SourceUnusable
from tar_like.source import Found, Skipped, Wanted
from tar_like.source.ahead import FIRST, ahead
from tar_like.source.folder import FolderSource
from tar_like.source.stretch import Stretch, stretch_of_found


def _found(number: int) -> Found:
    return Found(
        b"%05d" % number, "f", number, 0o644, -number, 0, 0, b"", 7, number, 8, 1, b"",
        ((0, 4096),) if number % 2 else None, ((b"user.a", b"b"),),
    )  # fmt: skip


def _names(count: int) -> list[Found | Skipped]:
    return [
        Skipped(b"%05d" % number, "special", "FIFO") if number % 7 == 0 else _found(number)
        for number in range(count)
    ]


def _stretches(names: Iterable[Found | Skipped]) -> Iterator[Stretch]:
    """A few names each."""
    names = iter(names)
    while few := list(itertools.islice(names, 3)):
        yield stretch_of_found(b"", few)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process without threads; those of the test runner hold no lock of ours."""
    monkeypatch.setattr("threading.active_count", lambda: 1)


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("count", [0, 1, FIRST - 1, FIRST, FIRST + 1, 3 * FIRST])
def test_the_same_names(count: int) -> None:
    assert list(ahead(_stretches(_names(count)))) == _names(count)
    assert all(type(one) in (Found, Skipped) for one in ahead(_stretches(_names(count))))


@pytest.mark.usefixtures("alone")
def test_scanned_by_another_process() -> None:
    def pids() -> Iterator[Found | Skipped]:
        for _ in range(FIRST + 300):
            yield Skipped(str(os.getpid()).encode(), "special", "")

    seen = {one.path for one in ahead(_stretches(pids()))}
    assert len(seen) == 2


def test_threads_forbid_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.active_count", lambda: 2)
    monkeypatch.setattr("os.fork", lambda: pytest.fail("forked"))
    assert list(ahead(_stretches(_names(2 * FIRST)))) == _names(2 * FIRST)


@pytest.mark.usefixtures("alone")
def test_a_killed_scan_is_no_end() -> None:
    def dying() -> Iterator[Found | Skipped]:
        yield from _names(FIRST + 500)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SourceUnusable, match="killed"):
        list(ahead(_stretches(dying())))


@pytest.mark.usefixtures("alone")
def test_a_scan_left_early_leaves_no_process() -> None:
    before = _children()
    scan = ahead(_stretches(_names(100 * FIRST)))
    for _ in range(FIRST + 10):
        next(scan)
    assert len(_children() - before) == 1
    del scan
    assert _children() <= before


@pytest.mark.usefixtures("alone")
def test_a_large_folder(tmp_path: Path) -> None:
    for number in range(FIRST + 200):
        (tmp_path / f"{number}").touch()
    source = FolderSource(str(tmp_path))
    paths = [found.path for found in source.scan(Wanted())]
    source.close()
    assert paths == [b"", *sorted(b"%d" % number for number in range(FIRST + 200))]
