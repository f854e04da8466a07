"""tar-like upload"""

from __future__ import annotations

import argparse
import os

from tar_like import config
from tar_like.cli.output import Output

DESCRIPTION = """\
Offer an index to a receiver, send the blocks that it lacks, and have it commit. Whatever ended an
earlier run, the same command goes on with what is missing. What has changed since the index was
made is named and not sent. With -f and -l only these blocks (both included) are sent; the receiver
commits when no block is missing any more. The block size is settled by the first run of a transfer.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.common import add_send_arguments, escaped
    from tar_like.cli.fanout import add_fanout_arguments
    from tar_like.cli.s3 import add_s3_arguments

    parser.add_argument(
        "-b", dest="base", metavar="BASE", default=settings.base,
        help="the folder to read from (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-db", dest="db", metavar="DB", default=settings.db,
        help="its index, made by 'tar-like index' (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("-dbp", dest="record", metavar="DB", help="keep a record of what was sent")
    parser.add_argument(
        "-u", dest="urls", metavar="URL", action="append",
        help=f"the receiver (default {escaped(settings.url)}); "
        "several of one destination share the work",
    )  # fmt: skip
    add_send_arguments(parser, settings)
    add_fanout_arguments(parser, settings)
    add_s3_arguments(parser)
    parser.add_argument(
        "--use-s3", action="store_true",
        help="read from TARLIKE_S3_BUCKET and TARLIKE_S3_PFX of the settings",
    )  # fmt: skip
    parser.add_argument("-f", dest="first", metavar="N", help="first block to send")
    parser.add_argument("-l", dest="last", metavar="N", help="last block to send, included")
    parser.add_argument(
        "--ignore-done", action="store_true", help="send blocks that the receiver has, too"
    )


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.cli import fanout
    from tar_like.cli.common import block_size, first_interrupt, report_upload, trust
    from tar_like.cli.s3 import s3_settings
    from tar_like.index import Index
    from tar_like.source import open_source
    from tar_like.upload.client import checked_url
    from tar_like.upload.dispatch import UploadOptions
    from tar_like.upload.run import Upload

    settings = config.load()
    s3 = s3_settings(options, settings)
    if options.use_s3:
        options.base = s3.url
    first, last = config.block_range(options.first, options.last)
    upload = fanout.check(
        options,
        UploadOptions(
            source=options.base if "://" in options.base else os.path.abspath(options.base),
            index_path=options.db,
            urls=tuple(checked_url(url) for url in options.urls or [settings.url]),
            block_size=block_size(options, output),
            processes=config.count(options.processes),
            first=first,
            last=last,
            ignore_done=options.ignore_done,
            compress=config.compression(options.compress),
            checksum=options.checksum,
            trust=trust(options, settings),
            record=options.record,
            limit=config.size(options.limit),
            dials=settings.dials,
            s3=s3,
        ),
    )
    open_source(options.base, s3).close()
    if options.detach:
        with Index(options.db) as index:
            transfer = index.id
        code = fanout.detach(options, transfer, output)
        if code is not None:
            return code
    run = Upload(upload, output, fanout.dispatcher(options, upload))
    with first_interrupt(run.stop, output):
        summary = run.run()
    return report_upload(summary, output)
