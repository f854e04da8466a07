"""Copies of older versions that others write into while they are being made."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tar_like.proxy import laying
from tar_like.proxy.chunkcache import name_of_file
from tar_like.proxy.copying import copy_range
from tar_like.proxy.laying import Laying
from tar_like.proxy.planning import Planning
from tests.unit.receiver import Job

STEP = 4096
SIZE = 20 * STEP + 77
Ranges = list[tuple[int, int]]


class Scene:
    """An older version, a staged file, and copying that waits before each step."""

    def __init__(self, work: Path, dice: random.Random) -> None:
        self.old, self.staged = work / "old", work / "staged"
        self.data = dice.randbytes(SIZE)
        self.old.write_bytes(self.data)
        self.staged.write_bytes(b"")
        os.truncate(self.staged, SIZE)
        self.steps: list[tuple[int, int]] = []
        self._may = threading.Semaphore(0)
        self._waits = threading.Semaphore(0)

    def copy(self, source: int, start: int, target: int, offset: int, length: int) -> None:
        self.steps.append((start, start + length))
        self._waits.release()
        assert self._may.acquire(timeout=20)
        copy_range(source, start, target, offset, length)

    def go_on(self, steps: int) -> None:
        """So many writes end, and the one that follows begins."""
        for _ in range(steps):
            self._may.release()
        for _ in range(steps):
            assert self._waits.acquire(timeout=20)

    def run_out(self) -> None:
        """Nothing waits any more."""
        self._may.release(10 * SIZE // STEP)

    def begin(self, ranges: Ranges | None = None) -> Laying:
        """Returns once the first write is under way."""
        found = self.laying([(0, SIZE)] if ranges is None else ranges)
        assert self._waits.acquire(timeout=20)
        return found

    def laying(self, ranges: Ranges) -> Laying:
        """A copy that is begun."""
        fds = [os.open(self.old, os.O_RDONLY), os.open(self.staged, os.O_RDWR)]
        try:
            return Laying(7, name_of_file(os.fstat(fds[0])), *fds, ranges)
        finally:
            for fd in fds:
                os.close(fd)

    def send(self, missing: Ranges) -> None:
        """What blocks do."""
        with self.staged.open("r+b") as file:
            for start, stop in missing:
                file.seek(start)
                file.write(b"\xff" * (stop - start))

    def expected(self, missing: Ranges) -> bytes:
        data = bytearray(self.data)
        for start, stop in missing:
            data[start:stop] = b"\xff" * (stop - start)
        return bytes(data)


@pytest.fixture
def scene(work: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    scene = Scene(work, dice)
    monkeypatch.setattr(laying, "_STEP", STEP)
    monkeypatch.setattr(laying, "copy_range", scene.copy)
    monkeypatch.setattr(laying, "clone_range", lambda *_: False)
    yield scene
    scene.run_out()


def test_all_of_it_is_copied_and_its_files_are_closed(scene: Scene) -> None:
    before = len(os.listdir("/proc/self/fd"))
    copy = scene.begin()
    assert copy.running
    scene.run_out()
    assert copy.wait()
    assert not copy.running
    assert scene.staged.read_bytes() == scene.data
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_the_ranges_that_hold_data_are_copied(scene: Scene) -> None:
    ranges = [(STEP, 3 * STEP), (7 * STEP, 7 * STEP + 5)]
    copy = scene.begin(ranges)
    scene.run_out()
    assert copy.wait()
    assert scene.steps == [(STEP, 2 * STEP), (2 * STEP, 3 * STEP), (7 * STEP, 7 * STEP + 5)]


@pytest.mark.parametrize("after", [0, 1, 7, 19])
def test_what_was_left_out_stays_what_others_have_made_of_it(
    scene: Scene, dice: random.Random, after: int
) -> None:
    edges = sorted(dice.sample(range(SIZE), 24))
    missing = list(zip(edges[::2], edges[1::2], strict=True))
    copy = scene.begin()
    scene.go_on(after)
    release = threading.Thread(target=copy.release, args=(missing,))
    release.start()
    release.join(0.05)
    assert release.is_alive(), "a write is under way that may be into what is missing"
    scene.go_on(1) if after < 19 else scene.run_out()
    release.join(20)
    assert copy.released
    scene.send(missing)
    scene.run_out()
    assert copy.wait()
    assert scene.staged.read_bytes() == scene.expected(missing)
    inside = [
        step
        for step in scene.steps[after + 2 :]
        if any(a < step[1] and step[0] < b for a, b in missing)
    ]
    assert not inside


def test_a_filesystem_that_shares_blocks_is_asked_unless_something_is_left_out(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def clone(source: int, start: int, target: int, offset: int, length: int) -> bool:
        asked.append((start, offset, length))
        copy_range(source, start, target, offset, length)
        return True

    monkeypatch.setattr(laying, "clone_range", clone)
    copy = scene.laying([(0, SIZE)])
    assert copy.wait()
    assert asked == [(0, 0, SIZE)]
    assert scene.steps == []
    assert scene.staged.read_bytes() == scene.data


def test_what_goes_wrong_is_raised_to_who_waits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        scene.copy(*_)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(laying, "copy_range", fail)
    copy = scene.begin()
    scene.run_out()
    with pytest.raises(OSError, match="No space left"):
        copy.wait()
    assert len(scene.steps) == 1


@pytest.mark.parametrize(
    "change", [lambda old: old.write_bytes(b"x"), lambda old: old.chmod(0o600)]
)
def test_an_older_version_that_was_touched_meanwhile_is_no_whole_copy(
    scene: Scene, change: Callable[[Path], object]
) -> None:
    copy = scene.begin()
    change(scene.old)
    scene.run_out()
    assert not copy.wait()


def test_a_copy_that_nobody_needs_any_more_ends(scene: Scene) -> None:
    copy = scene.begin()
    scene.staged.unlink()
    scene.run_out()
    assert not copy.wait()
    assert len(scene.steps) == 1


def test_nothing_stays_open_where_there_is_no_thread_to_be_had(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError):
        scene.laying([(0, SIZE)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_left_between_ranges(dice: random.Random) -> None:
    for _ in range(300):
        edges = sorted(dice.sample(range(60), 2 * dice.randrange(6)))
        ranges = list(zip(edges[::2], edges[1::2], strict=True))
        start, stop = sorted(dice.sample(range(60), 2))
        left = {byte for a, b in laying._between(start, stop, ranges) for byte in range(a, b)}
        taken = {byte for a, b in ranges for byte in range(a, b)}
        assert left == set(range(start, stop)) - taken


@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_is_noted_once_it_is_whole_and_synced(
    work: Path, monkeypatch: pytest.MonkeyPatch, synced: bool, whole: bool
) -> None:
    (work / "src").mkdir()
    job = Job(work / "src", work / "dst", negotiate=False)
    noted = job.path / "laid"
    before: list[bool] = []

    def sync() -> None:
        before.append(noted.exists())
        if not synced:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    copy = SimpleNamespace(released=True, wait=lambda: whole)
    with Planning(job.destination, job.id) as planning:
        monkeypatch.setattr(planning, "_pool", SimpleNamespace(laying=copy, close=lambda: None))
        monkeypatch.setattr(planning, "_planned", "a plan")
        monkeypatch.setattr(planning, "_sync", sync)
        planning._end_laying()
    assert before == [False] * whole
    assert laying.is_laid(str(job.path), "a plan") == (whole and synced) == noted.exists()
    assert not laying.is_laid(str(job.path), "another plan")
    job.transfer.close()
