"""What workers of one host keep of indexes and plans."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tar_like.errors import IndexInvalid
from tests.e2e.harness import index, payload
from workers.cache import Cache, plan_digest


def test_an_index_is_fetched_once_and_never_kept_unverified(work: Path) -> None:
    payload(work / "src", files=2)
    transfer = str(index(work / "src", work / "db")["id"])
    fetched: list[str] = []

    def fetch(what: str, path: str) -> None:
        fetched.append(what)
        shutil.copy(work / "db", path)

    with pytest.raises(IndexInvalid):
        Cache(str(work / "cache")).index("0" * 64, fetch)
    assert not list((work / "cache").glob("*.db"))
    fetched.clear()
    for _ in range(3):  # three processes of a host
        kept = Cache(str(work / "cache")).index(transfer, fetch)
    assert fetched == ["db"]
    assert Path(kept).read_bytes() == (work / "db").read_bytes()


def test_another_plan_than_the_order_names_is_refused(work: Path) -> None:
    (work / "plan").write_bytes(b"a plan")
    digest = plan_digest(str(work / "plan"))
    cache = Cache(str(work / "cache"))

    def fetch(_: str, path: str) -> None:
        shutil.copy(work / "plan", path)

    assert Path(cache.plan("0" * 64, digest, fetch)).read_bytes() == b"a plan"
    with pytest.raises(IndexInvalid):
        cache.plan("0" * 64, digest[::-1], fetch)
