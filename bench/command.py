"""Run one command, bounded in time, and time it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

REPOSITORY = Path(__file__).resolve().parent.parent
LAST_LINES = 12


class BenchError(Exception):
    """A command failed, ran out of time, or left a wrong result."""


def run(argv: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None) -> float:
    """Run `argv` from the repository's top and return its wall seconds.

    Raises BenchError with the end of the command's output when it fails or exceeds `timeout`
    seconds; nothing of its process group is left running then.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = spawn(argv, stdout=output, stderr=output, env=env)
        code = finish(process, timeout=timeout)
        seconds = time.perf_counter() - started
        if code == 0:
            return seconds
        output.seek(0)
        tail = output.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    reason = f"ran longer than {timeout:.0f} s" if code is None else f"exit code {code}"
    raise BenchError("\n    ".join([f"{' '.join(argv)}: {reason}", *tail]))


def spawn(
    argv: Sequence[str],
    *,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a process group of its own."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=None if env is None else {**os.environ, **env},
        cwd=REPOSITORY,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes], *, timeout: float) -> int | None:
    """Wait for the exit code; None when time ran out and the group had to be killed.

    Not by Popen.wait(timeout), which looks every 50 ms only: as much as is to be measured.
    """
    ended = os.pidfd_open(process.pid)
    try:
        if select.select([ended], [], [], timeout)[0]:
            return process.wait()
        kill_group(process)
        return None
    except BaseException:
        kill_group(process)
        raise
    finally:
        os.close(ended)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and what it started; harmless when all have gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def output_of(argv: Sequence[str], *, timeout: float = 30) -> str:
    """Standard output of a short command, or "" when it is missing or fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            cwd=REPOSITORY,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def remove_tree(path: Path, *, timeout: float = 600) -> None:
    """Remove a folder this harness made, and all below it."""
    run(["rm", "-rf", "--one-file-system", str(path)], timeout=timeout)
