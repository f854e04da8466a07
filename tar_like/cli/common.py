"""Flags and outcomes that several commands share."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from tar_like import config
from tar_like.cli.output import Output, size
from tar_like.errors import FAILURE, INTERRUPTED, OK, SOURCE_TROUBLE, UsageError, counted
from tar_like.source import Begins, Source, Wanted, open_source
from tar_like.source.filters import make_filter

if TYPE_CHECKING:
    from tar_like.index import BuildSummary


class Pattern(argparse.Action):
    """Collects --exclude and --include in the order given, as gitignore lines."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:  # fmt: skip
        lines = list(getattr(namespace, "patterns", None) or [])
        lines.append(f"!{values}" if option_string == "--include" else values)
        namespace.patterns = lines


def escaped(text: str) -> str:
    """A value in a help text, where argparse takes % for its own."""
    return text.replace("%", "%%")


def add_scan_arguments(parser: argparse.ArgumentParser) -> None:
    """What to take up from the source."""
    parser.add_argument(
        "-x", dest="regexes", metavar="REGEX", action="append", default=[],
        help="leave out what matches, anywhere in the path relative to the folder (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", metavar="PATTERN", action=Pattern, dest="patterns", default=[],
        help="leave out what matches this gitignore pattern (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--include", metavar="PATTERN", action=Pattern, dest="patterns",
        help="an exception to the --exclude patterns before it",
    )  # fmt: skip
    parser.add_argument("-X", "--xattrs", action="store_true", help="extended attributes too")
    parser.add_argument("-A", "--acls", action="store_true", help="POSIX ACLs too")


