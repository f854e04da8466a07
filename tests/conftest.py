"""Fixtures of all tests: a room to work in and the seed of the day."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import trees


def pytest_report_header(config: pytest.Config) -> str:
    return f"random moments: TAR_LIKE_TEST_SEED={_seed()} (set it to repeat a run)"


def _seed() -> int:
    if "TAR_LIKE_TEST_SEED" not in os.environ:
        os.environ["TAR_LIKE_TEST_SEED"] = str(random.SystemRandom().randrange(10**6))
    return int(os.environ["TAR_LIKE_TEST_SEED"])  # inherited by the processes of xdist


@pytest.fixture
def work() -> Iterator[Path]:
    """An empty folder that any user may enter, removed whatever is in it."""
    folder = Path(tempfile.mkdtemp(prefix="tar-like-test-"))
    folder.chmod(0o755)
    yield folder
    trees.remove(folder)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Randomness of this test and this run; printed, so a failure can be repeated."""
    print(f"TAR_LIKE_TEST_SEED={_seed()}")
    return random.Random(f"{_seed()} {request.node.nodeid}")
