"""tar-like expire"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from tar_like import config
from tar_like.cli.output import Output, size
from tar_like.errors import UsageError

DESCRIPTION = """\
Remove the staging of transfers into DEST that were begun and, for so long, not gone on with. What
they have staged would be sent again. A transfer that is alive is left alone, whichever proxy on
whichever host serves it; so are the files of DEST. 'tar-like proxy --expire' does it by itself.
"""


def add_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    parser.add_argument(
        "-b", dest="base", metavar="DEST", default=settings.base,
        help="the folder that was received into (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--older", metavar="AGE", default="7d",
        help="how long nothing must have happened, as 7d, 12h or 30m (default: %(default)s)",
    )  # fmt: skip


def run(options: argparse.Namespace, output: Output) -> int:
    from tar_like.errors import OK
    from tar_like.proxy.expire import expire
    from tar_like.proxy.place import Destination

    older = config.age(options.older)
    destination = Destination(options.base)
    if not os.path.isdir(destination.home):
        raise UsageError(f"Nothing was received into {options.base}: it has no folder .tar_like.")
    destination.prepare()
    removed = expire(destination, older)
    for one in removed:
        output.result(f"{one.id[:16]}  {size(one.bytes)}, idle for {one.idle // 60} minutes")
    output.say(f"{len(removed)} abandoned transfers removed.")
    return output.finish({"expired": [asdict(one) for one in removed]}, OK)
