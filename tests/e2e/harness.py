"""Running tar-like from outside, and holding it to what it promised.

    result = run("sync", src, dst, "--json")         # real process; exit code and no traceback
    result.summary["blocks_sent"]

    with Proxy(dst) as proxy:                        # SIGTERM and exit code 0 at the end
        run("sync", src, proxy.url)

    job = Job("upload", ...); wait_for("half of it", ...); job.kill(); job.end()

Every wait has a deadline, and says what it waited for when it fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest

from tests import trees
from tests.processes import group

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534
AS_NOBODY = (
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
"""Becomes another user who owns nothing and may change nothing, but reads the interpreter wherever
it lies: the tests' may be in root's home."""
POWERLESS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
PATIENCE = 120.0  # seconds; a deadline against hanging, not a measure of speed

T = TypeVar("T")


class ContractBroken(AssertionError):
    """tar-like did not keep what the command line promises."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    command: list[str]
    code: int
    out: bytes
    err: bytes

    @property
    def message(self) -> str:
        return self.err.decode("utf-8", "backslashreplace")

    @property
    def summary(self) -> dict[str, Any]:
        """The one JSON object that --json prints on stdout."""
        try:
            value = json.loads(self.out.decode("utf-8"))
        except ValueError as e:
            raise self._broken(f"stdout is not one JSON object ({e})") from e
        if not isinstance(value, dict):
            raise self._broken("stdout is JSON, but not an object")
        return value

    def verify(self, *codes: int) -> Result:
        """Itself, if the exit code is one of `codes` and no traceback was shown."""
        if b"Traceback" in self.err or b"Traceback" in self.out:
            raise self._broken("it printed a Traceback")
        if self.code not in codes:
            raise self._broken(f"exit code {self.code} where {codes} was right")
        return self

    def sentence(self, *words: str) -> Result:
        """Itself, if stderr is a short message that has one of `words` (regexes, any case)."""
        text = self.message.strip()
        lines = [line for line in text.splitlines() if not line.startswith(("usage:", " "))]
        if not text:
            raise self._broken("it failed without a word")
        if len(lines) > 8:
            raise self._broken(f"{len(lines)} lines where one sentence would do")
        if words and not any(re.search(word, text, re.IGNORECASE) for word in words):
            raise self._broken(f"the message has none of {words}")
        return self

    def _broken(self, why: str) -> ContractBroken:
        out = self.out.decode("utf-8", "backslashreplace")
        return ContractBroken(
            f"{why}\n$ {' '.join(self.command)}\n"
            f"--- stdout\n{out[-3000:]}\n--- stderr\n{self.message[-6000:]}"
        )


