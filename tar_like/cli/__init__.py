"""The tar-like command: one module a command. Printing and exit codes live here only.

    parse > settings > the command's run() > an exit code; an error is one sentence

Modules are imported by the command that needs them: ``--help`` answers at once.
"""

from tar_like.cli.command import main

__all__ = ["main"]