def add_send_arguments(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    """How to send."""
    parser.add_argument(
        "-p", dest="processes", metavar="N", default=str(settings.processes),
        help="sending processes (default: one a core)",
    )  # fmt: skip
    parser.add_argument(
        "-s", dest="size", metavar="SIZE", default=str(settings.block_size),
        help="block size, as 16MiB, 30M or bytes (default: 8MiB)",
    )  # fmt: skip
    parser.add_argument(
        "--compress", default=settings.compress, metavar="HOW",
        help="auto (default: while it helps), lz4 or none",
    )  # fmt: skip
    parser.add_argument(
        "--checksum", action="store_true",
        help="read and compare all that may be in place, on both sides, instead of trusting times",
    )  # fmt: skip
    add_receiver_arguments(parser)


def add_receiver_arguments(parser: argparse.ArgumentParser) -> None:
    """How to trust a receiver, and be trusted by it."""
    parser.add_argument(
        "--ignore-ca", action="store_true", help="do not verify the receiver's certificate"
    )
    add_token_argument(parser, "show the receiver the token in this file")


def add_token_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Tokens are never on the command line, where others see them."""
    parser.add_argument(
        "--token-file", metavar="FILE", help=f"{what} (default: TARLIKE_TOKEN of the settings)"
    )


def tokens(options: argparse.Namespace, settings: config.Settings) -> tuple[str, ...]:
    """The tokens of the file that is named, or else of the settings. Raises UsageError."""
    return config.token_file(options.token_file or "") or settings.tokens


def trust(options: argparse.Namespace, settings: config.Settings) -> config.Trust:
    """How to deal with receivers. Raises UsageError for files that are not there."""
    for path in (settings.ca_bundle, settings.client_cert):
        if path and not os.access(path, os.R_OK):
            raise UsageError(f"The certificates {path} of the settings cannot be read.")
    return config.Trust(
        ca_bundle=settings.ca_bundle,
        verify=not options.ignore_ca,
        token=next(iter(tokens(options, settings)), ""),
        certificate=settings.client_cert,
    )


def add_durability_argument(parser: argparse.ArgumentParser, settings: config.Settings) -> None:
    """What a receiver's acknowledgements survive."""
    parser.add_argument(
        "--durability", default=settings.durability, metavar="HOW",
        help="full: what is acknowledged as durable or complete survives a power cut; process: "
        "nothing is synced, for scratch disks (default: %(default)s)",
    )  # fmt: skip


def block_size(options: argparse.Namespace, output: Output) -> int:
    """The block size asked for; says so when it had to be rounded."""
    rounded, was_rounded = config.block_size(options.size)
    if was_rounded:
        output.say(f"The block size is rounded up to {rounded} bytes, a multiple of 4096.")
    return rounded


def wanted(options: argparse.Namespace) -> Wanted:
    """What to take up from the source. Raises UsageError."""
    return Wanted(
        keep=make_filter(options.regexes, options.patterns),
        xattrs=options.xattrs,
        acls=options.acls,
    )


@contextmanager
def scanning(url: str, s3: config.S3Settings, what: Wanted) -> Iterator[Source]:
    """The source of a command that scans it, closed at the end.

    It is begun to be scanned beside the imports that follow, which take a while.
    """
    with closing(open_source(url, s3)) as source:
        if isinstance(source, Begins):
            source.begin(what)
        yield source


def say_scanned(summary: BuildSummary, output: Output) -> None:
    """What a scan found."""
    text = (
        f"{counted(summary.entries, 'entry')}, {counted(summary.files, 'file')}, "
        f"{size(summary.bytes)}"
    )
    if summary.special:
        text += f"; {summary.special} FIFOs, sockets or devices skipped"
    output.say(text + ".")


def forbid_inside(destination: str, base: str) -> None:
    """Raises UsageError when one folder lies in the other."""
    inner, outer = os.path.realpath(destination), os.path.realpath(base)
    if inner == outer:
        raise UsageError(f"The destination {destination} is the source itself.")
    if is_inside(inner, outer):
        raise UsageError(f"The destination {destination} lies inside the source {base}.")
    if is_inside(outer, inner):
        raise UsageError(f"The source {base} lies inside the destination {destination}.")


def is_inside(path: str, folder: str) -> bool:
    """Whether a path lies below a folder, wherever symlinks lead."""
    return os.path.realpath(path).startswith(os.path.realpath(folder).rstrip("/") + "/")


@contextmanager
def first_interrupt(stop: Callable[[], None], output: Output) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) calls ``stop``; the second ends the run at once."""

    def handle(*_: object) -> None:
        restore()
        output.error("Finishing the blocks in flight; Ctrl-C again stops at once.")
        stop()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def report_upload(summary: Any, output: Output) -> int:
    """Print how an upload ended; returns the exit code."""
    code = _exit_code(summary)
    output.end_progress()
    for text in summary.errors[:10]:
        output.error(text)
    if len(summary.errors) > 10:
        output.error(f"and {len(summary.errors) - 10} more errors like these.")
    if summary.failures:
        output.error(f"{counted(len(summary.failures), 'entry')} not in place as they should be:")
        output.listed([f"{failure.path}: {failure.reason}" for failure in summary.failures])
    if summary.held:
        output.error(f"Nothing was deleted: {summary.held} (--ignore-errors deletes all the same).")
    if summary.interrupted:
        output.error("Interrupted: run the same command again to go on.")
    elif summary.errors:
        output.error("Not complete: run the same command again to go on.")
    elif summary.state == "complete":
        done = "Complete and verified" if not summary.failures else "All others are in place"
        deleted = f"{counted(summary.deleted, 'name')} deleted, " if summary.deleted else ""
        passed = f"{summary.passed} passed over, " if summary.passed else ""
        output.say(
            f"{done}: {deleted}{passed}"
            f"{size(summary.bytes_sent)} in {counted(summary.blocks_sent, 'block')}, "
            f"{size(summary.wire_bytes)} on the wire, {output.seconds:.1f} s."
        )
    else:
        output.say(f"These blocks have arrived ({summary.blocks_sent} sent); others are missing.")
    return output.finish(summary.to_dict(), code)


def report_rehearsal(rehearsal: Any, output: Output) -> int:
    """Print what a dry run found; returns the exit code that the run itself would begin with."""
    code = FAILURE if any(not failure.source for failure in rehearsal.failures) else OK
    if code == OK and rehearsal.failures:
        code = SOURCE_TROUBLE
    for line in rehearsal.lines():
        output.result(line)
    output.listed([f"{failure.path}: {failure.reason}" for failure in rehearsal.failures])
    if rehearsal.held:
        output.error(f"Nothing would be deleted: {rehearsal.held}.")
    count = rehearsal.counts
    output.say(
        f"Would send {size(rehearsal.bytes_to_send)} of {counted(count['send'], 'file')}, make "
        f"{count['local']} from what is there, make {counted(count['folders'], 'folder')}, "
        f"{counted(count['symlinks'], 'symlink')} and {counted(count['links'], 'hard link')}, set "
        f"the metadata of {counted(count['metadata'], 'name')}, and delete "
        f"{counted(count['delete'], 'name')}. Nothing was changed."
    )
    rest = {"held": rehearsal.held, "failures": [one._asdict() for one in rehearsal.failures]}
    return output.finish({**rehearsal.sums(), **rehearsal.lists(), **rest}, code)


def _exit_code(summary: Any) -> int:
    if summary.interrupted:
        return INTERRUPTED
    if summary.errors or any(not failure.source for failure in summary.failures):
        return FAILURE
    return SOURCE_TROUBLE if summary.failures else OK
