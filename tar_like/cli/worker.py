"""tar-like worker"""

from __future__ import annotations

import argparse

from tar_like import config
from tar_like.cli.output import Output
from tar_like.errors import UsageError

DESCRIPTION = """\
Take ranges of blocks from Redis and send them to the receiver, on this host. Needs Redis, the
receiver, and the source: the same folder as the uploading command names, or another one (-b).
The receiver is shown the token of this host's settings if it is the one that -u or the settings
name. Workers may come and go at any time. SIGTERM or Ctrl-C: finish the block, hand back the rest,
leave; again: leave at once.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    from tar_like.cli.common import add_receiver_arguments
    from tar_like.cli.fanout import add_redis_argument

    add_redis_argument(parser, settings)
    parser.add_argument(
        "-p", dest="processes", metavar="N", default=str(settings.processes),
        help="sending processes (default: one a core)",
    )  # fmt: skip
    parser.add_argument(
        "-b", dest="base", metavar="BASE",
        help="read from here, whatever the uploading command names",
    )  # fmt: skip
    parser.add_argument(
        "-u", dest="urls", metavar="URL", action="append",
        help="send to this receiver, whatever the uploading command names (repeatable)",
    )  # fmt: skip
    parser.add_argument("--burst", action="store_true", help="leave when the queue is empty")
    parser.add_argument("--max-idle", metavar="SECONDS", help="leave after so long without work")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        default=settings.cache,
        help="where indexes and plans are kept (default: %(default)s)",
    )
    add_receiver_arguments(parser)


def run(options: argparse.Namespace, output: Output) -> int:
    from dataclasses import asdict

    from tar_like.cli.common import first_interrupt, trust
    from tar_like.errors import OK
    from tar_like.source import open_source
    from tar_like.upload.client import checked_url
    from workers.crew import Crew
    from workers.runtime import WorkerOptions

    if not options.redis:
        raise UsageError("Name the Redis to take work from: --redis redis://host:6379/0.")
    if options.base is not None:
        open_source(options.base).close()
    settings = config.load()
    urls = tuple(checked_url(url) for url in options.urls or ())
    crew = Crew(
        WorkerOptions(
            redis_url=options.redis,
            cache=options.cache,
            processes=config.count(options.processes),
            base=options.base,
            urls=urls,
            trust=trust(options, settings),
            trusted=urls or (checked_url(settings.url),),
            burst=options.burst,
            max_idle=None if options.max_idle is None else config.seconds(options.max_idle),
        ),
        output.error,
    )
    with first_interrupt(crew.stop, output):
        output.say(f"{options.processes} worker processes.")
        summary = crew.run()
    return output.finish(asdict(summary), OK)
