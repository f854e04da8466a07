"""Chunks of a scan that are kept aside: by the process that scans, or by who takes them."""

from __future__ import annotations

import os
import random

import pytest

from tar_like.index import spool as spools
from tar_like.index.spool import Spool


@pytest.fixture(params=["shared", "full", "none"])
def spool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """One with room for all in memory, for some, and for nothing."""
    if request.param == "full":
        monkeypatch.setattr(spools, "IN_MEMORY", 5000)
    if request.param == "none":
        monkeypatch.setattr(spools, "_shared_memory", lambda: -1)
    return Spool()


def test_what_was_kept_is_there_whoever_kept_it(spool: Spool, dice: random.Random) -> None:
    kept = []
    for _ in range(200):
        data = dice.randbytes(dice.randrange(300))
        place = spool.keep(data)
        kept.append((spool.add(memoryview(data)) if place < 0 else place, data))
        if dice.randrange(3) == 0:
            place, data = dice.choice(kept)
            assert spool.read(place, len(data)) == data
    assert [spool.read(place, len(data)) for place, data in kept] == [data for _, data in kept]
    spool.close()
    spool.close()


def test_what_a_child_keeps_is_there_while_it_goes_on() -> None:
    spool = Spool()
    (ours, theirs), (again, go) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        for number in range(50):
            os.write(theirs, b"%8d" % spool.keep(b"%d" % number * 1000))
            os.read(again, 1)
        os._exit(0)
    for number in range(50):
        data = b"%d" % number * 1000
        assert spool.read(int(os.read(ours, 8)), len(data)) == data
        os.write(go, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    spool.close()


def test_memory_that_cannot_be_had_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    monkeypatch.setattr(os, "pwrite", lambda *_: 3)  # as where a file may not be so large
    assert spool.keep(b"data") == -1
    monkeypatch.undo()
    place = spool.keep(b"data")
    assert spool.read(place, 4) == b"data"
    with pytest.raises(OSError):
        spool.read(place, 5)
    spool.close()
