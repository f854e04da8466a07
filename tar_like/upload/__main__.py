"""``python -m tar_like.upload`` is ``tar-like upload``."""

import sys

from tar_like.cli import main

if __name__ == "__main__":
    sys.exit(main(["upload", *sys.argv[1:]]))
