"""What the command imports, and when: nobody should wait for what is not asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tar_like
from tests.e2e.harness import Proxy, sync
from tests.trees import assert_same, build

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


def test_a_proxy_goes_on_when_its_package_is_replaced(work: Path) -> None:
    code = work / "code"
    shutil.copytree(Path(tar_like.__file__).parent, code / "tar_like")
    build(work / "src", 70, deep=False, files=5)
    with Proxy(work / "dst", cwd=code) as proxy:
        shutil.rmtree(code)
        for _ in range(2):  # the second finds something at the destination
            sync(work / "src", proxy.url)
            assert_same(work / "src", work / "dst")
            (work / "src/new").write_bytes(b"new")
