"""``python -m tar_like.index`` is ``tar-like index``."""

import sys

from tar_like.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
