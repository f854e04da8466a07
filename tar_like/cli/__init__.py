"""The tar-like command: one module a command. Printing and exit codes live here only.

    parse > settings > the command's run() > an exit code; an error is one sentence

Modules are imported by the command that needs them: ``--help`` answers at once.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is a command that can say a word
    from tar_like.cli.command import main as run

    return run(argv)
