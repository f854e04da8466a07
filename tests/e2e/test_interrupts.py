"""Ctrl-C at a moment when a module is being loaded: never a traceback."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.harness import REPOSITORY, Job
from tests.trees import build


@pytest.mark.parametrize(
    "module",
    [
        "cli/command",
        "config",
        "cli/output",
        "cli/common",
        "cli/sync",
        "source/hashing",
        "plan/build",
    ],
)
def test_it_ends_without_a_traceback(work: Path, module: str) -> None:
    build(work / "src", 3, deep=False, files=3)
    path = REPOSITORY / f"tar_like/{module}.py"
    assert path.exists()
    strace = (
        *("strace", "--follow-forks", "--output=/dev/null", f"--trace-path={path}"),
        "--inject=newfstatat:signal=SIGINT:when=1",
    )
    with Job("sync", work / "src", work / "dst", prefix=strace) as job:
        result = job.end()
    assert b"Traceback" not in result.err
    if result.code == -signal.SIGINT:
        assert result.err == b""  # nobody was there yet to say a word
    else:
        assert result.code == 130
        assert b"Interrupted" in result.err
