"""The contract of sources (tests.unit.test_source_contract), for a bucket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tar_like.layout import Piece
from tar_like.source import Source, open_source
from tests.s3.conftest import Store
from tests.unit import test_source_contract as contract

globals().update({name: test for name, test in vars(contract).items() if name.startswith("test_")})


class BucketPlace:
    """A prefix that is there, as a folder would be."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._opened: list[Source] = []
        store.put(b"", b"")

    def put(self, path: bytes, data: bytes) -> None:
        self._store.put(path, data)

    def remove(self, path: bytes) -> None:
        self._store.remove(path)

    def open(self) -> Source:
        self._opened.append(open_source(self._store.url, self._store.settings))
        return self._opened[-1]

    def stale(self, piece: Piece) -> Piece:
        return piece._replace(token=b"other")

    def close(self) -> None:
        for source in self._opened:
            source.close()


@pytest.fixture
def place(s3: Store) -> Iterator[BucketPlace]:
    made = BucketPlace(s3)
    yield made
    made.close()
