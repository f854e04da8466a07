"""The pure parts of the fan-out: ranges, orders, records, buckets."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tar_like.upload.limit import BURST, MEMORY, SharedBucket, debit
from tests.fanout.test_poison import SPOILT, order
from workers.jobs import Order, Refused
from workers.ranges import MAX_BLOCKS, SECONDS, Ranges
from workers.records import TransferRecord, WorkerRecord

BLOCKS = st.sets(st.integers(0, 400)).map(sorted)


@given(BLOCKS, st.integers(0, 9), st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 60))))
def test_every_missing_block_is_given_out_once(
    missing: list[int], workers: int, learned: list[tuple[int, float]]
) -> None:
    ranges = Ranges(missing)
    found: list[int] = []
    for blocks, seconds in learned:
        ranges.learn(blocks, seconds)
    while (one := ranges.next(workers)) is not None:
        assert 0 < one[1] - one[0] <= MAX_BLOCKS
        found += range(*one)
        assert ranges.left == len(missing) - len(found)
    assert found == missing


@given(BLOCKS.filter(bool), st.data())
def test_what_is_given_back_comes_next(missing: list[int], data: st.DataObject) -> None:
    ranges = Ranges(missing)
    ranges.learn(100, 1.0)
    first = ranges.next(1)
    assert first is not None
    back = [n for n in range(*first) if data.draw(st.booleans())]
    ranges.give_back(back)
    rest: list[int] = []
    while (one := ranges.next(1)) is not None:
        rest += range(*one)
    assert rest[: len(back)] == back
    assert sorted(rest) == sorted(set(missing) - set(range(*first)) | set(back))


def test_ranges_are_worth_seconds_and_small_at_the_end() -> None:
    ranges = Ranges(range(10_000))
    first = ranges.next(4)
    assert first == (0, 1), "one block, to learn the pace"
    ranges.learn(20, 2.0)
    sizes = []
    while (one := ranges.next(4)) is not None:
        sizes.append(one[1] - one[0])
    assert sizes[0] == int(10 * SECONDS)
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("values", [*SPOILT, None, [], "x", 1, order(urls=[1]), order(urls=None)])
def test_spoilt_orders_are_refused(values: Any) -> None:
    with pytest.raises(Refused):
        Order.from_json(values)


def test_an_order_comes_through_json() -> None:
    one = Order.from_json(order())
    assert Order.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert "password" not in json.dumps(one.to_json())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_no_json_is_taken_for_a_record(value: Any) -> None:
    assert WorkerRecord.from_json(json.dumps(value)) is None
    assert TransferRecord.from_json(json.dumps({"id": value})) is None


def test_records_come_through_json_and_keep_their_types() -> None:
    one = WorkerRecord(name="a", pid=3, rate=1.5)
    assert WorkerRecord.from_json(one.to_json()) == one
    spoilt = json.loads(one.to_json()) | {"pid": "3"}
    assert WorkerRecord.from_json(json.dumps(spoilt)) is None


@given(
    st.lists(st.integers(1, 1 << 22), min_size=1, max_size=50),
    st.floats(1e3, 1e9),
)
def test_a_bucket_keeps_its_rate(counts: list[int], rate: float) -> None:
    now = free = 1000.0
    for count in counts:
        wait, free = debit(count, rate=rate, free=free, now=now)
        assert wait >= 0
        now += wait
    assert now - 1000.0 >= sum(counts[:-1]) / rate - BURST - 1e-6


def test_a_shared_bucket_can_be_changed() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(MEMORY)
        bucket = SharedBucket(100, file.fileno())
        assert bucket.take(1000) == 0.0
        assert bucket.take(1) > 5
        SharedBucket.change(file.fileno(), 200)
        assert bucket.take(1) == 0.0, "debts at the old rate are let off"
        SharedBucket.change(file.fileno(), 0)
        assert bucket.take(10**9) == 0.0
