"""python -m bench: measure, print the table, exit 1 if anything failed or copied wrongly."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from bench.command import REPOSITORY, remove_tree
from bench.daemon import rsync_daemon
from bench.data import Inventory, make_big_files, take_inventory
from bench.machine import filesystem, machine_line
from bench.measure import Measured, Measurer, Place, say
from bench.report import Result, notes, seconds_of, spread, table, write_between
from bench.works import WORKS, Where, Work

DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
SPARE = 1.3  # room a destination needs, relative to the data
REMOVED = ".removed"  # touched when destinations were removed
REMOVED_SECONDS = 300  # ext4 without a journal creates files slowly for so long after that


def main() -> int:
    options = parse()
    if options.tool:
        os.environ["BENCH_TARLIKE"] = options.tool
    works = chosen_works(options)
    with places(options) as by_name:
        results = [r for work in works if (r := measure(work, by_name[work.where], options))]
    text = render(results, options)
    print(text)
    if options.write:
        write_between(DOCUMENT, "bench", text)
    if options.json:
        Path(options.json).write_text(raw(results))
    return 1 if any(result.measured.failed for result in results) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    keys = ", ".join(work.key for work in WORKS)
    parser.add_argument("--src", default="/usr/share", help="tree of small files, only read")
    parser.add_argument("--work", default="/var/tmp/tar-like-bench", help="folder on a disk")
    parser.add_argument("--tmpfs", default="/dev/shm", help="folder on a tmpfs")
    parser.add_argument("--runs", type=int, default=5, help="rounds of each work (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round of each small work")
    parser.add_argument("--only", action="append", metavar="WORK", help=f"repeatable; of {keys}")
    parser.add_argument("--peers-only", action="store_true", help="leave tar-like out")
    parser.add_argument("--tool", help="run this as tar-like (also $BENCH_TARLIKE)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run")
    parser.add_argument("--json", metavar="FILE", help="write the raw times")
    parser.add_argument("--write", action="store_true", help="put the table in docs/benchmarks.md")
    return parser.parse_args()


def chosen_works(options: argparse.Namespace) -> list[Work]:
    known = [work.key for work in WORKS]
    if unknown := set(options.only or ()) - set(known):
        sys.exit(f"No work is called {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
    chosen = [work for work in WORKS if not options.only or work.key in options.only]
    return [work for work in chosen if work.data == "small" or not options.quick]


@contextmanager
def places(options: argparse.Namespace) -> Iterator[dict[Where, Place]]:
    """A folder on tmpfs and one on disk, served by one daemon, and gone afterwards."""
    Path(options.work).mkdir(parents=True, exist_ok=True)
    warn_of_removed(Path(options.work))
    disk = Path(tempfile.mkdtemp(prefix="bench-", dir=options.work))
    tmpfs = Path(tempfile.mkdtemp(prefix="bench-", dir=options.tmpfs))
    try:
        with rsync_daemon({"disk": disk, "tmpfs": tmpfs}, folder=disk) as url:
            yield {
                "disk": Place(disk, f"{url}/disk", durable=True),
                "tmpfs": Place(tmpfs, f"{url}/tmpfs", durable=False),
            }
    finally:
        remove_tree(tmpfs)
        if any(disk.glob("bench-dest-*")):
            (Path(options.work) / REMOVED).touch()
        remove_tree(disk)


def warn_of_removed(work: Path) -> None:
    with suppress(FileNotFoundError):
        ago = time.time() - (work / REMOVED).stat().st_mtime
        if ago < REMOVED_SECONDS:
            say(f"Note: {ago:.0f} s ago a benchmark removed its destinations. On ext4 without a")
            say(f"journal that slows the disk rows for {REMOVED_SECONDS} s; wait, or leave them.")


def measure(work: Work, place: Place, options: argparse.Namespace) -> Result | None:
    """One work, or None when it does not fit the destination."""
    source = Path(options.src) if work.data == "small" else make_big_files(Path(options.work))
    source = source.resolve(strict=True)
    inventory = take_inventory(source, read=True)
    runs = 1 if options.quick else options.runs
    kept = runs * len(work.tools()) if place.durable else 1
    if not fits(inventory, place, copies=kept):
        say(f"{work.key}: skipped, {place.root} has too little room for {kept} × {inventory}.")
        return None
    say(f"{work.key}: {inventory}, {runs} rounds")
    tools = [tool for tool in work.tools() if not (options.peers_only and is_ours(work, tool.name))]
    measured = Measurer(source, inventory, place, options.timeout).rounds(tools, runs=runs)
    for tool in tools:
        summary = spread(seconds_of(measured, tool.name, flushed=False))
        flushed = spread(seconds_of(measured, tool.name, flushed=True))
        say(f"  = {tool.name}: {summary}" + (f", flushed {flushed}" if place.durable else ""))
    return Result(work, inventory, filesystem(place.root), measured)


def is_ours(work: Work, name: str) -> bool:
    return any(row.subject.name == name for row in work.comparisons)


def fits(inventory: Inventory, place: Place, *, copies: int) -> bool:
    return shutil.disk_usage(place.root).free > copies * inventory.size * SPARE


def render(results: list[Result], options: argparse.Namespace) -> str:
    """The table with its machine line, its notes and the command that repeats it."""
    lines = [table(results), f"{machine_line()}.", ""]
    rounds = 1 if options.quick else options.runs
    lines += [f"Median (min–max) of {rounds} rounds; ratios are paired round by round."]
    lines += notes(results)
    return "\n".join([*lines, "", f"Repeat with `{repeat_command(options)}`."])


def repeat_command(options: argparse.Namespace) -> str:
    words = ["python -m bench"]
    words += ["--quick"] if options.quick else [f"--runs {options.runs}"]
    words += [f"--only {key}" for key in options.only or ()]
    words += ["--peers-only"] if options.peers_only else []
    return " ".join(words)


def raw(results: list[Result]) -> str:
    return json.dumps(
        {
            "machine": machine_line(),
            "works": [
                {
                    "work": result.work.key,
                    "data": asdict(result.inventory),
                    "filesystem": result.filesystem,
                    **_raw_times(result.measured),
                }
                for result in results
            ],
        },
        indent=2,
    )


def _raw_times(measured: Measured) -> dict[str, object]:
    samples = {name: [asdict(s) for s in taken] for name, taken in measured.samples.items()}
    return {"samples": samples, "skipped": measured.skipped, "failed": measured.failed}


if __name__ == "__main__":
    sys.exit(main())
