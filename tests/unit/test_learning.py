"""The chunks of large files are remembered after the commit that has brought them."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pytest

from tar_like import chunks
from tar_like.chunks import ChunkList
from tar_like.proxy.chunkcache import ChunkCache
from tar_like.proxy.learning import learn_chunks
from tar_like.proxy.ledger import Ledger
from tar_like.proxy.place import Destination
from tests.unit.receiver import sync

MIB = 1 << 20


@pytest.fixture
def dest(work: Path, dice: random.Random) -> Path:
    """A tree of large files that was committed."""
    source = work / "src"
    source.mkdir()
    for number in range(3):
        (source / f"large {number}").write_bytes(dice.randbytes((1 + number) * MIB))
    (source / "small").write_bytes(b"small")
    with (source / "sparse").open("wb") as file:
        file.truncate(4 * MIB)
        file.seek(MIB)
        file.write(dice.randbytes(MIB))
    assert sync(source, work / "dst", algorithm="none") == {}
    return work / "dst"


def learned(dest: Path) -> dict[str, ChunkList]:
    """The lists that there are, by the names of the files."""
    destination = Destination(str(dest))
    destination.prepare()
    cache, ledger = ChunkCache(destination.chunks), Ledger(destination.ledger)
    rows = list(ledger.landed_since(0, 0, 1 << 40))
    ledger.close()
    found = {
        os.fsdecode(row.path): cache.read(row.digest.hex(), chunks.average(row.size))
        for row in rows
    }
    return {name: one for name, one in found.items() if one is not None}


def learn(dest: Path, since: float = 0.0, most: int = 1 << 30) -> set[str]:
    destination = Destination(str(dest))
    destination.prepare()
    learn_chunks(destination, since, most)
    return set(learned(dest))


def test_large_files_are_learned(dest: Path) -> None:
    assert learned(dest) == {}
    assert learn(dest) == {"large 0", "large 1", "large 2", "sparse"}
    for name, found in learned(dest).items():
        size = (dest / name).stat().st_size
        assert found.fits(chunks.average(size))
        assert found.size(0, len(found)) == (MIB if name == "sparse" else size)


def test_no_more_is_read_than_there_is_time_for(dest: Path) -> None:
    assert learn(dest, most=MIB - 1) == set()
    assert learn(dest, most=MIB) == {"large 0"}
    some = learn(dest, most=5 * MIB)
    assert sum((dest / name).stat().st_size for name in some - {"large 0"}) <= 5 * MIB
    for _ in range(3):
        last = learn(dest, most=5 * MIB)
    assert len(last) == 4, "what is known takes no time"


def test_files_that_came_before_are_left_alone(dest: Path) -> None:
    os.utime(dest / "large 1", (5, 5))
    last = max((dest / name).stat().st_ctime for name in ("large 0", "large 2", "sparse"))
    assert learn(dest, since=last + 1) == set()
    assert learn(dest, since=math.inf) == set()


@pytest.mark.parametrize("harm", ["touched", "gone", "a folder", "shorter"])
def test_what_is_not_as_the_ledger_says_is_not_learned(dest: Path, harm: str) -> None:
    path = dest / "large 1"
    match harm:
        case "touched":
            os.utime(path, (5, 5))
        case "shorter":
            os.truncate(path, 5)
        case _:
            path.unlink()
            if harm == "a folder":
                path.mkdir()
    assert learn(dest) == {"large 0", "large 2", "sparse"}
