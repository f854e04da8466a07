"""tar-like limit"""

from __future__ import annotations

import argparse

from tar_like import config
from tar_like.cli.output import Output, size
from tar_like.errors import UsageError

HELP = "change the bandwidth limit of a transfer while it runs"
DESCRIPTION = """\
Set how many bytes a second all workers of a transfer together may put on the wire; 0 is no limit.
Without --transfer (the first digits of its id are enough) it holds for all that are being sent
through this Redis. Workers keep to it within two seconds.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.fanout import add_redis_argument

    parser.add_argument("rate", metavar="RATE", help="bytes a second, as 200M or 50MiB; 0 is none")
    parser.add_argument("--transfer", metavar="ID", help="only this transfer")
    add_redis_argument(parser, settings)


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.errors import OK
    from workers.progress import change_limit

    if not options.redis:
        raise UsageError("Name the Redis that hands out the work: --redis redis://host:6379/0.")
    rate = config.size(options.rate)
    found = change_limit(options.redis, options.transfer or "", rate)
    if not found:
        raise UsageError("No such transfer is being sent through this Redis.")
    for transfer in found:
        output.result(f"{transfer[:16]}  {size(rate) + '/s' if rate else 'no limit'}")
    return output.finish({"transfers": found, "limit": rate}, OK)
