"""Where the names of a leaf are among all of its directory."""

from __future__ import annotations

import pytest

from tar_like.proxy.former import _place_of
from tar_like.proxy.ledger import LeafRow


@pytest.mark.parametrize(
    ("first", "names", "place"),
    [
        (b"b", 2, (1, 3)),
        (b"b", 3, (1, 4)),
        (b"b", 4, None),
        (b"bb", 2, None),
        (b"e", 1, None),
        (b"a", 4, (0, 4)),
    ],
)
def test_a_leaf_is_where_its_first_name_is(
    first: bytes, names: int, place: tuple[int, int] | None
) -> None:
    assert _place_of(LeafRow(b"", first, names, b""), [b"a", b"b", b"c", b"d"]) == place
