"""The sending side: when to compress, which URLs there are, processes that are killed."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from multiprocessing import Pipe
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tar_like import codec
from tar_like.errors import TarLikeError, UsageError
from tar_like.upload import block, pool
from tar_like.upload.block import Compressor
from tar_like.upload.client import checked_url
from tar_like.upload.dispatch import Sending, UploadOptions
from tar_like.upload.local import LocalDispatcher
from tar_like.upload.pool import Pool
from tar_like.upload.range import BlockOutcome, RangeSender

TEXT = memoryview(b"what a text this is " * 5000)
NOISE = memoryview(random.Random(1).randbytes(100_000))


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(block, "time", made)
    return made


def run(compressor: Compressor, clock: Clock, costs: Callable[[bool], float], n: int) -> list[bool]:
    """Send blocks that take so long, compressed or not; returns which were compressed."""
    chosen = []
    for _ in range(n):
        chosen.append(compressor.wants(TEXT))
        clock.now += costs(chosen[-1])
        compressor.sent(len(TEXT))
    return chosen


@pytest.mark.parametrize(("mode", "always"), [("lz4", True), ("none", False)])
def test_a_fixed_way_is_kept(clock: Clock, mode: str, always: bool) -> None:
    compressor = Compressor(mode)
    assert (
        run(compressor, clock, lambda compressed: 9.0 if compressed else 1.0, 40) == [always] * 40
    )
    assert compressor.wants(NOISE) is always


@pytest.mark.parametrize("faster", [True, False])
def test_auto_takes_the_faster_way_and_looks_at_the_other_now_and_then(
    clock: Clock, faster: bool
) -> None:
    compressor = Compressor("auto")
    chosen = run(compressor, clock, lambda compressed: 1.0 if compressed is faster else 3.0, 200)
    assert set(chosen[:2]) == {True, False}  # both are tried first
    assert chosen.count(faster) > 180
    assert 200 - chosen.count(faster) >= 200 // block.PROBE_EVERY


def test_auto_turns_when_the_link_does(clock: Clock) -> None:
    compressor = Compressor("auto")
    slow = run(compressor, clock, lambda compressed: 1.0 if compressed else 3.0, 100)
    fast = run(compressor, clock, lambda compressed: 1.0 if compressed else 0.1, 300)
    assert slow.count(True) > 80
    assert fast[100:].count(False) > 170


def test_auto_sends_plain_what_does_not_shrink(clock: Clock) -> None:
    compressor = Compressor("auto")
    for _ in range(40):
        assert not compressor.wants(NOISE)
        clock.now += 1
        compressor.sent(len(NOISE))
    assert not codec.shrinks(NOISE)
    assert compressor.wants(TEXT)


def test_empty_blocks_say_nothing_of_speed(clock: Clock) -> None:
    compressor = Compressor("auto")
    for _ in range(5):
        compressor.wants(memoryview(b""))
        clock.now += 100
        compressor.sent(0)
    assert (
        run(compressor, clock, lambda compressed: 1.0 if compressed else 3.0, 50).count(True) > 40
    )


def test_another_way_to_compress_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="auto, lz4, none"):
        Compressor("zip")


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("http://host:8000/tar", "http://host:8000/tar"),
        ("http://host:8000/tar/", "http://host:8000/tar"),
        ("http://host:8000", "http://host:8000/tar"),
        ("http://host:8000/", "http://host:8000/tar"),
        ("https://host", "https://host/tar"),
        ("HTTPS://host/other/base", "https://host/other/base"),
        ("http://[::1]:80/tar", "http://[::1]:80/tar"),
    ],
)
def test_a_receivers_url(url: str, checked: str) -> None:
    assert checked_url(url) == checked


@pytest.mark.parametrize(
    "url",
    [
        *("", "host:8000/tar", "/tar", "tar", "ftp://host/tar", "file:///tar", "http:", "http://"),
        *("http:///tar", "http://:80/tar", "http://host:x/tar", "http://host:99999/tar"),
        *("http://host:0/tar", "http://host:-1/tar", "http://[::1/tar", "http://host/tar?x=1"),
        *("http://host/tar#x", "s3://bucket/prefix", "http://host:8000/tar?", "httpx://host"),
    ],
)
def test_what_is_no_url_of_a_receiver(url: str) -> None:
    if url.endswith("?"):
        assert checked_url(url) == url[:-1]  # an empty query is none
        return
    with pytest.raises(UsageError):
        checked_url(url)


@given(st.text())
def test_no_text_raises_anything_but_a_usage_error(text: str) -> None:
    for url in (text, f"http://{text}", f"http://host{text}"):
        try:
            assert checked_url(url).startswith(("http://", "https://"))
        except UsageError:
            continue


class Sender:
    """Stands where RangeSender does, and notes in files what it sent."""

    def __init__(self, folder: Path, number: int, deadly: dict[int, int]) -> None:
        self._folder, self._number, self._deadly = folder, number, deadly

    def send(
        self, blocks: Iterable[int], *, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[BlockOutcome]:
        for number in blocks:
            if stop():
                return
            tries = len(list(self._folder.glob(f"{number}.*")))
            (self._folder / f"{number}.{tries}").touch()
            if tries < self._deadly.get(number, 0):
                os.kill(os.getpid(), signal.SIGKILL)
            fatal = self._deadly.get(number) == -1
            yield BlockOutcome(block_no=number, error="no use" if fatal else "", fatal=fatal)

    def close(self) -> None:
        """Nothing is open."""


def pool_of(folder: Path, processes: int, deadly: dict[int, int]) -> Pool:
    return Pool(lambda number: Sender(folder, number, deadly), processes)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 300])
def test_each_block_is_sent_once(tmp_path: Path, processes: int, count: int) -> None:
    sent = [one.block_no for one in pool_of(tmp_path, processes, {}).send(range(count))]
    assert sorted(sent) == list(range(count))
    assert len(os.listdir(tmp_path)) == count


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 300])
def test_each_process_has_its_own_stretch_as_long_as_it_lasts(processes: int, count: int) -> None:
    work = pool._Work(range(count), processes)
    first = [work.next(number) for number in range(processes)]
    assert all(blocks == list(range(blocks[0], blocks[-1] + 1)) for blocks in first if blocks)
    if count > processes:
        assert [blocks[0] for blocks in first] == [
            count * number // processes for number in range(processes)
        ]
    rest = []
    while blocks := work.next(processes - 1):  # the others are slow
        rest.append(blocks)
    assert sorted(chain(*first, *rest)) == list(range(count))


@pytest.mark.parametrize("processes", [1, 3])
def test_the_range_of_a_process_that_is_killed_is_sent_by_another(
    tmp_path: Path, processes: int
) -> None:
    deadly = {0: 1, 7: 2, 8: 1, 50: 1, 99: 3}
    numbers = [one.block_no for one in pool_of(tmp_path, processes, deadly).send(range(100))]
    assert sorted(numbers) == list(range(100))
    assert len(os.listdir(tmp_path)) == 100 + sum(deadly.values())


def test_a_block_that_kills_every_process_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TarLikeError, match="keep dying"):
        list(pool_of(tmp_path, 1, {5: 99}).send(range(10)))
    assert len(list(tmp_path.glob("5.*"))) == pool.MAX_DEATHS + 1


def test_a_fatal_error_stops_all(tmp_path: Path) -> None:
    outcomes = list(pool_of(tmp_path, 2, {3: -1}).send(range(10_000)))
    assert [one.block_no for one in outcomes if one.fatal] == [3]
    assert len(outcomes) < 5000


def test_senders_that_cannot_be_made_say_why(capfd: pytest.CaptureFixture[str]) -> None:
    def make(number: int) -> RangeSender:
        raise UsageError("The folder does not exist.")

    outcomes = list(Pool(make, 2).send(range(100)))
    assert {(one.error, one.fatal) for one in outcomes} == {("The folder does not exist.", True)}
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("count", "few", "here"),
    [(1, 1, True), (2, 1, False), (1, 0, False), (6, 6, True), (7, 6, False)],
)
def test_few_blocks_are_sent_here(tmp_path: Path, count: int, few: int, here: bool) -> None:

    class Here(Sender):
        def send(
            self, blocks: Iterable[int], *, stop: Callable[[], bool] = lambda: False
        ) -> Iterator[BlockOutcome]:
            for outcome in super().send(blocks, stop=stop):
                yield outcome._replace(error=str(os.getpid()))

    def make(number: int) -> RangeSender:
        return Here(tmp_path, number, {})  # type: ignore[return-value]

    assert list(Pool(make, 2, few=few).send([])) == []
    outcomes = list(Pool(make, 2, few=few).send(range(count)))
    assert sorted(one.block_no for one in outcomes) == list(range(count))
    assert {int(one.error) == os.getpid() for one in outcomes} == {here}


@pytest.mark.parametrize(
    ("urls", "size", "few"),
    [
        ("http://127.0.0.1:1/tar http://localhost:2/tar", 8 << 20, 6),
        ("http://[::1]:1/tar", 1 << 30, 1),
        ("http://127.0.0.1:1/tar", 4096, 6),
        ("http://127.0.0.1:1/tar http://host:1/tar", 8 << 20, 1),
    ],
)
def test_how_many_are_few(urls: str, size: int, few: int) -> None:
    options = UploadOptions(source="", index_path="", urls=tuple(urls.split()), block_size=4096)
    sending = Sending(transfer="", plan_path="", index_path="", block_size=size, missing=[])
    assert LocalDispatcher(options)._few(sending) == few
    apart = options._replace(direct=lambda: None)  # type: ignore[arg-type,return-value]
    assert LocalDispatcher(apart)._few(sending) == 0


def test_a_block_that_fails_here_is_named(tmp_path: Path) -> None:
    class Poor(Sender):
        def send(
            self, blocks: Iterable[int], *, stop: Callable[[], bool] = lambda: False
        ) -> Iterator[BlockOutcome]:
            yield from super().send([7])
            raise MemoryError

    poor = Poor(tmp_path, 0, {})
    first, last = Pool(lambda _: poor, 2, few=3).send([7, 8, 9])  # type: ignore[arg-type,return-value]
    assert (first.block_no, first.error) == (7, "")
    assert (last.block_no, last.fatal) == (8, True)
    assert "MemoryError" in last.error


def test_a_single_block_that_cannot_be_sent_says_why(tmp_path: Path) -> None:
    def make(number: int) -> RangeSender:
        raise UsageError("The folder does not exist.")

    class Poor(Sender):
        def send(
            self, blocks: Iterable[int], *, stop: Callable[[], bool] = lambda: False
        ) -> Iterator[BlockOutcome]:
            raise MemoryError

    (outcome,) = Pool(make, 2).send([7])
    assert (outcome.block_no, outcome.error, outcome.fatal) == (
        7, "The folder does not exist.", True,
    )  # fmt: skip
    poor = Poor(tmp_path, 0, {})
    (outcome,) = Pool(lambda _: poor, 2).send([7])  # type: ignore[arg-type,return-value]
    assert "MemoryError" in outcome.error and outcome.fatal
    stopped = pool_of(tmp_path, 2, {})
    stopped.stop()
    assert list(stopped.send([7])) == []


def test_stop_lets_what_is_in_flight_end(tmp_path: Path) -> None:
    made = pool_of(tmp_path, 2, {})
    sent = []
    for outcome in made.send(range(10_000)):
        sent.append(outcome.block_no)
        made.stop()
    assert 0 < len(sent) < 5000
    assert len(os.listdir(tmp_path)) == len(set(sent)) == len(sent)


def test_who_stops_listening_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    outcomes = pool_of(tmp_path, 3, {}).send(range(10_000))
    next(outcomes)
    assert children() > before, "nothing was started: this test could not fail"
    outcomes.close()  # type: ignore[attr-defined]
    assert children() <= before


def children() -> set[str]:
    """The processes that this one has started and not waited for."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread of somebody else's may end
            found.update((task / "children").read_text().split())
    return found


def test_a_process_that_is_gone_when_it_is_given_a_range_is_noticed_later() -> None:
    """Its blocks stay its own until the closed pipe is heard of."""
    ours, theirs = Pipe()
    theirs.close()
    child = pool._Child(None, 0, None)  # type: ignore[arg-type]
    child.give(ours, [1, 2])
    assert (child.blocks, child.busy) == ([1, 2], True)
    with pytest.raises(EOFError):
        ours.recv()
    ours.close()
