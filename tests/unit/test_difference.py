"""Which names of a stretch are taken to have changed since the receiver's tree was scanned."""

from __future__ import annotations

import pytest

from tar_like.layout import FILE
from tar_like.source import Found
from tar_like.source.stretch import Stretch, stretch_of_found
from tar_like.upload.difference import Candidate
from tar_like.wire import Look

TIMES = {b"a": (10, 10), b"b": (20, 10), b"c": (10, 20), b"d": (19, 19)}
"""ctime and mtime. That of c is the mark of a clock that was set back."""


def stretch() -> Stretch:
    return stretch_of_found(
        b"", [Found(name, FILE, 0, 0o644, mtime, 0, 0, b"", ctime, 1, 1, 1, b"", None, ())
              for name, (ctime, mtime) in TIMES.items()],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("newest", "changed", "positions", "newer"),
    [
        (20, 20, [1, 2], False),
        (30, 20, [1], False),
        (20, 30, [2], False),
        (19, 19, [1, 2, 3], True),
        (30, 30, [], False),
        (19, None, [], True),
        (20, None, [], False),
        (None, 20, [], False),
    ],
)
def test_a_name_is_changed_by_either_of_its_times(
    newest: int | None, changed: int | None, positions: list[int], newer: bool
) -> None:
    one = Candidate.of(stretch(), Look(token="", tree="", newest=newest, changed=changed))
    assert (one.changed, one.newer) == (positions, newer)
