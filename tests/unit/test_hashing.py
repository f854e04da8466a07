"""Hashing many files: in order, on several processes where there is enough to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tar_like import digest
from tar_like.layout import Piece
from tar_like.source import Reading, hashing
from tar_like.source.folder import FolderSource
from tar_like.source.hashing import hash_files


class Watched(FolderSource):
    """A folder whose readers leave their process's number in another one."""

    def __init__(self, base: Path, seen: Path) -> None:
        super().__init__(str(base))
        self._seen = seen

    def read(self, pieces: Sequence[Piece], into: memoryview) -> Reading:
        (self._seen / str(os.getpid())).touch()
        return super().read(pieces, into)


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_little_is_hashed_here_and_much_on_other_processes(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "BATCH_FILES", 3)
    base, seen = tmp_path / "base", tmp_path / "seen"
    base.mkdir()
    seen.mkdir()
    pieces = []
    for number in range(count):
        path = base / str(number)
        path.write_bytes(b"%d" % number)
        st = path.stat()
        pieces.append(Piece(number, path.name.encode(), 0, 1, 1, st.st_mtime_ns, b""))
    source = Watched(base, seen)
    found = list(hash_files(source, "blake3", pieces, lambda piece: piece, jobs=2))
    assert [piece for piece, _ in found] == pieces
    for number, (_, hashed) in enumerate(found):
        assert hashed is not None
        assert hashed.digest == digest.of("blake3", b"%d" % number)
    here = str(os.getpid()) in {path.name for path in seen.iterdir()}
    assert here == (0 < count <= 3)
    assert bool(list(seen.iterdir())) == (count > 0)
    source.close()
