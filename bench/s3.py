"""python -m bench.s3: copying out of S3, against the AWS command line and rclone.

    python -m bench.s3 --runs 3 --aws /path/to/aws --rclone /path/to/rclone --write

Every tool reads from the same server (bench.store) in the same rounds, directly and through a
relay that adds 20 ms to each request. Source and destinations are on a tmpfs.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.command import REPOSITORY, BenchError, kill_group, output_of, remove_tree, run, spawn
from bench.daemon import free_port, wait_until_listening
from bench.machine import machine_line
from bench.measure import say
from bench.report import spread, write_between
from bench.tools import tar_like_argv

DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
DELAY = 0.02
KEYS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CA_BUNDLE": "",
    "RCLONE_CONFIG": "/dev/null",
}


@dataclass(frozen=True, slots=True)
class Data:
    """A bucket's content."""

    name: str
    text: str
    count: int
    size: int
    per_folder: int


@dataclass(frozen=True, slots=True)
class Tool:
    """A command that copies {bucket} at {endpoint} to {dest}."""

    name: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What one tool took for one work, in seconds a round; empty when it failed."""

    data: Data
    delayed: bool
    tool: str
    seconds: list[float]


def main() -> int:
    options = parse()
    tools = list(chosen_tools(options))
    works = [
        Data("small", f"{options.small:,} objects of 4 KiB", options.small, 4096, 1000),
        Data("large", f"{options.large} objects of 512 MiB", options.large, 512 << 20, 1000),
    ]
    rows: list[Row] = []
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="bench-s3-", dir=options.tmpfs))
        stack.callback(remove_tree, root)
        for data in works:
            make(root / "store" / data.name, data)
        direct = stack.enter_context(server(str(root / "store")))
        delayed = stack.enter_context(server(str(direct), "--delay", str(DELAY)))
        for data in works:
            for port in (direct, delayed):
                rows += measure(tools, data, port, root, options, delayed=port == delayed)
    text = render(rows, options)
    print(text)
    if options.write:
        write_between(DOCUMENT, "bench-s3", text)
    return 1 if any(not row.seconds for row in rows) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.s3", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", type=int, default=20_000, help="small objects")
    parser.add_argument("--large", type=int, default=4, help="large objects")
    parser.add_argument("--aws", default=shutil.which("aws") or "", help="the AWS command line")
    parser.add_argument("--rclone", default=shutil.which("rclone") or "")
    parser.add_argument("--tmpfs", default="/dev/shm")
    parser.add_argument("--timeout", type=float, default=500, help="seconds for one run")
    parser.add_argument("--write", action="store_true", help="put the table in docs/benchmarks.md")
    return parser.parse_args()


def chosen_tools(options: argparse.Namespace) -> Iterator[Tool]:
    """tar-like, and the peers that are there."""
    yield Tool("tar-like sync", (*tar_like_argv(), "sync", "-q", "s3://{bucket}", "{dest}"))
    if options.aws:
        yield Tool(
            "aws s3 sync",
            (
                *(options.aws, "--endpoint-url", "{endpoint}", "s3", "sync", "--only-show-errors"),
                *("s3://{bucket}", "{dest}"),
            ),
        )
    if options.rclone:
        remote = ":s3,provider=Other,env_auth=true,force_path_style=true,endpoint='{endpoint}'"
        yield Tool("rclone copy", (options.rclone, "copy", "-q", remote + ":{bucket}", "{dest}"))
        more = ("--transfers", "32", "--use-server-modtime", "--fast-list")
        yield Tool(
            "rclone copy --transfers 32 --use-server-modtime --fast-list",
            (options.rclone, "copy", "-q", *more, remote + ":{bucket}", "{dest}"),
        )


def make(folder: Path, data: Data) -> None:
    """The objects of a bucket: bytes that do not compress."""
    pattern = os.urandom(min(data.size, 1 << 20))
    for number in range(data.count):
        parent = folder / f"{number // data.per_folder:03d}"
        parent.mkdir(parents=True, exist_ok=True)
        with open(parent / f"{number:06d}", "wb") as file:
            file.write(number.to_bytes(8, "big"))
            for start in range(8, data.size, len(pattern)):
                file.write(pattern[: data.size - start])


@contextmanager
def server(*argv: str) -> Iterator[int]:
    """bench.store on a free port."""
    port = free_port()
    process = spawn([sys.executable, "-m", "bench.store", *argv, str(port)])
    try:
        wait_until_listening(port)
        yield port
    finally:
        kill_group(process)


def measure(
    tools: list[Tool], data: Data, port: int, root: Path, options: argparse.Namespace, *,
    delayed: bool,
) -> list[Row]:  # fmt: skip
    """Rounds of all tools, each starting one further."""
    taken: dict[str, list[float]] = {tool.name: [] for tool in tools}
    failed: set[str] = set()
    for number in range(options.runs):
        first = number % len(tools)
        for tool in tools[first:] + tools[:first]:
            if tool.name in failed:
                continue
            try:
                seconds = timed(tool, data, port, root, options.timeout)
            except BenchError as error:
                say(f"  {tool.name}: FAILED: {error}")
                failed.add(tool.name)
                taken[tool.name].clear()
                continue
            taken[tool.name].append(seconds)
            say(f"  {data.name}{' delayed' if delayed else ''} {tool.name}: {seconds:.2f} s")
    return [Row(data, delayed, name, seconds) for name, seconds in taken.items()]


def timed(tool: Tool, data: Data, port: int, root: Path, timeout: float) -> float:
    """One run into an empty destination, which is compared with the source."""
    dest = Path(tempfile.mkdtemp(prefix="dest-", dir=root))
    endpoint = f"http://127.0.0.1:{port}"
    argv = [
        part.replace("{bucket}", data.name)
        .replace("{dest}", str(dest))
        .replace("{endpoint}", endpoint)
        for part in tool.argv
    ]
    env = {**KEYS, "TARLIKE_S3_ENDPOINT": endpoint}
    try:
        seconds = run(["env", "-u", "AWS_CA_BUNDLE", *argv], timeout=timeout, env=env)
        verify(root / "store" / data.name, dest, data)
    finally:
        remove_tree(dest)
    return seconds


def verify(source: Path, dest: Path, data: Data) -> None:
    """Raises BenchError unless every object is there, byte for byte."""
    for number in range(data.count):
        name = f"{number // data.per_folder:03d}/{number:06d}"
        if not (dest / name).exists() or not filecmp.cmp(source / name, dest / name, False):
            raise BenchError(f"{name} is not as it should be")


def render(rows: list[Row], options: argparse.Namespace) -> str:
    lines = [
        "| data | each request | tool | seconds | rate | against `aws s3 sync` |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in rows:
        rate = "—"
        if row.seconds:
            amount = row.data.count if row.data.size < 1 << 20 else row.data.count * row.data.size
            per_second = amount / median(row.seconds)
            small = row.data.size < 1 << 20
            rate = f"{per_second:,.0f}/s" if small else f"{per_second / (1 << 20):,.0f} MiB/s"
        delay = f"+ {DELAY * 1000:.0f} ms" if row.delayed else "as it is"
        cells = (row.data.text, delay, f"`{row.tool}`", spread(row.seconds), rate, ratio(row, rows))
        lines.append("| " + " | ".join(cells) + " |")
    versions = [
        first_line(output_of([tool, flag]))
        for tool, flag in ((options.aws, "--version"), (options.rclone, "version"))
        if tool
    ]
    lines += ["", f"{machine_line()}; {'; '.join(filter(None, versions))}.", ""]
    lines += [f"Median (min–max) of {options.runs} rounds. The last column says how many times as"]
    lines += ["fast as `aws s3 sync` a tool was, paired round by round."]
    words = ["python -m bench.s3", f"--runs {options.runs}"]
    words += [f"--{name} {getattr(options, name)}" for name in ("small", "large")]
    return "\n".join([*lines, "", f"Repeat with `{' '.join(words)}`."])


def first_line(text: str) -> str:
    return " ".join(text.split("\n")[0].split()[:2])


def ratio(row: Row, rows: list[Row]) -> str:
    """How many times as fast as the AWS command line."""
    for other in rows:
        same = (other.data, other.delayed) == (row.data, row.delayed)
        if same and other.tool == "aws s3 sync" and other is not row:
            return spread([b / a for a, b in zip(row.seconds, other.seconds, strict=False)])
    return ""


if __name__ == "__main__":
    sys.exit(main())
