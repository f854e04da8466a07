"""tar-like check"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tar_like import config
from tar_like.cli.output import Output
from tar_like.errors import UsageError, counted

if TYPE_CHECKING:
    from tar_like.check import Difference

DESCRIPTION = """\
Read a folder back and name what differs from an index: missing, type, size, content; with flags
also extra names and metadata. It believes nothing but the index, and needs no receiver. With -f
and -l only the files that have bytes in these blocks (both included) of the whole tree are checked.
With --against s3://bucket/prefix it is the bucket that is believed: names, sizes, and content where
an object's ETag tells (MD5s and multipart ETags); where it does not, that is said.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.s3 import add_s3_arguments

    parser.add_argument(
        "-b", dest="base", metavar="DEST", default=settings.base,
        help="the folder to check (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-db", dest="db", metavar="DB", default=settings.db,
        help="an index with hashes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="URL", help="compare with s3://bucket/prefix instead of an index"
    )
    parser.add_argument("--extra", action="store_true", help="names that are not in the index, too")
    parser.add_argument(
        "--metadata",
        action="store_true",
        help="modes, times, owners and hard links, too; attributes where the index has them",
    )
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
    add_s3_arguments(parser)


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.check import CheckOptions, Difference, check
    from tar_like.cli.common import block_size
    from tar_like.errors import DIFFERENT, OK
    from tar_like.index import Index
    from tar_like.source import open_source

    if options.against:
        return _against(options, output)
    first, last = config.block_range(options.first, options.last)
    byte_range = None
    if first is not None or last is not None:
        size = block_size(options, output)
        byte_range = ((first or 0) * size, (1 << 62) if last is None else (last + 1) * size)
    found: list[dict[str, str]] = []
    checked = 0
    source = open_source(options.base)
    wanted = CheckOptions(
        jobs=config.count(options.jobs),
        extra=options.extra,
        metadata=options.metadata,
        byte_range=byte_range,
    )
    with Index(options.db) as index:
        if byte_range is not None and byte_range[0] >= max(1, index.length):
            raise UsageError(f"There is no block {first}: the archive has {index.length} bytes.")
        for item in check(index, source, options.base, wanted):
            if not isinstance(item, Difference):
                checked += 1
                continue
            found.append(_told(item, output))
    source.close()
    if found:
        output.error(f"{counted(len(found), 'difference')} in {counted(checked, 'entry')}.")
    else:
        output.say(f"{counted(checked, 'entry')} compared: all is as the index says.")
    return output.finish({"checked": checked, "differences": found}, DIFFERENT if found else OK)


def _told(item: Difference, output: Output) -> dict[str, str]:
    """A difference as a line, and for the summary."""
    from tar_like.errors import shown

    path = shown(item.path) or "."
    output.result(f"{item.kind}: {path}" + (f" ({item.detail})" if item.detail else ""))
    return {"path": path, "kind": item.kind, "detail": item.detail}


def _against(options: argparse.Namespace, output: Output) -> int:
    """Compare with a bucket."""
    from tar_like.check import CheckOptions, Difference, check_against
    from tar_like.cli.s3 import s3_settings
    from tar_like.errors import DIFFERENT, OK, UsageError, shown
    from tar_like.source import open_source
    from tar_like.source.s3 import S3Source

    if not options.against.startswith("s3://"):
        raise UsageError("--against takes s3://bucket/prefix; folders are compared by an index.")
    if options.metadata or options.first is not None or options.last is not None:
        raise UsageError("--metadata, -f and -l do not go with --against.")
    remote = S3Source(options.against, s3_settings(options, config.load()))
    local = open_source(options.base)
    wanted = CheckOptions(jobs=config.count(options.jobs), extra=options.extra)
    found: list[dict[str, str]] = []
    unverified: list[str] = []
    checked = 0
    for item in check_against(remote, local, wanted):
        checked += 1
        if isinstance(item, Difference):
            found.append(_told(item, output))
        elif not item.verified:
            unverified.append(shown(item.path))
    remote.close()
    local.close()
    if unverified:
        output.say(f"Only the size could be compared of {counted(len(unverified), 'object')}:")
        output.listed(unverified)
    if found:
        output.error(f"{counted(len(found), 'difference')} in {counted(checked, 'entry')}.")
    else:
        output.say(f"{counted(checked, 'entry')} compared: all is as the bucket says.")
    values = {"checked": checked, "differences": found, "unverified": unverified}
    return output.finish(values, DIFFERENT if found else OK)
