"""Columns compared at once say what comparing number by number says."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tar_like.lanes import any_less, differing, tops

NUMBERS = st.integers(0, (1 << 63) - 1) | st.integers(0, 2)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS) | NUMBERS.map(lambda one: (one, one)), max_size=9)


def packed(numbers: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


@given(PAIRS)
def test_columns_are_compared(pairs: list[tuple[int, int]]) -> None:
    one, other = (
        (packed(tuple(column)) for column in zip(*pairs, strict=True)) if pairs else (b"", b"")
    )
    numbers = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    assert any_less(*numbers, tops(len(pairs))) == any(a < b for a, b in pairs)
    assert list(differing(one, other, 64)) == [at for at, (a, b) in enumerate(pairs) if a != b]
