"""The arithmetic of byte ranges against models that count one by one."""

from __future__ import annotations

from itertools import groupby, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from tar_like.layout import (
    GRAIN,
    PAGE,
    Extent,
    block_count,
    block_range,
    clip,
    lay,
    place,
    round_up,
    runs,
    sort_key,
)

LENGTHS = st.one_of(
    st.integers(0, 3 * PAGE),
    st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 5 * PAGE + 7]),
)


def may_start(offset: int, length: int) -> bool:
    """The rule of layout's docstring, in other words than the code has for it."""
    if length >= PAGE:
        return offset % PAGE == 0
    if offset % GRAIN:
        return False
    return length == 0 or offset // PAGE == (offset + length - 1) // PAGE


@given(st.integers(0, 3 * PAGE), LENGTHS)
@example(0, 0)
@example(PAGE - 1, 1)
@example(PAGE - 1, 2)
@example(1, PAGE)
@example(1, 1)
@example(PAGE - GRAIN + 1, 1)
def test_place_is_the_first_offset_that_the_rule_allows(cursor: int, length: int) -> None:
    allowed = (at for at in range(cursor, cursor + PAGE + 1) if may_start(at, length))
    assert place(cursor, length) == next(allowed)


@given(st.integers(0, 1 << 62), st.integers(1, 1 << 20))
def test_round_up_is_the_least_multiple(number: int, multiple: int) -> None:
    rounded = round_up(number, multiple)
    assert rounded % multiple == 0
    assert rounded - multiple < number <= rounded


@given(st.lists(LENGTHS, max_size=30), st.integers(0, 2 * PAGE))
def test_lay_puts_each_where_place_says_behind_the_one_before(
    lengths: list[int], cursor: int
) -> None:
    offsets = list(lay(iter(lengths), cursor))
    ends = [cursor] + [at + length for at, length in zip(offsets, lengths, strict=True)]
    assert offsets == [place(end, n) for end, n in zip(ends[:-1], lengths, strict=True)]


@given(st.lists(LENGTHS, min_size=1, max_size=30), st.integers(1, 4))
def test_no_page_of_a_file_is_in_two_blocks(lengths: list[int], pages: int) -> None:
    block_size = pages * PAGE
    for offset, length in zip(lay(iter(lengths)), lengths, strict=True):
        for page in range(0, length, PAGE):
            last = min(page + PAGE, length) - 1
            assert (offset + page) // block_size == (offset + last) // block_size


@given(st.integers(0, 10 * PAGE), st.integers(1, 4).map(lambda pages: pages * PAGE))
def test_blocks_cover_the_plan_once(length: int, block_size: int) -> None:
    ranges = [
        block_range(number, block_size, length) for number in range(block_count(length, block_size))
    ]
    assert all(start < stop for start, stop in ranges)
    assert all(stop - start == block_size for start, stop in ranges[:-1])
    ends = [0, *[place for one in ranges for place in one], length]
    assert ends[0::2] == ends[1::2]


@given(
    st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 90), st.integers()
)
def test_clip_keeps_the_bytes_that_are_in_the_range(
    offset: int, first: int, length: int, start: int, entry_id: int
) -> None:
    extent = Extent(offset, entry_id, first, first + length)
    for stop in range(start, 90, 7):
        kept = [
            (offset + n, first + n) for n in range(length) if start <= offset + n < stop
        ]  # (place in the plan, place in the file) of each byte
        clipped = clip(extent, start, stop)
        if not kept:
            assert clipped is None
        else:
            assert clipped == Extent(kept[0][0], entry_id, kept[0][1], kept[-1][1] + 1)


@given(st.sets(st.integers(-5, 60)))
def test_runs_are_the_longest_there_are(numbers: set[int]) -> None:
    found = list(runs(iter(sorted(n for n in numbers if n >= 0))))
    assert [n for start, stop in found for n in range(start, stop)] == sorted(
        n for n in numbers if n >= 0
    )
    assert all(stop < start for (_, stop), (start, _) in pairwise(found))


NAMES = st.binary(min_size=1, max_size=3).filter(lambda name: not {0, 0x2F} & set(name))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)


def depth_first(paths: list[list[bytes]], prefix: tuple[bytes, ...] = ()) -> list[bytes]:
    """Every name before what is below it, names of one folder sorted as bytes."""
    found = []
    for name, group in groupby(sorted(p for p in paths if p), key=lambda p: p[0]):
        found.append(b"/".join((*prefix, name)))
        found += depth_first([rest[1:] for rest in group], (*prefix, name))
    return found


@given(st.lists(PATHS, max_size=30))
@example([b"a", b"a/b", b"a.b", b"a-b/c", b"a\x01", b"a/b/c", b"a0"])
def test_sort_key_is_the_order_of_a_walk(paths: list[bytes]) -> None:
    split = [path.split(b"/") for path in paths]
    walked = depth_first(split)
    assert sorted(walked, key=sort_key) == walked
    assert len({sort_key(path) for path in walked}) == len(walked)
