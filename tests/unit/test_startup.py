"""What the command does not import: nobody should wait for what is not asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    *("asyncio", "blake3", "boto3", "cryptography", "dataclasses", "lz4", "multiprocessing"),
    *("redis", "sqlite3", "starlette", "tar_like.config", "tar_like.source", "urllib3", "uvicorn"),
}
SCRIPT = """\
import json, sys
from tar_like.cli import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported(*words: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_what_every_command_shares_is_light(flag: str) -> None:
    assert imported(flag) & HEAVY == set()


@pytest.mark.parametrize("command", ["index", "sync", "upload", "check", "proxy", "status"])
def test_the_help_of_a_command_needs_neither_databases_nor_network(command: str) -> None:
    heavy = HEAVY - {"dataclasses", "lz4", "tar_like.config", "tar_like.source"}
    assert imported(command, "--help") & heavy == set()
