"""tar-like index"""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING

from tar_like import config
from tar_like.cli.output import Output

if TYPE_CHECKING:
    from tar_like.source import Source, Wanted

DESCRIPTION = """\
Write the index of a folder: every entry, with a digest of every file. An index that is there is
brought up to date: the hashes of unchanged files (size, mtime, ctime, inode) are kept. Its id goes
to stdout; the same tree has the same id. Keep the file outside the folder. The index of a bucket
has no digests unless --hash asks for them, since that reads every object.

  sqlite3 tar_like.db 'SELECT * FROM tar LIMIT 40'    shows the files in it
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.common import add_scan_arguments
    from tar_like.cli.s3 import add_s3_arguments

    parser.add_argument(
        "-b", dest="base", metavar="BASE", default=settings.base,
        help="the folder, or s3://bucket/prefix, to list (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-db", dest="db", metavar="DB", default=settings.db,
        help="the index to write (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("-c", dest="fresh", action="store_true", help="start afresh: hash all")
    parser.add_argument(
        "--hash", dest="algorithm", metavar="NAME",
        help="digest of the files: blake3 (default), sha256, md5, xxh3 or none (default for S3); "
        "an index that is there keeps its own",
    )  # fmt: skip
    parser.add_argument(
        "-j", dest="jobs", metavar="N", default=str(settings.processes),
        help="hashing processes (default: one a core)",
    )  # fmt: skip
    add_scan_arguments(parser)
    add_s3_arguments(parser)


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.cli.common import scanning, wanted
    from tar_like.cli.s3 import s3_settings

    what = wanted(options)
    with scanning(options.base, s3_settings(options, config.load()), what) as source:
        return _run(options, what, source, output)


def _run(options: argparse.Namespace, what: Wanted, source: Source, output: Output) -> int:
    from tar_like import digest
    from tar_like.cli.common import say_scanned
    from tar_like.errors import OK, SOURCE_TROUBLE, counted, shown
    from tar_like.index import BuildOptions, Index, build_index
    from tar_like.index.identity import NO_HASH

    algorithm = options.algorithm or _known_algorithm(options)
    if algorithm != NO_HASH:
        digest.hasher(algorithm)
    build = BuildOptions(
        algorithm=algorithm, fresh=options.fresh, jobs=config.count(options.jobs), wanted=what
    )
    summary = build_index(source, options.db, build)
    say_scanned(summary, output)
    output.say(
        f"{summary.added} new, {summary.changed} changed, {summary.gone} gone; "
        f"{summary.hashed} hashed, {summary.reused} hashes kept."
    )
    output.result(summary.id)
    failures = []
    if summary.unreadable:
        with Index(options.db) as index:
            failures = [
                {"path": shown(row.path), "reason": row.detail}
                for row in index.skipped()
                if row.kind != "special"
            ]
        output.error(f"{counted(len(failures), 'entry')} could not be read:")
        output.listed([f"{one['path']}: {one['reason']}" for one in failures])
    values = {**summary.to_dict(), "skipped": summary.special, "failures": failures}
    return output.finish(values, SOURCE_TROUBLE if failures else OK)


def _known_algorithm(options: argparse.Namespace) -> str:
    """That of the index which is brought up to date, if it has one; else the source's usual one."""
    from tar_like import digest
    from tar_like.errors import IndexInvalid
    from tar_like.index import Index
    from tar_like.index.identity import NO_HASH

    if not options.fresh and os.path.exists(options.db):
        with contextlib.suppress(IndexInvalid), Index(options.db) as index:  # told when it is built
            if index.algorithm != NO_HASH:
                return index.algorithm
    return NO_HASH if "://" in options.base else digest.DEFAULT
