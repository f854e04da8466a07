"""``python -m tar_like`` is the ``tar-like`` command."""

import sys

from tar_like.cli import main

if __name__ == "__main__":
    sys.exit(main())
