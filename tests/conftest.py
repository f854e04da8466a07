"""Fixtures of all tests: a room to work in and the seed of the day."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from tests import trees

SEED = "TAR_LIKE_TEST_SEED"
"""A number, or ``random``. Without it all runs make the same choices: `make soak` makes others."""


def _seed() -> int:
    if os.environ.get(SEED) == "random":
        os.environ[SEED] = str(random.SystemRandom().randrange(10**6))
    return int(os.environ.get(SEED, "0"))  # inherited by the processes of xdist


settings.register_profile(
    "tests",
    deadline=None,  # two cores that other work shares: time says nothing here
    max_examples=60,
    derandomize=SEED not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


def pytest_report_header(config: pytest.Config) -> str:
    return f"random choices: {SEED}={_seed()} (set it to repeat a run)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what chooses at random, for `make soak`."""
    for item in items:
        function = getattr(item, "obj", None)
        if "dice" in getattr(item, "fixturenames", ()) or is_hypothesis_test(function):
            item.add_marker("seeded")


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
    print(f"{SEED}={_seed()}")
    return random.Random(f"{_seed()} {request.node.nodeid}")
