"""The parser, and what happens around every command."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from tar_like import __version__
from tar_like.cli.output import Output
from tar_like.errors import FAILURE, INTERRUPTED, TarLikeError, UsageError, cause

COMMANDS = {
    "sync": "make a folder's content appear at a target, verified",
    "index": "list a folder's entries, with hashes, in an SQLite file",
    "proxy": "receive trees into a folder, over HTTP",
    "upload": "send an indexed folder to a receiver",
    "check": "compare a folder with an index, or with a bucket",
    "worker": "send blocks for others, as told through Redis",
    "status": "show how far transfers are",
    "limit": "change the bandwidth limit of a transfer while it runs",
    "expire": "remove what abandoned transfers have staged",
    "token": "make tokens and keys for receivers that ask for them",
}
"""Each has a module of its name, which is imported when it is asked for."""

EPILOG = """\
examples:
  tar-like sync /data /mnt/copy                           one command, one machine
  tar-like proxy -b /mnt/copy --host 0.0.0.0 8000         a receiver ...
  tar-like sync /data http://host:8000/tar                ... and a sender elsewhere
  tar-like index -b /data && tar-like check -b /mnt/copy  list and hash; read back and compare

'tar-like COMMAND --help' explains a command. Settings: ~/.tar_like_rc or the file that TARLIKE_RC
names, then the environment, then flags.

exit codes: 0 all done and verified; 1 failure, the same command goes on; 2 usage; 3 done, but
source entries could not be read or had changed; 4 check found differences; 130 interrupted.
"""


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message} (see '{self.prog} --help')")


class _Interrupt:
    """Ends the command, as a handler of signals; what else fails then is only what follows."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    interrupt = _Interrupt()
    words = sys.argv[1:] if argv is None else list(argv)
    output = Output(json="--json" in words, quiet="-q" in words or "--quiet" in words)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names may be any text
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, interrupt)
        return _run(words, output)
    except TarLikeError as error:
        output.error(str(error))
        return output.finish({}, error.exit_code)
    except KeyboardInterrupt:
        return _interrupted(output)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        output.error(f"{name}{cause(error)}.")
        return output.finish({}, FAILURE)
    except _database_errors() as error:
        output.error(
            f"An SQLite file is damaged or cannot be used ({error}): make it again with -c."
        )
        return output.finish({}, FAILURE)
    except Exception:
        if not interrupt.seen:
            raise
        return _interrupted(output)


def _interrupted(output: Output) -> int:
    output.error("Interrupted. Run the same command again to go on.")
    return output.finish({}, INTERRUPTED)


def _database_errors() -> tuple[type[Exception], ...]:
    """What SQLite raises, where it was used at all."""
    database = sys.modules.get("tar_like.database")
    return () if database is None else (database.DatabaseError,)


def _run(words: list[str], output: Output) -> int:
    _collect_rarely()
    parser = _make_parser(words)
    options = parser.parse_args(words)
    if options.command is None:
        raise UsageError(f"Name a command: {', '.join(COMMANDS)} (see 'tar-like --help').")
    output.command = options.command
    code = int(import_module(f"tar_like.cli.{options.command}").run(options, output))
    gc.freeze()  # the interpreter's end would look for cycles again: 25 ms of every command
    return code


def _collect_rarely() -> None:
    """Every entry is some objects that no cycle holds: looking for cycles costs 2 % of a sync."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _make_parser(words: list[str]) -> argparse.ArgumentParser:
    """The whole parser; only the command that is asked for brings its flags."""
    # A formatter is made for every flag: how wide the terminal is matters to help alone.
    width = None if {"-h", "--help"}.intersection(words) else 80
    formatter = partial(argparse.RawDescriptionHelpFormatter, width=width)
    parser = _Parser(
        prog="tar-like",
        description="Make a folder tree appear, verified, at a destination: many senders and "
        "receivers, resumable, never claiming more than is true.",
        epilog=EPILOG,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tar-like {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            formatter_class=formatter,
            allow_abbrev=False,
        )
        if name == asked:
            _add_flags(sub, name)
    return parser


def _add_flags(parser: argparse.ArgumentParser, name: str) -> None:
    from tar_like import config

    module = import_module(f"tar_like.cli.{name}")
    parser.description = module.DESCRIPTION
    module.add_arguments(parser, config.load())
    parser.add_argument("--json", action="store_true", help="one summary object on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, only errors")
