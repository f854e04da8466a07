"""``python -m tar_like.check`` is ``tar-like check``."""

import sys

from tar_like.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
