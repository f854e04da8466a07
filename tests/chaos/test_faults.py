"""The short forms of the proofs about faults: some moments of each, other ones every time."""

from __future__ import annotations

import random
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("power", 2),
        ("calls", 8),
        ("errors", 8),
        ("full", 3),
        ("sequences", 15),
        ("kills", 6),
        ("patches", 4),
        ("bits", 300),
        ("network", 12),
        ("flips", 3000),
        ("slow", 40),
    ],
)
def test_the_promise_holds(name: str, count: int, dice: random.Random) -> None:
    try:
        print(import_module(f"tests.chaos.{name}").run(count, dice))
    except PermissionError as error:
        pytest.skip(f"needs more rights: {error}")
