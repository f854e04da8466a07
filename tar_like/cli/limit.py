"""tar-like limit"""

from __future__ import annotations

import argparse

from tar_like import config
from tar_like.cli.output import Output, size
from tar_like.errors import UsageError

DESCRIPTION = """\
Set how many bytes a second all senders of a transfer together may put on the wire; 0 is no limit.
With --redis that is for transfers that go through this Redis, otherwise for your runs on this
machine that were started with --limit. Without --transfer (the first digits of its id are enough)
it holds for all of them. Senders keep to it within two seconds.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.fanout import add_redis_argument

    parser.add_argument("rate", metavar="RATE", help="bytes a second, as 200M or 50MiB; 0 is none")
    parser.add_argument("--transfer", metavar="ID", help="only this transfer")
    add_redis_argument(parser, settings)


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.errors import OK
    from tar_like.upload.dial import turn
    from workers.progress import change_limit

    rate, transfer = config.size(options.rate), options.transfer or ""
    if options.redis:
        found = change_limit(options.redis, transfer, rate)
    else:
        found = turn(config.load().dials, transfer, rate)
    if not found:
        where = "through this Redis" if options.redis else "with a --limit from this machine"
        raise UsageError(f"No such transfer is being sent {where}.")
    for transfer in found:
        output.result(f"{transfer[:16]}  {size(rate) + '/s' if rate else 'no limit'}")
    return output.finish({"transfers": found, "limit": rate}, OK)
