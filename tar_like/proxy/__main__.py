"""``python -m tar_like.proxy`` is ``tar-like proxy``."""

import sys

from tar_like.cli import main

if __name__ == "__main__":
    sys.exit(main(["proxy", *sys.argv[1:]]))
