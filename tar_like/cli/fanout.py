"""Flags and steps of the commands that hand their work to workers through Redis."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from tar_like import config
from tar_like.cli.output import Output
from tar_like.errors import OK, UsageError

if TYPE_CHECKING:
    from tar_like.upload.dispatch import Dispatcher, UploadOptions


def add_redis_argument(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    """Where the work is handed out."""
    parser.add_argument(
        "--redis", dest="redis", metavar="URL", default=settings.redis_url,
        help="hand the work to 'tar-like worker' processes through this Redis",
    )  # fmt: skip


def add_fanout_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    """How the sending commands use workers."""
    add_redis_argument(parser, settings)
    parser.add_argument(
        "--detach", action="store_true",
        help="with --redis: go on in the background; 'tar-like status --redis' follows it",
    )  # fmt: skip
    parser.add_argument(
        "--limit", metavar="RATE", default="0",
        help="bytes a second that all senders together may use, as 200M (default: no limit)",
    )  # fmt: skip


def check(options: argparse.Namespace, upload: UploadOptions) -> UploadOptions:
    """The options as workers need them. Raises UsageError for what does not go together."""
    if not options.redis:
        if options.detach:
            raise UsageError("--detach needs --redis: workers do the work meanwhile.")
        return upload
    if upload.ignore_done:
        raise UsageError("--ignore-done does not go with --redis: workers send what is missing.")
    return upload


def dispatcher(options: argparse.Namespace, upload: UploadOptions) -> Dispatcher | None:
    """Who sends the blocks; None for this machine's own processes. Raises TarLikeError."""
    if not options.redis:
        return None
    from workers.queue import RedisDispatcher

    return RedisDispatcher(upload, options.redis)


def detach(options: argparse.Namespace, transfer: str, output: Output) -> int | None:
    """Go on in the background: the exit code for the foreground, None in the background.

    Raises RedisGone while there is somebody to see it.
    """
    from workers.link import connect, greet

    greet(connect(options.redis), options.redis)
    settings = config.load()
    os.makedirs(settings.cache, mode=0o700, exist_ok=True)
    log = os.path.join(settings.cache, f"{transfer[:16]}.log")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        output.result(f"{transfer}")
        output.say(
            f"It goes on as process {pid}; follow it with 'tar-like status --redis …'; it "
            f"writes to {log}."
        )
        return output.finish({"transfer": transfer, "pid": pid, "log": log}, OK)
    os.setsid()
    _redirect(log)
    return None


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(nothing)
    os.close(file)
