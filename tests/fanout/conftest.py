"""What the tests of the fan-out share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fanout.harness import Redis


@pytest.fixture
def redis(work: Path) -> Iterator[Redis]:
    """A Redis of the test's own."""
    (work / "redis").mkdir()
    with Redis(work / "redis") as server:
        yield server