def wait_for(
    what: str,
    condition: Callable[[], T],
    *,
    seconds: float = PATIENCE,
    unless: Callable[[], object] | None = None,
) -> T:
    """The first true value of `condition`; fails after the deadline, or when `unless` is true."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if unless is not None and (reason := unless()):
            value = condition()
            assert value, f"waited for {what}, but {reason}"
            return value
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.004)


class Job:
    """A tar-like process (with its children: a process group) that runs while the test looks."""

    def __init__(
        self,
        *args: object,
        module: str = "tar_like",
        prefix: tuple[str, ...] = (),
        powers: bool = True,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        lessened = () if powers or not trees.ROOT else POWERLESS
        if lessened and not shutil.which(lessened[0]):
            pytest.skip("root needs setpriv (util-linux) to give up its power over file modes")
        self.command = [
            *prefix,
            *lessened,
            sys.executable,
            "-m",
            module,
            *(_text(arg) for arg in args),
        ]
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env=_environment(env or {}),
            cwd=cwd,
            start_new_session=True,
        )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stderr(self) -> bytes:
        """What it has printed so far (pread: the offset is shared with the child)."""
        return _contents(self._err)

    def out(self) -> bytes:
        """What it has written to stdout so far."""
        return _contents(self._out)

    def ended(self) -> str:
        """A true value once it is over, for `wait_for(unless=…)`."""
        if self.running:
            return ""
        text = self.stderr().decode("utf-8", "backslashreplace")[-4000:]
        return f"{' '.join(self.command)} ended with {self.process.returncode}:\n{text}"

    def end(self, seconds: float = PATIENCE) -> Result:
        """Wait until it ends by itself."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            so_far = self.stderr().decode("utf-8", "backslashreplace")[-4000:]
            self.kill()
            raise ContractBroken(
                f"still running after {seconds} s: {' '.join(self.command)}\n{so_far}"
            ) from None
        return Result(self.command, code, _contents(self._out), self.stderr())

    def interrupt(self) -> None:
        """Ctrl-C as a terminal sends it: to the whole group."""
        self._signal_group(signal.SIGINT)

    def kill(self, *, alone: bool = False) -> None:
        """SIGKILL to the group, or to the main process alone as `kill -9 PID` would.

        Those of the group have ended then: one that is killed may still hold a lock or a port, or
        end the call that it is in.
        """
        if alone:
            self.process.kill()
            self.process.wait(PATIENCE)
        else:
            self._signal_group(signal.SIGKILL)
            self.process.wait(PATIENCE)
            self.wait_for_members()

    def freeze(self) -> None:
        """Cut it off from everything: to others it looks like a host that is gone."""
        self._signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        """It comes back, and knows nothing of what happened."""
        self._signal_group(signal.SIGCONT)

    def wait_for_members(self) -> None:
        """Wait until no process of its group is left."""
        wait_for("the processes of a group to end", lambda: not self.members())

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill()
        self._out.close()
        self._err.close()

    def members(self) -> list[int]:
        """Processes of its group that still live (zombies do not)."""
        return group(self.process.pid)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class Proxy(Job):
    """`tar-like proxy -b DEST`; ready when constructed, ended with SIGTERM and exit code 0."""

    def __init__(self, dest: Path, *args: object, port: int = 0, cwd: Path | None = None) -> None:
        """``cwd`` may have a package of its own."""
        super().__init__("proxy", "-b", dest, "--host", "127.0.0.1", *args, port, cwd=cwd)
        try:
            match = wait_for(
                "the proxy's line `listening on http://HOST:PORT/tar`",
                lambda: re.search(rb"listening on (https?://\S+:(\d+)/tar)\b", self.stderr()),
                unless=self.ended,
            )
        except BaseException:
            self.close()
            raise
        assert match
        self.url = match[1].decode()
        self.port = int(match[2])

    def blocks(self, transfer: str) -> Blocks | None:
        """What the proxy has of a transfer; None while it does not know it."""
        try:
            status, body = get(f"{self.url}/{transfer}/blocks")
        except OSError:
            return None
        if status != 200:
            return None
        value = json.loads(body)
        return Blocks(
            total=value["blocks"],
            received=value["received"],
            durable=value["durable"],
            block_size=value["block_size"],
        )

    def stop(self) -> None:
        """SIGTERM; it must end with 0 and without a traceback."""
        if self.running:
            self.process.terminate()
        self.end().verify(0)

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None and self.process.returncode != -signal.SIGKILL:
                self.stop()
            elif kind is not None:
                print(f"--- the proxy said\n{self.stderr().decode(errors='backslashreplace')}")
        finally:
            self.close()


@dataclass(frozen=True, slots=True)
class Blocks:
    """`GET /tar/{id}/blocks` as JSON."""

    total: int
    received: int
    durable: int
    block_size: int


def run(
    *args: object,
    codes: tuple[int, ...] = (0,),
    module: str = "tar_like",
    prefix: tuple[str, ...] = (),
    powers: bool = True,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    seconds: float = PATIENCE,
) -> Result:
    """Run a tar-like command to its end; the exit code must be one of `codes`.

    Without `powers`, file modes hold for root too (it loses CAP_DAC_*).
    """
    with Job(*args, module=module, prefix=prefix, powers=powers, env=env, cwd=cwd) as job:
        return job.end(seconds).verify(*codes)


def sync(
    src: Path,
    target: object,
    *args: object,
    codes: tuple[int, ...] = (0,),
    powers: bool = True,
) -> dict[str, Any]:
    """`tar-like sync --json`, its summary held to the contract."""
    result = run("sync", src, target, "--json", *args, codes=codes, powers=powers)
    return transfer_summary(result)


def upload(
    src: Path, db: Path, url: str, *args: object, codes: tuple[int, ...] = (0,)
) -> dict[str, Any]:
    """`tar-like upload --json`, its summary held to the contract."""
    result = run("upload", "-b", src, "-db", db, "-u", url, "--json", *args, codes=codes)
    return transfer_summary(result)


