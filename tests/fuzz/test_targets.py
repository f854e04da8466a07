"""The fuzzer's targets, for a moment, without the fuzzer."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import seeds, targets

TRIES = {"index": 400, "block": 4000}


def spoilt(dice: random.Random, data: bytes) -> bytes:
    """Bytes of the seed changed, cut, doubled or put in."""
    raw = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        place = dice.randrange(len(raw) + 1)
        way = dice.randrange(4)
        if way == 0 and place < len(raw):
            raw[place] = dice.randrange(256)
        elif way == 1:
            raw[place:place] = dice.randbytes(dice.randrange(1, 9))
        elif way == 2:
            del raw[place : place + dice.randrange(1, 9)]
        else:
            raw[place:place] = raw[: dice.randrange(1, 40)]
    return bytes(raw)


@pytest.mark.parametrize("name", TRIES)
def test_nothing_but_our_own_errors_comes_out(name: str, dice: random.Random) -> None:
    with targets() as known:
        for data in seeds(name):
            known[name](data)
        for _ in range(TRIES[name]):
            data = spoilt(dice, dice.choice(seeds_of[name]))
            try:
                known[name](data)
            except BaseException:
                print(f"{name}: {data!r}")
                raise


seeds_of = {name: seeds(name) for name in TRIES}
