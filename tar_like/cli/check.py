"""tar-like check"""

from __future__ import annotations

import argparse

from tar_like import config
from tar_like.cli.output import Output

HELP = "compare a folder with an index"
DESCRIPTION = """\
Read a folder back and name what differs from an index: missing, type, size, content; with flags
also extra names and metadata. It believes nothing but the index, and needs no receiver. With -f
and -l only the files that have bytes in these blocks (both included) of the whole tree are checked.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    parser.add_argument(
        "-b", dest="base", metavar="DEST", default=settings.base,
        help="the folder to check (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-db", dest="db", metavar="DB", default=settings.db,
        help="an index with hashes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--extra", action="store_true", help="names that are not in the index, too")
    parser.add_argument("--metadata", action="store_true", help="modes, times and owners, too")
    parser.add_argument(
        "-j", dest="jobs", metavar="N", default=str(settings.processes),
        help="hashing processes (default: one a core)",
    )  # fmt: skip
    parser.add_argument(
        "-s", dest="size", metavar="SIZE", default=str(settings.block_size),
        help="block size that -f and -l count in",
    )  # fmt: skip
    parser.add_argument("-f", dest="first", metavar="N", help="first block to check")
    parser.add_argument("-l", dest="last", metavar="N", help="last block to check, included")


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.check import CheckOptions, Difference, check
    from tar_like.cli.common import block_size
    from tar_like.errors import DIFFERENT, OK, shown
    from tar_like.index import Index
    from tar_like.source import open_source

    first, last = config.block_range(options.first, options.last)
    byte_range = None
    if first is not None or last is not None:
        size = block_size(options, output)
        byte_range = ((first or 0) * size, (1 << 62) if last is None else (last + 1) * size)
    found = []
    checked = 0
    source = open_source(options.base)
    wanted = CheckOptions(
        jobs=config.count(options.jobs),
        extra=options.extra,
        metadata=options.metadata,
        byte_range=byte_range,
    )
    with Index(options.db) as index:
        for item in check(index, source, options.base, wanted):
            if not isinstance(item, Difference):
                checked += 1
                continue
            path = shown(item.path) or "."
            found.append({"path": path, "kind": item.kind, "detail": item.detail})
            output.result(f"{item.kind}: {path}" + (f" ({item.detail})" if item.detail else ""))
    source.close()
    if found:
        output.error(f"{len(found)} differences in {checked} entries.")
    else:
        output.say(f"{checked} entries are as the index says.")
    return output.finish({"checked": checked, "differences": found}, DIFFERENT if found else OK)