def index(src: Path, db: Path, *args: object, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """`tar-like index --json`, its summary held to the contract."""
    summary = run("index", "-b", src, "-db", db, "--json", *args, codes=codes).summary
    keys = {"command", "exit_code", "seconds", "id", "entries", "files", "bytes"}
    _has(summary, keys | {"hashed", "reused", "skipped"})
    return summary


def check(
    dest: Path, db: Path, *args: object, codes: tuple[int, ...] = (0,)
) -> list[dict[str, str]]:
    """`tar-like check --json`: the differences it found."""
    result = run("check", "-b", dest, "-db", db, "--json", *args, codes=codes)
    _has(result.summary, {"command", "exit_code", "seconds", "differences", "checked"})
    found: list[dict[str, str]] = result.summary["differences"]
    for row in found:
        _has(row, {"path", "kind", "detail"})
    assert bool(found) == (result.code == 4), result
    return found


def transfer_summary(result: Result) -> dict[str, Any]:
    """The summary of sync or upload, with what must hold for every one."""
    summary = result.summary
    keys = {"command", "exit_code", "seconds", "transfer", "entries", "blocks_total"}
    _has(summary, keys | {"blocks_sent", "bytes_sent", "wire_bytes", "state", "failures"})
    assert summary["exit_code"] == result.code, summary
    assert summary["state"] in ("complete", "incomplete"), summary
    assert 0 <= summary["blocks_sent"] <= summary["blocks_total"], summary
    for row in summary["failures"]:
        _has(row, {"path", "reason"})
    if result.code == 3:
        assert summary["failures"], "exit code 3 without a name"
    return summary


def _has(summary: dict[str, Any], keys: set[str]) -> None:
    assert keys <= summary.keys(), f"missing in {summary}: {sorted(keys - summary.keys())}"


def assert_tidy(dest: Path, *, at_most: int = 1 << 20) -> None:
    """Only records remain of the staging area: it holds far less than the files did."""
    records = dest / ".tar_like"
    if records.exists():
        used = trees.allocated(records)
        assert used <= at_most, f"{used} bytes left in the staging area"
    strange = [p for p in os.listdir(dest) if p.startswith(".tar_like") and p != ".tar_like"]
    assert not strange, strange


class Watcher:
    """Looks at a destination again and again while a transfer runs.

    Every regular file that is visible must be whole: its content is one of those `allowed`
    (several trees: the new source, and perhaps what was there before).
    """

    def __init__(self, dest: Path, *allowed: Path) -> None:
        self._dest = dest
        self._allowed = [trees.visible_files(tree) for tree in allowed]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.looks = 0
        self.wrong: list[bytes] = []
        self._error: Exception | None = None

    def _watch(self) -> None:
        try:
            while not self._stop.is_set():
                if self._dest.exists():
                    self._look()
                self._stop.wait(0.01)  # leave the processor to those who are watched
        except Exception as e:  # noqa: BLE001 (raised again by the test's own thread)
            self._error = e

    def _look(self) -> None:
        for path, digest in trees.visible_files(self._dest).items():
            if digest not in [tree.get(path) for tree in self._allowed]:
                self.wrong.append(path)
        self.looks += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            if self._error:
                raise self._error
            assert not self.wrong, f"seen with partial content: {self.wrong[:10]}"
            assert self.looks, "the watcher never had a look"


class _KeepErrors(urllib.request.HTTPErrorProcessor):
    """4xx and 5xx are answers here, not exceptions."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def get(url: str) -> tuple[int, bytes]:
    """GET as JSON: status and body."""
    status, _, body = request("GET", url)
    return status, body


def request(method: str, url: str, body: bytes | None = None) -> tuple[int, str, bytes]:
    """One request: status, content type and body. OSError when nobody answers."""
    question = urllib.request.Request(
        url, data=body, method=method, headers={"Accept": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _KeepErrors())
    with opener.open(question, timeout=PATIENCE) as response:
        return response.status, response.headers.get("Content-Type", ""), response.read()


def payload(root: Path, *, files: int = 24, size: int = 512 * 1024, seed: int = 0) -> int:
    """Incompressible files enough to keep a transfer busy; returns their bytes."""
    random_bytes = random.Random(f"payload {seed}")
    total = 0
    for number in range(files):
        folder = root / f"payload-{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        data = random_bytes.randbytes(size // 2 + random_bytes.randrange(size))
        (folder / f"{number:03}.bin").write_bytes(data)
        total += len(data)
    return total


def _contents(file: Any) -> bytes:
    fd = file.fileno()
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _text(arg: object) -> str:
    return os.fsdecode(arg) if isinstance(arg, bytes | os.PathLike) else str(arg)


def _environment(extra: dict[str, str]) -> dict[str, str]:
    """The user's environment without what would steer tar-like or the HTTP client."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("TAR_LIKE") and not name.lower().endswith("_proxy")
    }
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), kept.get("PYTHONPATH"))))
    kept["HOME"] = "/nonexistent"
    return kept | extra
